"""What a codec is, and the checks that all of them make."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import HistoryError
from fedunlearn.params import Layout, Matrix

Bytes = npt.NDArray[np.uint8]
"""Stored updates, one a row, shape ``(K, B)``."""


class Codec(Protocol):
    """A way of storing updates.

    Everything raises HistoryError for a matrix that does not fit the layout and, but
    for ``float32``, for NaN and infinity, both ways.
    """

    @property
    def name(self) -> str:
        """Text that ``codec`` reads back."""

    @property
    def dtype(self) -> str:
        """The stored matrix's dtype in safetensors: F32, F16, BF16 or U8."""

    def row_bytes(self, layout: Layout) -> int:
        """Return B, the stored bytes of one update."""

    def encode(self, rows: Matrix, layout: Layout) -> Bytes:
        """Return updates, shape ``(K, P)``, as bytes, ``(K, B)``, C-contiguous."""

    def decode(self, rows: Bytes, layout: Layout) -> Matrix:
        """Return stored bytes, shape ``(K, B)``, as updates, ``(K, P)`` float32."""

    def error_bound(self, rows: Matrix, layout: Layout) -> Matrix:
        """Return what ``|decode(encode(rows)) - rows|`` cannot exceed, ``(K, P)``."""


def fitting(rows: Matrix, layout: Layout) -> Matrix:
    """Return rows that fit the layout as float32, or raise HistoryError."""
    if rows.shape != (len(rows), layout.size):
        expected = f"{layout.size} parameters"
        raise HistoryError(f"updates of shape {rows.shape} are not rows of {expected}")
    if not np.can_cast(rows.dtype, np.float32):
        raise HistoryError(f"updates are stored from float32, not from {rows.dtype}")
    return rows.astype(np.float32, copy=False)


def stored(codec: Codec, rows: Bytes, layout: Layout) -> Bytes:
    """Return stored rows of the right size, or raise HistoryError."""
    size = codec.row_bytes(layout)
    if rows.dtype != np.uint8 or rows.shape != (len(rows), size):
        found = f"{rows.dtype} of shape {rows.shape}"
        raise HistoryError(f"a row of {codec.name} is {size} bytes, found {found}")
    return rows if rows.strides[1] == 1 else np.ascontiguousarray(rows)


def finite(codec: Codec, rows: Matrix) -> Matrix:
    """Return the rows, or raise HistoryError if one is not finite."""
    refuse(codec, ~np.isfinite(rows), "NaN or infinity", "float32")
    return rows


def refuse(codec: Codec, bad: npt.NDArray[np.bool_], what: str, better: str) -> None:
    """Raise HistoryError, with the first bad row, if there is one."""
    if bad.any():
        where = f"row {int(bad.any(axis=1).argmax())}"
        raise HistoryError(f"{codec.name} cannot hold {what} ({where}); use {better}")
