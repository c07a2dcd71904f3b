"""Codecs for histories that must be small: eight bits an entry, or few entries."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import ConfigError, HistoryError
from fedunlearn.history.codecs.base import Bytes, finite, fitting, stored
from fedunlearn.history.spec import part_of
from fedunlearn.params import Layout, Matrix

_BLOCK = 2**20
"""Entries that top_k ranks at once."""


@dataclass(frozen=True, slots=True)
class Int8:
    """``q = rint(x / s)`` with one scale a tensor and row, ``s = max|x| / 127``.

    A row is T scales (float32, in layout order), then P values of q (int8).
    """

    name: ClassVar[str] = "int8"
    dtype: ClassVar[str] = "U8"

    def row_bytes(self, layout: Layout) -> int:
        """Return 4 T + P."""
        return 4 * len(layout.shapes) + layout.size

    def encode(self, rows: Matrix, layout: Layout) -> Bytes:
        """Return the bytes."""
        rows = finite(self, fitting(rows, layout))
        scales = _scales(rows, layout)
        divisors = _spread(np.where(scales == 0, np.float32(1), scales), layout)
        values = np.clip(np.rint(rows / divisors), -127, 127).astype(np.int8)
        head = scales.astype("<f4").view(np.uint8)
        return np.concatenate([head, values.view(np.uint8)], axis=1)

    def decode(self, rows: Bytes, layout: Layout) -> Matrix:
        """Return the updates, ``q s``."""
        rows, head = stored(self, rows, layout), 4 * len(layout.shapes)
        scales = _spread(rows[:, :head].view("<f4").astype(np.float32), layout)
        with np.errstate(over="ignore", invalid="ignore"):
            values = rows[:, head:].view(np.int8).astype(np.float32)
            return finite(self, values * scales)

    def error_bound(self, rows: Matrix, layout: Layout) -> Matrix:
        """Return ``s/2 + 2^-22 |x| + 2^-142``; all but ``s/2`` is for float rounding.

        (A subnormal s is off by up to ``2^-150``, which counts 127 times.)
        """
        rows = finite(self, fitting(rows, layout))
        rounding = np.abs(rows) * np.float32(2**-22) + np.float32(2**-142)
        return rounding + _spread(_scales(rows, layout), layout) * np.float32(0.5)


@dataclass(frozen=True, slots=True)
class TopK:
    """The ``ceil(fraction P)`` largest magnitudes; the other entries read as 0.

    Of equal magnitudes the lower index is kept. A row is k indices (uint32, ascending),
    then their k values (float32).

    Attributes:
        fraction: Share of the entries that is kept, in ``(0, 1]``.
    """

    fraction: float
    dtype: ClassVar[str] = "U8"

    def __post_init__(self) -> None:
        """Refuse a fraction outside (0, 1]."""
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"top_k:FRACTION must lie in (0, 1], got {self.fraction}")

    @property
    def name(self) -> str:
        """``top_k:`` and the fraction."""
        return f"top_k:{float(self.fraction)!r}"

    def row_bytes(self, layout: Layout) -> int:
        """Return 8 k."""
        return 8 * part_of(layout.size, self.fraction)

    def encode(self, rows: Matrix, layout: Layout) -> Bytes:
        """Return the bytes."""
        rows = finite(self, fitting(rows, layout))
        k = part_of(layout.size, self.fraction)
        mask = _largest(rows, k)
        out = np.empty((len(rows), 2 * k), "<u4")
        out[:, :k] = np.nonzero(mask)[1].reshape(len(rows), k)
        out[:, k:] = rows[mask].reshape(len(rows), k).view(np.uint32)
        return out.view(np.uint8)

    def decode(self, rows: Bytes, layout: Layout) -> Matrix:
        """Return the updates, or raise HistoryError for indices no row can have."""
        both, k = stored(self, rows, layout).view("<u4"), rows.shape[1] // 8
        where = both[:, :k].astype(np.int64)
        if (where >= layout.size).any() or (np.diff(where, axis=1) <= 0).any():
            raise HistoryError(
                f"stored updates are damaged: indices of {self.name} must ascend and "
                f"stay below {layout.size}"
            )
        out = np.zeros((len(rows), layout.size), np.float32)
        np.put_along_axis(out, where, both[:, k:].view("<f4"), axis=1)
        return finite(self, out)

    def error_bound(self, rows: Matrix, layout: Layout) -> Matrix:
        """Return 0 where an entry is kept and ``|x|`` where it is not."""
        rows = finite(self, fitting(rows, layout))
        kept = _largest(rows, part_of(layout.size, self.fraction))
        return np.where(kept, np.float32(0), np.abs(rows))


def _scales(rows: Matrix, layout: Layout) -> Matrix:
    """Return ``max|x| / 127`` a row and tensor, ``(K, T)``; 127 times it is finite."""
    largest = np.zeros((len(rows), len(layout.shapes)), np.float32)
    for t, part in enumerate(layout.slices.values()):
        low, high = (f(rows[:, part], axis=1, initial=0) for f in (np.min, np.max))
        largest[:, t] = np.maximum(high, np.abs(low))
    scales = largest / np.float32(127)
    with np.errstate(over="ignore"):
        above = np.isinf(scales * np.float32(127))
    return np.where(above, np.nextafter(scales, np.float32(0)), scales)


def _spread(scales: Matrix, layout: Layout) -> Matrix:
    """Return the scale of every entry, ``(K, P)``, from those of the tensors."""
    return np.repeat(scales, [prod(shape) for shape in layout.shapes], axis=1)


def _largest(rows: Matrix, k: int) -> npt.NDArray[np.bool_]:
    """Return where the k largest magnitudes of each row are, shape ``(K, P)``."""
    out, cut = np.zeros(rows.shape, np.bool_), rows.shape[1] - k
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step) if k else ():
        sizes = np.abs(rows[start : start + step])
        least = np.partition(sizes, cut, axis=1)[:, cut, None]
        above, ties = sizes > least, sizes == least
        room = k - above.sum(axis=1, keepdims=True)
        ranks = np.cumsum(ties, axis=1)
        out[start : start + step] = above | (ties & (ranks <= room))
    return out
