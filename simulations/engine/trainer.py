"""Trains orders of any number of runs in one pass of one kernel."""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from fedunlearn.cohort import Batches, Cohort, CohortResult
from fedunlearn.params import Layout, Matrix
from fedunlearn.shards import blocks_of, shards_of
from fedunlearn.task import LocalTask
from fedunlearn.training import plan
from simulations.engine.kernels import Kernel, make_kernel
from simulations.engine.orders import Order

_PARTS_PER_THREAD = 4
"""Parts a cohort is cut into for each thread: more balance better, fewer cost less."""
_WORTH_A_PART = 5_000_000
"""Examples times weights that are worth a part of their own."""
_WORTH_A_THREAD = 50_000_000
"""The same where clients share calls: fewer clients a call cost more each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSpec:
    """How the cohorts of a task are trained; travels to the process that does it.

    Attributes:
        task: What is trained.
        kernel: Name of the kernel.
        device: Where its tensors are.
        threads: Threads of a process.
    """

    task: LocalTask
    kernel: str
    device: str = "cpu"
    threads: int = 1

    @property
    def layout(self) -> Layout:
        """Names and shapes of the model."""
        return self.task.layout

    def trainer(self) -> "Trainer":
        """Return what trains them in this process."""
        kernel = make_kernel(self.kernel, self.task, self.device)
        return Trainer(self.task, kernel, self.threads)


@final
class Trainer:
    """Runs a kernel on all threads it is given.

    A thread takes the next part of the cohort when it is done with one. How the cohort
    is cut, and who takes what, shows in no number.

    Args:
        task: What is trained.
        kernel: Trains it.
        threads: How many.

    Attributes:
        kernel_seconds: Time spent in the kernel so far.
    """

    def __init__(self, task: LocalTask, kernel: Kernel, threads: int) -> None:
        self._task = task
        self._kernel = kernel
        self._threads = threads if kernel.parallel else 1
        self.kernel_seconds = 0.0
        self._spares: list[Matrix] = []
        self._pool = ThreadPoolExecutor(
            self._threads,
            "fedunlearn-kernel",
            initializer=torch.set_num_threads,
            initargs=(1,),
        )

    def train(self, orders: Sequence[Order]) -> list[CohortResult]:
        """Carry out orders; a result for each, a client a row in the order's order."""
        if not self._kernel.independent:
            return [self._train([order])[0] for order in orders]
        return self._train(orders)

    def _train(self, orders: Sequence[Order]) -> list[CohortResult]:
        cohort = cohort_of(self._task, orders)
        models = self._matrix(len(cohort), cohort.starts.shape[1])
        start = time.perf_counter()
        losses = self._run(cohort, models)
        self.kernel_seconds += time.perf_counter() - start
        batches, at = cohort.batches, 0
        examples = np.fromiter((len(data.y) for data in cohort.data), np.int64)
        results = []
        for order in orders:
            part = slice(at, at + len(order.clients))
            at = part.stop
            results.append(
                CohortResult(
                    models=_widened(models[part], order, self._task.shards),
                    num_examples=examples[part],
                    num_steps=batches.steps[part],
                    num_samples=batches.samples[part],
                    losses=losses[part],
                )
            )
        return results

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _run(self, cohort: Cohort, models: Matrix) -> npt.NDArray[np.float64]:
        losses = np.zeros(len(cohort))

        def run(begin: int, end: int) -> None:
            part = cohort.part(begin, end)
            losses[begin:end] = self._kernel.train(part, models[begin:end])

        cuts = _cuts(cohort.batches, self._parts(cohort))
        if len(cuts) == 2:  # noqa: PLR2004 - one part
            run(*cuts)
        else:
            for done in [self._pool.submit(run, *part) for part in pairwise(cuts)]:
                done.result()
        return losses

    def _matrix(self, clients: int, parameters: int) -> Matrix:
        """Return an empty matrix; one that nobody refers to any more is used again.

        Memory that was given back costs more to touch anew than a model costs to train.
        """
        for spare in self._spares:
            # The list, the loop and the call refer to it.
            if spare.shape == (clients, parameters) and sys.getrefcount(spare) <= 3:  # noqa: PLR2004
                return spare
        models: Matrix = np.empty((clients, parameters), np.float32)
        self._spares = [*self._spares[-1:], models]
        return models

    def _parts(self, cohort: Cohort) -> int:
        if not self._kernel.independent:
            return 1
        work: int = len(cohort.batches.rows) * cohort.starts.shape[1]
        if self._kernel.stacks:
            return min(self._threads, 1 + work // _WORTH_A_THREAD)
        return min(_PARTS_PER_THREAD * self._threads, 1 + work // _WORTH_A_PART)


def cohort_of(task: LocalTask, orders: Sequence[Order]) -> Cohort:
    """Return the clients of all orders as one cohort.

    In shards every block of a model is a start, and a client's is that of its shard.
    """
    data, parts, start_of = [], [], []
    for at, order in enumerate(orders):
        held = [task.data_of(client, order.work.view) for client in order.clients]
        sizes = [len(one.y) for one in held]
        parts.append(plan(order.clients, sizes, task.training, order.work))
        start_of.append(at * task.shards + shards_of(order.clients, task.shards))
        data += held
    counts = [len(order.clients) for order in orders]
    mus = [order.work.proximal_mu for order in orders]
    return Cohort(
        data=data,
        starts=np.concatenate([blocks_of(o.model, task.shards) for o in orders]),
        start_of=np.concatenate(start_of),
        batches=Batches.joined(parts),
        proximal_mu=np.repeat(np.asarray(mus, np.float64), counts),
    )


def _widened(trained: Matrix, order: Order, shards: int) -> Matrix:
    """Return whole models ``(K, P)`` from the blocks ``(K, P / S)`` clients trained."""
    if shards == 1:
        return trained
    count = len(order.clients)
    models: Matrix = np.tile(order.model, (count, 1))
    own = shards_of(order.clients, shards)
    models.reshape(count, shards, -1)[np.arange(count), own] = trained
    return models


def _cuts(batches: Batches, parts: int) -> list[int]:
    """Return where to cut a cohort into parts of about the same work."""
    work = np.cumsum(batches.samples + 1)  # a client without data costs a little too
    wanted = work[-1] * np.arange(1, parts) / parts
    cuts = {0, *np.searchsorted(work, wanted).tolist(), len(work)}
    return sorted(cuts)
