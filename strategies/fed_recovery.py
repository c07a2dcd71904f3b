"""FedRecovery: a weighted sum of gradient residuals is taken out, noise hides the rest.

L. Zhang, T. Zhu, H. Zhang, P. Xiong, W. Zhou, "FedRecovery: Differentially Private
Machine Unlearning for Federated Learning Frameworks", IEEE TIFS 2023.

The residual of round i is what the leavers added to its step; rounds in which the model
moved much, compared with all it had moved by then, count most::

    dF_i = mean of all Delta_k^i
    d_i  = dF_i - mean of the remaining Delta_k^i    (Delta_u - dF_i) / (n - 1) if equal
    p_i  = ||dF_i||^2 / sum_{j < i} ||dF_j||^2        the first round has none
    w'   = w_T - c sum_i p_i d_i + N(0, sigma^2 I)

For losses so smooth that a round spreads two models at most by the factor G, retraining
with the recorded cohorts ends within ``D = sum_i (G^{T-i} + c p_i) ||d_i||`` of w'
before the noise; ``sigma = D / r(epsilon, beta)`` then makes the two, both with noise,
(epsilon, beta)-indistinguishable, r being that of ``strategies.gaussian``.

Departures: the paper's text was not at hand; the weights are those of released code and
D is our bound. ``weights="inclusive"`` sums over j <= i, so that the first round counts
whole and no weight exceeds one. The residual of that code, (dF_i - Delta_u / n) over
n - 1, is the remaining clients' mean over n, and taking it out does not remove the
leaver; c is fixed to 5 there. Without epsilon, sigma is a tenth of the root mean square
of the way that training went: a nuisance to an observer, no guarantee. sigma depends on
the leavers' updates, which the claim leaves out. A leaver that never took part gets the
same bits back, without noise.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal

import numpy as np

from fedunlearn.history import records
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector, norm
from strategies.gaussian import Calibration, largest_ratio
from strategies.leave_out import mean_update, shift_without
from strategies.settings import check_settings

_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FedRecovery:
    """Subtracts weighted residuals and adds Gaussian noise.

    Attributes:
        scale: How much of the weighted residuals is removed, c.
        weights: Whether a round's own step is in the sum that weighs it.
        sigma: Standard deviation of the noise; None takes that of epsilon or, without,
            a tenth of the root mean square of the way that training went.
        epsilon: How well unlearned and retrained models may be told apart.
        beta: Probability with which epsilon may fail.
        growth: By which a round may spread two models, G: (1 + lr L)^steps for losses
            of smoothness L, 1 for convex ones.
        calibration: Which bound gives sigma from epsilon.
    """

    scale: float = 1.0
    weights: Literal["before", "inclusive"] = "before"
    sigma: float | None = None
    epsilon: float | None = None
    beta: float = 0.01
    growth: float = 1.0
    calibration: Calibration = "exact"
    about: ClassVar[About] = About(
        family="subtraction",
        guarantee="(epsilon, beta) if epsilon is set and a round spreads two models "
        "by growth at most, against retraining with the same cohorts and noise",
        cost="T K P at the server",
        source="Zhang et al., FedRecovery, IEEE TIFS 2023",
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_settings(self)
        for name, value in (("scale", self.scale), ("sigma", self.sigma)):
            if value is not None and not 0 <= value < np.inf:
                raise ValueError(f"{name} must not be negative, got {value}")
        for name, value in (("growth", self.growth), ("epsilon", self.epsilon)):
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must lie in (0, 1), got {self.beta}")
        if self.sigma is not None and self.epsilon is not None:
            raise ValueError("sigma follows from epsilon: give one of them")

    @property
    def requires(self) -> Requires:
        """All updates, and the initial model to size the noise by."""
        sized = self.sigma is None and self.epsilon is None
        return Requires(
            updates="all", broadcasts="initial" if sized else "none", mean=True
        )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model without the residuals, with noise."""
        if not any(ctx.history.rounds_of(client) for client in ctx.forget):
            return model.copy()
        w, moved, spread, taken = model.astype(np.float64), 0.0, 0.0, 0.0
        for record in records(ctx.history):
            step = mean_update(record)
            square = norm(step) ** 2
            total = moved + square if self.weights == "inclusive" else moved
            p = square / total if total else 0.0
            d = -shift_without(record, ctx.forget, step)
            w -= self.scale * p * d
            moved += square
            grows = self.growth if ctx.staying(record.clients) else 1.0
            spread = grows * spread + norm(d)
            taken += self.scale * p * norm(d)
        sigma = self._sigma(model, ctx, spread + taken)
        return (w + sigma * ctx.rng.standard_normal(len(w))).astype(np.float32)

    def _sigma(self, model: Vector, ctx: UnlearningContext, distance: float) -> float:
        """Return the noise's standard deviation."""
        if self.sigma is not None:
            return self.sigma
        if self.epsilon is not None:
            return distance / largest_ratio(self.epsilon, self.beta, self.calibration)
        return _SHARE * norm(model - ctx.initial_model) / sqrt(len(model))
