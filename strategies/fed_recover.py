"""FedRecover: retraining in which the server estimates most updates itself.

X. Cao, J. Jia, Z. Zhang, N. Z. Gong, "FedRecover: Recovering from Poisoning Attacks in
Federated Learning using Historical Information", IEEE S&P 2023.

It retrains from the initial model. With the recorded models ``wbar_t``, the recorded
steps ``gbar_t^i`` of client i (before minus after, as a gradient points) and the model
being recovered, ``w_t``, a round is exact or estimated::

    exact:      g_t^i = what client i computes at w_t
    estimated:  g_t^i = gbar_t^i + H~_t^i (w_t - wbar_t)

``H~_t^i v`` is the compact L-BFGS product (see ``lbfgs.py``) of the client's last s
exact rounds b, from the pairs ``w_b - wbar_b`` and ``g_b^i - gbar_b^i``. Exact are the
first Tw rounds (warm-up), every Tc-th round from there (periodic correction) and the
last Tf rounds (final tuning). If a coordinate of an estimate exceeds tau in size, that
client is asked (abnormality fixing); ``tau = max_t tau_t``, where at most the share
alpha of the coordinates recorded in round t from those that stay exceeds tau_t. The
rule that trained the model, with its state, turns the steps into the next model. With
T rounds and n clients, none abnormal, it takes ``n (Tw + Tf + floor((T - Tw - Tf) /
Tc))`` client-rounds, and nT if Tw + Tf >= T.

Departures: the paper has full participation and one local step. Here cohorts are those
of retraining, and whoever cannot be estimated is asked: a client that the recorded
round lacks or that has no pair yet. While the model is still the recorded one, before
the leavers' first round, recorded steps are taken as they are. A pair holds one
client's step and model of the same round, also where only that client was asked. Pairs
without positive curvature, which several local steps can give, are not kept. Tw and Tf
follow from T unless given; the paper's Tw = 20 would make twenty rounds a plain
retraining. No faithful released code was found; what Crab's calls FedRecover is local
L-BFGS training without estimates.
"""

from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar

import numpy as np

from fedunlearn.errors import EmptyRoundError
from fedunlearn.history import records
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector
from fedunlearn.updates import Updates
from strategies.estimates import Pairs, estimated, merged, remember

_NO_THRESHOLD = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class FedRecover:
    """Retrains with estimated updates and a few exact ones.

    Attributes:
        warm_up: First rounds that are exact, Tw; None takes a tenth, more than s.
        correct_every: Rounds between two corrections, Tc.
        final: Last rounds that are exact, Tf; None takes a tenth, 1 to 5.
        buffer: Pairs kept of each client, s.
        tolerance: Share of recorded coordinates above the threshold, alpha; None asks
            nobody for being abnormal.
    """

    warm_up: int | None = None
    correct_every: int = 10
    final: int | None = None
    buffer: int = 2
    tolerance: float | None = 1e-6
    about: ClassVar[About] = About(
        family="calibrated retraining",
        guarantee="exact, if every client's Hessian is the same multiple of I",
        cost="(Tw + Tf + T / Tc) K E at clients, T K s P at the server",
        source="Cao et al., FedRecover, IEEE S&P 2023",
    )
    requires: ClassVar[Requires] = Requires(
        updates="all", broadcasts="all", clients=True
    )

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        counts = {"correct_every": self.correct_every, "buffer": self.buffer}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if self.warm_up is not None and self.warm_up <= self.buffer:
            raise ValueError(
                f"warm_up must exceed buffer, got {self.warm_up} and {self.buffer}"
            )
        if self.final is not None and self.final < 0:
            raise ValueError(f"final must not be negative, got {self.final}")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must lie in [0, 1), got {self.tolerance}")

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the recovered model."""
        del model
        w, server, pairs = ctx.initial_model.copy(), ctx.new_server(), Pairs()
        tau, recorded = self._threshold(ctx), frozenset(ctx.history.rounds)
        for t in range(1, ctx.schedule.rounds + 1):
            ids = ctx.cohort(t)
            record = ctx.history.round(t) if t in recorded else None
            known: tuple[Updates, ...] = ()
            if record is not None and not self._is_exact(t, ctx.schedule.rounds):
                known = estimated(w, record, ids, pairs, tau)
            if asked := set(ids).difference(*(updates.clients for updates in known)):
                # A round with estimates can do without an answer.
                with suppress(EmptyRoundError) if known else nullcontext():
                    exact = ctx.clients.train(w, asked, round_index=t)
                    if record is not None:
                        remember(pairs, exact, record, self.buffer)
                    known += (exact,)
            w = server.step(replace(merged(known), round_index=t))
        return w

    def _is_exact(self, t: int, last: int) -> bool:
        """Tell whether everybody is asked in round t of ``last``."""
        tenth = ceil(last / 10)
        tw = max(self.buffer + 1, tenth) if self.warm_up is None else self.warm_up
        tf = min(5, tenth) if self.final is None else self.final
        return t <= tw or (t - tw) % self.correct_every == 0 or t > last - tf

    def _threshold(self, ctx: UnlearningContext) -> float:
        """Return tau; the largest float32 if nothing finite is abnormal."""
        if self.tolerance is None:
            return _NO_THRESHOLD
        tau = 0.0
        for record in records(ctx.history):
            if ids := ctx.staying(record.clients):
                sizes = np.abs(record.updates_of(ids)).ravel()
                nth = sizes.size - 1 - int(self.tolerance * sizes.size)
                tau = max(tau, float(np.partition(sizes, nth)[nth]))
        return tau
