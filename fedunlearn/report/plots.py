"""The plots of training and of cost, each an inline SVG element."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedunlearn.report.columns import COLUMNS
from fedunlearn.report.comparison import REFERENCES
from fedunlearn.report.names import short
from fedunlearn.report.style import Style, style_of
from fedunlearn.report.summary import Estimate, MethodSummary, Row, summarise
from fedunlearn.report.svg import (
    BLUE,
    GREY,
    HAIR,
    INK,
    MUTED,
    WIDTH,
    axes_at,
    draw,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RATIO = "client-rounds, ratio to retraining"
_GAP = 24.0


def accuracy_by_round(curves: Mapping[int, Sequence[float]]) -> str:
    """Return the plot of test accuracy after each round; empty without a curve.

    The mean reaches as far as the shortest curve.

    Args:
        curves: Seed to accuracy, 0 to 1, after round 0, 1, 2, ...
    """
    kept = [[100 * v for v in curve] for curve in curves.values() if len(curve)]
    if not kept:
        return ""
    mean = [statistics.fmean(values) for values in zip(*kept, strict=False)]

    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = axes_at(figure, 58, 42, 16, 14)
        for curve in kept:
            axes.plot(curve, color=GREY, lw=0.9)
        axes.plot(mean, color=BLUE, lw=2.2, marker="" if mean[1:] else "o")
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("round")
        axes.set_ylabel("test accuracy (%)")
        axes.grid(visible=True)

    return draw("accuracy-by-round", (WIDTH, 280), paint)


def costs(rows: Sequence[Row]) -> str:
    """Return horizontal bars: client-rounds ratio and traffic of each method."""
    summaries = summarise(rows)
    labels = [short(s.method) for s in summaries]
    left = max(text_width(label) for label in labels) + 8
    room = (WIDTH - left - _GAP) / 2
    ratios = [s.ratio.get("client_rounds") for s in summaries]
    moved = [s.cost.get("bytes_moved") for s in summaries]
    unit = style_of(next(c for c in COLUMNS if c.name == "bytes_moved"), moved)

    def paint(figure: "Figure") -> None:
        first = axes_at(figure, left, 8, _GAP + room, 24)
        _bars(first, summaries, ratios, Style(1.0, 2, ""), _RATIO)
        first.axvline(1, color=GREY, lw=1, dashes=(4, 3), zorder=0)
        first.set_yticks(range(len(labels)), labels, color=INK)
        second = axes_at(figure, left + room + _GAP, 8, 0, 24)
        _bars(second, summaries, moved, unit, f"traffic up and down ({unit.unit})")

    return draw("costs", (WIDTH, 34 + 21 * len(labels)), paint)


def _bars(
    axes: "Axes",
    summaries: Sequence[MethodSummary],
    estimates: Sequence[Estimate | None],
    style: Style,
    title: str,
) -> None:
    lengths = [e.mean * style.factor if e else 0.0 for e in estimates]
    colours = [GREY if s.method in REFERENCES else BLUE for s in summaries]
    axes.barh(range(len(lengths)), lengths, height=0.62, color=colours)
    end = max([*lengths, 1.0 if title == _RATIO else 0.0]) or 1.0
    axes.set_xlim(0, 1.4 * end)
    axes.set_ylim(len(lengths) - 0.4, -0.6)
    for i, (e, length) in enumerate(zip(estimates, lengths, strict=True)):
        shown = Estimate(e.mean, None, e.n) if e and e.half_width == 0 else e
        text = style.text(shown)
        axes.text(length + 0.02 * end, i, text, va="center_baseline", color=MUTED)
    axes.set_title(title, loc="left", fontsize=10.5, color=MUTED, pad=8)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(HAIR)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])
