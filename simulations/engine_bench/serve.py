"""The child's side of the protocol."""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from fedunlearn.params import Vector
from simulations.engine_bench.child import MODEL, ROUND
from simulations.engine_bench.workloads import WORKLOADS, Workload

if TYPE_CHECKING:
    from fedunlearn.task import LocalTask

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a contestant runs.

    Attributes:
        workload: Name in ``WORKLOADS``.
        scale: Fraction of its clients.
        seed: Seed of the initial model and of the batch orders.
        cpus: How many processors it may use.
        rank: Which of several processes of one contestant this is.
    """

    workload: str
    scale: float = 1.0
    seed: int = 0
    cpus: int = 2
    rank: int = 0

    @classmethod
    def of_json(cls, text: str) -> "Entry":
        """Return what :meth:`as_json` wrote."""
        return cls(**json.loads(text))

    def as_json(self) -> str:
        """Return it as one argument of a command line."""
        return json.dumps(asdict(self))

    def load(self) -> Workload:
        """Return the workload at its scale."""
        return WORKLOADS[self.workload].scaled(self.scale)

    def task(self) -> "LocalTask":
        """Return the learning task."""
        return self.load().task()


class Engine(Protocol):
    """What trains in a child."""

    def round(self) -> Mapping[str, Any]:
        """Train one round; return its ``seconds`` and ``kernel_seconds``."""
        ...

    def model(self) -> Vector:
        """Return the global model, shape ``(P,)``."""
        ...


@final
class Wire:
    """The driver's end of this process: requests in, answers out.

    Standard output is the wire's alone from here on; what others print goes to
    standard error. When the driver dies, so does this process.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def request(self) -> str | None:
        """Wait for the next request; None when there will be no more."""
        line = sys.stdin.readline()
        wanted = json.loads(line) if line.strip() else None
        return wanted if wanted in {ROUND, MODEL} else None

    def answer(self, values: Mapping[str, Any]) -> None:
        """Write an answer."""
        self._out.write(json.dumps(dict(values)) + "\n")
        self._out.flush()

    def await_round(self, model: Callable[[], Vector]) -> bool:
        """Wait for the order to train, meanwhile giving the model to who asks for it.

        Returns:
            False when the driver wants no more.
        """
        while (request := self.request()) == MODEL:
            self.answer({"path": save(model())})
        return request == ROUND


def save(model: Vector) -> str:
    """Write a model into the folder for temporary files; return the file's path."""
    path = Path(gettempdir()) / "model.npy"
    np.save(path, model, allow_pickle=False)
    return str(path)


def serve(engine: Engine, wire: Wire) -> None:
    """Answer requests until there are no more."""
    while (request := wire.request()) is not None:
        if request == ROUND:
            wire.answer(engine.round())
        else:
            wire.answer({"path": save(engine.model())})


def entry() -> Entry:
    """Return what this process's command line says."""
    return Entry.of_json(sys.argv[1])
