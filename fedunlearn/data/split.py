"""Fixed test splits for data sets that come without one."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fedunlearn.rng import derive

TEST_SHARE = 0.2
"""Share of each group that becomes test data."""
SPLIT_SEED = 0
"""The split belongs to the data set: it is the same in every run."""


def share_of(share: float, size: int) -> int:
    """Return how many of ``size`` things make up a share, leaving both sides some.

    Args:
        share: In ``[0, 1)``; 0 takes nothing.
        size: How many there are; of fewer than two nothing is taken.
    """
    if share == 0 or size <= 1:
        return 0
    return min(max(round(share * size), 1), size - 1)


def group_stream(group: int) -> np.random.Generator:
    """Return the random stream of one group's test split."""
    return derive(SPLIT_SEED, "test split", group)


def held_out(groups: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows are test rows: ``TEST_SHARE`` of each group, shape ``(n,)``.

    Args:
        groups: The group of each row, shape ``(n,)``.
    """
    mask = np.zeros(len(groups), np.bool_)
    for index, group in enumerate(np.unique(groups)):
        own = group_stream(index).permutation(np.flatnonzero(groups == group))
        mask[own[: share_of(TEST_SHARE, len(own))]] = True
    return mask
