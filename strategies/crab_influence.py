"""How much of a global model's way is the leavers' doing."""

from collections.abc import Collection
from itertools import pairwise
from math import inf

import numpy as np

from fedunlearn.history import ClientId, RoundRecord, UpdateHistory
from fedunlearn.params import Vector, norm


def influence_before(
    history: UpdateHistory, leavers: Collection[ClientId], final: Vector
) -> tuple[dict[int, float], float]:
    """Return the leavers' part of the way to each stored model and to the last.

    A round's part is the length of their share of its step. An update that is not held
    counts as a step of the global model, as far as those that are stored tell it.

    Args:
        history: The rounds; the broadcast of the first must be held.
        leavers: Whose part.
        final: The model after the last round, shape ``(P,)``.

    Returns:
        Round of a stored model -> sum of the parts of the rounds before it, and the sum
        over all rounds.
    """
    stored = [t for t in history.rounds if t in history.holds.broadcasts]
    before, total = {}, 0.0
    for t, following in pairwise([*stored, inf]):
        between = [s for s in history.rounds if t <= s < following]
        after = history.round(int(following)).broadcast if following < inf else final
        step = norm(after - history.round(int(t)).broadcast) / len(between)
        before[int(t)] = total
        total += sum(_part(history.round(s), leavers, step) for s in between)
    return before, total


def _part(record: RoundRecord, leavers: Collection[ClientId], step: float) -> float:
    """Return the length of the leavers' share of a round's step."""
    there = [c for c in record.clients if c in leavers]
    held = [c for c in there if c not in record.dropped]
    shares = np.array([record.share_of(c) for c in held])
    known = norm(shares @ record.updates_of(held)) if held else 0.0
    return known + step * sum(record.share_of(c) for c in there if c not in held)
