"""Models to start from or to measure against: without the leavers, or random."""

import numpy as np

from fedunlearn.method import UnlearningContext
from fedunlearn.params import Layout, Vector, norm, weighted_mean
from strategies.leave_out import mean_update, shift_without


def last_aggregate_without(ctx: UnlearningContext, model: Vector) -> Vector:
    """Return a copy of ``model`` without the leavers' part of their last round.

    With p the leavers' share in that round's mean w', and w_u the mean of their models,
    ``p / (1 - p) (w' - w_u)`` is added: what the mean would have been without them,
    less what it was. A round in which leavers were alone is taken back. After an
    earlier request w' is made of everybody's updates.

    Args:
        ctx: Whose history is read; those that leave whole are taken out.
        model: The final global model, shape ``(P,)``; unchanged if none took part, or
            if others left before and not everybody's updates are held.
    """
    rounds = {t for c in ctx.forget for t in ctx.history.rounds_of(c)}
    if not rounds:
        return model.copy()
    record = ctx.history.round(max(rounds))
    if ctx.departed:  # the models around a round may hold who left before
        if record.index not in ctx.history.holds.updates:
            return model.copy()
        return model + shift_without(record, ctx.forget, mean_update(record))
    later = [t for t in ctx.history.rounds if t > record.index]
    mean = ctx.history.round(later[0]).broadcast if later else model
    gone = [c for c in record.clients if c in ctx.forget]
    sizes, everybody = record.examples_of(gone), int(record.num_examples.sum())
    stay = everybody - int(sizes.sum())
    if stay == 0:
        return model + (record.broadcast - mean)
    if stay == everybody:
        return model.copy()
    w_u = record.broadcast + weighted_mean(record.updates_of(gone), sizes.tolist())
    shift: Vector = np.float32((everybody - stay) / stay) * (mean - w_u)
    return model + shift


def distance_to_random(w: Vector, initial: Vector, layout: Layout) -> float:
    """Return the mean squared distance of ``w`` to all shuffled initial models.

    A shuffled model has the numbers of each array of the initial one in another order:
    it is as random as that one was. Over all orders the mean of an array's product with
    w is the product of their sums over its length.

    Args:
        w: Shape ``(P,)``.
        initial: The initial model, shape ``(P,)``.
        layout: Where the arrays lie.
    """
    product = 0.0
    for part in layout.slices.values():
        if part.stop > part.start:
            mean = np.mean(initial[part], dtype=np.float64)
            product += float(mean * np.sum(w[part], dtype=np.float64))
    return max(0.0, norm(w) ** 2 + norm(initial) ** 2 - 2 * product)


def shuffled(initial: Vector, layout: Layout, rng: np.random.Generator) -> Vector:
    """Return the initial model with the numbers of each array in another order."""
    out = initial.copy()
    for part in layout.slices.values():
        out[part] = rng.permutation(initial[part])
    return out
