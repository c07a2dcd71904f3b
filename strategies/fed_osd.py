"""FedOSD: steepest unlearning steps that no remaining client feels.

Z. Pan, Z. Wang, C. Li, K. Zheng, B. Wang, X. Tang, J. Zhao, "Federated Unlearning with
Gradient Descent and Conflict Mitigation", AAAI 2025. The leaver descends a bounded loss
instead of climbing an unbounded one, with g_u its gradient and the rows of G those of
the remaining clients::

    UCE = -log(1 - p_y / 2)
    d   = g_u - G^T (G G^T)^+ G g_u,  d <- d ||g_u|| / ||d||     so G d = 0, g_u d >= 0
    w  <- w - lr d                                               for some rounds

Then recovery: so that it does not walk back, every local update loses its component
along g_a = w - w_T and keeps its norm before it is aggregated.

Departures: the paper's rate 4e-4 for 100 rounds belongs to its models (it moves an MLP
on digits by 0.3 % of its norm). The default rate is fixed in the first round, so that
``unlearn_rounds`` such steps would go ``reach`` times the norm of the model. UCE is
flat at both ends: from p_y near 1 later steps are longer, towards 0 shorter. ``lr`` is
the constant. G is of cross-entropy, without weight decay and the proximal term. g_u is
the leavers' mean by examples, the code's an unweighted one. G holds a round's cohort,
its rows are scaled to one length, which changes no d, and d is zero where g_u lies
within the span of G. The recovery projects the updates of ordinary local training and
hands them to the server rule; the paper takes 100 single gradients at a rate of 1e-6,
which is next to nothing. So is the default of two rounds: one direction taken out of
millions does not keep long training from going back.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedunlearn.local import LocalProblem
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Matrix, Vector, norm
from strategies.forgetting import contributors, leavers_of, mean_of
from strategies.logit_losses import unlearning_cross_entropy
from strategies.recovery import recovered
from strategies.settings import check_settings

_Exact = npt.NDArray[np.float64]
# Below this share of the largest, an eigenvalue of G G^T counts as zero.
_ALIKE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Returns the gradient on all of a client's data.

    Attributes:
        unlearn: Of UCE; else of the mean cross-entropy.
    """

    unlearn: bool = False

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return the gradient at ``start``, shape ``(P,)``."""
        loss = unlearning_cross_entropy if self.unlearn else None
        return problem.gradient(start, loss=loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class FedOsd:
    """Orthogonal steepest descent of UCE, then recovery that does not go back.

    Attributes:
        unlearn_rounds: Rounds of unlearning, in the paper 100.
        reach: Length of ``unlearn_rounds`` first steps over the norm of the model.
        lr: Learning rate of unlearning, in the paper 4e-4; None takes ``reach``.
        recovery_rounds: Rounds on the remaining clients; many undo the unlearning.
    """

    unlearn_rounds: int = 10
    reach: float = 0.1
    lr: float | None = None
    recovery_rounds: int = 2
    requires: ClassVar[Requires] = Requires(leaver=True, clients=True)
    about: ClassVar[About] = About(
        family="ascent",
        cost="K + 1 gradients and K^2 P a round of U, R K E at clients",
        source="Pan et al., FedOSD, AAAI 2025",
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_settings(self)
        for name in ("unlearn_rounds", "reach", "lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after unlearning and recovery."""
        if not contributors(ctx):
            return recovered(model.copy(), ctx, self.recovery_rounds)
        first, server = ctx.schedule.rounds + 1, ctx.new_server()
        middle = first + self.unlearn_rounds
        w = self._unlearned(model, ctx, range(first, middle))
        for index in range(middle, middle + self.recovery_rounds):
            cohort = ctx.schedule.cohort(index, ctx.clients.ids)
            fresh = ctx.clients.train(w, cohort, round_index=index)
            steps = without_component(fresh.deltas, w - model)
            w = server.step(replace(fresh, after=w + steps))
        return w

    def _unlearned(
        self, model: Vector, ctx: UnlearningContext, rounds: range
    ) -> Vector:
        w, lr, leavers, ids = model.copy(), self.lr, leavers_of(ctx), contributors(ctx)
        for index in rounds:
            own = leavers.run(Slope(unlearn=True), w, ids, round_index=index)
            g_u = mean_of(own, np.zeros_like(w), ctx.schedule.shards)
            g = ctx.clients.run(Slope(), w, ctx.cohort(index), round_index=index).values
            if lr is None and (size := norm(g_u)):
                lr = self.reach * norm(model) / self.unlearn_rounds / size
            w -= np.float32(lr or 0) * steepest(g_u, g)
        return w


def steepest(g_u: Vector, rows: Matrix) -> Vector:
    """Return the direction nearest to g_u that no row feels, as long as g_u.

    Args:
        g_u: Shape ``(P,)``.
        rows: The remaining clients' gradients, shape ``(K, P)``.
    """
    felt = rows[rows.any(axis=1)].astype(np.float64)
    felt /= np.linalg.norm(felt, axis=1, keepdims=True)
    inverse = np.linalg.pinv(felt @ felt.T, rcond=_ALIKE, hermitian=True)
    exact = g_u.astype(np.float64)
    d = exact - felt.T @ (inverse @ (felt @ exact))
    d -= felt.T @ (inverse @ (felt @ d))  # once more, against rounding
    return _as_long(d, exact)


def without_component(rows: Matrix, direction: Vector) -> Matrix:
    """Return each row without its part along ``direction``, as long as before.

    Args:
        rows: Shape ``(K, P)``.
        direction: Shape ``(P,)``; zeros change nothing.
    """
    if not (size := norm(direction)):
        return rows
    along = direction.astype(np.float64) / size
    exact = rows.astype(np.float64)
    return np.stack([_as_long(row - (row @ along) * along, row) for row in exact])


def _as_long(vector: _Exact, other: _Exact) -> Vector:
    """Return ``vector`` with the norm of ``other``; zeros if it is but rounding."""
    size, length = np.linalg.norm(vector), np.linalg.norm(other)
    if size <= _ALIKE * length:
        return np.zeros(len(vector), np.float32)
    return (vector * (length / size)).astype(np.float32)
