"""One call into a library: a cohort's arrays as addresses, and what comes back."""

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedunlearn.cohort import Cohort, Indices
from fedunlearn.errors import DataError, RunError
from fedunlearn.params import Array
from fedunlearn.training import Training
from simulations.engine.kernels.native import DONE, NO_MEMORY, Order, library

Dtype = np.dtype[np.generic]
INT64: Dtype = np.dtype(np.int64)
FLOAT64: Dtype = np.dtype(np.float64)
ENTRIES: dict[Dtype, str] = {np.dtype(np.float32): "train32", FLOAT64: "train64"}
"""Precision -> the function that trains in it."""


def train_cohort(
    instructions: str,
    shape: Indices,
    training: Training,
    cohort: Cohort,
    out: Array,
) -> npt.NDArray[np.float64]:
    """Train a cohort in one call; the precision is that of ``out``.

    Args:
        instructions: Instruction set, one of ``usable()``.
        shape: The model, as ``Shape`` in ``model.hpp`` says it.
        training: How it is trained.
        cohort: Who, on what, in which order.
        out: Filled with the models after training, shape ``(K, P)``.

    Returns:
        Every client's mean loss, shape ``(K,)``.

    Raises:
        DataError: If a client's examples have another shape than the model's input, or
            its labels or order name a class or row that is not there.
        RunError: If memory is short.
    """
    losses = np.zeros(len(cohort))
    if not len(cohort):
        return losses
    target = out if _rows_lie_plainly(out) else np.empty(out.shape, out.dtype)
    x = [plain(d.x, out.dtype) for d in cohort.data]
    y = [plain(d.y, INT64) for d in cohort.data]
    examples = np.fromiter(map(len, y), np.int64, len(y))
    _check_sizes(x, examples, int(np.prod(shape[:3])))
    starts = plain(cohort.starts, out.dtype)
    batches = cohort.batches
    arrays = {
        "x": _addresses(x),
        "y": _addresses(y),
        "examples": examples,
        "start": address(starts) + cohort.start_of * starts.strides[0],
        "mu": plain(cohort.proximal_mu, FLOAT64),
        "rows": plain(batches.rows, INT64),
        "bounds": plain(batches.bounds, INT64),
        "first": plain(batches.first, INT64),
        "out": target,
        "losses": losses,
    }
    order = Order(
        clients=len(cohort),
        lr=training.lr,
        momentum=training.momentum,
        decay=training.weight_decay,
        out_stride=target.strides[0] // target.itemsize,
        **{name: address(array) for name, array in arrays.items()},
    )
    _call(instructions, ENTRIES[out.dtype], shape, order)
    if target is not out:
        out[...] = target
    return losses


def _call(instructions: str, entry: str, shape: Indices, order: Order) -> None:
    built = library(instructions)
    if built is None:
        raise RunError(f"the compiled kernel for {instructions} is gone")
    train = built[entry]
    train.restype = ctypes.c_int64
    result = train(ctypes.c_int64(address(shape)), ctypes.byref(order))
    if result == NO_MEMORY:
        raise RunError("the compiled kernel found no memory for one client's training")
    if result != DONE:
        raise DataError(
            f"client {result} of the cohort has a label that is no class, or an order "
            "for an example it does not hold"
        )


def plain(array: Array, dtype: Dtype) -> Array:
    """Return the array itself if C can read it, or a copy that C can."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.aligned:
        return array
    return np.array(array, dtype, order="C")


def address(array: Array) -> int:
    """Return where an array's first number lies."""
    return int(array.__array_interface__["data"][0])


def _addresses(arrays: Sequence[Array]) -> Indices:
    return np.fromiter(map(address, arrays), np.int64, len(arrays))


def _rows_lie_plainly(out: Array) -> bool:
    flags, (apart, step) = out.flags, out.strides
    return (
        flags.aligned
        and flags.writeable
        and step == out.itemsize
        and apart >= 0
        and apart % out.itemsize == 0
    )


def _check_sizes(x: Sequence[Array], examples: Indices, features: int) -> None:
    sizes = np.fromiter((a.size for a in x), np.int64, len(x))
    wrong = np.flatnonzero(sizes != examples * features)
    if len(wrong):
        k = int(wrong[0])
        raise DataError(
            f"client {k} of the cohort has {examples[k]} labels and examples of shape "
            f"{x[k].shape}, the model reads {features} numbers an example"
        )
