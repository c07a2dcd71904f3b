"""The meter: what a method used is counted by whoever runs it, never by the method."""

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Protocol

import numpy as np

from fedunlearn.errors import LeaverContactError, RunError
from fedunlearn.history import ClientId, Counts
from fedunlearn.local import LocalProcedure, Results
from fedunlearn.metered_history import MeteredHistory
from fedunlearn.method import (
    Clients,
    UnlearningContext,
    UnlearningMethod,
    check_requirements,
)
from fedunlearn.params import Vector
from fedunlearn.rewrite import Steps
from fedunlearn.updates import Updates

_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningCost:
    """What one run used.

    Attributes:
        client_rounds: Local trainings, and procedures that clients ran: clients times
            rounds.
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

    def __add__(self, other: "UnlearningCost") -> "UnlearningCost":
        """Return the cost of both; a peak is the higher one."""
        own, more = asdict(self), asdict(other)
        sums = {k: own[k] + more[k] for k in own if None not in (own[k], more[k])}
        peak = max(self.history_peak_bytes, other.history_peak_bytes)
        return UnlearningCost(**{**sums, "history_peak_bytes": peak})

    def ratio_to(self, other: "UnlearningCost") -> dict[str, float | None]:
        """Return each quantity over ``other``'s; None where that is zero."""
        own, base = asdict(self), asdict(other)
        return {k: own[k] / base[k] if base[k] else None for k in own}


COST_NAMES = tuple(f.name for f in fields(UnlearningCost))
"""The quantities of a cost, in the order of every table."""


@dataclass(frozen=True, slots=True)
class UnlearningOutcome:
    """The unlearned model, shape ``(P,)``, its price, and the steps if watched."""

    model: Vector
    cost: UnlearningCost
    steps: Steps = field(default_factory=Steps)


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
class Meter:
    """What was used so far, and the seconds spent waiting for clients."""

    clock: Clock | None = None
    seconds: float = 0.0
    used: UnlearningCost = field(default_factory=UnlearningCost)

    def __post_init__(self) -> None:
        """Start the simulated clock, if there is one."""
        if self.clock is not None:
            self.used = replace(self.used, simulated_seconds=0.0)

    def count(self, done: Updates | Results, asked: int, down: int, up: int) -> None:
        """Add a cohort's work.

        Args:
            done: Who did how much.
            asked: How many were asked.
            down: Bytes sent to each.
            up: Bytes that came back from each that answered.
        """
        used, there = self.used, len(done.clients)
        later = None
        if self.clock is not None:
            later = (used.simulated_seconds or 0.0) + self.clock(done, asked)
        self.used = replace(
            used,
            client_rounds=used.client_rounds + there,
            local_steps=used.local_steps + int(done.num_steps.sum()),
            examples=used.examples + int(done.num_samples.sum()),
            bytes_down=used.bytes_down + asked * down,
            bytes_up=used.bytes_up + there * up,
            simulated_seconds=later,
        )


@dataclass(frozen=True, slots=True)
class MeteredClients:
    """Counts what passes through ``inner`` and lets nobody else be reached.

    Attributes:
        inner: All clients.
        forget: The leavers.
        meter: Counts.
        gone: Whether these are the clients that leave; else those that stay.
    """

    inner: Clients
    forget: frozenset[ClientId]
    meter: Meter
    gone: bool = False

    @property
    def ids(self) -> frozenset[ClientId]:
        """Who can be asked."""
        return (
            self.inner.ids & self.forget if self.gone else self.inner.ids - self.forget
        )

    def train(
        self,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
        epochs: float | None = None,
    ) -> Updates:
        """Train through ``inner`` and count."""
        self._check(ids)
        start = time.perf_counter()
        updates = self.inner.train(model, ids, round_index=round_index, epochs=epochs)
        self.meter.seconds += time.perf_counter() - start
        size = updates.before.size * _FLOAT32_BYTES
        self.meter.count(updates, len(ids), size, size)
        self._check_answered(ids, updates.clients)
        return replace(updates, round_index=round_index, asked=tuple(sorted(ids)))

    def run(
        self,
        procedure: LocalProcedure,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
    ) -> Results:
        """Run a procedure through ``inner`` and count."""
        self._check(ids)
        start = time.perf_counter()
        results = self.inner.run(procedure, model, ids, round_index=round_index)
        self.meter.seconds += time.perf_counter() - start
        up = results.values.shape[1] * _FLOAT32_BYTES
        self.meter.count(results, len(ids), model.size * _FLOAT32_BYTES, up)
        self._check_answered(ids, results.clients)
        return results

    def _check(self, ids: Collection[ClientId]) -> None:
        if self.gone:
            if strangers := sorted(set(ids) - self.forget):
                raise RunError(f"client {strangers[0]} is none of the leavers")
        elif left := sorted(self.forget.intersection(ids)):
            raise LeaverContactError(
                f"client {left[0]} is to be forgotten and cannot be asked to train"
            )

    def _check_answered(
        self, ids: Collection[ClientId], answered: Collection[ClientId]
    ) -> None:
        """Raise if a leaver is silent: its part would stay, and nobody would know."""
        if self.gone and (silent := sorted(set(ids).difference(answered))):
            raise RunError(f"leaver {silent[0]} gave no usable answer")


def run_unlearning(
    method: UnlearningMethod,
    model: Vector,
    ctx: UnlearningContext,
    clock: Clock | None = None,
    *,
    watch: bool = False,
) -> UnlearningOutcome:
    """Run ``method`` behind the meter.

    Args:
        method: What runs.
        model: The trained model, shape ``(P,)``.
        ctx: What it may use.
        clock: Tells how long trainings would take; None simulates no clock.
        watch: Whether to keep the server's steps, to rewrite the history from.

    Raises:
        RequirementError: If the history or the clients cannot serve it; nothing ran.
        RunError: If it returns a model of another shape or one that is not finite.
    """
    check_requirements(method, ctx)
    meter, history, steps = Meter(clock), MeteredHistory(ctx.history), Steps()
    own = replace(
        ctx,
        clients=MeteredClients(ctx.clients, ctx.forget | ctx.departed, meter),
        new_server=steps.watch(ctx.new_server) if watch else ctx.new_server,
        leavers=_leavers(method, ctx, meter),
        history=history,
    )
    start = time.perf_counter()
    result = method.unlearn(model, own)
    wall = time.perf_counter() - start
    _check_model(result, model, type(method).__name__)
    cost = replace(
        meter.used,
        wall_seconds=wall,
        server_seconds=wall - meter.seconds,
        history_bytes=history.nbytes,
        history_peak_bytes=history.inner.holds.peak_bytes if history.read else 0,
    )
    return UnlearningOutcome(result, cost, steps)


def _leavers(
    method: UnlearningMethod, ctx: UnlearningContext, meter: Meter
) -> Clients | None:
    """Return the leavers if the method says that it needs them."""
    if ctx.leavers is None or not method.requires.leaver:
        return None
    return MeteredClients(ctx.leavers, ctx.touched, meter, gone=True)


def _check_model(result: Vector, model: Vector, name: str) -> None:
    if result.shape != model.shape or result.dtype != model.dtype:
        raise RunError(
            f"{name} returned {result.dtype} {result.shape}, "
            f"not {model.dtype} {model.shape}"
        )
    if not np.isfinite(result).all():
        raise RunError(f"{name} diverged: its model is not finite")
