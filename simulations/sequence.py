"""Removals one after another: each starts from the history the last one left."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedunlearn.cost import (
    Clock,
    Meter,
    MeteredClients,
    UnlearningCost,
    UnlearningOutcome,
    run_unlearning,
)
from fedunlearn.history import ClientId
from fedunlearn.method import (
    UnlearningContext,
    UnlearningMethod,
    UnlearningRequest,
    continue_training,
)
from fedunlearn.params import Vector
from fedunlearn.rewrite import RewrittenHistory, Steps
from fedunlearn.rng import derive


@dataclass(frozen=True, slots=True)
class Removal:
    """One request and when it comes.

    Attributes:
        request: What is asked.
        forget: Who leaves by it.
        after: The last round before it. A request does not interrupt a round.
    """

    request: UnlearningRequest
    forget: frozenset[ClientId]
    after: int


def run_removals(
    method: UnlearningMethod,
    model: Vector,
    ctx: UnlearningContext,
    removals: Sequence[Removal],
    label: str = "",
    clock: Clock | None = None,
) -> UnlearningOutcome:
    """Run a method once a removal; between them, and after the last, training goes on.

    Args:
        method: What runs.
        model: The model after all rounds of training if nobody had asked, ``(P,)``.
        ctx: What it may use: the history of all rounds, and a schedule that names them.
        removals: The requests, by time.
        label: Names the random stream of a run.
        clock: Tells how long trainings would take.

    Returns:
        The model after the last round, and what the removals cost; training that goes
        on is no part of it.
    """
    first, total = removals[0].after, ctx.schedule.rounds
    if len(removals) == 1 and first == total:
        return run_unlearning(method, model, ctx, clock)
    history = RewrittenHistory(ctx.history, frozenset(), {}, until=first)
    if first < total:
        model = ctx.history.round(first + 1).broadcast
    departed, cost, trained = frozenset[ClientId](), UnlearningCost(), first
    nexts = [*(r.after for r in removals[1:]), total]
    for number, (removal, then) in enumerate(zip(removals, nexts, strict=True)):
        own = replace(
            ctx,
            history=history,
            request=removal.request,
            forget=removal.forget,
            departed=departed,
            # Whose round was the first may be gone, and the round with them.
            started_from=ctx.initial_model,
            schedule=replace(ctx.schedule, rounds=trained),
            rng=derive(ctx.schedule.seed, f"method {label}", number),
        )
        outcome = run_unlearning(method, model, own, clock, watch=True)
        cost, steps = cost + outcome.cost, outcome.steps
        departed |= removal.forget
        trained = max([trained, *steps.rounds])
        more = range(trained + 1, trained + 1 + then - removal.after)
        model = _going_on(outcome.model, own, departed, steps, more)
        trained = max([trained, *more])
        history = RewrittenHistory(history, removal.forget, dict(steps.rounds))
    return UnlearningOutcome(model, cost)


def _going_on(
    model: Vector,
    ctx: UnlearningContext,
    departed: frozenset[ClientId],
    steps: Steps,
    rounds: range,
) -> Vector:
    """Return the model after training goes on with those who are left.

    The server rule goes on from the state in which the method left it.
    """
    clients = MeteredClients(ctx.clients, departed, Meter())
    server = steps.server or steps.watch(ctx.new_server)()
    return continue_training(model, replace(ctx, clients=clients), rounds, server)
