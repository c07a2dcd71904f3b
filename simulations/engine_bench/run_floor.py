"""Contestant ``floor``: no training, but the seconds no training can do without.

A round measures two floors, in as many processes as processors, one thread each:

- ``seconds``: the workload's FLOPs divided by the best rate (FLOPs a second) that
  products of big square matrices reached in this process's life, summed over the
  processors that compute them at the same time. No float32 engine can be faster.
- ``kernel_seconds``: the workload's own products, in its own shapes, one ``torch.mm``
  after another, outputs allocated, caches warm, each as it is or transposed, whichever
  is faster. No floor in the strict sense: for tiny models these are calls rather than
  arithmetic, and a convolution that unfolds nothing has better shapes than these.

The answer also tells ``flops`` and ``rate``.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch

from fedunlearn.models.state import single_thread
from fedunlearn.params import Vector
from simulations.engine_bench.child import ROUND, Child
from simulations.engine_bench.contestant import floor
from simulations.engine_bench.gemms import Gemm, epoch_batches, step_gemms
from simulations.engine_bench.serve import Entry, Wire, entry, serve

SQUARES = (512, 1024, 2048)
"""Sides of the big square matrices."""
PEAK_SECONDS = 0.25
"""How long each of them is multiplied a round."""
CHOICE_SECONDS = 0.01
"""How long a product's two forms are tried to know the faster one."""


@final
class Floor:
    """Matrix products on one processor, and helpers that do the same on the others.

    Args:
        what: The workload; its rank is which share of the clients is ours.
        helpers: The other processors' children; only rank 0 has some.
    """

    def __init__(self, what: Entry, helpers: Sequence[Child] = ()) -> None:
        workload = what.load()
        self._helpers = helpers
        task = workload.scaled(1 / workload.clients).task()
        sizes = epoch_batches(workload.samples, workload.training.batch_size)
        epoch = [gemm for size in sizes for gemm in step_gemms(task, size)]
        self._clients = len(range(what.rank, workload.clients, what.cpus))
        self._flops = workload.clients * sum(gemm.flops for gemm in epoch)
        products = {gemm: _faster(gemm) for gemm in set(epoch)}
        self._epoch = [products[gemm] for gemm in epoch]
        self._squares = [(s, _product(Gemm(s, s, s))) for s in SQUARES]
        self._peak = 0.0

    def round(self) -> Mapping[str, Any]:
        """Measure both floors, all processors at the same time."""
        for helper in self._helpers:
            helper.send(ROUND)
        own = self._measure()
        answers = [own, *(helper.receive() for helper in self._helpers)]
        rate = sum(float(answer["rate"]) for answer in answers)
        return {
            "seconds": self._flops / rate,
            "kernel_seconds": max(float(a["kernel_seconds"]) for a in answers),
            "flops": self._flops,
            "rate": rate,
        }

    def model(self) -> Vector:
        """Return nothing: nobody trains here."""
        return np.zeros(0, np.float32)

    def _measure(self) -> Mapping[str, Any]:
        for product in self._epoch:
            product()
        begin = time.perf_counter()
        for _ in range(self._clients):
            for product in self._epoch:
                product()
        seconds = time.perf_counter() - begin
        for side, square in self._squares:
            self._peak = max(self._peak, 2 * side**3 / _fastest(square, PEAK_SECONDS))
        return {"kernel_seconds": seconds, "rate": self._peak}


def _faster(gemm: Gemm) -> Callable[[], torch.Tensor]:
    """Return a product or the transposed one."""
    both = _product(gemm), _product(Gemm(gemm.n, gemm.k, gemm.m))
    return min(both, key=lambda product: _fastest(product, CHOICE_SECONDS))


def _product(gemm: Gemm) -> Callable[[], torch.Tensor]:
    """Return a call that computes a product into memory of its own."""
    rng = np.random.Generator(np.random.Philox(gemm.flops))
    a = torch.from_numpy(rng.standard_normal((gemm.m, gemm.k), np.float32))
    b = torch.from_numpy(rng.standard_normal((gemm.k, gemm.n), np.float32))
    out = torch.empty(gemm.m, gemm.n)

    def multiply() -> torch.Tensor:
        return torch.mm(a, b, out=out)

    multiply()
    return multiply


def _fastest(call: Callable[[], object], trying: float) -> float:
    """Return the shortest of many calls, in seconds, after ``trying`` seconds."""
    best, end = float("inf"), time.perf_counter() + trying
    while (begin := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def main() -> None:
    """Serve the driver, or as a helper rank 0."""
    wire, what = Wire(), entry()
    single_thread()
    others = range(1, what.cpus) if what.rank == 0 else range(0)
    with ExitStack() as stack:
        helpers = []
        for rank in others:
            command = floor(replace(what, rank=rank))
            if isinstance(command, str):
                raise TypeError(command)
            helpers.append(stack.enter_context(Child(command)).start())
        serve(Floor(what, helpers), wire)


if __name__ == "__main__":
    main()
