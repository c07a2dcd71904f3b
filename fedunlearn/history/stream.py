"""Sums over a history of any length, with a round of it in memory at most."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from fedunlearn.history.record import ClientId, RoundRecord
from fedunlearn.history.update_history import UpdateHistory, records
from fedunlearn.params import Vector

Weights = Callable[[RoundRecord], Mapping[ClientId, float]]
"""Whose updates of a round are added and by what factor; nobody else's are read."""

_BLOCK_BYTES = 2 << 20
"""Authenticated, then added, while they are in the processor's cache."""


def weighted_sum(history: UpdateHistory, weights: Weights) -> npt.NDArray[np.float64]:
    """Return ``sum_t sum_k weights(t)[k] * Delta_k^t``, shape ``(P,)``.

    Terms of a round are float32 and added by ascending client, as
    :func:`fedunlearn.params.weighted_mean` does; rounds are added in float64, oldest
    first. Updates are read, and authenticated, a few at a time, so that memory grows
    neither with the number of rounds nor with that of clients.

    Args:
        history: The history.
        weights: Called once a round, such as ``lambda r: {7: -r.share_of(7)}``.

    Raises:
        HistoryError: If an update that is asked for is not held, or is damaged.
    """
    total = np.zeros(history.layout.size, np.float64)
    for record in records(history):
        if factors := weights(record):
            total += _round_sum(record, factors, history.layout.size)
    return total


def _round_sum(
    record: RoundRecord, factors: Mapping[ClientId, float], size: int
) -> Vector:
    clients = sorted(factors)
    at_once = max(1, _BLOCK_BYTES // max(1, 4 * size))
    out, term = np.zeros(size, np.float32), np.empty(size, np.float32)
    for first in range(0, len(clients), at_once):
        block = clients[first : first + at_once]
        for client, update in zip(block, record.updates_of(block), strict=True):
            np.multiply(update, np.float32(factors[client]), out=term)
            out += term
    return out
