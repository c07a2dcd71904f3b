"""The laws an unlearning method obeys, whatever paper it comes from.

Each law is a function of a method; it returns or raises an AssertionError that begins
with the law's name. :func:`check_method` runs them all. They use small federations in
closed form, so a method needs no torch and no Flower to be checked.
"""

from dataclasses import replace
from math import ceil
from typing import get_args

import numpy as np

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import FedUnlearnError, LeaverContactError
from fedunlearn.history import records
from fedunlearn.method import Level, UnlearningMethod, unmet_requirements
from fedunlearn.params import norm
from fedunlearn.rewrite import RewrittenHistory, Steps
from fedunlearn.testing.bench import (
    LEAVER,
    SIZES,
    CountingServer,
    Law,
    fingerprint,
    require,
    require_like,
    require_model,
    trained_for,
    watched,
)
from fedunlearn.updates import Server

_CLOSE = 1e-4
_BROKEN = (FedUnlearnError, ValueError, LookupError, ArithmeticError, TypeError)


def check_method(method: UnlearningMethod) -> None:
    """Run every law on ``method``.

    Raises:
        AssertionError: At the first law that does not hold; it names the law.
    """
    for law in LAWS:
        try:
            law(method)
        except LeaverContactError as error:
            raise AssertionError(
                f"{never_trains_a_leaver.__name__}: {error}"
            ) from error
        except _BROKEN as error:
            raise AssertionError(f"{law.__name__}: {error!r} was raised") from error


def keeps_shape_and_dtype(method: UnlearningMethod) -> None:
    """The result is a finite float32 vector of the model's shape."""
    require_model(keeps_shape_and_dtype, method, trained_for(method))


def accepts_partial_participation(method: UnlearningMethod) -> None:
    """Three of five clients a round are enough."""
    require_model(
        accepts_partial_participation, method, trained_for(method, clients_per_round=3)
    )


def accepts_a_client_of_a_single_round(method: UnlearningMethod) -> None:
    """A client that stays may have taken part once, and so may the leaver."""
    for client in (0, LEAVER):
        trained = trained_for(method, attendance={client: (3,)})
        require_model(accepts_a_client_of_a_single_round, method, trained)


def accepts_a_round_left_empty(method: UnlearningMethod) -> None:
    """A round in which the leaver alone took part does not stop a method."""
    for empty in (1, 3):
        others = tuple(i for i in range(1, 6) if i != empty)
        attendance = {c: others for c in range(len(SIZES)) if c != LEAVER}
        trained = trained_for(method, attendance=attendance)
        require_model(accepts_a_round_left_empty, method, trained)


def accepts_a_round_nobody_attended(method: UnlearningMethod) -> None:
    """A history may have gaps: rounds are addressed by index, not by position."""
    attendance = dict.fromkeys(range(len(SIZES)), (1, 3, 4, 5))
    require_model(
        accepts_a_round_nobody_attended,
        method,
        trained_for(method, attendance=attendance),
    )


def accepts_several_leavers(method: UnlearningMethod) -> None:
    """More than one client may leave at once."""
    model, context = trained_for(method, clients_per_round=3)
    require_like(accepts_several_leavers, method.unlearn(model, context((1, 2))), model)


def leaves_its_arguments_alone(method: UnlearningMethod) -> None:
    """Neither the model nor one byte of the history changes."""
    model, context = trained_for(method, clients_per_round=3)
    ctx = context((LEAVER,))
    before = (model.tobytes(), fingerprint(ctx))
    method.unlearn(model, ctx)
    require(
        before == (model.tobytes(), fingerprint(ctx)),
        leaves_its_arguments_alone,
        "the model, the history or the leavers were changed",
    )


def returns_memory_of_its_own(method: UnlearningMethod) -> None:
    """The result shares no memory with the model or the history."""
    model, context = trained_for(method)
    ctx = context((LEAVER,))
    result = method.unlearn(model, ctx)
    recorded = [a for r in records(ctx.history) for a in (r.broadcast, r.updates)]
    require(
        not any(np.shares_memory(result, array) for array in (model, *recorded)),
        returns_memory_of_its_own,
        "writing to the result would change the model or the history",
    )


def repeats_itself(method: UnlearningMethod) -> None:
    """The same context gives the same bits."""
    model, context = trained_for(method, clients_per_round=3)
    first, second = (method.unlearn(model, context((LEAVER,))) for _ in range(2))
    require(
        first.tobytes() == second.tobytes(),
        repeats_itself,
        "two runs of one seed differ: it draws from somewhere else than ctx.rng",
    )


def never_trains_a_leaver(method: UnlearningMethod) -> None:
    """Nobody who left is asked, and whoever is asked is asked at least something."""
    model, context = trained_for(method, clients_per_round=3)
    for leavers in ((LEAVER,), (0, LEAVER, 4)):
        ctx, clients, _ = watched(context, leavers)
        method.unlearn(model, ctx)
        require(
            all(c.clients and c.epochs != 0 for c in clients.calls),
            never_trains_a_leaver,
            "clients were asked to train nothing",
        )
        asked = {client for call in clients.calls for client in call.clients}
        require(asked.isdisjoint(leavers), never_trains_a_leaver, f"{asked} were asked")


def costs_what_the_clients_counted(method: UnlearningMethod) -> None:
    """The meter agrees with a count kept by the clients themselves."""
    model, context = trained_for(method, clients_per_round=3)
    ctx, clients, leavers = watched(context, (LEAVER,))
    cost = run_unlearning(method, model, ctx).cost
    calls = [*clients.calls, *leavers.calls]
    asked = [(c, call) for call in calls for c in call.clients]
    work = [(c, call.epochs) for c, call in asked if call.epochs is not None]
    counted = {
        "client_rounds": len(asked),
        "local_steps": sum(ceil(epochs) for _, epochs in work)
        + sum(call.steps for call in calls),
        "examples": sum(ceil(epochs * SIZES[c]) for c, epochs in work)
        + sum(call.samples for call in calls),
        "bytes_down": len(asked) * model.nbytes,
        "bytes_up": len(work) * model.nbytes
        + sum(4 * call.floats for _, call in asked),
    }
    metered = {name: getattr(cost, name) for name in counted}
    require(
        metered == counted,
        costs_what_the_clients_counted,
        f"the meter says {metered}, the clients {counted}",
    )


def asks_for_clients_if_it_says_so(method: UnlearningMethod) -> None:
    """A method that requires no clients, or no leaver, asks none."""
    model, context = trained_for(method)
    ctx, clients, leavers = watched(context, (LEAVER,))
    method.unlearn(model, ctx)
    require(
        method.requires.clients or not clients.calls,
        asks_for_clients_if_it_says_so,
        "clients were asked, though requires.clients is false",
    )
    require(
        method.requires.leaver or not leavers.calls,
        asks_for_clients_if_it_says_so,
        "the leaver was asked, though requires.leaver is false",
    )


def does_not_care_for_names(method: UnlearningMethod) -> None:
    """Relabelling the clients of a full federation changes rounding only."""
    order = (2, 3, 4, 1, 0)  # everybody stays in a shard of two
    model, context = trained_for(method, noise=0.0)
    renamed, renamed_context = trained_for(method, noise=0.0, order=order)
    one = method.unlearn(model, context((LEAVER,)))
    other = method.unlearn(renamed, renamed_context((order.index(LEAVER),)))
    require(
        norm(one - other) <= _CLOSE * (1 + norm(one)),
        does_not_care_for_names,
        f"the results are {norm(one - other):.3g} apart",
    )


def keeps_a_model_the_leaver_never_touched(method: UnlearningMethod) -> None:
    """A leaver that never took part leaves nothing to remove: same bits back.

    Not in ``LAWS``: methods that train on do not promise it.
    """
    for size in (None, 3):
        trained = trained_for(method, clients_per_round=size, attendance={LEAVER: ()})
        model, context = trained
        result = method.unlearn(model, context((LEAVER,)))
        require(
            result.tobytes() == model.tobytes(),
            keeps_a_model_the_leaver_never_touched,
            f"the model moved by {norm(result - model):.3g}",
        )


def serves_the_levels_it_names(method: UnlearningMethod) -> None:
    """What it says it can forget it forgets; what it does not say is refused."""
    model, context = trained_for(method, clients_per_round=3)
    for level in get_args(Level):
        ctx = context((LEAVER, 3), level=level)
        if level not in method.requires.levels:
            require(
                any("level" in need for need in unmet_requirements(method, ctx)),
                serves_the_levels_it_names,
                f"a request of level {level} is not refused",
            )
            continue
        outcome = run_unlearning(method, model, ctx)
        require_like(serves_the_levels_it_names, outcome.model, model)


def leaves_a_history_without_the_leaver(method: UnlearningMethod) -> None:
    """The steps to the model it returns name their rounds: the next request finds them.

    What the method trained again replaces what was recorded from there on. Steps of a
    model on the side name none.
    """
    model, context = trained_for(method, clients_per_round=3)
    ctx, steps = context((LEAVER,)), Steps()
    made = list[CountingServer]()

    def new_server() -> Server:
        made.append(CountingServer(steps.watch(ctx.new_server)()))
        return made[-1]

    outcome = run_unlearning(method, model, replace(ctx, new_server=new_server))
    rewritten = RewrittenHistory(ctx.history, ctx.forget, steps.rounds)
    require(
        not any(
            server.nameless is not None
            and np.array_equal(server.nameless, outcome.model)
            for server in made
        ),
        leaves_a_history_without_the_leaver,
        "it returns the model of a step with updates whose round_index is None",
    )
    require(
        sum(server.named for server in made) == len(steps.rounds),
        leaves_a_history_without_the_leaver,
        "a server rule took two steps of one round",
    )
    found = [r for r in records(rewritten) if LEAVER in r.clients]
    require(not found, leaves_a_history_without_the_leaver, "the leaver is still there")


LAWS: tuple[Law, ...] = (
    keeps_shape_and_dtype,
    accepts_partial_participation,
    accepts_a_client_of_a_single_round,
    accepts_a_round_left_empty,
    accepts_a_round_nobody_attended,
    accepts_several_leavers,
    leaves_its_arguments_alone,
    returns_memory_of_its_own,
    repeats_itself,
    never_trains_a_leaver,
    costs_what_the_clients_counted,
    asks_for_clients_if_it_says_so,
    does_not_care_for_names,
    serves_the_levels_it_names,
    leaves_a_history_without_the_leaver,
)
"""Every law, in the order in which they are checked."""
