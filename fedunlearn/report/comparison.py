"""The comparison as a table of texts: HTML, Markdown and LaTeX show the same one."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedunlearn.errors import DataError
from fedunlearn.report.columns import COLUMNS, Column
from fedunlearn.report.names import clean
from fedunlearn.report.style import style_of
from fedunlearn.report.summary import (
    RETRAIN,
    TRAINED,
    Estimate,
    MethodSummary,
    Row,
    gap_to_retrain,
    summarise,
)

SCHEMA = "fedunlearn-results/v1"

REFERENCES = {TRAINED: "before", RETRAIN: "reference"}
"""The rows that are no unlearning method, and what they are called."""


@dataclass(frozen=True, slots=True)
class Head:
    """The heading of a column: group, title, unit (may be empty) and note."""

    group: str
    title: str
    unit: str
    note: str


@dataclass(frozen=True, slots=True)
class Line:
    """A method's line: its name, what kind of reference it is, if any, its cells."""

    method: str
    reference: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextTable:
    """Headings and lines, all cells as text."""

    heads: tuple[Head, ...]
    lines: tuple[Line, ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Each group with the number of its columns, left to right."""
        runs = itertools.groupby(self.heads, key=lambda head: head.group)
        return [(name, len(list(run))) for name, run in runs]


def tabulate(
    results: Mapping[str, Any], columns: Sequence[Column] = COLUMNS
) -> TextTable:
    """Return the table of ``columns``; what no row was measured for is left out.

    Raises:
        DataError: If the results are of another schema or contradict themselves.
    """
    rows = checked_rows(results)
    summaries = summarise(rows)
    heads, texts = [], []
    for column in columns:
        found = _column(column, rows, summaries)
        if column.source in ("metrics", "cost") and not any(found):
            continue
        style = style_of(column, found)
        heads.append(Head(column.group, column.title, style.unit, column.note))
        texts.append([style.text(e) for e in found])
    lines = [
        Line(
            clean(s.method),
            REFERENCES.get(s.method, ""),
            tuple(text[i] for text in texts),
        )
        for i, s in enumerate(summaries)
    ]
    return TextTable(tuple(heads), tuple(lines))


def checked_rows(results: Mapping[str, Any]) -> Sequence[Row]:
    """Return the rows of ``results`` if this package reads their schema.

    Raises:
        DataError: If it does not, or if there are no rows.
    """
    if (schema := results.get("schema")) != SCHEMA:
        raise DataError(f"results of schema {schema!r}; this report reads {SCHEMA!r}")
    rows: Sequence[Row] = results["rows"]
    if not rows:
        raise DataError("the results hold no rows: there is nothing to report")
    return rows


def _column(
    column: Column, rows: Sequence[Row], summaries: Sequence[MethodSummary]
) -> list[Estimate | None]:
    if column.source == "gap":
        gaps = gap_to_retrain(rows, column.name)
        return [gaps.get(s.method) for s in summaries]
    if column.source == "metrics":
        return [s.metrics.get(column.name) for s in summaries]
    if column.source == "cost":
        return [s.cost.get(column.name) for s in summaries]
    return [s.ratio.get(column.name) for s in summaries]
