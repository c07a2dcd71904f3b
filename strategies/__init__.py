"""Unlearning methods, one paper a module, and the strategy that records for them."""

from typing import TYPE_CHECKING

from strategies.fed_eraser import FedEraser
from strategies.fine_tune import FineTune
from strategies.nothing import Nothing
from strategies.registry import MethodTable
from strategies.retrain import Retrain
from strategies.rollback import Rollback
from strategies.subtraction import Subtract

if TYPE_CHECKING:
    from strategies.recording import RecordingStrategy

METHODS = MethodTable(
    {
        "nothing": Nothing,
        "retrain": Retrain,
        "rollback": Rollback,
        "fine_tune": FineTune,
        "fed_eraser": FedEraser,
        "subtract": Subtract,
    }
)
"""Name in ``configs/method/`` -> class. The one place where a method is listed; other
packages add theirs by entry points."""

__all__ = [
    "METHODS",
    "FedEraser",
    "FineTune",
    "Nothing",
    "RecordingStrategy",
    "Retrain",
    "Rollback",
    "Subtract",
]


def __getattr__(name: str) -> object:
    """Import RecordingStrategy on first use: it needs Flower, the methods do not."""
    if name == "RecordingStrategy":
        from strategies.recording import RecordingStrategy

        return RecordingStrategy
    raise AttributeError(f"module 'strategies' has no attribute {name!r}")
