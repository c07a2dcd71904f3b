"""Who races, and the race.

::

    entry = Entry(workload="W1", scale=0.04)
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(Child(command))
            for name, make in CONTESTANTS.items()
            if isinstance(command := make(entry), Command)
        }
        measured = race(children, rounds=5, warmup=1)
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any, TypeAlias

from fedunlearn.errors import ConfigError, RunError
from fedunlearn.params import Vector, norm
from simulations.engine_bench.child import FOLDER, ROUND, Child, Command
from simulations.engine_bench.processes import busy_seconds, cpu_seconds, pss_mb
from simulations.engine_bench.serve import Entry

PFL = "pfl==0.6.0"
"""What ``pfl`` races with; no dependency of this project."""
SAMPLE_SECONDS = 0.1
"""Between two samples of a process tree's memory."""

Contestant: TypeAlias = Callable[[Entry], Command | str]
"""Returns how to start a contestant, or why it cannot race."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a contestant came to.

    Attributes:
        seconds: Of every timed round.
        kernel_seconds: Of local training alone in those rounds, divided by the number
            of processes it is split among; None where nobody can tell.
        first_round_seconds: From the start of the process, so with imports, data and
            engine, to the end of the first round.
        peak_mb: Highest memory of the process tree in MB of 10^6 bytes: the sum of PSS,
            sampled ten times a second in the warm-up rounds and once after every other
            round, so that no timed round pays for it.
        foreign_cores: How many processors others kept busy in each timed round, on
            average, from ticks of 10 ms: says little of rounds shorter than 0.1 s.
        model: The global model after the last round, shape ``(P,)``; of ``floor``,
            which trains nothing, shape ``(0,)``.
    """

    seconds: tuple[float, ...]
    kernel_seconds: tuple[float, ...] | None
    first_round_seconds: float
    peak_mb: float
    foreign_cores: tuple[float, ...]
    model: Vector


def flower(entry: Entry) -> Command | str:
    """Flower's own simulation on Ray, an actor a processor."""
    return command_of(
        "run_flower",
        entry,
        env={
            "FLWR_HOME": FOLDER,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            # Without a cluster of several machines Ray's servers listen on 127.0.0.1.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        },
    )


def pfl(entry: Entry, extra_path: str | None = None) -> Command | str:
    """Apple's pfl-research, a process a processor.

    Args:
        entry: What it runs; ``cpus`` is its number of processes.
        extra_path: Folder to import pfl from, where it is not installed beside us.
    """
    env = {"GLOO_SOCKET_IFNAME": "lo"}
    if extra_path is not None:
        env["PYTHONPATH"] = _joined(extra_path)
    return (
        command_of("run_pfl", entry, env=env)
        if _has_pfl(env)
        else (f"not installed: pip install '{PFL}'")
    )


def eager(entry: Entry) -> Command | str:
    """Torch in one process and one thread, client after client."""
    return command_of("run_eager", entry)


def floor(entry: Entry) -> Command | str:
    """The seconds that the workload's matrix products alone need."""
    return command_of("run_floor", entry)


CONTESTANTS: dict[str, Contestant] = {
    "flower": flower,
    "pfl": pfl,
    "eager": eager,
    "floor": floor,
}
"""Name -> how it is started, or why it is not."""


def race(
    children: Mapping[str, Child], *, rounds: int, warmup: int = 1
) -> Mapping[str, Measured]:
    """Start all children and let them train by turns, round by round.

    Each child is started and trains its first round by itself. In every round after it
    another one goes first, so that noise hits all alike. After ``1 + warmup + rounds``
    rounds each, all have to have the same model.

    Args:
        children: Name -> child, not started yet.
        rounds: How many are timed.
        warmup: How many come before them, beside the first.

    Raises:
        ConfigError: If no round is to be timed.
        RunError: If a child dies, does not answer in time or answers nonsense.
    """
    if rounds < 1 or warmup < 0:
        raise ConfigError(f"cannot race {rounds} rounds after {warmup} of warm-up")
    lanes = {name: _Lane(child) for name, child in children.items()}
    for lane in lanes.values():
        lane.first()
    for turn in range(warmup):
        for lane in _rotated(list(lanes.values()), turn):
            lane.warm()
    for turn in range(rounds):
        for lane in _rotated(list(lanes.values()), turn):
            lane.timed()
    return {name: lane.measured() for name, lane in lanes.items()}


def agreement(initial: Vector, models: Sequence[Vector]) -> float:
    """Return how far models lie from the first one, relative to what it learned.

    ``max_i ||model_i - model_0|| / ||model_0 - initial||``, L2 norms.

    Args:
        initial: The model all of them started from, shape ``(P,)``.
        models: What they came to, each of shape ``(P,)``.

    Raises:
        RunError: If a model has another shape or the first one learned nothing.
    """
    first, *others = models
    if any(model.shape != initial.shape for model in models):
        shapes = [model.shape for model in models]
        raise RunError(f"models of shapes {shapes} cannot agree with {initial.shape}")
    way = norm(first - initial)
    if not way > 0:
        raise RunError("the first model is the initial one: nothing was learned")
    return max((norm(other - first) / way for other in others), default=0.0)


@dataclass(slots=True)
class _Lane:
    """One child's race so far."""

    child: Child
    seconds: list[float] = field(default_factory=list)
    kernel: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)
    first_seconds: float = 0.0
    peak: float = 0.0

    def first(self) -> None:
        self.child.start().ask(ROUND)
        self.first_seconds = self.child.age
        self._weigh()

    def warm(self) -> None:
        with _every(SAMPLE_SECONDS, self._weigh):
            self.child.ask(ROUND)

    def timed(self) -> None:
        members, begin = self.child.processes(), time.perf_counter()
        before = busy_seconds() - cpu_seconds(members)
        answer = self.child.ask(ROUND)
        after = busy_seconds() - cpu_seconds(members)
        self.foreign.append(max(0.0, after - before) / (time.perf_counter() - begin))
        self.seconds.append(_seconds(answer, "seconds"))
        if answer.get("kernel_seconds") is not None:
            self.kernel.append(_seconds(answer, "kernel_seconds"))
        self._weigh()

    def measured(self) -> Measured:
        model = self.child.model()
        told = len(self.kernel) == len(self.seconds)
        return Measured(
            seconds=tuple(self.seconds),
            kernel_seconds=tuple(self.kernel) if told else None,
            first_round_seconds=self.first_seconds,
            peak_mb=self.peak,
            foreign_cores=tuple(self.foreign),
            model=model,
        )

    def _weigh(self) -> None:
        self.peak = max(self.peak, pss_mb(self.child.processes()))


@contextmanager
def _every(interval: float, action: Callable[[], None]) -> Iterator[None]:
    """Do something now, at an interval meanwhile, and at the end."""
    stop = Event()

    def work() -> None:
        action()
        while not stop.wait(interval):
            action()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        action()


def _rotated(lanes: list[_Lane], turn: int) -> list[_Lane]:
    at = turn % len(lanes) if lanes else 0
    return lanes[at:] + lanes[:at]


def _seconds(answer: Mapping[str, Any], key: str) -> float:
    value = answer.get(key)
    if not isinstance(value, int | float):
        raise RunError(f"a child's answer {dict(answer)} tells no {key}")
    return float(value)


def command_of(
    module: str, entry: Entry, env: Mapping[str, str] | None = None
) -> Command:
    """Return how a module of this package is started as a child."""
    argv = (sys.executable, "-m", f"{__package__}.{module}", entry.as_json())
    return Command(argv=argv, env=env or {})


def _joined(path: str) -> str:
    return os.pathsep.join(p for p in (path, os.environ.get("PYTHONPATH")) if p)


def _has_pfl(env: Mapping[str, str]) -> bool:
    question = "import importlib.util as u, sys; sys.exit(u.find_spec('pfl') is None)"
    found = subprocess.run(  # noqa: S603 - this interpreter and a fixed text
        (sys.executable, "-c", question), env={**os.environ, **env}, check=False
    )
    return found.returncode == 0
