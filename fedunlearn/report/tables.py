"""The comparison for docs (Markdown) and papers (LaTeX)."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedunlearn.report.columns import COLUMNS, Column
from fedunlearn.report.comparison import Head, Line, TextTable, tabulate
from fedunlearn.report.names import latex, markdown

_SHORT_GROUPS = {"Gap to retrain": "gap", "Distance to retrain": "", "Accuracy": ""}


def markdown_table(
    results: Mapping[str, Any], columns: Sequence[Column] = COLUMNS
) -> str:
    """Return the comparison as a GitHub Markdown table, with a final newline.

    Args:
        results: The content of ``results.json``.
        columns: What to show.
    """
    table = tabulate(results, columns)
    heads = [_heading(head) for head in table.heads]
    lines = [
        _pipes(["method", *heads]),
        _pipes([":--", *["--:"] * len(heads)]),
        *(_pipes([_markdown_name(line), *line.cells]) for line in table.lines),
    ]
    return "\n".join(lines) + "\n"


def latex_table(results: Mapping[str, Any]) -> str:
    r"""Return the comparison as a LaTeX ``tabular`` (needs ``\usepackage{booktabs}``).

    Args:
        results: The content of ``results.json``.
    """
    table = tabulate(results)
    heads = [_latex_cell(_heading(head)) for head in table.heads]
    lines = [
        r"\begin{tabular}{l" + "r" * len(heads) + "}",
        r"\toprule",
        _ampersands([*_latex_groups(table)]),
        _latex_rules(table),
        _ampersands(["method", *heads]),
        r"\midrule",
        *(_latex_line(line) for line in table.lines),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _heading(head: Head) -> str:
    prefix = _SHORT_GROUPS.get(head.group, "")
    return " ".join(part for part in (prefix, head.title, head.unit) if part)


def _pipes(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_name(line: Line) -> str:
    name = markdown(line.method)
    return f"{name} ({line.reference})" if line.reference else name


def _ampersands(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_line(line: Line) -> str:
    name = latex(line.method)
    label = rf"\emph{{{name}}}" if line.reference else name
    return _ampersands([label, *map(_latex_cell, line.cells)])


def _latex_cell(text: str) -> str:
    marks = {"−": "$-$", "±": r"$\pm$", "×": r"$\times$", "–": "--"}  # noqa: RUF001
    return "".join(marks.get(c, c) for c in latex(text))


def _latex_groups(table: TextTable) -> list[str]:
    cells = [rf"\multicolumn{{{n}}}{{c}}{{{latex(g)}}}" for g, n in table.groups]
    return ["", *cells]


def _latex_rules(table: TextTable) -> str:
    rules, start = [], 2
    for _, width in table.groups:
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return " ".join(rules)
