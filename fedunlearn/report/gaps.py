"""The average gap to retraining, beside the gap between two retrainings.

A method that is nearer to retraining than another retraining is has no more to gain;
one number for several accuracies, as NoT's paper reports it, with what it is worth.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fedunlearn.report.estimate import Estimate, estimate, format_estimate
from fedunlearn.report.names import clean
from fedunlearn.report.summary import RETRAIN, TRAINED, MethodSummary, Row, summarise

METRICS = (
    "test_accuracy",
    "retain_accuracy",
    "forget_accuracy",
    "forget_holdout_accuracy",
    "backdoor_success",
)
"""What the gap is the mean of, as far as a run has them; all are shares of examples."""
_POINTS = 100.0


def average_gap(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Return method -> mean absolute gap to retraining with the same seed.

    Args:
        rows: As in ``results.json``.

    Returns:
        In shares of one, with the interval over seeds.
    """
    retrained = {row["seed"]: row for row in rows if row["method"] == RETRAIN}
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["seed"] in retrained:
            gap = _apart(row, retrained[row["seed"]])
            found.setdefault(row["method"], []).append(gap)
    estimates = {method: estimate(gaps) for method, gaps in found.items()}
    return {method: e for method, e in estimates.items() if e is not None}


def retrain_to_retrain(rows: Sequence[Row]) -> float | None:
    """Return the same gap between retrainings of two seeds, the mean over all pairs."""
    retrained = [row for row in rows if row["method"] == RETRAIN]
    gaps = [_apart(a, b) for a, b in itertools.combinations(retrained, 2)]
    return statistics.fmean(gaps) if gaps else None


def gap_table(results: Mapping[str, Any]) -> str:
    """Return methods by average gap as a Markdown table, with a final newline.

    Args:
        results: The content of ``results.json``.
    """
    rows = results["rows"]
    gaps, between = average_gap(rows), retrain_to_retrain(rows)
    summaries = {s.method: s for s in summarise(rows)}
    order = sorted(gaps, key=lambda m: (m != TRAINED, m != RETRAIN, gaps[m].mean))
    attacked = any(row["metrics"].get("backdoor_success") is not None for row in rows)
    heads = ["method", "gap pp", "test %", "forget %"]
    heads += ["backdoor %"] * attacked
    heads += ["client-rounds", "traffic MB", "history MB"]
    lines = [_line(summaries[m], gaps[m], attacked=attacked) for m in order]
    if between is not None:
        blank = [""] * (len(heads) - 2)
        text = f"{_POINTS * between:.1f}"
        lines.append(["*retrain, seed against seed*", text, *blank])
    table = [heads, [":--", *["--:"] * (len(heads) - 1)], *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def _apart(one: Row, other: Row) -> float:
    values = [
        abs(one["metrics"][name] - other["metrics"][name])
        for name in METRICS
        if one["metrics"].get(name) is not None
        and other["metrics"].get(name) is not None
    ]
    return statistics.fmean(values)


def _line(s: MethodSummary, gap: Estimate, *, attacked: bool) -> list[str]:
    shares = ["test_accuracy", "forget_accuracy", *["backdoor_success"] * attacked]
    mega = 1e-6
    moved, kept = s.cost["bytes_moved"], s.cost["history_bytes"]
    return [
        f"`{clean(s.method)}`",
        format_estimate(gap, 1, percent=True),
        *(format_estimate(s.metrics.get(name), 1, percent=True) for name in shares),
        _mean(s.cost["client_rounds"], 1.0, 0),
        _mean(moved, mega, 1),
        _mean(kept, mega, 1),
    ]


def _mean(e: Estimate | None, factor: float, digits: int) -> str:
    return "–" if e is None else f"{factor * e.mean:,.{digits}f}"  # noqa: RUF001
