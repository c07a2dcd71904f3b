"""SIFU for one request (IFU): a certified return to an earlier model, with noise.

Y. Fraboni, M. Van Waerebeke, K. Scaman, R. Vidal, L. Kameni, M. Lorenzi, "SIFU:
Sequential Informed Federated Unlearning for Efficient and Provable Client Unlearning in
Federated Optimization", AISTATS 2024.

How far client i can have moved the model w^n is bounded by its bounded sensitivity::

    Psi(n, i) = sum_{s < n} B^{(n-1-s) K} ||Agg(I, w^s) - Agg(I without i, w^s)||
    ||Agg(I) - Agg(I without i)|| = p_i / (1 - p_i) ||w_i^{s+1} - w^{s+1}||
    Psi*      = epsilon sigma / sqrt(2 (ln 1.25 - ln delta))
    T         = last n with max_{i leaves} Psi(n, i) <= Psi*
    w~        = w^T + N(0, sigma^2 I)

and the remaining clients train on from w~. For requests one after another there is
``strategies.sifu_branches``.

Departures: where Psi(T) is zero the model owes the leavers nothing and no noise is
added, unless others left by an earlier request: this is a rollback then, and a leaver
that never took part gets the same bits back. Training goes on for as many rounds as
remained, not until an accuracy is reached. B^K, the factor by which the local steps of
a round shrink a distance, is one number.
The newest models within budget are not kept apart: all broadcasts are in the history.
The formula of Psi* is proven for epsilon < 1 and does not hold at the paper's epsilon
of 10; ``calibration="exact"`` holds at any. A client alone in its round counts with the
norm of its update. Several leavers are each hidden, not their sum, as in the paper.
"""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import numpy as np

from fedunlearn.method import About, Requires, UnlearningContext, continue_training
from fedunlearn.params import Vector
from strategies.gaussian import Calibration, largest_ratio
from strategies.leave_out import bounded_sensitivity
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Sifu:
    """Returns to the newest model that noise makes forget, and trains on from there.

    Attributes:
        epsilon: How well an observer may tell the leavers' presence.
        delta: Probability with which epsilon may fail; None takes 1 / N, N all clients.
        sigma: Standard deviation of the noise on every parameter.
        contraction: B^K, by which a round shrinks the distance of two models; 1 assumes
            no strong convexity.
        calibration: ``classical``: the paper's; ``exact``: holds for every epsilon.
        rounds: Rounds to train after the return; None takes as many as remained.
        budget: At most this share of the training rounds; None sets no cap.
        sensitivities: ``computed`` from everybody's updates where a round does not hold
            them; ``recorded`` needs no update.
    """

    epsilon: float = 10.0
    delta: float | None = None
    sigma: float = 0.05
    contraction: float = 1.0
    calibration: Calibration = "classical"
    rounds: int | None = None
    budget: float | None = None
    sensitivities: Literal["computed", "recorded"] = "computed"
    about: ClassVar[About] = About(
        family="rollback",
        guarantee="(epsilon, delta) for each leaver, if local training shrinks "
        "distances by B (quadratic losses) and epsilon < 1 or calibration is exact",
        cost="T P at the server, (T - t) K E at clients, t the return",
        source="Fraboni et al., SIFU, AISTATS 2024",
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_settings(self)
        for name, value in (("epsilon", self.epsilon), ("sigma", self.sigma)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"delta must lie in (0, 1), got {self.delta}")
        if not 0 < self.contraction <= 1:
            raise ValueError(f"contraction must lie in (0, 1], got {self.contraction}")
        if self.rounds is not None and self.rounds < 0:
            raise ValueError(f"rounds must not be negative, got {self.rounds}")
        if self.budget is not None and not 0 <= self.budget <= 1:
            raise ValueError(f"budget must lie in [0, 1], got {self.budget}")

    @property
    def requires(self) -> Requires:
        """All broadcasts, and sensitivities or the updates to work them out."""
        recorded = self.sensitivities == "recorded"
        return Requires(
            updates="none" if recorded else "all",
            sensitivities=recorded,
            broadcasts="all",
            clients=self.rounds != 0,
            mean=True,
        )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after return, noise and training."""
        clients = len(ctx.clients.ids | ctx.forget)
        delta = 1 / clients if self.delta is None else self.delta
        psi_star = self.sigma * largest_ratio(self.epsilon, delta, self.calibration)
        psi = bounded_sensitivity(ctx, self.contraction)
        t = max(n for n, value in psi.items() if value <= psi_star)
        left = t in ctx.history.rounds
        w = (ctx.history.round(t).broadcast if left else model).copy()
        # Models from before an earlier request's noise still hold those who left then.
        if psi[t] > 0 or (left and ctx.departed):
            w += np.float32(self.sigma) * ctx.rng.standard_normal(len(w), np.float32)
        return continue_training(w, ctx, self._rounds(t, ctx.schedule.rounds))

    def _rounds(self, t: int, trained: int) -> range:
        """Return the rounds to train from the model of the start of round ``t``."""
        rounds = trained + 1 - t if self.rounds is None else self.rounds
        if self.budget is not None:
            rounds = min(rounds, ceil(self.budget * trained))
        return range(t, t + rounds)
