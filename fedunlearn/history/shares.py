"""What is derived from a round's updates before they are thrown away."""

import numpy as np
import numpy.typing as npt

from fedunlearn.history.record import ClientId, Counts, RoundRecord
from fedunlearn.params import Matrix, Vector, norm, weighted_mean


def shares(num_examples: Counts) -> npt.NDArray[np.float64]:
    """Return each client's weight in the mean of its round, ``(K,)``, sum 1."""
    out: npt.NDArray[np.float64] = num_examples / num_examples.sum()
    return out


def sensitivities(updates: Matrix, num_examples: Counts) -> npt.NDArray[np.float64]:
    """Return how far the round's mean moves when one client is left out, ``(K,)``.

    ``||Agg(I) - Agg(I without k)|| = p_k / (1 - p_k) ||Delta_k - Agg(I)||`` for a mean
    weighted with ``p_k`` (Fraboni et al. 2024, "SIFU", leave-one-out norm of eq. 6).
    Without its only client a round would have left the model where it was: the norm of
    the update then.
    """
    mean = weighted_mean(updates, num_examples.tolist())
    if len(updates) == 1:
        return np.array([norm(mean)])
    weights = shares(num_examples)
    distances = np.array([norm(update - mean) for update in updates])
    felt: npt.NDArray[np.float64] = weights / (1 - weights) * distances
    return felt


def add_shares(
    sums: dict[ClientId, Vector], record: RoundRecord
) -> dict[ClientId, Vector]:
    """Return the running sums after a round: each client's share times its update."""
    out = dict(sums)
    weights = shares(record.num_examples).astype(np.float32)
    for client, weight, update in zip(
        record.clients, weights, record.updates, strict=True
    ):
        term = update * weight
        out[client] = term if client not in out else out[client] + term
    return out
