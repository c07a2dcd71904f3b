"""What a recorded round would have been without some of its clients."""

from collections.abc import Collection

from fedunlearn.history import ClientId, RoundRecord, records
from fedunlearn.history.shares import sensitivities
from fedunlearn.method import UnlearningContext
from fedunlearn.params import Vector, weighted_mean


def mean_update(record: RoundRecord) -> Vector:
    """Return the round's mean update, weighted by examples, shape ``(P,)``."""
    return weighted_mean(record.updates, record.num_examples.tolist())


def shift_without(
    record: RoundRecord, leavers: Collection[ClientId], mean: Vector
) -> Vector:
    """Return by how much the mean of a round changes when clients are left out.

    Args:
        record: The round.
        leavers: Who is left out; a round of them alone becomes one of no step.
        mean: Its mean update, shape ``(P,)``.
    """
    stay = [client for client in record.clients if client not in leavers]
    if len(stay) == len(record.clients):
        return mean - mean
    if not stay:
        return -mean
    weights = record.examples_of(stay).tolist()
    return weighted_mean(record.updates_of(stay), weights) - mean


def bounded_sensitivity(ctx: UnlearningContext, contraction: float) -> dict[int, float]:
    """Return the leavers' largest Psi at the start of each round and after the last.

    Args:
        ctx: Whose history and leavers.
        contraction: By which a recorded round shrinks what was there before, B^K.
    """
    psi, out = dict.fromkeys(ctx.forget, 0.0), {}
    for record in records(ctx.history):
        out[record.index] = max(psi.values())
        felt = leave_one_out(record, ctx.forget)
        psi = {c: contraction * value + felt.get(c, 0.0) for c, value in psi.items()}
    return out | {ctx.schedule.rounds + 1: max(psi.values())}


def leave_one_out(
    record: RoundRecord, clients: frozenset[ClientId]
) -> dict[ClientId, float]:
    """Return how far each of ``clients`` that took part moved the mean of a round.

    The recorded numbers, or ``p / (1 - p) ||Delta_i - mean||`` from the updates.
    """
    if clients.isdisjoint(record.clients):
        return {}
    felt = record.sensitivities
    if felt is None:
        felt = sensitivities(record.updates, record.num_examples)
    each = dict(zip(record.clients, felt.tolist(), strict=True))
    return {client: each[client] for client in clients.intersection(each)}
