"""Which client holds how many examples of which class, as a heat map."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedunlearn.report.names import plural, short
from fedunlearn.report.svg import (
    GREY,
    INK,
    MUTED,
    RUST,
    WIDTH,
    axes_at,
    beside,
    draw,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Counts = NDArray[np.integer]

MOST_CLIENTS = 40
_MOST_NUMBERED = 20
_ROW = 17.0
_DARK = 0.55


def shown_clients(sizes: Counts, forget: Sequence[int]) -> list[int]:
    """Return the rows of the heat map.

    Everybody in order, if they are 40 at most; otherwise the leavers (the 40 largest
    of them) and then the 39 largest of the others.

    Args:
        sizes: Examples of each client, shape ``(clients,)``.
        forget: The leavers.
    """
    if len(sizes) <= MOST_CLIENTS:
        return list(range(len(sizes)))
    order = [int(i) for i in np.argsort(-sizes, kind="stable")]
    leavers = [i for i in order if i in set(forget)]
    others = [i for i in order if i not in set(forget)]
    return leavers[:MOST_CLIENTS] + others[: MOST_CLIENTS - 1]


def caption(counts: Counts, forget: Sequence[int], shown: Sequence[int]) -> str:
    """Return who is shown and what the darkest cell is."""
    leaving = sum(i in set(forget) for i in shown)
    who = f"All {plural(len(counts), 'client')}; leavers are marked ▸."
    if len(shown) < len(counts):
        who = (
            f"{len(shown)} of {len(counts)} clients: {plural(leaving, 'leaver')} first "
            f"(marked ▸), then the {len(shown) - leaving} largest of the others."
        )
    most = int(counts[list(shown)].max(initial=0))
    return f"{who} The darkest cell holds {plural(most, 'example')}."


def label_distribution(
    counts: Counts, names: Sequence[str], forget: Sequence[int], shown: Sequence[int]
) -> str:
    """Return the heat map; leavers are marked by an arrow and colour.

    Args:
        counts: Examples, shape ``(clients, classes)``.
        names: Names of all clients.
        forget: The leavers.
        shown: The clients to show, top to bottom.
    """
    part = counts[list(shown)]
    marks = [i in set(forget) for i in shown]
    labels = [
        f"{'▸ ' if mark else ''}{short(names[i])}"
        for i, mark in zip(shown, marks, strict=True)
    ]
    left = max(text_width(label) for label in labels) + 12

    def paint(figure: "Figure") -> None:
        axes = axes_at(figure, left, 8, 58, 34)
        _cells(axes, part)
        axes.set_yticks(range(len(labels)), labels)
        _sides(axes, part, marks)

    return draw("clients", (WIDTH, 42 + _ROW * len(labels)), paint)


def _cells(axes: "Axes", part: Counts) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    blues = LinearSegmentedColormap.from_list(
        "paper", ["#f6f7f9", "#8fb0d0", "#1f4a75"]
    )
    top = max(int(part.max(initial=0)), 1)
    rows, classes = part.shape
    edges = np.arange(classes + 1) - 0.5, np.arange(rows + 1) - 0.5
    mesh = axes.pcolormesh(*edges, part, cmap=blues, vmin=0, vmax=top)
    axes.invert_yaxis()
    if classes > _MOST_NUMBERED:
        return
    mesh.set(edgecolor="white", linewidth=1.0)
    for (row, column), count in np.ndenumerate(part):
        colour = "white" if count > _DARK * top else INK if count else GREY
        text = axes.text(column, row, f"{count}", color=colour, fontsize=8)
        text.set(ha="center", va="center_baseline")


def _sides(axes: "Axes", part: Counts, marks: Sequence[bool]) -> None:
    classes = part.shape[1]
    axes.spines[:].set_visible(False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    if classes <= _MOST_NUMBERED:
        axes.set_xticks(range(classes))
    axes.set_xlabel("class", loc="left")
    axes.xaxis.set_label_position("top")
    for mark, label in zip(marks, axes.get_yticklabels(), strict=True):
        label.set(color=RUST if mark else INK, fontweight="bold" if mark else "normal")
    for row, total in enumerate(part.sum(axis=1)):
        beside(axes, f"{total:,}", row, (50, 0), RUST if marks[row] else INK)
    beside(axes, "total", -1, (50, 0), MUTED)
