"""What methods that work at the leavers share: whom to ask, local descent, the mean."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fedunlearn.errors import RequirementError
from fedunlearn.history import ClientId
from fedunlearn.local import LocalProblem, LogitGradient, Results, Rows
from fedunlearn.method import Clients, UnlearningContext
from fedunlearn.params import Vector, norm
from fedunlearn.shards import mean_within
from fedunlearn.training import Training

LossOf = Callable[[Rows], LogitGradient]
"""Given the rows of a batch, the loss to descend on it."""


def leavers_of(ctx: UnlearningContext) -> Clients:
    """Return who answers for what is to be forgotten.

    Raises:
        RequirementError: If nobody does; ``check_requirements`` says so beforehand.
    """
    if ctx.leavers is None:
        raise RequirementError("the leavers do not answer")
    return ctx.leavers


def contributors(ctx: UnlearningContext) -> tuple[ClientId, ...]:
    """Return the leavers that ever took part, ascending.

    Of the others the model holds nothing: asking them to undo something would only do
    damage. Without a recorded round nobody can tell, and all are returned.
    """
    ids, history = sorted(ctx.touched), ctx.history
    return tuple(c for c in ids if not history.rounds or history.rounds_of(c))


def mean_of(found: Results, rest: Vector, shards: int) -> Vector:
    """Return the mean of the leavers' vectors, weighted by examples, shape ``(P,)``.

    Who has no example has no say; if none of them has one they count alike.

    Args:
        found: What the leavers returned, shape ``(K, P)``.
        rest: What stands in blocks that none of them has a say in, shape ``(P,)``.
        shards: Of the model; each block is the mean of the leavers in its shard.
    """
    if not found.num_examples.any():
        found = replace(found, num_examples=found.num_examples + 1)
    updates = found.as_updates(rest, None, found.clients)
    return mean_within(shards).step(updates)


def pace(training: Training) -> float:
    """Return how far training goes along a lasting gradient a step: lr / (1 - m)."""
    return training.lr / (1 - training.momentum)


def descended(
    start: Vector,
    problem: LocalProblem,
    batches: Sequence[Rows],
    loss_of: LossOf,
    *,
    lr: float,
    momentum: float = 0.0,
) -> Vector:
    """Return ``start`` after one step of SGD a batch.

    Args:
        start: Shape ``(P,)``.
        problem: Whose data and model.
        batches: The rows of each step.
        loss_of: The loss on these rows.
        lr: Learning rate.
        momentum: In ``[0, 1)``; its buffer starts at zero.
    """
    w, velocity = start.copy(), np.zeros_like(start)
    for rows in batches:
        velocity *= np.float32(momentum)
        velocity += problem.gradient(w, rows, loss_of(rows))
        w -= np.float32(lr) * velocity
    return w


def clipped(vector: Vector, most: float) -> Vector:
    """Return ``vector``, shortened to the L2 norm ``most`` if it is longer."""
    size = norm(vector)
    return vector if size <= most else vector * np.float32(most / size)
