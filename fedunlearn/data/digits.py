"""Handwritten digits of 8x8 pixels, which scikit-learn brings along."""

from dataclasses import dataclass

import numpy as np

from fedunlearn.data.dataset import Dataset
from fedunlearn.data.split import held_out

BRIGHTEST = 16
"""A pixel counts the inked dots of a 4x4 block."""


@dataclass(frozen=True, slots=True)
class Digits:
    """1,797 handwritten digits, 10 classes, examples of shape ``(1, 8, 8)`` in [0, 1].

    A fixed fifth of each class is test data.
    """

    def load(self) -> Dataset:
        """Return the data set."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = (bunch.images[:, None] / BRIGHTEST).astype(np.float32)
        y = bunch.target.astype(np.int64)
        test = held_out(y)
        return Dataset("digits", x[~test], y[~test], x[test], y[test]).validated()
