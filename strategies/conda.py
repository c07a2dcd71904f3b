"""ConDa: parameters that the leavers moved more than the others are damped.

V. S. Chundawat, P. Niroula, P. Dhungana, S. Schoepf, M. Mandal, A. Brintrup, "ConDa:
Fast Federated Unlearning with Contribution Dampening", 2024, arXiv 2410.04144; after
selective synaptic dampening. With w_0 the initial model and w_i^t client i's model
after round t, for each parameter::

    c_i  = mean over client i's rounds of |w_i^t - w_0|
    C_f  = mean of c_i over leavers,  C_r = mean of c_i over the others
    beta = min(dampening C_r / C_f, upper)   where C_r / C_f <= cutoff, else 1
    w'   = beta w

Departures: a cutoff of 0.5, the paper's constant, hits 1 % of the parameters of a small
model and forgets next to nothing. By default the cutoff is therefore the ratio under
which a ``share`` of the parameters lies, but at most 1: what the others moved more is
left alone. The paper adds up a client's rounds; the mean is the same where everybody
takes part in all, and elsewhere does not spare whoever came seldom.
``against="broadcast"`` measures each round's own update, so that it does not matter
when a client took part. The released code passes all clients' and the leaver's
contributions to parameters named for the leaver's and the others': its ratio is upside
down, and damps what the leaver moved least. If nobody else took part, all that the
leavers moved is damped to zero.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fedunlearn.history import ClientId, records
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Conda:
    """Damps the parameters that hold most of the leavers.

    Attributes:
        dampening: Factor on the ratio, lambda.
        upper: The weakest damping, a factor.
        cutoff: Ratio of the others' to the leavers' contribution up to which a
            parameter is damped; None takes that of ``share``.
        share: Share of the parameters to damp, at most, if ``cutoff`` is None.
        against: Whether a client's model is compared with the ``initial`` one or with
            the ``broadcast`` it started the round from.
    """

    dampening: float = 0.5
    upper: float = 0.5
    cutoff: float | None = None
    share: float = 0.05
    against: Literal["initial", "broadcast"] = "initial"
    about: ClassVar[About] = About(
        family="subtraction",
        cost="T K P at the server",
        source="Chundawat et al., ConDa, 2024",
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_settings(self)
        for name, value in (("dampening", self.dampening), ("cutoff", self.cutoff)):
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= self.upper <= 1:
            raise ValueError(f"upper must lie in [0, 1], got {self.upper}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")

    @property
    def requires(self) -> Requires:
        """All updates, and the models they led to."""
        whole = self.against == "initial"
        return Requires(updates="all", broadcasts="all" if whole else "none")

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the damped model."""
        there = {c for record in records(ctx.history) for c in record.clients}
        leave, stay = there & ctx.forget, there - ctx.forget
        if not leave:
            return model.copy()
        forget, retain = (self._contribution(ids, ctx) for ids in (leave, stay))
        moved = forget > 0
        ratio = np.divide(retain, forget, out=np.full_like(forget, np.inf), where=moved)
        cutoff = self.cutoff
        if cutoff is None:
            cutoff = min(1.0, np.quantile(ratio, self.share, method="lower"))
        damped = np.minimum(self.dampening * ratio, self.upper)
        beta = np.where(ratio <= cutoff, damped, 1.0)
        return (beta * model).astype(np.float32)

    def _contribution(
        self, clients: Collection[ClientId], ctx: UnlearningContext
    ) -> npt.NDArray[np.float64]:
        """Return how far clients moved each parameter on average, shape ``(P,)``."""
        total = np.zeros(ctx.layout.size)
        for client in sorted(clients):
            rounds = ctx.history.rounds_of(client)
            for index in rounds:
                record = ctx.history.round(index)
                way = record.updates_of((client,))[0].astype(np.float64)
                if self.against == "initial":
                    way += record.broadcast - ctx.initial_model
                total += np.abs(way) / len(rounds)
        return total / max(len(clients), 1)
