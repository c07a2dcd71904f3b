"""The table, the picture and the files of a sweep over histories."""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedunlearn.report import Estimate, estimate, format_estimate, seed_distance
from fedunlearn.report.style import bytes_style
from fedunlearn.report.svg import GREY, INK, MUTED, WIDTH, axes_at, draw
from simulations.bench_rows import (
    ANY,
    DISTANCE,
    GAPS,
    Point,
    nothing,
    points,
    write_csv,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"forget_accuracy": "forget accuracy", "backdoor_success": "backdoor success"}
"""Metrics that are drawn."""

_COLOURS = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7")
"""Of codecs; Okabe and Ito's, which the colour-blind tell apart."""
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
"""Of retentions."""
_COLUMNS, _PANEL, _GAP, _TOP, _LEFT = 4, 150.0, 30.0, 58.0, 58.0
"""Panels in a line, then points: a panel's height, between blocks, above, beside."""
_TICKS = (-100, -50, -20, -10, -5, 0, 5, 10, 20, 50, 100)
_ROOM, _DODGE = 1.3, 1.02
"""Beyond the outermost value, and between codecs that take the same bytes."""
_LINEAR = 10.0
"""Percentage points up to which the axis is linear; beyond, it is logarithmic."""


def table(
    results: Mapping[str, Any], shown: Sequence[Point]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and lines: doing nothing, then the points.

    Numbers are means over seeds, with half of the 95 % interval.
    """
    metrics = [m for m in GAPS if nothing(results, m)]
    style = bytes_style(results["full_bytes"])
    heads = ("method", "codec", "kept", f"stored {style.unit}", "of all %")
    titles = [f"gap {m.split('_')[0]} pp" for m in metrics]
    lines = [("doing nothing", *["\N{EN DASH}"] * 4)]
    gaps = [{m: nothing(results, m) for m in (*metrics, DISTANCE)}]
    for point in shown:
        size = (style.text(Estimate(point.stored, None, 1)), f"{100 * point.share:.1f}")
        lines.append((point.method, point.codec, point.retention, *size))
        gaps.append(dict(point.gaps))
    notes = ["", *(f"not served: needs {p.needs}" if p.needs else "" for p in shown)]
    return (*heads, *titles, "L2", "note"), [
        (
            *line,
            *(_gap(own.get(m, ()), percent=True) for m in metrics),
            _gap(own.get(DISTANCE, ()), percent=False),
            note,
        )
        for line, own, note in zip(lines, gaps, notes, strict=True)
    ]


def _gap(values: Sequence[float], *, percent: bool) -> str:
    digits = 1 if percent else 2
    return format_estimate(estimate(values), digits, percent, signed=percent)


def picture(results: Mapping[str, Any]) -> str:
    """Return the sweep as an SVG file: a panel a method and metric."""
    found = [point for point in points(results) if not point.needs]
    metrics = [m for m in TITLES if any(m in point.gaps for point in found)]
    methods = list(dict.fromkeys(point.method for point in found))
    deep = math.ceil(len(methods) / _COLUMNS)
    block = deep * _PANEL + _GAP
    height = _TOP + len(metrics) * block

    def paint(figure: "Figure") -> None:
        for number, metric in enumerate(metrics):
            top = _TOP + number * block
            panels = [_panel(figure, top, at) for at in range(len(methods))]
            _block(panels, metric, methods, found, results)
        _keys(figure, found)

    return _file(draw("history-sweep", (WIDTH, height), paint))


def _panel(figure: "Figure", top: float, at: int) -> "Axes":
    """Return the axes of panel ``at`` of a block that begins ``top`` points down."""
    width, height = figure.get_size_inches() * 72
    line, column = divmod(at, _COLUMNS)
    wide = (width - _LEFT) / _COLUMNS
    left, above = _LEFT + column * wide, top + line * _PANEL + 14
    deep = _PANEL - 30
    return axes_at(figure, left, height - above - deep, width - left - wide + 12, above)


def _block(
    block: Sequence["Axes"],
    metric: str,
    methods: Sequence[str],
    found: Sequence[Point],
    results: Mapping[str, Any],
) -> None:
    """Draw one metric: a panel a method, all on the same axis."""
    look = _Look.of(found)
    level = 100 * statistics.fmean(nothing(results, metric))
    band = 100 * (seed_distance(results["references"], metric) or 0.0)
    sizes = [p.stored for p in found]
    ends = [level, 0.0, *(100 * v for p in found for v in p.gaps.get(metric, ()))]
    for at, (axes, method) in enumerate(zip(block, methods, strict=True)):
        axes.axhspan(-band, band, color=GREY, alpha=0.2, linewidth=0)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.axhline(level, color=MUTED, linewidth=1, dashes=(4, 3))
        axes.set_xscale("log")
        axes.set_xlim(min(sizes) / _ROOM, max(sizes) * _ROOM)
        _scale(axes, min(ends), max(ends), labelled=at % _COLUMNS == 0)
        axes.set_title(method, fontsize=9.5, loc="left", color=INK, pad=3)
        for point in found:
            if point.method == method and metric in point.gaps:
                _mark(axes, point, metric, look)
        if at % _COLUMNS == 0:
            axes.set_ylabel(f"{TITLES[metric]},\ngap to retrain (pp)", fontsize=8.5)
        if at + _COLUMNS >= len(methods):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("stored bytes", fontsize=8.5)


def _scale(axes: "Axes", low: float, high: float, *, labelled: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = min(_ROOM * low, -_LINEAR), max(_ROOM * high, _LINEAR)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _bytes(x)))
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=1.2)
    axes.set_ylim(low, high)
    shown = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_yticks(shown, [_signed(tick) for tick in shown])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8.5, labelleft=labelled, labelbottom=False)
    axes.grid(visible=True, axis="both")


def _signed(tick: int) -> str:
    return f"{tick:+d}".replace("-", "\N{MINUS SIGN}") if tick else "0"


def _bytes(size: float) -> str:
    style = bytes_style(size)
    return f"{size * style.factor:g} {style.unit}"


def _mark(axes: "Axes", point: Point, metric: str, look: "_Look") -> None:
    """Draw the mean and, as a bar, the least and the most of the seeds."""
    values = [100 * value for value in point.gaps[metric]]
    mean = statistics.fmean(values)
    codecs = list(look.colours)
    axes.errorbar(
        point.stored * _DODGE ** (codecs.index(point.codec) - len(codecs) // 2),
        mean,
        yerr=[[mean - min(values)], [max(values) - mean]] if len(values) > 1 else None,
        fmt=look.markers[point.retention],
        color=look.colours[point.codec],
        markersize=5,
        markeredgewidth=0.4,
        markeredgecolor="white",
        elinewidth=0.8,
        zorder=3,
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What tells points apart: a colour a codec, a marker a retention."""

    colours: Mapping[str, str]
    markers: Mapping[str, str]

    @classmethod
    def of(cls, found: Sequence[Point]) -> "_Look":
        """Return the look of all points; more names than looks take turns."""
        codecs = dict.fromkeys(p.codec for p in found if p.codec != ANY)
        kept = dict.fromkeys(p.retention for p in found)
        return cls(
            {**dict(zip(codecs, itertools.cycle(_COLOURS))), ANY: MUTED},
            dict(zip(kept, itertools.cycle(_MARKERS))),
        )


def _keys(figure: "Figure", found: Sequence[Point]) -> None:
    """Write above the panels what colours, marks and lines mean."""
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def dot(label: str, colour: str, marker: str) -> Line2D:
        return Line2D(
            [], [], ls="", marker=marker, color=colour, label=label, markersize=5.5
        )

    look = _Look.of(found)
    seeds = max(len(v) for p in found for v in p.gaps.values())
    rows: dict[str, list[Artist]] = {
        "codec": [dot(codec, colour, "o") for codec, colour in look.colours.items()],
        "kept": [dot(kept, MUTED, marker) for kept, marker in look.markers.items()],
        "lines": [
            Line2D([], [], color=MUTED, lw=1, dashes=(4, 3), label="doing nothing"),
            Patch(color=GREY, alpha=0.3, label="between retrainings of two seeds"),
            dot(f"mean, least and most of {seeds} seeds", MUTED, "|"),
        ],
    }
    width, height = figure.get_size_inches() * 72
    for line, (title, handles) in enumerate(rows.items()):
        y = 1 - (10 + 16 * line) / height
        figure.text(0.015, y, title, fontsize=9, color=MUTED, va="center_baseline")
        figure.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(52 / width, y),
            ncols=len(handles),
            fontsize=9,
            handletextpad=0.3,
            columnspacing=1.2,
            borderpad=0,
        )


def _file(svg: str) -> str:
    """Make an inline SVG element a file that reads well on any page."""
    names = (
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    )
    end = svg.index(">") + 1
    head = svg[:end].replace("<svg", f"<svg {names}", 1)
    paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
    body = svg[end:].replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return f"{head}{paper}{body}\n"


def write_sweep(folder: Path, results: Mapping[str, Any]) -> None:
    """Write ``sweep.json``, ``sweep.csv`` and ``sweep.svg``."""
    text = json.dumps(results, indent=2) + "\n"
    (folder / "sweep.json").write_text(text, encoding="utf-8")
    write_csv(folder / "sweep.csv", results["rows"])
    (folder / "sweep.svg").write_text(picture(results), encoding="utf-8")
