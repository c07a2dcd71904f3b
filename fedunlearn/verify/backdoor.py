"""Whether a planted trigger still works."""

import numpy as np

from fedunlearn.verify.accuracy import Labels, Logits


def success_rate(logits: Logits, labels: Labels, target: int) -> float | None:
    """Return how often a triggered example is taken for the trigger's target class.

    Examples that truly are of the target class are left out: a clean model would score
    them as successes.

    Args:
        logits: Scores of the triggered examples, shape ``(n, C)``.
        labels: True classes, shape ``(n,)``.
        target: The class the trigger stands for.

    Returns:
        In [0, 1]; None if every example is of the target class.
    """
    others = labels != target
    if not others.any():
        return None
    return float(np.mean(logits[others].argmax(axis=1) == target))
