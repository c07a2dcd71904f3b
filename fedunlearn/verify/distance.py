"""How far a model is from the retrained one, in parameters and in predictions."""

import numpy as np

from fedunlearn.params import Vector, norm
from fedunlearn.verify.accuracy import Logits


def l2_distance(model: Vector, reference: Vector) -> float:
    """Return ``||model - reference||``, both of shape ``(P,)``.

    It means something between models of one initial model and one seed only.
    """
    return norm(model - reference)


def cosine_distance(model: Vector, reference: Vector, origin: Vector) -> float | None:
    """Return one minus the cosine between two ways travelled, in [0, 2].

    Raw parameters of two models nearly always point the same way because they share
    their start; what each moved away from it does not.

    Args:
        model: Shape ``(P,)``.
        reference: Shape ``(P,)``.
        origin: The initial model, shape ``(P,)``.

    Returns:
        None if either did not move.
    """
    ours = (model - origin).astype(np.float64)
    theirs = (reference - origin).astype(np.float64)
    lengths = np.sqrt(np.sum(ours**2)) * np.sqrt(np.sum(theirs**2))
    if lengths == 0:
        return None
    return float(np.clip(1.0 - np.sum(ours * theirs) / lengths, 0.0, 2.0))


def disagreement(logits: Logits, reference: Logits) -> float | None:
    """Return the share of examples on which two models predict different classes.

    Args:
        logits: Shape ``(n, C)``.
        reference: Shape ``(n, C)``, of the same examples in the same order.

    Returns:
        In [0, 1]; None of no examples.
    """
    if not len(logits):
        return None
    return float(np.mean(logits.argmax(axis=1) != reference.argmax(axis=1)))
