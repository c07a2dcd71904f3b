"""Which models a sequence of requests has to return to: the branches of SIFU.

Y. Fraboni et al., "SIFU", AISTATS 2024, the oracle O(r) and Theorem 3. History 0 is the
original training; request r makes history r: it starts where O(r) ends, plus noise.
O(r) is the list of ``(zeta, T)`` on the way there: history zeta was followed for T
rounds, then left. Request r, with leavers W_r, finds the first node whose model they
moved too far, ``max_{i in W_r} Psi_zeta(T, i) > Psi*``, cuts the branch before it and
follows that history only to its last model within Psi*. If there is none, the newest
history, r - 1, is followed to its last model within Psi*. Every model of the branch is
then within Psi* of each client of requests 1 to r: a node is kept or made only where it
is so for W_r, and Psi of those before never falls along a history. With a contraction
B < 1 it may fall: W_r has to name the leavers of all requests so far then.

Departures: O(0) is empty, where the released code begins with (0, 0). There, ``T`` of a
history that never exceeds Psi* is its last round in which a leaver took part; here, its
last round. A branch does not end in the same node twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Psi = Sequence[float]
"""The largest bounded sensitivity of a request's leavers after 0, 1, 2, ... rounds of a
history. It goes on from the value at the node where the history began."""


@dataclass(frozen=True, slots=True)
class Node:
    """A model on the way.

    Attributes:
        history: zeta, whose training; 0 is the original one.
        rounds: T, after how many of its rounds.
    """

    history: int
    rounds: int


Branch = tuple[Node, ...]
"""O(r), from the original training to where history r begins."""


def branch_after(branch: Branch, psi: Sequence[Psi], budget: float) -> Branch:
    """Return O(r) from O(r - 1).

    Args:
        branch: O(r - 1); empty before the first request.
        psi: Psi of the leavers W_r in histories 0, 1, ..., r - 1.
        budget: Psi*, not negative.

    Raises:
        ValueError: If a history begins over budget: then no model will do.
    """
    for place, node in enumerate(branch):
        if psi[node.history][node.rounds] > budget:
            return _followed(branch[:place], node.history, psi, budget)
    return _followed(branch, len(psi) - 1, psi, budget)


def within_budget(psi: Psi, budget: float) -> int:
    """Return after how many rounds a history is last within budget.

    Raises:
        ValueError: If it never is.
    """
    within = [rounds for rounds, value in enumerate(psi) if value <= budget]
    if not within:
        raise ValueError(f"no model has a sensitivity of at most {budget}")
    return within[-1]


def _followed(kept: Branch, history: int, psi: Sequence[Psi], budget: float) -> Branch:
    node = Node(history, within_budget(psi[history], budget))
    return kept if kept[-1:] == (node,) else (*kept, node)
