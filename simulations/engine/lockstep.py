"""Many runs advance together: what they ask at the same time is trained as one.

Every run is ordinary code that is given a backend, and a greenlet of one thread. Where
it asks clients the next run goes on; when half of them have asked, their orders go to
the kernel in one call, and while it computes the other half goes on. The kernel's
numbers do not depend on who else is in a call, so a run's do not either.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar, final

from flwr.app import RecordDict
from greenlet import getcurrent, greenlet

from fedunlearn.cohort import CohortResult
from fedunlearn.errors import RunError
from simulations.engine.orders import Order
from simulations.engine.worker import Answer, Backend, Job

T = TypeVar("T")


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

    def close(self) -> None:
        """Do nothing: the backend belongs to whoever opened it."""

    def work_off(self, width: int, work: Callable[[], None]) -> None:
        """Run ``work`` in ``width`` greenlets until all of them return."""
        runs = [greenlet(work) for _ in range(width)]
        with ThreadPoolExecutor(1, "fedunlearn-lockstep") as pool:
            try:
                self._go(runs, pool)
            except BaseException:
                self._stop(runs)
                raise

    def _go(self, runs: list[greenlet], pool: ThreadPoolExecutor) -> None:
        """Resume runs and start kernel calls until no run is left."""
        ready: deque[Callable[[], Any]] = deque(run.switch for run in runs)
        flight: tuple[Future[list[CohortResult]], list[_Question]] | None = None
        while ready or self._asked or flight:
            if flight and (flight[0].done() or not ready):
                ready.extend(_landed(*flight))
                flight = None
            enough = 2 * len(self._asked) >= sum(not run.dead for run in runs)
            if self._asked and flight is None and (enough or not ready):
                questions, self._asked = self._asked, []
                orders = [order for q in questions for order in q.orders]
                flight = pool.submit(self._train, orders), questions
            if ready:
                ready.popleft()()

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
    backend: Backend, width: int, runs: Sequence[Callable[[Backend], T]]
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
