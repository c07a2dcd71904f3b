"""Clients in shards: a leaver's shard alone is trained again (SISA).

L. Bourtoule, V. Chandrasekaran, C. A. Choquette-Choo, H. Jia, A. Travers, B. Zhang,
D. Lie, N. Papernot, "Machine Unlearning", IEEE S&P 2021: Sharded, Isolated, Sliced and
Aggregated training, section IV. W are the leavers, b_s the block of the model that
shard s trains, w^t the model sent out in round t, d_t the round's cohort::

    isolated    b_s^(t+1) = sum_{k in d_t, k mod S = s} n_k b_k / sum of the same n_k
    sliced      t_s = first round of a member of W in shard s;  b_s := b_s of w^(t_s)
    again       rounds t_s ... T of shard s, on those of it that stay
    aggregated  p(y | x) = 1/S sum_s p(y | x; b_s), or the majority of the S answers

Departures: shards are of clients, not of examples. A slice is a recorded round, so the
slices are as many as the broadcasts that were kept; where that of t_s was not, the
newest one before it is taken. Shards follow from client ids (``k mod S``); the paper
also deals by how likely somebody is to leave (section VII), which needs a guess.

The result is that of ``retrain`` bit for bit. In a federation whose clients may stay
silent that does not hold for rounds in which none of the shard answers: a round never
passes without an answer, and here only some shards are asked. Nor, as with
``rollback``, where a leaver was asked before its first update and stayed silent: it had
taken somebody's place.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedunlearn.history import ClientId, UpdateHistory, first_round_of
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector
from fedunlearn.shards import blocks_of, shard_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """Rolls the leavers' shards back and trains them again; the others stay."""

    about: ClassVar[About] = About(
        family="exact",
        guarantee="exact: the model of a federation without the leavers",
        cost="(T - t) K E / S at clients for each shard with a leaver",
        source="Bourtoule et al., Machine Unlearning (SISA), IEEE S&P 2021",
    )
    requires: ClassVar[Requires] = Requires(
        broadcasts="first",
        clients=True,
        shards=True,
        levels=("client", "sample", "class"),
    )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return ``model`` with the leavers' blocks as if they had never been there."""
        shards, server = ctx.schedule.shards, ctx.new_server()
        back = returns(ctx.history, ctx.touched, shards)
        model = model.copy()
        for s, t in back.items():
            sent = ctx.history.round(t).broadcast
            blocks_of(model, shards)[s] = blocks_of(sent, shards)[s]
        last = ctx.schedule.rounds
        for index in range(min(back.values(), default=last + 1), last + 1):
            again = {s for s, t in back.items() if t <= index}
            cohort = ctx.schedule.cohort(index, ctx.clients.ids)
            ids = [c for c in cohort if shard_of(c, shards) in again]
            if ids:
                model = server.step(ctx.clients.train(model, ids, round_index=index))
        return model


def returns(
    history: UpdateHistory, leavers: Iterable[ClientId], shards: int
) -> Mapping[int, int]:
    """Return the shards that leavers trained, and the round each returns to."""
    out: dict[int, int] = {}
    for client in sorted(leavers):
        first, shard = first_round_of(history, (client,)), shard_of(client, shards)
        if first is not None:
            t = max(r for r in history.holds.broadcasts if r <= first)
            out[shard] = min(t, out.get(shard, t))
    return out
