"""Federations whose every model is known in closed form.

Client k minimises ``1/2 ||w - c_k||^2`` by gradient steps of size ``lr``, one step an
epoch. E epochs from ``w`` give ``w + (1 - (1 - lr)^E) (c_k - w)``, for whole and
fractional E. With all clients taking part, federated averaging goes to the weighted
mean of the centres; without a leaver, to the weighted mean of the others'.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from fedunlearn.errors import LeaverContactError
from fedunlearn.history import (
    ArraysInMemory,
    ClientId,
    Counts,
    InMemoryHistory,
    RoundRecord,
    UpdateHistory,
)
from fedunlearn.local import LocalProcedure, Results
from fedunlearn.method import UnlearningContext
from fedunlearn.params import Layout, Vector
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing.problem import QuadraticProblem
from fedunlearn.training import Training
from fedunlearn.updates import MeanServer, Server, Updates

ContextFactory = Callable[..., UnlearningContext]
"""``context(forget, rng_seed=0)``: a fresh context in which ``forget`` leave."""


@dataclass(frozen=True, slots=True)
class TrainCall:
    """One call of :class:`QuadraticClients`: the independent count of a cost.

    Attributes:
        round_index: The round that was named.
        clients: Who was asked, ascending.
        epochs: Local epochs each of them trained; None if they ran a procedure.
        steps: Gradients they took in it, in all.
        samples: Examples they passed through their models in it, in all.
        floats: Numbers each sent back from it.
    """

    round_index: int
    clients: tuple[ClientId, ...]
    epochs: float | None
    steps: int = 0
    samples: int = 0
    floats: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadraticClients:
    """Clients with quadratic losses; they refuse to train once they are gone.

    Attributes:
        centres: Where each client's loss is smallest, ``centres[k]`` of client k, each
            of shape ``(P,)``.
        schedule: The run: its seed and the local epochs of a round.
        lr: Step size, in (0, 1].
        num_examples: Examples of each client, the aggregation weight; None gives each
            one. An epoch passes all of them through the model.
        noise: Standard deviation of what is added to a trained model. It is drawn per
            (seed, round, client), as batch orders are, so that streams matter.
        gone: Clients that have left.
        calls: What was asked, oldest first.
    """

    centres: Sequence[Vector]
    schedule: TrainingSchedule
    lr: float = 0.5
    num_examples: Sequence[int] | None = None
    noise: float = 0.0
    gone: frozenset[ClientId] = frozenset()
    calls: list[TrainCall] = field(default_factory=list, repr=False)

    @property
    def ids(self) -> frozenset[ClientId]:
        """The clients that stay."""
        return frozenset(range(len(self.centres))) - self.gone

    def without(self, leavers: Collection[ClientId]) -> "QuadraticClients":
        """Return the same clients after ``leavers`` left, with an empty record."""
        return replace(self, gone=self.gone | frozenset(leavers), calls=[])

    def train(
        self,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
        epochs: float | None = None,
    ) -> Updates:
        """Return the closed form of local training, in float64 until the last bit.

        Raises:
            LeaverContactError: If somebody in ``ids`` is gone.
            KeyError: If somebody in ``ids`` never existed.
        """
        asked = self._asked(ids)
        length = float(self.schedule.epochs if epochs is None else epochs)
        self.calls.append(TrainCall(round_index, asked, length))
        after = [self._trained(model, client, round_index, length) for client in asked]
        sizes = self.examples_of(asked)
        return Updates(
            clients=asked,
            before=model,
            after=np.stack(after),
            num_examples=sizes,
            num_steps=np.full(len(asked), ceil(length), np.int64),
            num_samples=np.ceil(length * sizes).astype(np.int64),
        )

    def run(
        self,
        procedure: LocalProcedure,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
    ) -> Results:
        """Run a procedure on the quadratic loss of each client.

        Raises:
            LeaverContactError: If somebody in ``ids`` is gone.
            KeyError: If somebody in ``ids`` never existed.
        """
        asked = self._asked(ids)
        problems = [self.problem(client) for client in asked]
        values = [procedure.run(model, problem) for problem in problems]
        call = TrainCall(
            round_index,
            asked,
            None,
            steps=sum(p.num_steps for p in problems),
            samples=sum(p.num_samples for p in problems),
            floats=len(values[0]),
        )
        self.calls.append(call)
        return Results(
            clients=asked,
            values=np.stack(values).astype(np.float32),
            num_examples=self.examples_of(asked),
            num_steps=np.array([p.num_steps for p in problems], np.int64),
            num_samples=np.array([p.num_samples for p in problems], np.int64),
        )

    def problem(self, client: ClientId) -> QuadraticProblem:
        """Return a client's loss as a procedure sees it."""
        size = int(self.examples_of([client])[0])
        how = Training(epochs=self.schedule.epochs, batch_size=size, lr=self.lr)
        return QuadraticProblem(self.centres[client], size, how)

    def _asked(self, ids: Collection[ClientId]) -> tuple[ClientId, ...]:
        asked = tuple(sorted(ids))
        for client in asked:
            if client in self.gone:
                raise LeaverContactError(f"client {client} has left")
            if client not in self.ids:
                raise KeyError(client)
        return asked

    def examples_of(self, ids: Collection[ClientId]) -> Counts:
        """Return the example counts of ``ids``, in that order, shape ``(K,)``."""
        sizes = self.num_examples or [1] * len(self.centres)
        return np.array([sizes[client] for client in ids], np.int64)

    def _trained(
        self, model: Vector, client: ClientId, round_index: int, epochs: float
    ) -> Vector:
        start = model.astype(np.float64)
        pull = 1.0 - (1.0 - self.lr) ** epochs
        after = start + pull * (self.centres[client] - start)
        if self.noise:
            stream = derive(self.schedule.seed, "noise", round_index, client)
            after += self.noise * stream.standard_normal(after.shape)
        trained: Vector = after.astype(np.float32)
        return trained


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
        The model, and ``context(forget, rng_seed=0)``: a context in which ``forget``
        have left. Every context has clients and a generator of its own.
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

    def context(forget: Collection[ClientId], rng_seed: int = 0) -> UnlearningContext:
        staying = clients.without(forget)
        return make_context(history, staying, new_server=new_server, rng_seed=rng_seed)

    return model, context


def make_context(
    history: UpdateHistory,
    clients: QuadraticClients,
    *,
    new_server: Callable[[], Server] = MeanServer,
    rng_seed: int = 0,
) -> UnlearningContext:
    """Return the context in which ``clients.gone`` are to be forgotten.

    The leavers answer, and the server has the data of one of those that stay.
    """
    stay = frozenset(range(len(clients.centres))) - clients.gone
    return UnlearningContext(
        history=history,
        forget=clients.gone,
        clients=clients,
        leavers=replace(clients, gone=stay, calls=[]),
        server_data=clients.problem(min(stay, default=0)),
        schedule=clients.schedule,
        new_server=new_server,
        layout=history.layout,
        rng=derive(rng_seed, "method"),
    )


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
