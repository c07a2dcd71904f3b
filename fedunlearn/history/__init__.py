"""What the server remembers about past rounds."""

from fedunlearn.history.disk import DiskHistory
from fedunlearn.history.erase import Erasure
from fedunlearn.history.keys import forget_keys
from fedunlearn.history.memory import InMemoryHistory
from fedunlearn.history.record import (
    ArraysInMemory,
    Broadcasts,
    ClientId,
    Counts,
    DifferencesInMemory,
    Kept,
    RoundArrays,
    RoundRecord,
    ServerState,
    SetAside,
    Tip,
)
from fedunlearn.history.update_history import (
    Holdings,
    UpdateHistory,
    first_round_of,
    records,
)

__all__ = [
    "ArraysInMemory",
    "Broadcasts",
    "ClientId",
    "Counts",
    "DifferencesInMemory",
    "DiskHistory",
    "Erasure",
    "Holdings",
    "InMemoryHistory",
    "Kept",
    "RoundArrays",
    "RoundRecord",
    "ServerState",
    "SetAside",
    "Tip",
    "UpdateHistory",
    "first_round_of",
    "forget_keys",
    "records",
]
