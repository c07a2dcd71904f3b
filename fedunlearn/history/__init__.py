"""What the server remembers about past rounds."""

from fedunlearn.history.disk import DiskHistory
from fedunlearn.history.memory import InMemoryHistory
from fedunlearn.history.record import (
    ArraysInMemory,
    Broadcasts,
    ClientId,
    Counts,
    Kept,
    RoundArrays,
    RoundRecord,
    SetAside,
    UpdateHistory,
    first_round_of,
    records,
)

__all__ = [
    "ArraysInMemory",
    "Broadcasts",
    "ClientId",
    "Counts",
    "DiskHistory",
    "InMemoryHistory",
    "Kept",
    "RoundArrays",
    "RoundRecord",
    "SetAside",
    "UpdateHistory",
    "first_round_of",
    "records",
]
