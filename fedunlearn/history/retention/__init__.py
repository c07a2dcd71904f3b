"""Which rounds and which clients' updates a history keeps.

==============  ====================================================  ============
name            what stays                                            enough for
==============  ====================================================  ============
all             everything                                            every method
every:k         rounds first, first + k, ..., whole                   FedEraser
last:k          the k newest rounds, whole
sums            a running sum of share times update per client        subtraction
sensitivities   all broadcasts and how far each client moved them     SIFU
crab:a,r,c      share c of the updates in share r of the rounds       Crab
==============  ====================================================  ============

The broadcast of the first recorded round stays in any case: retraining starts from it.
Who took part when and with how many examples stays as well.
"""

from collections.abc import Callable
from typing import Final

from fedunlearn.history.retention.crab import (
    Crab,
    divergence,
    loss_of,
    similarities,
)
from fedunlearn.history.retention.keep import NOTHING, Keep, Retention
from fedunlearn.history.retention.policies import (
    All,
    Every,
    Last,
    Sensitivities,
    Sums,
)
from fedunlearn.history.spec import named

RETENTIONS: Final[dict[str, Callable[..., Retention]]] = {
    "all": All,
    "every": Every,
    "last": Last,
    "sums": Sums,
    "sensitivities": Sensitivities,
    "crab": Crab,
}


def retention(name: str) -> Retention:
    """Return the policy called ``name``, such as ``all`` or ``every:2``.

    Raises:
        UnknownNameError: If there is none.
        ConfigError: If a number is missing, superfluous or out of range.
    """
    return named("retention", name, RETENTIONS)


__all__ = [
    "NOTHING",
    "RETENTIONS",
    "All",
    "Crab",
    "Every",
    "Keep",
    "Last",
    "Retention",
    "Sensitivities",
    "Sums",
    "divergence",
    "loss_of",
    "retention",
    "similarities",
]
