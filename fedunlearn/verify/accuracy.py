"""How well a model predicts a set of examples."""

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
"""Unnormalised scores, shape ``(n, C)``."""
Labels = npt.NDArray[np.int64]
"""Classes, shape ``(n,)``."""


def accuracy(logits: Logits, labels: Labels) -> float | None:
    """Return the share of right predictions, in [0, 1]; None of no examples."""
    if not len(labels):
        return None
    return float(np.mean(logits.argmax(axis=1) == labels))


def mean_loss(logits: Logits, labels: Labels) -> float | None:
    """Return the mean cross-entropy in nats; None of no examples.

    Computed in float64 from the logits, never from clipped probabilities.
    """
    if not len(labels):
        return None
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(scores).sum(axis=1))
    return float(np.mean(log_total - scores[np.arange(len(labels)), labels]))
