"""The sampling that makes FATS stable: who is asked, and when a leaver was used.

Y. Tao, C.-L. Wang, M. Pan, D. Yu, X. Cheng, D. Wang, "Communication Efficient and
Provable Federated Unlearning", VLDB 2024. A cohort is a multiset: K independent draws
from M clients. The cohorts of R rounds with a client and without it differ in
distribution by at most ``rho = R K / M`` (total variation), so that w requests lead to
a recomputation with probability at most ``w rho``; exactly,
``1 - (1 - w / M)^(R K)`` for w clients at once.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fedunlearn.history import ClientId

Cohorts = Mapping[int, tuple[ClientId, ...]]
"""Round, from 1 -> who was asked, ascending; a client may be named more than once."""


def sample_cohorts(
    rng: np.random.Generator, clients: Collection[ClientId], size: int, rounds: int
) -> dict[int, tuple[ClientId, ...]]:
    """Return a multiset of ``size`` clients for each round."""
    return {index: _draw(rng, clients, size) for index in range(1, rounds + 1)}


def first_use(cohorts: Cohorts, leavers: Collection[ClientId]) -> int | None:
    """Return the first round in which a leaver was asked, or None."""
    gone = frozenset(leavers)
    return min(
        (t for t, ids in cohorts.items() if gone.intersection(ids)), default=None
    )


def resample(
    rng: np.random.Generator,
    cohorts: Cohorts,
    clients: Collection[ClientId],
    leavers: Collection[ClientId],
) -> dict[int, tuple[ClientId, ...]]:
    """Return cohorts as if the leavers had never been there.

    Rounds before the leavers' first use stay; that round and those after it are drawn
    anew, in their sizes, from the clients that remain.
    """
    first = first_use(cohorts, leavers)
    if first is None:
        return dict(cohorts)
    stay = [client for client in clients if client not in frozenset(leavers)]
    return {
        t: ids if t < first else _draw(rng, stay, len(ids))
        for t, ids in cohorts.items()
    }


def stability(clients: int, size: int, rounds: int) -> float:
    """Return rho = R K / M: the bound on the total variation, at most 1."""
    return min(1.0, rounds * size / clients)


def recomputation(clients: int, size: int, rounds: int, leavers: int = 1) -> float:
    """Return the probability that one of ``leavers`` clients was ever drawn."""
    return 1.0 - float((1 - leavers / clients) ** (rounds * size))


def _draw(
    rng: np.random.Generator, clients: Collection[ClientId], size: int
) -> tuple[ClientId, ...]:
    ids: Sequence[ClientId] = sorted(clients)
    return tuple(sorted(ids[place] for place in rng.integers(len(ids), size=size)))
