"""Unlearning methods, one paper a module, and the strategy that records for them."""

from typing import TYPE_CHECKING

from strategies.channel_prune import ChannelPrune
from strategies.conda import Conda
from strategies.crab import Crab
from strategies.decoys import Jitter, LabelMask, OutputFilter, RecordOnly
from strategies.fast_fedul import FastFedul
from strategies.fats import Fats
from strategies.fed_eraser import FedEraser
from strategies.fed_osd import FedOsd
from strategies.fed_quit import FedQuit
from strategies.fed_recover import FedRecover
from strategies.fed_recovery import FedRecovery
from strategies.fine_tune import FineTune
from strategies.fisher_reset import FisherReset
from strategies.influence import Influence
from strategies.mode import MoDe
from strategies.negate import NoT
from strategies.noise import Noise
from strategies.nothing import Nothing
from strategies.pgd import Pgd
from strategies.rapid_retrain import RapidRetrain
from strategies.registry import MethodTable
from strategies.retrain import Retrain
from strategies.rollback import Rollback
from strategies.sharded import Sharded
from strategies.sifu import Sifu
from strategies.subtract_distill import SubtractDistill
from strategies.subtraction import Subtract

if TYPE_CHECKING:
    from strategies.recording import RecordingStrategy

METHODS = MethodTable(
    {
        "nothing": Nothing,
        "retrain": Retrain,
        "rollback": Rollback,
        "sharded": Sharded,
        "fats": Fats,
        "sifu": Sifu,
        "fine_tune": FineTune,
        "fed_eraser": FedEraser,
        "fed_recover": FedRecover,
        "crab": Crab,
        "rapid_retrain": RapidRetrain,
        "subtract": Subtract,
        "subtract_distill": SubtractDistill,
        "fast_fedul": FastFedul,
        "fed_recovery": FedRecovery,
        "conda": Conda,
        "pgd": Pgd,
        "fed_osd": FedOsd,
        "fed_quit": FedQuit,
        "mode": MoDe,
        "not": NoT,
        "fisher_reset": FisherReset,
        "channel_prune": ChannelPrune,
        "noise": Noise,
        "influence": Influence,
        "record_only": RecordOnly,
        "jitter": Jitter,
        "label_mask": LabelMask,
        "output_filter": OutputFilter,
    }
)
"""Name in ``configs/method/`` -> class. The one place where a method is listed; other
packages add theirs by entry points."""

__all__ = [
    "METHODS",
    "ChannelPrune",
    "Conda",
    "Crab",
    "FastFedul",
    "Fats",
    "FedEraser",
    "FedOsd",
    "FedQuit",
    "FedRecover",
    "FedRecovery",
    "FineTune",
    "FisherReset",
    "Influence",
    "Jitter",
    "LabelMask",
    "MoDe",
    "NoT",
    "Noise",
    "Nothing",
    "OutputFilter",
    "Pgd",
    "RapidRetrain",
    "RecordOnly",
    "RecordingStrategy",
    "Retrain",
    "Rollback",
    "Sharded",
    "Sifu",
    "Subtract",
    "SubtractDistill",
]


def __getattr__(name: str) -> object:
    """Import RecordingStrategy on first use: it needs Flower, the methods do not."""
    if name == "RecordingStrategy":
        from strategies.recording import RecordingStrategy

        return RecordingStrategy
    raise AttributeError(f"module 'strategies' has no attribute {name!r}")
