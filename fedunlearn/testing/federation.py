"""Federations whose every model is known in closed form.

Client k minimises ``1/2 ||w - c_k||^2`` by gradient steps of size ``lr``, one step an
epoch. E epochs from ``w`` give ``w + (1 - (1 - lr)^E) (c_k - w)``, for whole and
fractional E. With all clients taking part, federated averaging goes to the weighted
mean of the centres; without a leaver, to the weighted mean of the others'.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np

from fedunlearn.history import (
    ArraysInMemory,
    ClientId,
    InMemoryHistory,
    RoundRecord,
    UpdateHistory,
)
from fedunlearn.method import Level, UnlearningContext, UnlearningRequest
from fedunlearn.params import Layout, Vector
from fedunlearn.rng import derive
from fedunlearn.testing.clients import QuadraticClients
from fedunlearn.testing.problem import QuadraticProblem
from fedunlearn.training import Training
from fedunlearn.updates import MeanServer, Server, Updates

ContextFactory = Callable[..., UnlearningContext]
"""``context(forget, rng_seed=0, level="client")``: a fresh context in which ``forget``
leave, or lose half of their data."""


def quadratic_federation(
    clients: QuadraticClients,
    *,
    initial: Vector | None = None,
    attendance: Mapping[ClientId, Collection[int]] | None = None,
    new_server: Callable[[], Server] = MeanServer,
) -> tuple[Vector, ContextFactory]:
    """Train a federation and return its final model and a maker of contexts.

    A round in which nobody is there is not recorded and leaves the model as it is.

    Args:
        clients: Who takes part, and the schedule.
        initial: The first model, shape ``(P,)``; None takes zeros.
        attendance: Client -> the rounds in which it is there. A client that is not
            named is always there. With it come late joiners, clients of a single round
            and rounds of the leaver alone.
        new_server: Makes the server rule.

    Returns:
        The model, and ``context(forget, rng_seed=0, level="client")``: a context in
        which ``forget`` have left, or at the other levels lose half of their data.
        Every context has clients and a generator of its own.
    """
    size = len(clients.centres[0])
    layout = Layout(("weight", "bias"), ((size - 1,), ()))
    history, server, attends = InMemoryHistory(layout), new_server(), attendance or {}
    model = np.zeros(size, np.float32) if initial is None else initial.copy()
    for index in range(1, clients.schedule.rounds + 1):
        there = [c for c in clients.ids if index in attends.get(c, (index,))]
        cohort = clients.schedule.cohort(index, there)
        if not cohort:
            continue
        updates = clients.train(model, cohort, round_index=index)
        history.append_round(_record(index, updates))
        model = server.step(updates)

    def context(
        forget: Collection[ClientId], rng_seed: int = 0, level: Level = "client"
    ) -> UnlearningContext:
        if level == "client":
            left = clients.without(forget)
            return make_context(history, left, new_server=new_server, rng_seed=rng_seed)
        remaining, forgotten = clients.divided(forget)
        kept = make_context(
            history, remaining, new_server=new_server, rng_seed=rng_seed
        )
        rows = {c: tuple(range(int(forgotten.examples_of([c])[0]))) for c in forget}
        request = UnlearningRequest(
            samples=rows if level == "sample" else {},
            classes=frozenset((0,) if level == "class" else ()),
        )
        return replace(
            kept, leavers=forgotten, request=request, shrunk=frozenset(forget)
        )

    return model, context


def make_context(
    history: UpdateHistory,
    clients: QuadraticClients,
    *,
    new_server: Callable[[], Server] = MeanServer,
    rng_seed: int = 0,
) -> UnlearningContext:
    """Return the context in which ``clients.gone`` are to be forgotten.

    The leavers answer, and the server has some examples of everybody's kind.
    """
    stay = frozenset(range(len(clients.centres))) - clients.gone
    return UnlearningContext(
        history=history,
        forget=clients.gone,
        clients=clients,
        leavers=replace(clients, gone=stay, calls=[]),
        server_data=_server_problem(clients),
        schedule=clients.schedule,
        new_server=new_server,
        layout=history.layout,
        rng=derive(rng_seed, "method"),
    )


def _server_problem(clients: QuadraticClients) -> QuadraticProblem:
    """Return twenty examples of the clients' mean loss: it does not know their ids."""
    how = Training(epochs=clients.schedule.epochs, batch_size=20, lr=clients.lr)
    centre = np.stack(clients.centres).mean(0, dtype=np.float64).astype(np.float32)
    return QuadraticProblem(centre, 20, how)


def _record(index: int, updates: Updates) -> RoundRecord:
    return RoundRecord(
        index=index,
        clients=updates.clients,
        num_examples=updates.num_examples,
        num_steps=updates.num_steps,
        num_samples=updates.num_samples,
        asked=updates.clients,
        arrays=ArraysInMemory(updates.before.copy(), updates.deltas),
    )
