"""The step of FedEraser's released code, which differs from the paper's in two ways.

For each layer l, with the recorded models ``w_k`` of the remaining clients after round
t, the global model ``G_{t+1}`` AFTER that round's aggregation, the model being rebuilt
``M`` and the fresh updates ``U^_k`` made from it::

    M_l + || mean_k (w_k)_l - (G_{t+1})_l || * mean_k (U^_k)_l / || mean_k (U^_k)_l ||

The mean is unweighted and calibrated as a whole; the paper calibrates each client and
weights them. The paper measures the stored length from the model BEFORE the round. What
is measured here is only how far the mean moves when the leavers are left out: with K
clients of equal weight, one of which leaves, ``1/K ||mean_k U_k - U_leaver||``, about a
tenth of the paper's step for ten clients.
"""

import numpy as np

from fedunlearn.history import UpdateHistory
from fedunlearn.params import Layout, Matrix, Vector, norm, weighted_mean


def official_step(
    direction: Matrix, stored_models: Matrix, after: Vector, layout: Layout
) -> Vector:
    """Return the step from the model being rebuilt, shape ``(P,)``.

    Args:
        direction: Fresh updates of the remaining clients, shape ``(K, P)``.
        stored_models: Their recorded models after local training, shape ``(K, P)``.
        after: The recorded global model after that round's aggregation, shape ``(P,)``.
        layout: What the layers are. A layer whose fresh updates cancel stays.
    """
    equal = np.ones(len(direction)).tolist()
    fresh = weighted_mean(direction, equal)
    old = weighted_mean(stored_models, equal) - after
    step = np.zeros_like(fresh)
    for part in layout.slices.values():
        if size := norm(fresh[part]):
            step[part] = fresh[part] * np.float32(norm(old[part]) / size)
    return step


def model_after(history: UpdateHistory, index: int, final: Vector) -> Vector:
    """Return the global model after round ``index``, shape ``(P,)``.

    That is what the next recorded round sent out.

    Args:
        history: The rounds; the broadcast of the next one must be held.
        index: A recorded round.
        final: The model after the last round.
    """
    later = [t for t in history.rounds if t > index]
    return history.round(later[0]).broadcast if later else final
