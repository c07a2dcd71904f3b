"""The meter: what a method used is counted by whoever runs it, never by the method."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Protocol

import numpy as np

from fedunlearn.errors import LeaverContactError, RunError
from fedunlearn.history import (
    ClientId,
    Counts,
    Holdings,
    RoundArrays,
    RoundRecord,
    ServerState,
    Tip,
    UpdateHistory,
)
from fedunlearn.method import (
    RemainingClients,
    UnlearningContext,
    UnlearningMethod,
    check_requirements,
)
from fedunlearn.params import Layout, Matrix, Vector
from fedunlearn.updates import Updates

_FLOAT32_BYTES = 4
_MODEL, _SUMS = -1, -1
"""Stand for a row and a round: the model sent out, and running sums of no round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningCost:
    """What one run used.

    Attributes:
        client_rounds: Local trainings: clients times rounds.
        local_steps: Optimiser steps at the clients.
        examples: Examples passed through a model at the clients.
        bytes_down: Model bytes sent to clients.
        bytes_up: Model bytes that came back.
        server_seconds: Wall-clock seconds outside the clients.
        wall_seconds: Wall-clock seconds in all.
        history_bytes: Stored bytes of the models, updates and sums that were read, each
            once: what the server has to keep for it.
        history_peak_bytes: Most bytes the history ever took, if anything was read.
        simulated_seconds: What the clients' trainings would have taken on a simulated
            clock; None without one.
    """

    client_rounds: int = 0
    local_steps: int = 0
    examples: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    server_seconds: float = 0.0
    wall_seconds: float = 0.0
    history_bytes: int = 0
    history_peak_bytes: int = 0
    simulated_seconds: float | None = None

    def ratio_to(self, other: "UnlearningCost") -> dict[str, float | None]:
        """Return each quantity over ``other``'s; None where that is zero."""
        own, base = asdict(self), asdict(other)
        return {k: own[k] / base[k] if base[k] else None for k in own}


COST_NAMES = tuple(f.name for f in fields(UnlearningCost))
"""The quantities of a cost, in the order of every table."""


@dataclass(frozen=True, slots=True)
class UnlearningOutcome:
    """The unlearned model, shape ``(P,)``, and its price."""

    model: Vector
    cost: UnlearningCost


class Trainings(Protocol):
    """Who trained on how much: updates and recorded rounds tell it."""

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """Who answered, ascending."""
        ...

    @property
    def num_samples(self) -> Counts:
        """Examples each passed through its model, shape ``(K,)``."""
        ...


Clock = Callable[[Trainings, int], float]
"""Given a cohort's trainings and how many were asked, tells how long they take."""


@dataclass(slots=True)
class MeteredClients:
    """Counts what passes through ``inner`` and lets nobody reach a leaver."""

    inner: RemainingClients
    forget: frozenset[ClientId]
    clock: Clock | None = None
    seconds: float = 0.0
    used: UnlearningCost = field(default_factory=UnlearningCost)

    @property
    def ids(self) -> frozenset[ClientId]:
        """The ids of the clients that stay."""
        return self.inner.ids - self.forget

    def train(
        self,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
        epochs: float | None = None,
    ) -> Updates:
        """Train through ``inner`` and count."""
        if gone := sorted(self.forget.intersection(ids)):
            raise LeaverContactError(
                f"client {gone[0]} is to be forgotten and cannot be asked to train"
            )
        start = time.perf_counter()
        updates = self.inner.train(model, ids, round_index=round_index, epochs=epochs)
        self.seconds += time.perf_counter() - start
        self._count(updates, len(ids))
        return updates

    def _count(self, updates: Updates, asked: int) -> None:
        model_bytes = updates.before.size * _FLOAT32_BYTES
        self.used = replace(
            self.used,
            client_rounds=self.used.client_rounds + len(updates.clients),
            local_steps=self.used.local_steps + int(updates.num_steps.sum()),
            examples=self.used.examples + int(updates.num_samples.sum()),
            bytes_down=self.used.bytes_down + asked * model_bytes,
            bytes_up=self.used.bytes_up + len(updates.clients) * model_bytes,
            simulated_seconds=self._later(updates, asked),
        )

    def _later(self, updates: Updates, asked: int) -> float | None:
        if self.clock is None:
            return None
        return (self.used.simulated_seconds or 0.0) + self.clock(updates, asked)


@dataclass(frozen=True, slots=True)
class MeteredArrays:
    """Notes which vectors of a round are read as ``(round, row)``."""

    inner: RoundArrays
    index: int
    count: int
    read: set[tuple[int, int]]

    def broadcast(self) -> Vector:
        """Read the model sent out."""
        self.read.add((self.index, _MODEL))
        return self.inner.broadcast()

    def updates(self) -> Matrix:
        """Read all updates."""
        self.read.update((self.index, row) for row in range(self.count))
        return self.inner.updates()

    def rows(self, positions: Sequence[int]) -> Matrix:
        """Read some updates."""
        self.read.update((self.index, row) for row in positions)
        return self.inner.rows(positions)

    def state(self) -> ServerState:
        """Read the server's state, which is no client's and small beside them."""
        return self.inner.state()


@dataclass(frozen=True, slots=True)
class MeteredHistory:
    """A history that remembers what was read from it."""

    inner: UpdateHistory
    read: set[tuple[int, int]] = field(default_factory=set)

    @property
    def layout(self) -> Layout:
        """Names and shapes of the recorded model's arrays."""
        return self.inner.layout

    @property
    def rounds(self) -> tuple[int, ...]:
        """Indices of the recorded rounds, ascending."""
        return self.inner.rounds

    @property
    def holds(self) -> Holdings:
        """What there is to read."""
        return self.inner.holds

    @property
    def tip(self) -> Tip | None:
        """Where the federation stands."""
        return self.inner.tip

    def round(self, index: int) -> RoundRecord:
        """Return one round, watched."""
        record = self.inner.round(index)
        arrays = MeteredArrays(record.arrays, index, len(record.clients), self.read)
        return replace(record, arrays=arrays)

    def rounds_of(self, client: ClientId) -> tuple[int, ...]:
        """Return the rounds in which the client's update was aggregated."""
        return self.inner.rounds_of(client)

    def sum_of(self, client: ClientId) -> Vector:
        """Return a client's running sum."""
        self.read.add((_SUMS, client))
        return self.inner.sum_of(client)

    @property
    def nbytes(self) -> int:
        """Stored bytes of the distinct vectors read."""
        holds = self.inner.holds
        exact = sum(row == _MODEL or index == _SUMS for index, row in self.read)
        return (
            exact * holds.broadcast_bytes
            + (len(self.read) - exact) * holds.update_bytes
        )


def run_unlearning(
    method: UnlearningMethod,
    model: Vector,
    ctx: UnlearningContext,
    clock: Clock | None = None,
) -> UnlearningOutcome:
    """Run ``method`` behind the meter.

    Args:
        method: What runs.
        model: The trained model, shape ``(P,)``.
        ctx: What it may use.
        clock: Tells how long trainings would take; None simulates no clock.

    Raises:
        RequirementError: If the history or the clients cannot serve it; nothing ran.
        RunError: If it returns a model of another shape or one that is not finite.
    """
    check_requirements(method, ctx)
    clients = MeteredClients(ctx.clients, ctx.forget, clock)
    clients.used = UnlearningCost(simulated_seconds=None if clock is None else 0.0)
    history = MeteredHistory(ctx.history)
    start = time.perf_counter()
    result = method.unlearn(model, replace(ctx, clients=clients, history=history))
    wall = time.perf_counter() - start
    _check_model(result, model, type(method).__name__)
    cost = replace(
        clients.used,
        wall_seconds=wall,
        server_seconds=wall - clients.seconds,
        history_bytes=history.nbytes,
        history_peak_bytes=history.inner.holds.peak_bytes if history.read else 0,
    )
    return UnlearningOutcome(result, cost)


def _check_model(result: Vector, model: Vector, name: str) -> None:
    if result.shape != model.shape or result.dtype != model.dtype:
        raise RunError(
            f"{name} returned {result.dtype} {result.shape}, "
            f"not {model.dtype} {model.shape}"
        )
    if not np.isfinite(result).all():
        raise RunError(f"{name} diverged: its model is not finite")
