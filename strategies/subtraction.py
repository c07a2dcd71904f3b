"""Subtraction of the leavers' stored updates from the model.

``lazy``: C. Wu, S. Zhu, P. Mitra, "Federated Unlearning with Knowledge Distillation",
2022, the subtraction step. With p_u^t the leaver's share in the mean of round t::

    w' = w_T - sum_t sum_u p_u^t Delta_u^t

``renormalised``: the replay without calibration that FedEraser's paper calls FedAccum::

    w' = w_0 + sum_t sum_{k stays} n_k Delta_k^t / sum_{k stays} n_k

With equal shares p_u in every round the two differ by a factor only:
``renormalised - w_0 = (lazy - w_0) / (1 - p_u)``. Both leave what later updates learned
from contaminated models, and more of it the longer training went on; recovery rounds on
the remaining clients repair utility. Without them the result may well be worse than
doing nothing.

Both have a meaning for a weighted mean only and are refused under another server rule.
Wu's recovery by distillation is ``subtract_distill``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedunlearn.history import ClientId, records
from fedunlearn.method import About, Requires, UnlearningContext, continue_training
from fedunlearn.params import Vector, weighted_mean
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Subtract:
    """Takes the leavers' weighted updates out of the model.

    Attributes:
        weighting: Whether the remaining clients' shares stay as they were (``lazy``) or
            are scaled up to one (``renormalised``).
        recovery_rounds: Rounds of training on the remaining clients afterwards.
    """

    weighting: Literal["lazy", "renormalised"] = "lazy"
    recovery_rounds: int = 0
    about: ClassVar[About] = About(
        family="subtraction",
        cost="T P at the server, R K E at clients",
        source="Wu et al., Federated Unlearning with Knowledge Distillation, 2022",
    )

    def __post_init__(self) -> None:
        """Refuse a weighting nobody knows and a negative number of rounds."""
        check_settings(self)

    @property
    def requires(self) -> Requires:
        """The leavers' updates, or all of them to renormalise."""
        recovers = self.recovery_rounds > 0
        if self.weighting == "lazy":
            return Requires(updates="leavers", sums=True, clients=recovers, mean=True)
        return Requires(
            updates="all", broadcasts="initial", clients=recovers, mean=True
        )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after subtraction and recovery."""
        if self.weighting == "lazy":
            terms, start = _leavers_shares(ctx), model
        else:
            terms, start = _means_without(ctx), ctx.initial_model
        total = start.astype(np.float64)
        for term in terms:
            total += term
        trained = ctx.schedule.rounds
        rounds = range(trained + 1, trained + self.recovery_rounds + 1)
        return continue_training(total.astype(np.float32), ctx, rounds)


def _leavers_shares(ctx: UnlearningContext) -> Iterator[Vector]:
    """Yield ``-p_u^t Delta_u^t`` for every recorded update of a leaver."""
    if ctx.history.holds.sums_from is not None:
        yield from (-ctx.history.sum_of(c) for c in _contributors(ctx))
        return
    for record in records(ctx.history):
        leavers = [c for c in record.clients if c in ctx.forget]
        for client, update in zip(leavers, record.updates_of(leavers), strict=True):
            yield update * np.float32(-record.share_of(client))


def _contributors(ctx: UnlearningContext) -> list[ClientId]:
    return sorted(c for c in ctx.forget if ctx.history.rounds_of(c))


def _means_without(ctx: UnlearningContext) -> Iterator[Vector]:
    """Yield each round's weighted mean update of the remaining clients."""
    for record in records(ctx.history):
        if ids := ctx.staying(record.clients):
            yield weighted_mean(
                record.updates_of(ids), record.examples_of(ids).tolist()
            )
