"""Draws a matplotlib figure into SVG that can stand inside an HTML page.

The same figure gives the same bytes: no date, fixed ids, the defaults of matplotlib
and not those of the user. Text stays text, so that the page's font shows it.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, HAIR = "#23272f", "#6b7280", "#e3e5e9"
BLUE, GREY, RUST = "#2f5d8c", "#9aa1ab", "#b3491e"

WIDTH = 760.0
"""Of every plot, in points."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": HAIR,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}


def draw(
    name: str, size: tuple[float, float], paint: Callable[["Figure"], None]
) -> str:
    """Return the SVG element of what ``paint`` draws on an empty figure.

    Args:
        name: Sets the figure's ids apart from those of other figures on the page.
        size: Width and height in points.
        paint: Draws on the figure.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    out = io.StringIO()
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        mpl.rcdefaults()
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        paint(figure)
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    return inline(out.getvalue())


def inline(svg: str) -> str:
    """Return the bare ``<svg>`` element: no prolog, metadata, URL or unused id."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL
    )
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))

    def tidy(tag: re.Match[str]) -> str:
        text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag.group())
        return re.sub(
            r'\sid="([^"]*)"', lambda m: m.group() if m.group(1) in used else "", text
        )

    return re.sub(r"<[^<>]+>", tidy, svg).strip()


def axes_at(
    figure: "Figure", left: float, bottom: float, right: float, top: float
) -> "Axes":
    """Return axes with these margins, in points."""
    width, height = figure.get_size_inches() * 72
    box = (
        left / width,
        bottom / height,
        (width - left - right) / width,
        (height - bottom - top) / height,
    )
    return figure.add_axes(box)


def beside(
    axes: "Axes", text: str, y: float, offset: tuple[float, float], colour: str
) -> None:
    """Write at height ``y``, ending ``offset`` points from the right edge."""
    axes.annotate(
        text,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=offset,
        textcoords="offset points",
        ha="right",
        va="center_baseline",
        annotation_clip=False,
        color=colour,
    )


def text_width(text: str, size: float = 10.5) -> float:
    """Return about how wide the text is, in points; other fonts are narrower."""
    return sum(0.64 if ord(c) < 0x2E80 else 1.3 for c in text) * size  # noqa: PLR2004
