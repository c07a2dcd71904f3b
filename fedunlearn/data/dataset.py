"""A classification data set in memory, and what makes one valid."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import DataError

Features = npt.NDArray[np.float32]
"""Examples, one a row, shape ``(n, ...)``, float32, finite."""
Labels = npt.NDArray[np.int64]
"""Classes from 0, shape ``(n,)``."""
Keys = npt.NDArray[np.str_]
"""Whose each example is, shape ``(n,)``."""

_LARGEST_EXACT = 2**53
"""Above this a float64 label no longer names one integer."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Training and test examples of one classification task.

    Attributes:
        name: Its name in the table of data sets.
        x_train: Training examples, shape ``(n, ...)``.
        y_train: Their classes, shape ``(n,)``.
        x_test: Test examples, shape ``(m, ...)``.
        y_test: Their classes, shape ``(m,)``.
        client_train: The natural client of each training example, shape ``(n,)``; None
            if the data has no natural clients.
        client_test: The same for the test examples, shape ``(m,)``.
    """

    name: str
    x_train: Features
    y_train: Labels
    x_test: Features
    y_test: Labels
    client_train: Keys | None = None
    client_test: Keys | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.x_train.shape[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes: the largest label of training and test data, plus one."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    @property
    def num_clients(self) -> int | None:
        """Number of natural clients, or None if there are none."""
        return None if self.client_train is None else len(np.unique(self.client_train))

    def validated(self, source: str = "") -> "Dataset":
        """Return this data set with its arrays in canonical types.

        Args:
            source: Where it was read from, for the error.

        Raises:
            DataError: If lengths disagree, training or test data is empty, an example
                is not finite, a label is negative or no integer, or the examples of
                training and test data differ in shape.
        """
        where = f"data set {self.name!r}" + (f" ({source})" if source else "")
        n, m = len(self.x_train), len(self.x_test)
        checked = replace(
            self,
            x_train=_features(self.x_train, f"{where}: x_train"),
            y_train=_labels(self.y_train, n, f"{where}: y_train"),
            x_test=_features(self.x_test, f"{where}: x_test"),
            y_test=_labels(self.y_test, m, f"{where}: y_test"),
            client_train=_keys(self.client_train, n, f"{where}: client_train"),
            client_test=_keys(self.client_test, m, f"{where}: client_test"),
        )
        if checked.x_test.shape[1:] != checked.input_shape:
            raise DataError(
                f"{where}: an example of x_train has shape {checked.input_shape}, one "
                f"of x_test {checked.x_test.shape[1:]}"
            )
        return checked


class Source(Protocol):
    """Where a data set comes from: a frozen dataclass that is its configuration."""

    def load(self) -> Dataset:
        """Return the data set.

        Raises:
            DataError: If the data is missing or malformed.
        """
        ...


def _features(array: npt.NDArray[Any], what: str) -> Features:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what} must hold numbers, found {array.dtype}")
    if not len(array):
        raise DataError(f"{what} is empty")
    if array.ndim == 1 or not prod(array.shape[1:]):
        raise DataError(f"{what} must have shape (n, ...), found {array.shape}")
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(array, np.float32)
    finite = np.isfinite(out).reshape(len(out), -1).all(axis=1)
    if not finite.all():
        raise DataError(f"{what} is not finite in float32 at row {finite.argmin()}")
    return out


def _labels(array: npt.NDArray[Any], rows: int, what: str) -> Labels:
    _check_length(array, rows, what)
    if array.dtype.kind == "f":
        integral = (np.abs(array) < _LARGEST_EXACT) & (np.trunc(array) == array)
        if not integral.all():
            raise DataError(f"{what} must hold integers, found {array[~integral][0]}")
    elif array.dtype.kind not in "biu":
        raise DataError(f"{what} must hold integers, found {array.dtype}")
    out = np.ascontiguousarray(array.astype(np.int64))
    if out.min() < 0:
        raise DataError(f"{what} must hold classes from 0, found {array[out < 0][0]}")
    return out


def _keys(array: npt.NDArray[Any] | None, rows: int, what: str) -> Keys | None:
    if array is None:
        return None
    _check_length(array, rows, what)
    if array.dtype.kind not in "iuU":
        raise DataError(f"{what} must hold integers or strings, found {array.dtype}")
    return array.astype(np.str_)


def _check_length(array: npt.NDArray[Any], rows: int, what: str) -> None:
    if array.shape != (rows,):
        raise DataError(f"{what} must have shape ({rows},), found {array.shape}")
