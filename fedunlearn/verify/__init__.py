"""Metrics: pure functions of arrays, one subject a file."""

from fedunlearn.verify.accuracy import accuracy, mean_loss
from fedunlearn.verify.backdoor import success_rate
from fedunlearn.verify.distance import cosine_distance, disagreement, l2_distance

__all__ = [
    "accuracy",
    "cosine_distance",
    "disagreement",
    "l2_distance",
    "mean_loss",
    "success_rate",
]
