"""Updates that a server estimates from recorded ones and exact ones of other rounds."""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from fedunlearn.history import ClientId, RoundRecord
from fedunlearn.params import Vector, norm
from fedunlearn.updates import Updates
from strategies.lbfgs import Pair, hessian_product, pair_of

Pairs = dict[ClientId, deque[Pair]]
"""Client -> its newest pairs, oldest first. A step counts as a gradient with the
opposite sign, so that a convex loss gives positive curvature."""

_ROUNDING = 1e-6
"""Models that differ by less than this share of their length count as the same."""


def remember(pairs: Pairs, exact: Updates, record: RoundRecord, buffer: int) -> None:
    """Add a pair for each exact update of a client whom the round holds as well.

    Args:
        pairs: Where to.
        exact: Updates of some clients in the round, from another model.
        record: The round as it was recorded.
        buffer: How many pairs of a client stay.
    """
    apart = _apart(exact.before, record)
    for client, delta in zip(exact.clients, exact.deltas, strict=True):
        if client in record.clients:
            stored = record.updates_of((client,))[0]
            if (pair := pair_of(apart, stored - delta)) is not None:
                pairs.setdefault(client, deque(maxlen=buffer)).append(pair)


def estimated(
    w: Vector, record: RoundRecord, ids: Iterable[ClientId], pairs: Pairs, tau: float
) -> tuple[Updates, ...]:
    """Return the updates of those of ``ids`` whom the server need not ask.

    Where the model is the recorded one, the recorded updates are the exact ones.

    Args:
        w: The model being recovered, shape ``(P,)``.
        record: The round.
        ids: Whose updates are wanted, ascending.
        pairs: What is known about their curvature.
        tau: The largest size of a coordinate that is not abnormal.

    Returns:
        One cohort, or none if nobody can be estimated.
    """
    deltas, apart = {}, _apart(w, record)
    same = not apart.any()
    for client in (c for c in ids if c in record.clients and (same or c in pairs)):
        delta = record.updates_of((client,))[0].astype(np.float64)
        if not same:
            delta -= hessian_product(pairs[client], apart)
        if np.abs(delta).max() <= tau:
            deltas[client] = delta.astype(np.float32)
    if not deltas:
        return ()
    rows, known = np.stack(list(deltas.values())), tuple(deltas)
    return (Updates.of_deltas(w, rows, known, record.examples_of(known)),)


def merged(parts: Sequence[Updates]) -> Updates:
    """Return the updates of several cohorts by client; all start from one model.

    A single one is returned as it is.
    """
    if len(parts) == 1:
        return parts[0]
    clients = np.concatenate([part.clients for part in parts])
    order = np.argsort(clients)
    return Updates(
        clients=tuple(clients[order].tolist()),
        before=parts[0].before,
        after=np.concatenate([part.after for part in parts])[order],
        num_examples=np.concatenate([part.num_examples for part in parts])[order],
        num_steps=np.concatenate([part.num_steps for part in parts])[order],
        num_samples=np.concatenate([part.num_samples for part in parts])[order],
    )


def _apart(w: Vector, record: RoundRecord) -> Vector:
    """Return how far ``w`` lies from the recorded model; zeros if that is rounding."""
    apart = w - record.broadcast
    return apart if norm(apart) > _ROUNDING * norm(w) else np.zeros_like(apart)
