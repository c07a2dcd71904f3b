"""Retraining without the leavers: the reference for every other method.

It starts from the same initial model and gives every remaining client the batch orders
it had, so that it differs from training by the leavers alone. It equals, bit for bit,
a training run in which they never existed.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedunlearn.method import (
    ALL_LEVELS,
    About,
    Requires,
    UnlearningContext,
    continue_training,
)
from fedunlearn.params import Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrain:
    """Trains from the initial model, never having seen the leavers."""

    about: ClassVar[About] = About(
        family="exact",
        guarantee="exact: the model of a federation without the leavers",
        cost="T K E at clients",
        source="the definition of unlearning",
    )
    requires: ClassVar[Requires] = Requires(
        broadcasts="initial", clients=True, levels=ALL_LEVELS
    )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after as many rounds as were trained."""
        del model
        rounds = range(1, ctx.schedule.rounds + 1)
        return continue_training(ctx.initial_model, ctx, rounds)
