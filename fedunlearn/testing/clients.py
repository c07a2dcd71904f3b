"""Clients whose losses are quadratic: every answer is known in closed form."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from fedunlearn.errors import LeaverContactError
from fedunlearn.history import ClientId, Counts
from fedunlearn.local import LocalProcedure, Results
from fedunlearn.params import Vector
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.shards import blocks_of, shard_of
from fedunlearn.testing.problem import QuadraticProblem
from fedunlearn.training import Training
from fedunlearn.updates import Updates


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
        schedule: The run: its seed, the local epochs of a round, and the shards, in
            which a client trains its own block.
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

    def divided(
        self, clients: Collection[ClientId]
    ) -> "tuple[QuadraticClients, QuadraticClients]":
        """Return all clients with what remains, and ``clients`` with what they lose.

        Half of their examples pull to a place above their centre and remain; the other
        half pull as far below it.
        """
        size = len(self.centres[0])
        off = {c: np.full(size, 0.5, np.float32) for c in clients}
        still = np.zeros(size, np.float32)
        counts = self.examples_of(range(len(self.centres))).tolist()
        halves = tuple((n + 1) // 2 if c in off else n for c, n in enumerate(counts))
        above, below = (
            replace(
                self,
                centres=[w + s * off.get(c, still) for c, w in enumerate(self.centres)],
                num_examples=halves,
                calls=[],
            )
            for s in (1, -1)
        )
        return above, replace(below, gone=frozenset(range(len(counts))) - set(clients))

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
        how = Training(epochs=self.schedule.epochs, batch_size=max(size, 1), lr=self.lr)
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
        shards, trained = self.schedule.shards, model.astype(np.float32)
        own = shard_of(client, shards)
        blocks_of(trained, shards)[own] = blocks_of(after, shards)[own]
        return trained
