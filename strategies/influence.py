"""Influence: one Newton step that takes the leaver's data out of the loss.

P. W. Koh, P. Liang, "Understanding Black-box Predictions via Influence Functions",
ICML 2017; as removal C. Guo, T. Goldstein, A. Hannun, L. van der Maaten, "Certified
Data Removal from Machine Learning Models", ICML 2020. With g the gradients of mean
losses at w, H_r the Hessian of the remaining clients' loss, n_u the examples to be
forgotten and N_r those that remain, two steps are in use::

    remaining   w' = w - H_r^-1 g_r
    leaver      w' = w + H_r^-1 (n_u / N_r) g_u

Where the joint loss is smallest, ``N_r g_r + n_u g_u = 0`` and the two are one. On
quadratic losses ``remaining`` reaches the minimum of the remaining loss from any w, as
a Newton step must, and it never asks the leaver. ``leaver`` misses it by ``H_r^-1 (N_r
g_r + n_u g_u) / N_r``, which is what training had still to do. A neural network is far
from any minimum. There ``remaining`` is one more step of training, which goes where the
remaining loss is curved and leaves the trace of the leaver in the flat directions,
while ``leaver`` takes the trace out and leaves the model as unfinished as it was.

``(H_r + L I) s = b`` is solved by conjugate gradients. A product with the Hessian is a
central difference of gradients at all remaining clients.

Departures, since the Hessian of a neural network is not positive: L is ``damping``
times the curvature along b; a direction in which the curvature is negative ends the
iteration; the step is no longer than ``reach`` times the way from the initial model. g
and H_r are of cross-entropy, without weight decay and the proximal term. No noise is
added, so that nothing is certified.
"""

from dataclasses import dataclass
from functools import partial
from math import inf, isinf
from typing import ClassVar, Literal

import numpy as np

from fedunlearn.method import ALL_LEVELS, About, Requires, UnlearningContext
from fedunlearn.params import Vector, norm
from strategies.curvature import ClientsLoss, Float64, conjugate_gradients
from strategies.forgetting import leavers_of
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """Takes one damped Newton step.

    Attributes:
        gradient: Whose gradient is followed: that of the ``leaver`` upwards, or that of
            the ``remaining`` clients downwards.
        damping: Curvature that is added, as a share of that along the gradient.
        iterations: Most steps of conjugate gradients; each asks everybody twice.
        tolerance: Residual, as a share of the first one, at which they stop.
        probe: Length of a finite difference, as a share of the model's own.
        reach: Longest step, as a share of the distance between the initial model and
            this one; inf for any.
    """

    gradient: Literal["remaining", "leaver"] = "leaver"
    damping: float = 0.1
    iterations: int = 10
    tolerance: float = 1e-3
    probe: float = 0.01
    reach: float = 1.0
    about: ClassVar[About] = About(
        family="influence",
        cost="2 I + 1 gradients of all data at clients, I P at the server",
        source="Koh and Liang, ICML 2017; Guo et al., ICML 2020",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_settings(self)
        for name, value, holds, rule in (
            ("damping", self.damping, 0 <= self.damping < inf, "from 0 up"),
            ("iterations", self.iterations, self.iterations >= 1, "at least 1"),
            ("tolerance", self.tolerance, 0 <= self.tolerance < 1, "in [0, 1)"),
            ("probe", self.probe, 0 < self.probe < inf, "positive and finite"),
            ("reach", self.reach, self.reach > 0, "positive"),
        ):
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {value!r}")

    @property
    def requires(self) -> Requires:
        """The remaining clients, the leaver or not, the initial model for a bound."""
        return Requires(
            broadcasts="none" if isinf(self.reach) else "initial",
            clients=True,
            leaver=self.gradient == "leaver",
            levels=ALL_LEVELS,
        )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after the step."""
        index = ctx.schedule.rounds + 1
        remaining = ClientsLoss(clients=ctx.clients, round_index=index)
        g, n_r = remaining.gradient(model)
        b = -g
        if self.gradient == "leaver":
            leaving = ClientsLoss(clients=leavers_of(ctx), round_index=index)
            g, n_u = leaving.gradient(model)
            b = g * (n_u / max(n_r, 1.0))
        step = conjugate_gradients(
            partial(remaining.hessian_product, model, probe=self.probe),
            b,
            self.iterations,
            self.tolerance,
            self.damping,
        )
        return (model + self._bounded(step, model, ctx)).astype(np.float32)

    def _bounded(self, step: Float64, model: Vector, ctx: UnlearningContext) -> Float64:
        length = float(np.sqrt(step @ step))
        if isinf(self.reach) or not length:
            return step
        return step * min(1.0, self.reach * norm(model - ctx.initial_model) / length)
