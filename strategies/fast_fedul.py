"""Fast-FedUL: subtraction that follows how a removed difference would have travelled.

T. T. Huynh, T. B. Nguyen, P. L. Nguyen, T. T. Nguyen, M. Weidlich, Q. V. H. Nguyen,
K. Aberer, "Fast-FedUL: A Training-Free Federated Unlearning with Provable Skew
Resilience", ECML-PKDD 2024.

D_t is what the model of round t would have been without the leaver, less what it was.
Local training carries a difference on, here by the factor 1 + alpha a round::

    D_t = (1 + alpha) D_{t-1} + mean of the remaining Delta_i^t - mean of all Delta_i^t
    w'  = w_T + D_T

With N clients of equal share the last two terms are the paper's
``1/(N (N-1)) sum_{i stays} Delta_i - 1/N Delta_u``. At alpha = 0 the method is
``Subtract(weighting="renormalised")``. Where all clients have quadratic losses of the
same curvature, 1 + alpha = (1 - lr)^E makes it retraining.

Departures: the paper takes alpha from [0.05, 0.1], its script 0.07: a difference would
grow by 7 % a round, thirtyfold in 50. Training towards an optimum shrinks it. By
default alpha is therefore measured on the recorded updates of each remaining client i,
at its successive rounds t and t'::

    alpha = sum n_i <Delta_i^t' - Delta_i^t, w^t' - w^t> / sum n_i ||w^t' - w^t||^2

kept within [-1, 0]. All recorded updates are used, not a sample of the largest ones.
Shares are those of the round, of any size; rounds of leavers alone count as no step.
The released code subtracts the leaver's term only and uses ``1 - alpha beta_t``: at
alpha = 0 it is lazy subtraction, another method.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from fedunlearn.history import records
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector
from strategies.leave_out import mean_update, shift_without


@dataclass(frozen=True, slots=True, kw_only=True)
class FastFedul:
    """Removes the leavers' share of each round and what later rounds made of it.

    Attributes:
        alpha: Relative growth of a difference in a round, above -1; None measures it.
            The paper's is 0.07.
    """

    alpha: float | None = None
    about: ClassVar[About] = About(
        family="subtraction",
        guarantee="none (distance to retraining bounded by Lipschitz constants)",
        cost="T K P at the server",
        source="Huynh et al., Fast-FedUL, ECML-PKDD 2024",
    )

    def __post_init__(self) -> None:
        """Refuse an alpha of -1 or less."""
        if self.alpha is not None and not -1 < self.alpha < np.inf:
            raise ValueError(f"alpha must lie above -1, got {self.alpha}")

    @property
    def requires(self) -> Requires:
        """All updates, and all broadcasts to measure alpha."""
        measures = self.alpha is None
        return Requires(
            updates="all", broadcasts="all" if measures else "none", mean=True
        )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model plus what removal makes of it."""
        if not any(ctx.history.rounds_of(client) for client in ctx.forget):
            return model.copy()
        alpha = measured_alpha(ctx) if self.alpha is None else self.alpha
        difference = np.zeros(len(model))
        for record in records(ctx.history):
            if ctx.staying(record.clients):
                difference *= 1 + alpha
            if not ctx.forget.isdisjoint(record.clients):
                difference += shift_without(record, ctx.forget, mean_update(record))
        return (model + difference).astype(np.float32)


def measured_alpha(ctx: UnlearningContext) -> float:
    """Return the secant slope of the remaining clients' updates, in [-1, 0].

    It is 0 if nobody who stays took part twice.
    """
    along = squared = 0.0
    everybody = {c for record in records(ctx.history) for c in record.clients}
    for client in ctx.staying(sorted(everybody)):
        rounds = map(ctx.history.round, ctx.history.rounds_of(client))
        for before, after in pairwise(rounds):
            old, new = (r.updates_of((client,))[0] for r in (before, after))
            step = (after.broadcast - before.broadcast).astype(np.float64)
            size = int(after.examples_of((client,))[0])
            along += size * float(step @ (new - old))
            squared += size * float(step @ step)
    return float(np.clip(along / squared, -1, 0)) if squared else 0.0
