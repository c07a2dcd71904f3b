"""Names as they come, made fit to be shown: they may hold anything."""

import re
from collections.abc import Sequence

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}


def clean(name: str) -> str:
    """Return the name on one line: what cannot be printed becomes U+FFFD."""
    line = " ".join(str(name).split())
    return "".join(c if c.isprintable() or c == "\u200d" else "\ufffd" for c in line)


def short(name: str, limit: int = 26) -> str:
    """Return the name for a plot: its middle gives way if it is too long."""
    text = clean(name)
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    return f"{text[: limit - 1 - tail]}…{text[-tail:]}"


def markdown(name: str) -> str:
    """Return the name as a GitHub Markdown code span that fits into a table cell."""
    text = clean(name).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def latex(text: str) -> str:
    """Return the text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(c, c) for c in clean(text))


def listed(items: Sequence[str], limit: int = 6) -> str:
    """Return ``"a, b and c"``; beyond ``limit`` the rest is counted."""
    if len(items) > limit:
        items = [*items[: limit - 1], f"{len(items) - limit + 1} others"]
    *most, last = items or [""]
    return f"{', '.join(most)} and {last}" if most else last


def plural(count: int, noun: str) -> str:
    """Return ``"1 seed"`` or ``"3 seeds"``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
