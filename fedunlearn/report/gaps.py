"""The average gap to retraining, beside the gap between two retrainings.

A method that is nearer to retraining than another retraining is has no more to gain;
one number for several accuracies, as NoT's paper reports it, with what it is worth.
"""

import itertools
import statistics
from collections.abc import Sequence

from fedunlearn.report.estimate import Estimate, estimate
from fedunlearn.report.summary import RETRAIN, Row

METRICS = (
    "test_accuracy",
    "retain_accuracy",
    "forget_accuracy",
    "forget_holdout_accuracy",
    "backdoor_success",
)
"""What the gap is the mean of, as far as a run has them; all are shares of examples."""


def average_gap(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Return method -> mean absolute gap to retraining with the same seed.

    Args:
        rows: As in ``results.json``.

    Returns:
        In shares of one, with the interval over seeds.
    """
    found = gaps_by_seed(rows).items()
    estimates = {method: estimate(gaps.values()) for method, gaps in found}
    return {method: e for method, e in estimates.items() if e is not None}


def gaps_by_seed(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Return method -> seed -> mean absolute gap to retraining with that seed."""
    retrained = {row["seed"]: row for row in rows if row["method"] == RETRAIN}
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["seed"] in retrained:
            gap = _apart(row, retrained[row["seed"]])
            found.setdefault(row["method"], {})[row["seed"]] = gap
    return found


def retrain_to_retrain(rows: Sequence[Row]) -> float | None:
    """Return the same gap between retrainings of two seeds, the mean over all pairs."""
    retrained = [row for row in rows if row["method"] == RETRAIN]
    gaps = [_apart(a, b) for a, b in itertools.combinations(retrained, 2)]
    return statistics.fmean(gaps) if gaps else None


def _apart(one: Row, other: Row) -> float:
    values = [
        abs(one["metrics"][name] - other["metrics"][name])
        for name in METRICS
        if one["metrics"].get(name) is not None
        and other["metrics"].get(name) is not None
    ]
    return statistics.fmean(values)
