"""Contestant ``pfl``: Apple's pfl-research 0.6, as many processes as processors.

The first process talks to the driver and starts the others, which pfl joins by
``torch.distributed`` over 127.0.0.1; each has one thread. All of pfl is used as it
comes: backend, weighting by examples, PyTorch adapter, central SGD with rate 1. Only
the batches of a user come in our order, which its datasets allow for.
"""

import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, final

from fedunlearn.models.state import single_thread
from simulations.engine_bench.child import ROUND, Child, Command
from simulations.engine_bench.serve import Entry, Wire, entry

if TYPE_CHECKING:
    from simulations.engine_bench.pfl_engine import PflTraining

ADDRESSES, RANK = "PFL_WORKER_ADDRESSES", "PFL_WORKER_RANK"
"""Environment variables that tell pfl who it is."""


@final
class Rounds:
    """Starts and times this process's rounds, and those of the processes it started.

    Args:
        training: What trains.
        wire: To whoever orders rounds: the driver, or the first process.
        helpers: The other processes; only the first one has some.
    """

    def __init__(
        self, training: "PflTraining", wire: Wire, helpers: Sequence[Child]
    ) -> None:
        self._training, self._wire, self._helpers = training, wire, helpers
        self._begin = 0.0

    def next(self) -> bool:
        """Answer for the round that ended; return whether there is a next one."""
        if self._training.clock.round_index:
            self._answer()
        if not self._wire.await_round(self._training.model):
            return False
        self._begin = time.perf_counter()
        self._training.clock.next_round()
        for helper in self._helpers:
            helper.send(ROUND)
        return True

    def _answer(self) -> None:
        kernel = [self._training.clock.kernel]
        kernel += [float(h.receive()["kernel_seconds"]) for h in self._helpers]
        self._wire.answer(
            {
                "seconds": time.perf_counter() - self._begin,
                "kernel_seconds": sum(kernel) / len(kernel),
            }
        )


def helper_command(what: Entry, rank: int, addresses: str) -> Command:
    """Return how another process of the same training is started."""
    argument = replace(what, rank=rank).as_json()
    return Command(
        argv=(sys.executable, "-m", f"{__package__}.run_pfl", argument),
        env={ADDRESSES: addresses, RANK: str(rank)},
    )


def meeting_point(processes: int) -> str:
    """Return addresses for the processes of a training: pfl uses the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ",".join([f"127.0.0.1:{port}"] * processes)


def main() -> None:
    """Serve the driver, or as a helper the first process."""
    wire, what = Wire(), entry()
    single_thread()
    with ExitStack() as stack:
        helpers = []
        if what.rank == 0 and what.cpus > 1:
            addresses = meeting_point(what.cpus)
            os.environ.update({ADDRESSES: addresses, RANK: "0"})
            for rank in range(1, what.cpus):
                command = helper_command(what, rank, addresses)
                helpers.append(stack.enter_context(Child(command)).start())
        from simulations.engine_bench.pfl_engine import PflTraining

        training = PflTraining(what.task(), what.seed)
        training.run(Rounds(training, wire, helpers).next)


if __name__ == "__main__":
    main()
