"""All kernels by turns in one process, on any number of threads and on a CUDA device.

    python benchmarks/kernels.py                                all cores
    python benchmarks/kernels.py --workload W1 --threads 1 2    one core and two
    python benchmarks/kernels.py --smoke                        seconds: small cohorts

A cohort's training alone, without strategy and messages. Repetitions are interleaved;
every kernel's models are held against those of `reference`.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch

from fedunlearn.cohort import CohortResult
from fedunlearn.errors import ConfigError
from fedunlearn.params import Vector
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork
from simulations.cores import usable_cores
from simulations.engine.kernels import KERNELS
from simulations.engine.orders import Order
from simulations.engine.threads import one_thread
from simulations.engine.trainer import CohortSpec, Trainer
from simulations.engine_bench.workloads import WORKLOADS

HEADS = (
    "device",
    "threads",
    "kernel",
    "ms",
    "first, ms",
    "µs a step and thread",
    "speed over best of cpu",
    "off reference",
)


@dataclass
class Contestant:
    """A kernel on a device.

    Attributes:
        device: Where.
        threads: How many start its steps.
        name: Which.
        trainer: Runs it.
        seconds: Time of every repetition.
        result: Of the last one.
    """

    device: str
    threads: int
    name: str
    trainer: Trainer
    seconds: list[float] = field(default_factory=list)
    result: CohortResult = field(init=False)

    def run(self, order: Order) -> None:
        """Train the cohort once; models come back to the processor in any case."""
        begin = time.perf_counter()
        (self.result,) = self.trainer.train([order])
        self.seconds.append(time.perf_counter() - begin)


def contestants(task: LocalTask, threads: Sequence[int]) -> list[Contestant]:
    """Return every kernel that can train a task, the reference first."""
    places = [("cpu", count) for count in threads]
    if torch.cuda.is_available():
        places.append(("cuda", usable_cores()))
    found = []
    for device, count in places:
        for name in KERNELS:
            spec = CohortSpec(task=task, kernel=name, device=device, threads=count)
            try:
                found.append(Contestant(device, count, name, spec.trainer()))
            except ConfigError:
                continue
    return found


def race(task: LocalTask, threads: Sequence[int], repetitions: int) -> str:
    """Return the table of a race between all contestants."""
    start = task.initial_model(0)
    work = LocalWork(seed=0, round_index=1)
    order = Order(model=start, clients=tuple(range(len(task.clients))), work=work)
    racers = contestants(task, threads)
    with one_thread():
        for _ in range(repetitions + 1):  # the first warms up
            for contestant in racers:
                contestant.run(order)
    truth = racers[0].result
    best = min(median(c.seconds[1:]) for c in racers if c.device == "cpu")
    lines = [f"| {' | '.join(HEADS)} |", "| --- | --: | --- " + "| --: " * 5 + "|"]
    for contestant in racers:
        seconds = median(contestant.seconds[1:])
        steps = int(contestant.result.num_steps.sum())
        cells = (
            contestant.device,
            str(contestant.threads),
            f"`{contestant.name}`",
            f"{1e3 * seconds:.1f}",
            f"{1e3 * contestant.seconds[0]:.0f}",
            f"{1e6 * seconds * contestant.threads / steps:.0f}",
            f"{best / seconds:.2f}",
            f"{_off(contestant.result, truth, start):.0e}",
        )
        lines.append(f"| {' | '.join(cells)} |")
        contestant.trainer.close()
    return "\n".join(lines)


def _off(found: CohortResult, truth: CohortResult, start: Vector) -> float:
    """Return the largest distance of a client's model from its reference, relative."""
    way = np.linalg.norm(truth.models - start, axis=1)
    return float((np.linalg.norm(found.models - truth.models, axis=1) / way).max())


def main() -> None:
    """Race and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--threads", nargs="+", type=int, default=[usable_cores()])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="seconds, small cohorts")
    options = parser.parse_args()
    if min(*options.threads, options.repetitions) < 1:
        parser.error("--threads and --repetitions must be at least 1")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"CUDA device: {gpu}; cores: {usable_cores()}; torch {torch.__version__}")
    for name in options.workload:
        what = WORKLOADS[name].scaled(0.03 if options.smoke else 1)
        repetitions = 1 if options.smoke else options.repetitions
        table = race(what.task(), options.threads, repetitions)
        model = type(what.model).__name__
        print(f"\n{name}: {what.clients} clients, {model}\n\n{table}", flush=True)


if __name__ == "__main__":
    main()
