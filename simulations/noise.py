"""How much of a difference between two models is nothing but rounding."""

import numpy as np

from fedunlearn.method import continue_training
from fedunlearn.params import Vector, norm
from fedunlearn.rng import derive
from simulations.runs import Runs
from simulations.train import Trained, quiet_flower


def noise_floor(runs: Runs, trained: Trained) -> float:
    """Return how far training ends from itself when its start is changed by one bit.

    Every weight of the initial model goes to the next float32 above or below, and the
    federation is trained again with the same kernel. A distance to the retrained model
    that is not well above this says nothing: another kernel, thread count or BLAS would
    make as much.

    Returns:
        ``||w' - w|| / ||w - w_0||``: a share of the way that training went.
    """
    seed, rounds = trained.schedule.seed, trained.schedule.rounds
    everybody = runs.without_request(trained)
    with quiet_flower():
        again = continue_training(
            nudged(trained.initial, seed), everybody, range(1, rounds + 1)
        )
    way = norm(trained.model - trained.initial)
    return norm(again - trained.model) / way if way else 0.0


def nudged(model: Vector, seed: int) -> Vector:
    """Return the model with each weight moved to a neighbouring float32."""
    up = derive(seed, "noise floor").random(len(model)) < 1 / 2
    ends = np.where(up, np.float32(np.inf), np.float32(-np.inf))
    moved: Vector = np.nextafter(model, ends)
    return moved
