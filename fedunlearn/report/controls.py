"""Each method beside plain training at equal budget: does its idea earn its cost?"""

import statistics
from collections.abc import Sequence

from fedunlearn.report.estimate import Estimate, estimate
from fedunlearn.report.gaps import gaps_by_seed
from fedunlearn.report.summary import RETRAIN, TRAINED, Row

NO_WORK, PLAIN = "nothing", "fine_tune"
"""The controls: no training at all, and ordinary training without the leaver."""


def against_control(rows: Sequence[Row]) -> dict[str, tuple[Estimate, str]]:
    """Return how much farther from retraining a method is than its control.

    A method's control is the one nearest to it in examples passed through the model,
    among doing nothing and plain training at every budget that was run.

    Args:
        rows: As in ``results.json``.

    Returns:
        Method -> the difference of average gaps, in shares of one, paired by seed
        (below zero: the method is nearer to retraining), and the control's label.
        Controls, retraining and the trained model have none.
    """
    gaps, examples = gaps_by_seed(rows), _examples(rows)
    controls = [m for m in gaps if m == NO_WORK or m.partition("@")[0] == PLAIN]
    if not any(m.partition("@")[0] == PLAIN for m in controls):
        return {}
    found = {}
    for method in gaps.keys() - {TRAINED, RETRAIN, *controls}:
        near = min(controls, key=lambda c: abs(examples[c] - examples[method]))
        pairs = gaps[method].keys() & gaps[near].keys()
        less = estimate(gaps[method][s] - gaps[near][s] for s in sorted(pairs))
        if less is not None:
            found[method] = less, near
    return found


def _examples(rows: Sequence[Row]) -> dict[str, float]:
    counts: dict[str, list[float]] = {}
    for row in rows:
        counts.setdefault(row["method"], []).append(row["cost"]["examples"])
    return {method: statistics.fmean(values) for method, values in counts.items()}
