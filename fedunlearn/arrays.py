"""Between a flat vector and Flower's ArrayRecord."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import prod
from typing import Any, final

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.common.constant import SType
from numpy.lib import format as npy
from typing_extensions import override

from fedunlearn.params import Array as NumpyArray
from fedunlearn.params import Layout, Vector


@final
class MatrixArray(Array):
    """A Flower array on memory that stays where it is until somebody asks for bytes.

    Args:
        values: What it holds; nobody writes to it as long as the array is used.
    """

    __qualname__ = "Array"  # what Flower calls it when it is sent

    def __init__(self, values: NumpyArray) -> None:
        self.__dict__["_values"] = values
        self.dtype, self.shape = str(values.dtype), values.shape
        self.stype = SType.NUMPY

    @property
    @override
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes Flower would send."""
        return encode(self._values).data

    @override
    def numpy(self) -> NumpyArray:
        """Return a copy, as Flower's arrays do: who asks may write to it."""
        return self._values.copy()

    @property
    def _values(self) -> NumpyArray:
        values: NumpyArray = self.__dict__["_values"]
        return values


def to_arrays(
    vector: Vector, layout: Layout, carried: Mapping[str, Array] | None = None
) -> ArrayRecord:
    """Return ``vector``, shape ``(P,)``, as named arrays.

    Args:
        vector: The model.
        layout: Its names and shapes.
        carried: Integer arrays that travel beside the vector, passed on as they are.
    """
    named = {name: encode(values) for name, values in layout.unflatten(vector).items()}
    return ArrayRecord({**named, **(carried or {})})


def views_of(
    vector: Vector, layout: Layout, carried: Mapping[str, Array] | None = None
) -> ArrayRecord:
    """Return what :func:`to_arrays` does, on the memory of ``vector``.

    For records that stay in this process; nobody writes to ``vector`` while they live.
    """
    named = layout.unflatten(vector).items()
    views = {name: MatrixArray(values) for name, values in named}
    return ArrayRecord({**views, **(carried or {})})


def from_arrays(arrays: ArrayRecord, layout: Layout) -> Vector:
    """Return the floating-point arrays of a record as a new vector, shape ``(P,)``."""
    return layout.flatten(numpy_arrays(arrays))


def layout_of(arrays: ArrayRecord) -> Layout:
    """Return the layout of a record's floating-point arrays.

    Raises:
        ValueError: If one of them is wider than float32.
    """
    return Layout.of(numpy_arrays(arrays))


def numpy_arrays(arrays: ArrayRecord) -> dict[str, NumpyArray]:
    """Return name -> NumPy array, each a copy of the record's bytes."""
    return {name: decode(array) for name, array in arrays.items()}


def encode(values: NumpyArray) -> Array:
    """Return what ``Array(values)`` does, to the byte, without a file in memory."""
    plain = np.ascontiguousarray(values).reshape(values.shape)
    head = _npy_head(plain.dtype.str, plain.shape)
    return Array(str(plain.dtype), plain.shape, SType.NUMPY, head + plain.tobytes())


def decode(array: Array) -> NumpyArray:
    """Return what ``array.numpy()`` does; the head of an array is read only once.

    A federation sends arrays of the same few shapes over and over, and NumPy parses
    each head as a Python expression.
    """
    if isinstance(array, MatrixArray) or array.stype != SType.NUMPY:
        return array.numpy()
    data = array.data
    end = 10 + int.from_bytes(data[8:10], "little")
    form = _npy_form(data[:end])
    if form is None or len(data) != end + form.itemsize * prod(form.shape):
        return array.numpy()
    return np.frombuffer(data, form.dtype, offset=end).reshape(form.shape).copy()


@dataclass(frozen=True, slots=True)
class _Form:
    """What the head of an ``.npy`` file says."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


@lru_cache(maxsize=1024)
def _npy_head(dtype: str, shape: tuple[int, ...]) -> bytes:
    head = BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(head, fields)
    return head.getvalue()


@lru_cache(maxsize=1024)
def _npy_form(head: bytes) -> _Form | None:
    """Return the form of a plain array of version 1, or None for any other."""
    if head[:8] != npy.magic(1, 0):
        return None
    try:
        shape, by_column, dtype = npy.read_array_header_1_0(BytesIO(head[8:]))
    except ValueError:
        return None
    return None if by_column or dtype.hasobject else _Form(dtype, shape)


def carried_arrays(arrays: ArrayRecord, layout: Layout) -> dict[str, Array]:
    """Return the arrays of a record that are not part of the vector."""
    return {name: array for name, array in arrays.items() if name not in layout.names}
