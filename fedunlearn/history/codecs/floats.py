"""Codecs that keep every entry as a floating-point number."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedunlearn.history.codecs.base import Bytes, finite, fitting, refuse, stored
from fedunlearn.params import Layout, Matrix


@dataclass(frozen=True, slots=True)
class Float32:
    """Exact, NaN payloads included; both ways a view of the input where possible."""

    name: ClassVar[str] = "float32"
    dtype: ClassVar[str] = "F32"

    def row_bytes(self, layout: Layout) -> int:
        """Return 4 P."""
        return 4 * layout.size

    def encode(self, rows: Matrix, layout: Layout) -> Bytes:
        """Return the bytes; a view if ``rows`` is C-contiguous and little-endian."""
        return np.ascontiguousarray(fitting(rows, layout), "<f4").view(np.uint8)

    def decode(self, rows: Bytes, layout: Layout) -> Matrix:
        """Return the updates; a view, read-only if ``rows`` is read-only."""
        return stored(self, rows, layout).view("<f4").astype(np.float32, copy=False)

    def error_bound(self, rows: Matrix, layout: Layout) -> Matrix:
        """Return zeros."""
        return np.zeros_like(fitting(rows, layout))


@dataclass(frozen=True, slots=True)
class Float16:
    """IEEE 754 binary16, rounded to nearest even; not for values beyond 65504."""

    name: ClassVar[str] = "float16"
    dtype: ClassVar[str] = "F16"

    def row_bytes(self, layout: Layout) -> int:
        """Return 2 P."""
        return 2 * layout.size

    def encode(self, rows: Matrix, layout: Layout) -> Bytes:
        """Return the bytes, or raise HistoryError for a value beyond 65504."""
        rows = finite(self, fitting(rows, layout))
        above = np.abs(rows) > np.finfo(np.float16).max
        refuse(self, above, "a value beyond 65504", "bfloat16")
        return rows.astype("<f2", order="C").view(np.uint8)

    def decode(self, rows: Bytes, layout: Layout) -> Matrix:
        """Return the updates."""
        halves = stored(self, rows, layout).view("<f2")
        return finite(self, halves.astype(np.float32))

    def error_bound(self, rows: Matrix, layout: Layout) -> Matrix:
        """Return ``2^-11 |x| + 2^-25``: unit roundoff and half the least subnormal."""
        return np.abs(fitting(rows, layout)) * np.float32(2**-11) + np.float32(2**-25)


@dataclass(frozen=True, slots=True)
class BFloat16:
    """The upper half of a float32, rounded to nearest even: its range, 8 bits of it."""

    name: ClassVar[str] = "bfloat16"
    dtype: ClassVar[str] = "BF16"

    def row_bytes(self, layout: Layout) -> int:
        """Return 2 P."""
        return 2 * layout.size

    def encode(self, rows: Matrix, layout: Layout) -> Bytes:
        """Return the bytes, or raise HistoryError for a value that rounds to inf."""
        bits = finite(self, fitting(rows, layout)).view(np.uint32)
        halves = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
        infinite = (halves & 0x7FFF) == 0x7F80  # noqa: PLR2004
        refuse(self, infinite, "a value beyond 3.39e38", "float32")
        return halves.astype("<u2", order="C").view(np.uint8)

    def decode(self, rows: Bytes, layout: Layout) -> Matrix:
        """Return the updates."""
        bits = stored(self, rows, layout).view("<u2").astype(np.uint32) << 16
        return finite(self, bits.view(np.float32))

    def error_bound(self, rows: Matrix, layout: Layout) -> Matrix:
        """Return ``2^-8 |x| + 2^-134``: unit roundoff and half the least subnormal."""
        sizes = np.abs(fitting(rows, layout))
        return sizes * np.float32(2**-8) + np.float32(2**-134)
