"""How the numbers of a column are written: unit and decimals, the same in every row."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fedunlearn.report.columns import Column
from fedunlearn.report.summary import Estimate, format_estimate

_MANY, _TINY = 100, 0.01
_PREFIXES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True, slots=True)
class Style:
    """How the numbers of one column are written, the same in every row."""

    factor: float
    digits: int
    unit: str
    signed: bool = False

    def text(self, e: Estimate | None) -> str:
        """Return the cell's text."""
        scaled = None if e is None else e.times(self.factor)
        return format_estimate(scaled, self.digits, signed=self.signed)


def style_of(column: Column, estimates: Iterable[Estimate | None]) -> Style:
    """Return unit and decimals that suit all numbers of a column."""
    sizes = [abs(e.mean) for e in estimates if e and math.isfinite(e.mean)]
    largest = max(sizes, default=0.0)
    signed = column.source == "gap"
    if column.kind == "bytes":
        return bytes_style(largest)
    if column.kind == "count":
        whole = largest >= _MANY or all(s.is_integer() for s in sizes)
        return Style(1.0, 0 if whole else 1, "")
    if column.kind == "ratio":
        tiny = any(0 < s < _TINY for s in sizes)
        return Style(1.0, 3 if tiny else 2, "×")  # noqa: RUF001
    if column.kind in ("percent", "points"):
        return Style(100.0, 1, "pp" if signed else "%", signed)
    unit, most = ("s", 2) if column.kind == "seconds" else ("", 5)
    return Style(1.0, decimals(largest, most), unit, signed)


def decimals(largest: float, most: int = 5) -> int:
    """Return the decimals that show three significant digits of ``largest``."""
    if largest <= 0:
        return 0
    return min(max(2 - math.floor(math.log10(largest)), 0), most)


def bytes_style(largest: float) -> Style:
    """Return the decimal unit that suits ``largest`` bytes."""
    for size, unit in _PREFIXES:
        if largest >= size:
            return Style(1 / size, decimals(largest / size), unit)
    return Style(1.0, 0, "B")
