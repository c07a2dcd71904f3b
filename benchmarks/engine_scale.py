"""One size of the scaling table: engine_scale.py CLIENTS COHORT KERNEL -> JSON.

FedAvg over clients of 20 examples that are made when they are asked for; the time of a
round holds that making too.
"""

import json
import sys
import time
from logging import ERROR, getLogger
from pathlib import Path
from statistics import median

import numpy as np
from flwr.app import ConfigRecord

from fedunlearn.arrays import to_arrays
from fedunlearn.client import client_app
from fedunlearn.data import ClientData, LazyClients
from fedunlearn.history import InMemoryHistory
from fedunlearn.models import Softmax
from fedunlearn.rng import Streams, derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.task import LocalTask
from fedunlearn.training import Training
from simulations.cores import usable_cores
from simulations.engine import SimulationGrid, identify
from simulations.engine.kernels import make_kernel
from simulations.engine.trainer import CohortSpec
from simulations.engine_bench.ours import Forgetful
from strategies import RecordingStrategy
from strategies.directory import Directory
from strategies.server_rules import FedAvg

EXAMPLES, INPUTS, CLASSES, ROUNDS = 20, 64, 10, 8
MEANS = derive(0, "scale means").standard_normal((CLASSES, INPUTS), np.float32)
STREAMS = Streams(0, "scale data")


def make(client: int) -> ClientData:
    """Return one client's data."""
    rng = STREAMS.of(client)
    y = rng.integers(0, CLASSES, EXAMPLES)
    x = MEANS[y] + rng.standard_normal((EXAMPLES, INPUTS), np.float32)
    return ClientData(f"client-{client}", x, y, x[:0], y[:0])


def main() -> None:
    """Measure and print."""
    clients, cohort, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    getLogger("flwr").setLevel(ERROR)
    task = LocalTask(
        clients=LazyClients(make, np.full(clients, EXAMPLES).tolist()),
        model=Softmax(),
        input_shape=(INPUTS,),
        num_classes=CLASSES,
        training=Training(batch_size=10, lr=0.05),
    )
    kernel = make_kernel(name, task).name.split("(")[0]
    schedule = TrainingSchedule(
        seed=0, rounds=ROUNDS, epochs=1, clients_per_round=cohort
    )
    ends = [time.perf_counter()]
    strategy = RecordingStrategy(
        FedAvg().strategy(),
        Forgetful(InMemoryHistory(task.layout)),
        cohort=schedule.cohort,
        directory=Directory(identify),
        on_round=lambda _: ends.append(time.perf_counter()),
    )
    spec = CohortSpec(task=task, kernel=kernel, threads=usable_cores())
    with SimulationGrid(client_app(task), num_clients=clients, cohorts=spec) as grid:
        strategy.start(
            grid,
            to_arrays(task.initial_model(0), task.layout),
            num_rounds=ROUNDS,
            train_config=ConfigRecord({"seed": 0}),
        )
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1000
    found = {
        "clients": clients,
        "cohort": cohort,
        "kernel": kernel,
        "seconds": median(np.diff(ends)[2:].tolist()),
        "peak_mb": peak,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
