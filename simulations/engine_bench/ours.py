"""What contestant ``ours`` does: this project's engine under a stock Flower strategy.

The same messages go through the same strategy as in Flower's simulation; nothing is
recorded, as Flower records nothing.
"""

import time
from collections.abc import Mapping
from logging import ERROR, getLogger
from typing import Any, final

from flwr.app import ConfigRecord

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.client import client_app
from fedunlearn.history import InMemoryHistory, RoundRecord, ServerState
from fedunlearn.params import Vector
from fedunlearn.task import LocalTask
from simulations.engine import SimulationGrid, identify
from simulations.engine.kernels import make_kernel
from simulations.engine.trainer import CohortSpec
from strategies import RecordingStrategy
from strategies.directory import Directory
from strategies.server_rules import FedAvg


@final
class Forgetful:
    """Takes every round and keeps none.

    Args:
        empty: What it looks like.
    """

    def __init__(self, empty: InMemoryHistory) -> None:
        self.layout, self.holds, self.tip = empty.layout, empty.holds, empty.tip
        self.rounds, self.withdrawn = empty.rounds, empty.withdrawn
        self.round, self.rounds_of, self.sum_of = (
            empty.round,
            empty.rounds_of,
            empty.sum_of,
        )

    def append_round(
        self, record: RoundRecord, state: ServerState | None = None
    ) -> None:
        """Do nothing."""


@final
class Ours:
    """Federated averaging through Flower's strategy on our grid.

    Args:
        task: What is trained.
        seed: The seed of model and batch orders.
        cpus: How many processors may be used.
        kernel: Name of the kernel, or ``auto``.
        workers: Number of Ray actors; 0 trains in this process, on all processors.
    """

    def __init__(
        self, task: LocalTask, seed: int, cpus: int, kernel: str, workers: int
    ) -> None:
        getLogger("flwr").setLevel(ERROR)
        name = make_kernel(kernel, task).name.split("(")[0]
        self._layout, self._seed, self._round = task.layout, seed, 0
        self._arrays = to_arrays(task.initial_model(seed), self._layout)
        self._grid = SimulationGrid(
            client_app(task),
            num_clients=len(task.clients),
            workers=workers,
            cohorts=CohortSpec(task=task, kernel=name, threads=1 if workers else cpus),
        ).__enter__()
        self._strategy = RecordingStrategy(
            FedAvg().strategy(),
            Forgetful(InMemoryHistory(self._layout)),
            directory=Directory(identify),
        )

    def round(self) -> Mapping[str, Any]:
        """Train one round."""
        before = self._grid.kernel_seconds
        begin = time.perf_counter()
        self._round += 1
        orders = self._strategy.configure_train(
            self._round, self._arrays, ConfigRecord({"seed": self._seed}), self._grid
        )
        replies = self._grid.send_and_receive(orders)
        arrays, _ = self._strategy.aggregate_train(self._round, replies)
        seconds = time.perf_counter() - begin
        self._arrays = arrays or self._arrays
        after = self._grid.kernel_seconds
        kernel = None if before is None or after is None else after - before
        return {"seconds": seconds, "kernel_seconds": kernel}

    def model(self) -> Vector:
        """Return the global model."""
        return from_arrays(self._arrays, self._layout)
