"""Trains one seed of a scenario through Flower, recording every round."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.cost import Clock, Trainings, UnlearningCost
from fedunlearn.history import (
    DiskHistory,
    InMemoryHistory,
    RoundRecord,
    UpdateHistory,
    records,
)
from fedunlearn.params import Layout, Vector
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.shards import ShardedMean
from simulations.evaluate import Evaluator
from simulations.events import Listener, tell
from simulations.prepare import Prepared
from strategies.directory import Directory
from strategies.recording import RecordingStrategy

History = InMemoryHistory | DiskHistory
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained federation.

    Attributes:
        model: The final global model, shape ``(P,)``.
        initial: The initial one.
        history: What was recorded.
        schedule: How it was trained.
        accuracy_by_round: Test accuracy after round 0, 1, ...
        cost: What training used.
    """

    model: Vector
    initial: Vector
    history: History
    schedule: TrainingSchedule
    accuracy_by_round: tuple[float, ...]
    cost: UnlearningCost


def train(
    prepared: Prepared,
    seed: int,
    grid: Grid,
    history: History,
    *,
    directory: Directory,
    curve: "Curve",
    listeners: tuple[Listener, ...] = (),
) -> Trained:
    """Train the federation of one seed, or go on where its history ends.

    Args:
        prepared: Data, task and scenario.
        seed: Fixes initial model, batch orders and cohorts.
        grid: Where the clients are.
        history: What is recorded so far, and goes on being recorded.
        directory: Which node is which client.
        curve: Measures the test accuracy after every round.
        listeners: Told of every round.
    """
    layout, rule = prepared.task.layout, prepared.scenario.server
    schedule, shards = _schedule(prepared, seed), prepared.task.shards
    initial = prepared.task.initial_model(seed)

    def told(record: RoundRecord) -> None:
        _tell_round(listeners, seed, record, schedule.rounds)

    with quiet_flower():
        result = RecordingStrategy(
            rule.strategy(),
            history,
            cohort=schedule.cohort,
            directory=directory,
            combine=ShardedMean(shards).step if shards > 1 else None,
            on_round=told,
        ).start(
            grid,
            to_arrays(initial, layout),
            num_rounds=schedule.rounds,
            train_config=ConfigRecord({"seed": seed}),
            evaluate_fn=curve,
        )
    model = from_arrays(result.arrays, layout)
    for vector in (model, initial):
        vector.setflags(write=False)  # a method that writes to it would spoil the next
    return Trained(
        model=model,
        initial=initial,
        history=history,
        schedule=schedule,
        accuracy_by_round=tuple(curve.accuracies),
        cost=_cost(history, clock_of(prepared, seed)),
    )


@dataclass(slots=True)
class Curve:
    """Measures the global model after every round, and how long that took.

    Attributes:
        evaluator: What measures.
        layout: Names and shapes of the model.
        accuracies: Test accuracy after round 0, 1, ...; what is known is not measured
            again.
        keep: Told of every accuracy that was measured.
    """

    evaluator: Evaluator
    layout: Layout
    accuracies: list[float] = field(default_factory=list)
    keep: Callable[[float], None] | None = None

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Measure one model."""
        if server_round < len(self.accuracies):
            return None
        model = from_arrays(arrays, self.layout)
        self.accuracies.append(self.evaluator.test_accuracy(model))
        if self.keep is not None:
            self.keep(self.accuracies[-1])
        return None


def _schedule(prepared: Prepared, seed: int) -> TrainingSchedule:
    scenario = prepared.scenario
    return TrainingSchedule(
        seed=seed,
        rounds=scenario.outline.rounds,
        epochs=scenario.training.epochs,
        clients_per_round=scenario.outline.clients_per_round,
        joins=prepared.joins,
        shards=prepared.task.shards,
    )


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Keep Flower's own round-by-round log off the terminal."""
    logger = logging.getLogger("flwr")
    with _QUIET.lock:
        if _QUIET.depth == 0:
            _QUIET.level = logger.level
            logger.setLevel(logging.ERROR)
        _QUIET.depth += 1
    try:
        yield
    finally:
        with _QUIET.lock:
            _QUIET.depth -= 1
            if _QUIET.depth == 0:
                logger.setLevel(_QUIET.level)


@dataclass(slots=True)
class _Quiet:
    """Who keeps Flower quiet: runs in lockstep do it at the same time."""

    lock: Lock = field(default_factory=Lock)
    depth: int = 0
    level: int = 0


_QUIET = _Quiet()


def _tell_round(
    listeners: tuple[Listener, ...], seed: int, record: RoundRecord, rounds: int
) -> None:
    for refused in record.set_aside:
        tell(
            listeners,
            "set_aside",
            seed=seed,
            round=record.index,
            client=refused.client,
            reason=refused.reason,
        )
    tell(
        listeners,
        "round",
        seed=seed,
        round=record.index,
        rounds=rounds,
        asked=len(record.asked),
        answered=len(record.clients),
    )


def clock_of(prepared: Prepared, seed: int) -> Clock | None:
    """Return a seed's simulated clock, or None if the scenario has none."""
    availability = prepared.scenario.availability
    if availability.speed is None:
        return None

    def clock(updates: Trainings, asked: int) -> float:
        return availability.round_seconds(
            seed, updates.clients, updates.num_samples, asked
        )

    return clock


def _cost(history: UpdateHistory, clock: Clock | None) -> UnlearningCost:
    """Return what the recorded rounds used."""
    rounds = list(records(history))
    model_bytes = history.layout.size * _FLOAT32_BYTES
    answered = sum(len(r.clients) for r in rounds)
    waits = None if clock is None else [clock(r, len(r.asked)) for r in rounds]
    return UnlearningCost(
        client_rounds=answered,
        local_steps=sum(int(r.num_steps.sum()) for r in rounds),
        examples=sum(int(r.num_samples.sum()) for r in rounds),
        bytes_down=sum(len(r.asked) for r in rounds) * model_bytes,
        bytes_up=answered * model_bytes,
        wall_seconds=sum(r.seconds for r in rounds),
        history_bytes=history.holds.nbytes,
        history_peak_bytes=history.holds.peak_bytes,
        simulated_seconds=None if waits is None else sum(waits),
    )
