"""Methods by their average gap to retraining, as a Markdown table."""

from collections.abc import Mapping
from typing import Any

from fedunlearn.report.controls import against_control
from fedunlearn.report.estimate import Estimate, format_estimate
from fedunlearn.report.gaps import average_gap, retrain_to_retrain
from fedunlearn.report.names import clean
from fedunlearn.report.summary import RETRAIN, TRAINED, MethodSummary, summarise

_POINTS = 100.0


def gap_table(results: Mapping[str, Any]) -> str:
    """Return methods by average gap as a Markdown table, with a final newline.

    Where plain training was run, a column holds each method against the control of
    about its cost: below zero it is nearer to retraining than that.

    Args:
        results: The content of ``results.json``.
    """
    rows = results["rows"]
    gaps, between = average_gap(rows), retrain_to_retrain(rows)
    controls = against_control(rows)
    summaries = {s.method: s for s in summarise(rows)}
    order = sorted(gaps, key=lambda m: (m != TRAINED, m != RETRAIN, gaps[m].mean))
    attacked = any(row["metrics"].get("backdoor_success") is not None for row in rows)
    heads = ["method", "gap pp", *["against the control pp"] * bool(controls)]
    heads += ["test %", "forget %", *["backdoor %"] * attacked]
    heads += ["client-rounds", "traffic MB", "history MB"]
    lines = [_line(summaries[m], gaps[m], attacked=attacked) for m in order]
    if controls:
        for method, line in zip(order, lines, strict=True):
            line.insert(2, _held_against(controls.get(method)))
    if between is not None:
        blank = [""] * (len(heads) - 2)
        text = f"{_POINTS * between:.1f}"
        lines.append(["*retrain, seed against seed*", text, *blank])
    table = [heads, [":--", *["--:"] * (len(heads) - 1)], *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


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


def _held_against(control: tuple[Estimate, str] | None) -> str:
    if control is None:
        return ""
    less, name = control
    return f"{format_estimate(less, 1, percent=True, signed=True)} `{clean(name)}`"


def _mean(e: Estimate | None, factor: float, digits: int) -> str:
    return "–" if e is None else f"{factor * e.mean:,.{digits}f}"  # noqa: RUF001
