"""Recovery rounds: training on the remaining clients after the model was changed."""

from fedunlearn.method import UnlearningContext, continue_training
from fedunlearn.params import Vector


def recovered(model: Vector, ctx: UnlearningContext, rounds: int | None) -> Vector:
    """Return ``model`` after rounds T + 1, T + 2, ... on the remaining clients.

    Args:
        model: Where to start, shape ``(P,)``; returned as it is after no round.
        ctx: Whose clients, schedule and server rule are used.
        rounds: How many; None takes half as many as were trained, rounded up.
    """
    trained = ctx.schedule.rounds
    more = (trained + 1) // 2 if rounds is None else rounds
    return continue_training(model, ctx, range(trained + 1, trained + more + 1))
