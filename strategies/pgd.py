"""PGD: the leaver climbs its own loss inside a ball around a model without its part.

A. Halimi, S. Kadhe, A. Rawat, N. Baracaldo, "Federated Unlearning: How to Erase a
Client in FL?", UpML workshop at ICML 2022. With w_T the model, w_u the leaver's last
local one and all N clients alike::

    w_ref = N/(N-1) w_T - 1/(N-1) w_u           the last aggregate without the leaver
    r     = mean over 10 random models of ||w_ref - w_init||^2 / 3
    w    <- P(w + lr v),  v <- m v + clip(grad CE_u(w)),  P onto ||w - w_ref||^2 <= r

from w = w_ref, over the leaver's batches, until an early stop; then recovery rounds on
the remaining clients. Distances are squared.

Departures: N/(N-1) becomes 1/(1 - p), p the leavers' share in the mean of the last
round they took part in; if others followed, the shift of that round's mean is applied
to w_T. A round of leavers alone is undone. The random models are the initial model with
the numbers of each array shuffled; the mean is over all orders, in closed form. On a
later request the shift is made of everybody's updates; w_ref is w_T if they are not
kept. The paper stops at a squared distance to w_u of 2.2, which belongs to one model: a
LeNet-5 on 4,000 images of clothes did not come back from it. The default stops where
the loss on the next batch has reached that of a guess, log C; ``stop_distance`` is the
constant, measured from w_ref, for one model travels and not two. lr is that of training
(in the paper 0.01 for both). The recovery is in whole rounds, half as many as were
trained: the paper's work. Who leaves a part of its data only stays in the mean: w_ref
is w_T then. Several leavers climb each by itself; their models are averaged by
examples.
"""

from dataclasses import dataclass, replace
from math import log, sqrt
from typing import ClassVar, Literal

import numpy as np

from fedunlearn.local import LocalProblem, Rows
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector, norm
from strategies.forgetting import clipped, contributors, leavers_of, mean_of
from strategies.logit_losses import mean_cross_entropy, negative_cross_entropy
from strategies.recovery import recovered
from strategies.reference import distance_to_random, last_aggregate_without
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Pgd:
    """Projected gradient ascent at the leavers, then recovery.

    It is its own procedure: the leaver gets it with ``radius`` filled in.

    Attributes:
        reference: Where the ascent starts, the centre of the ball: ``history`` takes
            the leavers out of the last mean they were in, ``model`` takes the model.
        lr: Learning rate of the ascent; None takes that of training.
        momentum: Momentum of the ascent.
        clip: Longest gradient, L2.
        epochs: The most passes over the leaver's data.
        batch_size: Examples a step.
        radius: Squared radius of the ball; None takes a third of the mean squared
            distance to random models.
        stop_loss: The ascent ends where a batch's loss is this many times log C.
        stop_distance: If given, it ends beyond this squared distance instead, in the
            paper 2.2.
        recovery_rounds: Rounds on the remaining clients; None takes half as many as
            were trained.
    """

    reference: Literal["history", "model"] = "history"
    lr: float | None = None
    momentum: float = 0.9
    clip: float = 5.0
    epochs: float = 5
    batch_size: int = 128
    radius: float | None = None
    stop_loss: float = 1.0
    stop_distance: float | None = None
    recovery_rounds: int | None = None
    about: ClassVar[About] = About(
        family="ascent",
        cost="up to 5 epochs at the leavers, with a look at each batch first, "
        "R K E at clients",
        source="Halimi et al., Federated Unlearning: How to Erase a Client in FL?, "
        "UpML workshop at ICML 2022",
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_settings(self)
        names = "lr clip epochs batch_size radius stop_loss stop_distance"
        for name in names.split():
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")

    @property
    def requires(self) -> Requires:
        """The leaver; for w_ref its last update and the models around it."""
        looks_back = self.reference == "history"
        return Requires(
            updates="leavers" if looks_back else "none",
            broadcasts="all" if looks_back else "initial",
            leaver=True,
            clients=self.recovery_rounds != 0,
            mean=looks_back,
            levels=("client", "sample", "class"),
        )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after ascent and recovery."""
        looks_back = self.reference == "history"
        w = last_aggregate_without(ctx, model) if looks_back else model.copy()
        spread = distance_to_random(w, ctx.initial_model, ctx.layout)
        radius = self.radius or max(spread / 3, 1e-30)  # a ball is never empty
        if ids := contributors(ctx):
            t, ascent = ctx.schedule.rounds + 1, replace(self, radius=radius)
            found = leavers_of(ctx).run(ascent, w, ids, round_index=t)
            w = mean_of(found, w, ctx.schedule.shards)
        return recovered(w, ctx, self.recovery_rounds)

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return a leaver's model after the ascent from ``start``, shape ``(P,)``."""
        lr = np.float32(self.lr or problem.training.lr)
        w, velocity = start.copy(), np.zeros_like(start)
        for rows in problem.batches(self.epochs, self.batch_size):
            if self._is_enough(w, start, problem, rows):
                break
            gradient = problem.gradient(w, rows, negative_cross_entropy)
            velocity *= np.float32(self.momentum)
            velocity += clipped(gradient, self.clip)
            w = start + clipped(w - lr * velocity - start, sqrt(self.radius or 0))
        return w

    def _is_enough(
        self, w: Vector, start: Vector, problem: LocalProblem, rows: Rows
    ) -> bool:
        if self.stop_distance is not None:
            return norm(w - start) ** 2 > self.stop_distance
        scores, labels = problem.logits(w, rows), problem.labels[rows]
        guess = log(scores.shape[1])
        return mean_cross_entropy(scores, labels) >= self.stop_loss * guess
