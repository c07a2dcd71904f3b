"""A model is one flat float32 vector; a layout says what each stretch of it is.

All algebra on models is plain NumPy on vectors of shape ``(P,)``: ``model + step``,
``norm(update)``. Names and shapes come back with ``layout.unflatten(vector)``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
"""A model or an update, shape ``(P,)``, float32."""
Matrix = npt.NDArray[np.float32]
"""Several of them, one a row, shape ``(K, P)``, float32."""
Array = npt.NDArray[np.generic]
"""An array of any dtype."""

_COLUMNS, _BLOCK = 1 << 15, 1 << 18
"""Numbers of a sum, and of its terms, worked on together: they fit a core's cache."""
_EXACT_IN_FLOAT32 = (np.dtype(np.float16), np.dtype(np.float32))


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of the arrays that make up a model's vector.

    Attributes:
        names: Array names, in the order in which they lie in the vector.
        shapes: Their shapes; ``()`` for a scalar.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> "Layout":
        """Return the layout of the floating-point arrays among ``arrays``.

        Integer arrays, such as the batch counters of BatchNorm, are carried beside the
        vector and are not part of it.

        Raises:
            ValueError: If a floating-point array is wider than float32, because
                recording it would lose bits without a word.
        """
        chosen = {n: a for n, a in arrays.items() if a.dtype.kind == "f"}
        for name, array in chosen.items():
            if array.dtype not in _EXACT_IN_FLOAT32:
                raise ValueError(
                    f"array {name!r} is {array.dtype}; a model is recorded in float32, "
                    "send float32 or float16"
                )
        return cls(tuple(chosen), tuple(a.shape for a in chosen.values()))

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(prod(shape) for shape in self.shapes)

    @property
    def slices(self) -> Mapping[str, slice]:
        """Where each array lies in the vector."""
        return _slices(self)

    def flatten(self, arrays: Mapping[str, Array]) -> Vector:
        """Return the arrays as a new vector of shape ``(P,)``.

        Raises:
            ValueError: If an array is missing or has another shape.
        """
        out = np.empty(self.size, np.float32)
        for (name, part), shape in zip(self.slices.items(), self.shapes, strict=True):
            if name not in arrays or arrays[name].shape != shape:
                found = arrays[name].shape if name in arrays else "nothing"
                raise ValueError(f"array {name!r} should have {shape}, found {found}")
            out[part] = arrays[name].reshape(-1)
        return out

    def unflatten(self, vector: Vector) -> dict[str, Vector]:
        """Return name -> view into ``vector`` with the array's shape."""
        return {
            name: vector[part].reshape(shape)
            for (name, part), shape in zip(
                self.slices.items(), self.shapes, strict=True
            )
        }


@lru_cache(maxsize=64)
def _slices(layout: Layout) -> Mapping[str, slice]:
    ends = np.cumsum([0, *map(prod, layout.shapes)]).tolist()
    parts = (slice(*bounds) for bounds in pairwise(ends))
    return MappingProxyType(dict(zip(layout.names, parts, strict=True)))


def norm(vector: Vector) -> float:
    """Return the L2 norm, summed in float64 so that no thread count shows in it."""
    return float(np.sqrt(np.sum(np.square(vector, dtype=np.float64))))


def weighted_mean(rows: Sequence[Vector] | Matrix, weights: Sequence[float]) -> Vector:
    """Return ``sum_k weights[k] * rows[k] / sum(weights)``, added in the given order.

    Raises:
        ValueError: If there is no row or the weights do not sum to a positive number.
    """
    total = float(sum(weights))
    if not len(rows) or not total > 0:
        raise ValueError("a weighted mean needs a row and a positive total weight")
    if len(weights) != len(rows):
        raise ValueError(f"{len(rows)} rows cannot have {len(weights)} weights")
    factors = np.array([weight / total for weight in weights], np.float32)
    out = np.empty(len(rows[0]), np.float32)
    for begin in range(0, len(out), _COLUMNS):
        columns = slice(begin, min(begin + _COLUMNS, len(out)))
        out[columns] = _sum_of(rows, factors, columns)
    return out


def _sum_of(rows: Sequence[Vector] | Matrix, factors: Vector, columns: slice) -> Vector:
    """Return the sum of a stretch of the scaled rows, added in their order."""
    width = columns.stop - columns.start
    most = max(1, _BLOCK // max(1, width))
    total: Vector | None = None
    for begin in range(0, len(rows), most):
        part = rows[begin : begin + most]
        matrix = part if isinstance(part, np.ndarray) else np.stack(part)
        block = matrix[:, columns] * factors[begin : begin + most, None]
        if total is not None:
            block[0] += total
        # Along the first axis NumPy adds row after row, one column it adds in pairs;
        # and it starts from 0.0, which would make a sum of -0.0 lose its sign.
        alone = width == 1
        total = block.cumsum(axis=0)[-1] if alone else block.sum(axis=0, initial=-0.0)
    assert total is not None  # noqa: S101 - there is a row
    return total


def sha256(vector: Vector) -> str:
    """Return the SHA-256 of the vector's little-endian float32 bytes, in hex."""
    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").tobytes()).hexdigest()
