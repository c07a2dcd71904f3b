"""Losses of a classifier as their derivatives by the scores; NumPy only.

A procedure hands one to ``problem.gradient``, which carries it on to the parameters.
With scores z ``(b, C)``, classes y ``(b,)``, p = softmax(z) and e_y a row of the unit
matrix, the mean over the batch of::

    CE  = -log p_y               has the slope  (p - e_y) / b
    UCE = -log(1 - p_y / 2)      has the slope  p_y / (2 - p_y) (e_y - p) / b
    KL(q || softmax(z / tau))    has the slope  (softmax(z / tau) - q) / (tau b)

Work is done in float64 and returned in the dtype of the scores. Scores may be of any
size: the largest of a row is subtracted before the exponential.
"""

import numpy as np
import numpy.typing as npt

from fedunlearn.local import Labels, LogitGradient
from fedunlearn.params import Matrix

_Exact = npt.NDArray[np.float64]


def softmax(scores: Matrix, temperature: float = 1.0) -> Matrix:
    """Return the probabilities of each row's classes, shape ``(b, C)``.

    Args:
        scores: Shape ``(b, C)``; minus infinity gives a class no probability.
        temperature: Positive; above 1 evens the probabilities out.
    """
    return _softmax(scores, temperature).astype(scores.dtype)


def mean_cross_entropy(scores: Matrix, labels: Labels) -> float:
    """Return the mean over rows of ``-log p_y``, in ``[0, inf)``."""
    shifted = _shifted(scores)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    return float(np.mean(log_sums - own))


def cross_entropy(scores: Matrix, labels: Labels) -> Matrix:
    """Return the slope of the mean cross-entropy, shape ``(b, C)``."""
    return _mean_of(_softmax(scores) - _one_hot(scores, labels), scores)


def negative_cross_entropy(scores: Matrix, labels: Labels) -> Matrix:
    """Return the slope of minus the mean cross-entropy: to descend it is to ascend."""
    return -cross_entropy(scores, labels)


def unlearning_cross_entropy(scores: Matrix, labels: Labels) -> Matrix:
    """Return the slope of the mean of FedOSD's ``-log(1 - p_y / 2)``.

    The loss is bounded by log 2, and its slope goes to zero as p_y does.
    """
    chances = _softmax(scores)
    own = np.take_along_axis(chances, labels[:, None], axis=1)
    slope = own / (2 - own) * (_one_hot(scores, labels) - chances)
    return _mean_of(slope, scores)


def divergence_from(targets: Matrix, temperature: float = 1.0) -> LogitGradient:
    """Return the loss ``KL(targets || softmax(z / temperature))``, as its slope.

    Soft cross-entropy has the same slope: the two differ by the targets' own entropy.

    Args:
        targets: The teacher's probabilities for the batch, shape ``(b, C)``.
        temperature: Of the student; positive.
    """

    def slope(scores: Matrix, labels: Labels) -> Matrix:  # noqa: ARG001
        apart = _softmax(scores, temperature) - targets
        return _mean_of(apart / temperature, scores)

    return slope


def _softmax(scores: Matrix, temperature: float = 1.0) -> _Exact:
    powers = np.exp(_shifted(scores) / temperature)
    chances: _Exact = powers / powers.sum(axis=1, keepdims=True)
    return chances


def _shifted(scores: Matrix) -> _Exact:
    exact = scores.astype(np.float64)
    shifted: _Exact = exact - exact.max(axis=1, keepdims=True)
    return shifted


def _one_hot(scores: Matrix, labels: Labels) -> _Exact:
    rows: _Exact = np.eye(scores.shape[1])[labels]
    return rows


def _mean_of(slopes: _Exact, scores: Matrix) -> Matrix:
    """Return the slopes of a mean over rows from those of the rows."""
    return (slopes / len(scores)).astype(scores.dtype)
