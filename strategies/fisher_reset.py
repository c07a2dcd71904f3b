"""Reset of the parameters that know most about the leaver.

A. Balordi, L. Manini, F. Stella, A. Merlo, "Tackling Federated Unlearning as a
Parameter Estimation Problem", arXiv 2508.19065, 2025 (its last version was withdrawn by
the authors). With H the diagonal of the information in data about the parameters, of
the leaver and of everybody, summed over examples::

    I = 1/2 (H_u / H_tot)^2                       elementwise
    w_i <- w_i at the start of training           for the top share of I

and then training on the remaining clients.

Departures: H is the diagonal empirical Fisher information, the mean squared gradient;
the paper prefers the diagonal of the Hessian or of its generalised Gauss-Newton matrix.
A parameter that nobody's data touches has no information and is never reset. The
released code ranks within each array (``per: array``), resets to zero, and trains the
reset parameters only, all others frozen; here all are trained.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fedunlearn.local import LocalProblem, Results
from fedunlearn.method import ALL_LEVELS, About, Requires, UnlearningContext
from fedunlearn.params import Vector
from strategies.forgetting import leavers_of
from strategies.layers import Mask
from strategies.recovery import recovered
from strategies.settings import check_settings

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fisher:
    """Takes the diagonal empirical Fisher information of a client's data."""

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return the mean squared gradient at ``start``, shape ``(P,)``."""
        return problem.gradient_moments(start)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class FisherReset:
    """Resets the parameters that know most about the leaver.

    Attributes:
        share: How many of the parameters are reset, in [0, 1].
        per: Whether the share is taken of the whole ``model`` or of each ``array``.
        recovery_rounds: Rounds of training on the remaining clients afterwards; None
            takes half as many as were trained.
    """

    share: float = 0.4
    per: Literal["model", "array"] = "array"
    recovery_rounds: int | None = None
    about: ClassVar[About] = About(
        family="perturbation",
        cost="n P at clients, P log P at the server, R K E at clients",
        source="Balordi et al., arXiv 2508.19065, 2025",
    )
    requires: ClassVar[Requires] = Requires(
        broadcasts="initial",
        clients=True,
        leaver=True,
        levels=ALL_LEVELS,
    )

    def __post_init__(self) -> None:
        """Refuse a share that is none, an unknown rank and negative rounds."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {self.share}")
        check_settings(self)

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after reset and recovery."""
        information = information_of_leavers(model, ctx)
        parts = list(ctx.layout.slices.values())
        if self.per == "model":
            size = model.size // ctx.schedule.shards
            parts = [slice(at, at + size) for at in range(0, model.size, size)]
        reset = np.zeros(model.size, np.bool_)
        for part in parts:
            reset[part] = highest(information[part], self.share)
        changed = np.where(reset, ctx.initial_model, model)
        return recovered(changed, ctx, self.recovery_rounds)


def information_of_leavers(model: Vector, ctx: UnlearningContext) -> Float64:
    """Return ``1/2 (H_u / H_tot)^2``, shape ``(P,)``; 0 where nobody has any."""
    index, sums = ctx.schedule.rounds + 1, []
    for clients in (leavers_of(ctx), ctx.clients):
        found = clients.run(Fisher(), model, clients.ids, round_index=index)
        sums.append(_total(found))
    total = np.sum(sums, axis=0)
    ratio = np.divide(sums[0], total, out=np.zeros_like(total), where=total > 0)
    information: Float64 = 0.5 * np.square(ratio)
    return information


def highest(values: Float64, share: float) -> Mask:
    """Return which of ``values`` are the highest share, and positive; first ones first.

    Args:
        values: Shape ``(n,)``.
        share: In [0, 1]; ``share * n`` is rounded to the nearest count.
    """
    chosen = np.zeros(values.size, np.bool_)
    chosen[np.argsort(-values, kind="stable")[: round(share * values.size)]] = True
    return chosen & (values > 0)


def _total(found: Results) -> Float64:
    """Return the clients' values, weighted by their examples and added up."""
    total: Float64 = found.num_examples.astype(np.float64) @ found.values
    return total
