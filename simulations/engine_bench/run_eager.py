"""Contestant ``eager``: torch, one process, one thread, client after client.

What a careful person writes by hand: the data lies in RAM and is indexed, the model is
one module used over and over, the server takes a weighted mean with NumPy.
"""

import time
from collections.abc import Mapping
from typing import Any, final

import numpy as np

from fedunlearn.models.state import single_thread
from fedunlearn.params import Vector, weighted_mean
from fedunlearn.training import LocalWork, plan
from simulations.engine_bench.serve import Entry, Wire, entry, serve


@final
class Eager:
    """Federated averaging in one loop.

    Args:
        what: The workload and the seed.
    """

    def __init__(self, what: Entry) -> None:
        self._task, self._seed = what.task(), what.seed
        self._sizes = [len(data.y) for data in self._task.clients]
        self._model = self._task.initial_model(what.seed)
        self._after = np.empty((len(self._sizes), len(self._model)), np.float32)
        self._round = 0

    def round(self) -> Mapping[str, Any]:
        """Train one round."""
        begin = time.perf_counter()
        self._round += 1
        work = LocalWork(seed=self._seed, round_index=self._round)
        clients = range(len(self._sizes))
        batches = plan(clients, self._sizes, self._task.training, work)
        kernel_begin = time.perf_counter()
        for k, data in enumerate(self._task.clients):
            after, _ = self._task.descend(data, self._model, batches.of_client(k))
            self._after[k] = after
        kernel = time.perf_counter() - kernel_begin
        self._model = weighted_mean(self._after, self._sizes)
        return {"seconds": time.perf_counter() - begin, "kernel_seconds": kernel}

    def model(self) -> Vector:
        """Return the global model."""
        return self._model


def main() -> None:
    """Serve the driver."""
    wire = Wire()
    single_thread()
    serve(Eager(entry()), wire)


if __name__ == "__main__":
    main()
