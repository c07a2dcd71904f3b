"""Many runs advance together: what they ask at the same time is trained as one.

Every run is ordinary code that is given a backend, and a greenlet of one thread. Where
it asks clients the next run goes on; when half of them have asked, their orders go to
the kernel in one call, and while it computes the other half goes on. The kernel's
numbers do not depend on who else is in a call, so a run's do not either. Nor does
anybody stand still while a run waits for its disk.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import Any, TypeVar, final

from flwr.app import RecordDict
from greenlet import getcurrent, greenlet

from fedunlearn.cohort import CohortResult
from fedunlearn.errors import RunError
from simulations.engine.orders import Order
from simulations.engine.worker import Answer, Backend, Job

T = TypeVar("T")

_DISK_THREADS = 8
"""Waits for a disk at the same time: a file system confirms several at once."""


@dataclass(frozen=True, slots=True)
class _Question:
    """What a run waits for."""

    run: greenlet
    orders: list[Order]


@final
class Lockstep:
    """The backend of runs that advance together.

    Args:
        backend: Trains what they ask; one call at a time.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._hub = getcurrent()
        self._asked: list[_Question] = []
        self._ready: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._aside = 0
        self._open = ExitStack()
        self._disk = self._threads(_DISK_THREADS, "disk")
        self._calling = Lock()
        self._stopped = False

    @property
    def kernel_seconds(self) -> None:
        """Everybody's, so no one's."""
        return None

    def run(self, jobs: Sequence[Job], contents: list[RecordDict]) -> list[Answer]:
        """Run what is no training; the others wait."""
        with self._calling:
            return self._backend.run(jobs, contents)

    def train(self, orders: Sequence[Order]) -> list[CohortResult]:
        """Let the other runs go on until the orders are carried out."""
        if self._stopped:
            raise RunError("another run failed, or the runs were stopped")
        self._asked.append(_Question(getcurrent(), list(orders)))
        results: list[CohortResult] = self._hub.switch()
        return results

    def aside(self, call: Callable[[], T]) -> T:
        """Let the other runs go on until a thread has made a call.

        Args:
            call: What takes time but no processor, such as waiting for a disk.
        """
        if self._stopped:
            return call()
        waiting, run = self._disk.submit(call), getcurrent()
        waiting.add_done_callback(lambda _: self._ready.put(run.switch))
        self._aside += 1
        try:
            self._hub.switch()
        except BaseException:
            wait([waiting])  # what it works on is given back by whoever catches this
            raise
        finally:
            self._aside -= 1
        return waiting.result()

    def close(self) -> None:
        """Do nothing: the backend belongs to whoever opened it."""

    def work_off(self, width: int, work: Callable[[], None]) -> None:
        """Run ``work`` in ``width`` greenlets until all of them return."""
        runs = [greenlet(work) for _ in range(width)]
        with self._open:
            kernel = self._threads(1, "kernel")
            try:
                self._go(runs, kernel)
            except BaseException:
                self._stop(runs)
                raise

    def _go(self, runs: list[greenlet], kernel: ThreadPoolExecutor) -> None:
        """Resume runs and start kernel calls until no run is left."""
        for run in runs:
            self._ready.put(run.switch)
        flight: tuple[Future[list[CohortResult]], list[_Question]] | None = None
        while running := sum(not run.dead for run in runs):
            if flight and flight[0].done():
                for resume in _landed(*flight):
                    self._ready.put(resume)
                flight = None
            enough = 2 * len(self._asked) >= running
            idle = self._ready.empty() and not self._aside
            if self._asked and flight is None and (enough or idle):
                questions, self._asked = self._asked, []
                orders = [order for q in questions for order in q.orders]
                flight = kernel.submit(self._train, orders), questions
                # Wakes this loop if it has nothing else to do.
                flight[0].add_done_callback(lambda _: self._ready.put(_nothing))
            self._ready.get()()

    def _threads(self, count: int, name: str) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(count, f"fedunlearn-lockstep-{name}")
        return self._open.enter_context(pool)

    def _train(self, orders: list[Order]) -> list[CohortResult]:
        with self._calling:
            return self._backend.train(orders)

    def _stop(self, runs: list[greenlet]) -> None:
        """End every run where it waits, so that it gives back what it holds."""
        self._stopped = True
        for run in runs:
            if run and not run.dead:
                with suppress(Exception):  # the first error is the one to be told
                    run.throw(RunError("another run failed, or the runs were stopped"))


def _nothing() -> None:
    """Do nothing."""


def _landed(
    call: "Future[list[CohortResult]]", questions: list[_Question]
) -> list[Callable[[], Any]]:
    """Return what resumes each run with its results, or with the call's error."""
    try:
        results = iter(call.result())
    except Exception as error:  # noqa: BLE001 - raised again where it was asked
        return [_raising(question.run, error) for question in questions]
    return [
        _resuming(question.run, [next(results) for _ in question.orders])
        for question in questions
    ]


def _raising(run: greenlet, error: Exception) -> Callable[[], Any]:
    return lambda: run.throw(error)


def _resuming(run: greenlet, results: list[CohortResult]) -> Callable[[], Any]:
    return lambda: run.switch(results)


def in_lockstep(
    backend: Backend, width: int, runs: Sequence[Callable[[Lockstep], T]]
) -> list[T]:
    """Return what runs return, in their order.

    Args:
        backend: Trains what they ask.
        width: How many advance at the same time.
        runs: Each is given its backend.

    Raises:
        Exception: What the first run that failed raised; the others end where they
            ask.
    """
    lockstep, waiting = Lockstep(backend), deque(enumerate(runs))
    results: dict[int, T] = {}

    def work() -> None:
        while waiting:
            at, run = waiting.popleft()
            results[at] = run(lockstep)

    lockstep.work_off(min(width, len(runs)), work)
    return [results[at] for at in range(len(runs))]
