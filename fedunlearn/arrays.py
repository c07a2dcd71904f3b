"""Between a flat vector and Flower's ArrayRecord."""

from collections.abc import Mapping
from typing import final

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.common.constant import SType
from typing_extensions import override

from fedunlearn.params import Array as NumpyArray
from fedunlearn.params import Layout, Vector


@final
class MatrixArray(Array):
    """A Flower array on memory that stays where it is until somebody asks for bytes.

    Args:
        values: What it holds; nobody writes to it as long as the array is used.
    """

    def __init__(self, values: NumpyArray) -> None:
        self.__dict__["_values"] = values
        self.dtype, self.shape = str(values.dtype), values.shape
        self.stype = SType.NUMPY

    @property
    @override
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes Flower would send."""
        return Array(np.asarray(self._values)).data

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
    named = {name: Array(np.asarray(a)) for name, a in layout.unflatten(vector).items()}
    return ArrayRecord({**named, **(carried or {})})


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
    return {name: array.numpy() for name, array in arrays.items()}


def carried_arrays(arrays: ArrayRecord, layout: Layout) -> dict[str, Array]:
    """Return the arrays of a record that are not part of the vector."""
    return {name: array for name, array in arrays.items() if name not in layout.names}
