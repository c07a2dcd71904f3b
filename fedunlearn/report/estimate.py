"""A mean over seeds with its interval, and how it is written.

The unit of replication is the federation run: an interval here runs over seeds, never
over examples.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean; NaN if a value was not finite.
        half_width: Half the width of the t-interval; None for one value.
        n: How many values there were.
    """

    mean: float
    half_width: float | None
    n: int

    def times(self, factor: float) -> "Estimate":
        """Return the estimate in another unit; ``factor`` is positive."""
        half = None if self.half_width is None else self.half_width * factor
        return Estimate(self.mean * factor, half, self.n)


def estimate(
    values: Iterable[float | None], confidence: float = 0.95
) -> Estimate | None:
    """Return mean and t-interval of ``values``; None if nothing is left of them.

    Args:
        values: One value a seed; None is dropped.
        confidence: Of the interval, in (0, 1).
    """
    kept = [float(v) for v in values if v is not None]
    if not kept:
        return None
    if not all(map(math.isfinite, kept)):
        return Estimate(math.nan, None, len(kept))
    mean = statistics.fmean(kept)
    if len(kept) == 1:
        return Estimate(mean, None, 1)
    from scipy.stats import t

    quantile = float(t.ppf((1 + confidence) / 2, len(kept) - 1))
    error = statistics.stdev(kept) / math.sqrt(len(kept))
    return Estimate(mean, quantile * error, len(kept))


def format_estimate(
    e: Estimate | None, digits: int, percent: bool = False, *, signed: bool = False
) -> str:
    """Return ``"93.1 ± 0.4"``, ``"93.1"`` for one value, an en dash for none.

    Args:
        e: The estimate.
        digits: Decimals of both numbers.
        percent: Multiply by 100; no percent sign is written.
        signed: Write a plus before a positive mean.
    """
    if e is None:
        return "–"  # noqa: RUF001
    scaled = e.times(100.0) if percent else e
    if not math.isfinite(scaled.mean):
        return "not finite"
    mean = _number(scaled.mean, digits, "+" if signed else "")
    if scaled.half_width is None:
        return mean
    return f"{mean} ± {_number(scaled.half_width, digits)}"


def _number(value: float, digits: int, sign: str = "") -> str:
    """Return the number with a true minus sign and no signed zero."""
    text = f"{value:{sign}.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")  # noqa: RUF001
