"""FATS: recompute only if a leaver was sampled, and only from there.

Y. Tao, C.-L. Wang, M. Pan, D. Yu, X. Cheng, D. Wang, "Communication Efficient and
Provable Federated Unlearning", VLDB 2024, client level::

    if no leaver was ever sampled:  w' = w_T
    else:  t = the first round that sampled one; from w^{t-1}, with cohorts of rounds
           t, ..., T drawn anew from the remaining clients, train as before

The result has the distribution of training without the leavers: a cohort that has no
leaver is a uniform draw from the others. Whether the algorithm has anything to do is
decided by the sampling alone: with R rounds of K of M clients, at most ``w R K / M`` of
the requests of w clients lead to a recomputation.

Departures: cohorts are drawn as the federation was trained, K distinct clients by lot,
not a multiset (``strategies.fats_sampler``). The bound holds as well, by the union over
rounds; the exact probability for one client is ``1 - (1 - K/M)^R``. With all clients in
every round there is nothing stable and this is retraining. Local batches are not drawn
for stability, so there is no sample level. ``cohorts="lots"`` keeps the recorded lots,
in which the next in line takes the leaver's place: the same distribution, and the same
bits as retraining. A round counts from the moment a leaver was asked, answer or not: it
took a place that without it another client would have had. Local steps, learning rate
and K are the federation's, not derived from a target rho.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fedunlearn.history import records
from fedunlearn.method import About, Requires, UnlearningContext, continue_training
from fedunlearn.params import Vector
from fedunlearn.rng import SEED_LIMIT
from strategies.fats_sampler import first_use
from strategies.rollback import server_before
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Fats:
    """Recomputes from the first round that sampled a leaver, if there is one.

    Attributes:
        cohorts: Whether those of the recomputed rounds are drawn ``fresh`` or by the
            recorded ``lots``.
    """

    cohorts: Literal["fresh", "lots"] = "fresh"
    about: ClassVar[About] = About(
        family="exact",
        guarantee="exact in distribution; work with probability w T K / N at most",
        cost="(T - t) K E at clients, t the first round that sampled a leaver, or none",
        source="Tao et al., Communication Efficient and Provable FU, VLDB 2024",
    )
    requires: ClassVar[Requires] = Requires(broadcasts="all", clients=True)

    def __post_init__(self) -> None:
        """Refuse cohorts nobody knows."""
        check_settings(self)

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return ``model``, or what training gives from the first use on."""
        asked = {record.index: record.asked for record in records(ctx.history)}
        t = first_use(asked, ctx.forget)
        if t is None:
            return model.copy()
        schedule = ctx.schedule
        if self.cohorts == "fresh":
            schedule = replace(schedule, seed=int(ctx.rng.integers(SEED_LIMIT)))
        return continue_training(
            ctx.history.round(t).broadcast.copy(),
            replace(ctx, schedule=schedule),
            range(t, ctx.schedule.rounds + 1),
            server_before(t, ctx),
        )
