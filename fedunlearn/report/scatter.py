"""The plot of forget accuracy gap against cost: one labelled point per method."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedunlearn.report.comparison import REFERENCES
from fedunlearn.report.names import short
from fedunlearn.report.placement import Box, Point, place
from fedunlearn.report.summary import (
    TRAINED,
    Estimate,
    MethodSummary,
    Row,
    gap_to_retrain,
    seed_distance,
    summarise,
)
from fedunlearn.report.svg import (
    BLUE,
    GREY,
    INK,
    MUTED,
    WIDTH,
    axes_at,
    beside,
    draw,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_METRIC = "forget_accuracy"
_LINE = 13.0
_NEAR = 11.0


@dataclass(frozen=True, slots=True)
class _Spot:
    """A method in the plane of cost ratio and gap, the gap in percentage points."""

    method: str
    cost: Estimate
    gap: Estimate

    @property
    def reference(self) -> bool:
        return self.method in REFERENCES

    @property
    def reach(self) -> Point:
        """Half-widths in both directions; 0 for one seed."""
        return self.cost.half_width or 0.0, self.gap.half_width or 0.0


def gap_and_cost(rows: Sequence[Row]) -> str:
    """Return the plot; empty if no method has both numbers.

    The trained model, which had nothing to unlearn with, is a dashed line. The band is
    how far two retrainings are apart.
    """
    gaps = {m: gap.times(100.0) for m, gap in gap_to_retrain(rows, _METRIC).items()}
    spots = _spots(summarise(rows), gaps)
    if not spots:
        return ""
    before = gaps[TRAINED].mean if TRAINED in gaps else math.nan
    level = before if math.isfinite(before) else None
    band = 100 * (seed_distance(rows, _METRIC) or 0.0)

    def paint(figure: "Figure") -> None:
        axes = axes_at(figure, 58, 42, 16, 14)
        _limits(axes, spots, level)
        _levels(axes, band, level)
        _points(axes, spots)
        _labels(axes, spots, level)

    return draw("gap-and-cost", (WIDTH, 330 + 6 * len(spots)), paint)


def _spots(
    summaries: Sequence[MethodSummary], gaps: Mapping[str, Estimate]
) -> list[_Spot]:
    found = []
    for s in summaries:
        cost, gap = s.ratio.get("client_rounds"), gaps.get(s.method)
        if s.method == TRAINED or cost is None or gap is None:
            continue
        if math.isfinite(cost.mean) and math.isfinite(gap.mean):
            found.append(_Spot(s.method, cost, gap))
    return found


def _limits(axes: "Axes", spots: Sequence[_Spot], level: float | None) -> None:
    ends = [0.0 if level is None else level, 0.0]
    ends += [s.gap.mean + sign * s.reach[1] for s in spots for sign in (-1, 1)]
    pad = 0.08 * (max(ends) - min(ends)) or 1.0
    right = max(1.0, *(s.cost.mean + s.reach[0] for s in spots))
    room = min(0.05 + 0.006 * len(spots), 0.2)
    axes.set_xlim(0, 1.12 * right)
    axes.set_xticks(axes.get_xticks())
    axes.set_xlim(-room * right, 1.12 * right)
    axes.set_ylim(min(ends) - pad, max(ends) + pad)
    axes.set_xlabel("client-rounds, ratio to retraining")
    axes.set_ylabel("forget accuracy, gap to retrain (pp)")
    axes.grid(visible=True)


def _levels(axes: "Axes", band: float, level: float | None) -> None:
    axes.axhline(0, color=GREY, linewidth=1)
    if band:
        axes.axhspan(-band, band, color=BLUE, alpha=0.07, linewidth=0)
    if level is not None:
        axes.axhline(level, color=GREY, linewidth=1, dashes=(4, 3))
        beside(axes, TRAINED, level, (-3, _LINE / 2), MUTED)


def _points(axes: "Axes", spots: Sequence[_Spot]) -> None:
    for s in spots:
        axes.errorbar(
            s.cost.mean,
            s.gap.mean,
            xerr=s.reach[0] or None,
            yerr=s.reach[1] or None,
            fmt="D" if s.reference else "o",
            markersize=5.5,
            color=GREY if s.reference else BLUE,
            elinewidth=1,
            capsize=2,
            zorder=3,
        )


def _labels(axes: "Axes", spots: Sequence[_Spot], level: float | None) -> None:
    labels = [short(s.method) for s in spots]
    points = [_pixel(axes, s.cost.mean, s.gap.mean) for s in spots]
    sizes = [(text_width(label), _LINE) for label in labels]
    frame = Box(*axes.bbox.extents)
    obstacles = [*itertools.chain.from_iterable(_marks(axes, s) for s in spots)]
    for line in (0.0, level):
        if line is not None:
            y = _pixel(axes, 0, line)[1]
            obstacles.append(Box(frame.left, y - 1, frame.right, y + 1))
    if level is not None:
        y = _pixel(axes, 0, level)[1] + _LINE / 2
        obstacles.append(Box.around((frame.right - 25, y), 50, _LINE))
    boxes = place(points, sizes, frame, obstacles)
    for s, label, point, box in zip(spots, labels, points, boxes, strict=True):
        _label(axes, s, label, point, box)


def _pixel(axes: "Axes", x: float, y: float) -> Point:
    left, bottom = axes.transData.transform((x, y))
    return float(left), float(bottom)


def _marks(axes: "Axes", s: _Spot) -> Iterator[Box]:
    """Yield what the mark and its error bars cover."""
    x, y = _pixel(axes, s.cost.mean, s.gap.mean)
    right, top = _pixel(axes, s.cost.mean + s.reach[0], s.gap.mean + s.reach[1])
    yield Box.around((x, y), 9, 9)
    yield Box.around((x, y), 2 * (right - x), 6)
    yield Box.around((x, y), 6, 2 * (top - y))


def _label(axes: "Axes", s: _Spot, label: str, point: Point, box: Box) -> None:
    x, y = box.centre
    side = "left" if x > point[0] + 1 else "right" if x < point[0] - 1 else "center"
    anchor = {"left": box.left, "right": box.right, "center": x}[side]
    if math.dist(box.nearest(point), point) > _NEAR:
        ends = axes.transData.inverted().transform([point, box.nearest(point)])
        axes.plot(*ends.T, color=GREY, linewidth=0.6, zorder=2.5)
    text = axes.annotate(label, (anchor, y), xycoords="figure pixels", ha=side)
    text.set(va="center_baseline", color=MUTED if s.reference else INK, zorder=4)
