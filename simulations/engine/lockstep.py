"""Many runs advance together: what they ask at the same time is trained as one.

Every run is a thread with a grid of its own and ordinary code in it. It stops where it
asks clients; when all have stopped, all their orders go through the kernel in one call.
The kernel's numbers do not depend on who else is in a call, so a run's do not either.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Condition
from typing import TypeVar, final

from flwr.app import RecordDict

from fedunlearn.cohort import CohortResult
from fedunlearn.errors import RunError
from simulations.engine.orders import Order
from simulations.engine.worker import Answer, Backend, Job

T = TypeVar("T")


@final
class Lockstep:
    """Where runs meet.

    Args:
        backend: Trains what they ask.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._changed = Condition()
        self._running = 0
        self._stopped = False
        self._waiting: list[_Question] = []

    def join(self) -> "Member":
        """Add a run; all others wait for it from now on."""
        with self._changed:
            self._running += 1
        return Member(self)

    def leave(self) -> None:
        """Take a run out; the others do not wait for it any more."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Let every run fail where it asks next."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self, jobs: Sequence[Job], contents: list[RecordDict]) -> list[Answer]:
        """Pass on what is no training, one run at a time."""
        with self._changed:
            self._check()
            return self._backend.run(jobs, contents)

    def train(self, orders: Sequence[Order]) -> list[CohortResult]:
        """Wait until every run asks, then train all orders at once."""
        question = _Question(list(orders))
        with self._changed:
            self._waiting.append(question)
            self._changed.notify_all()
            while not question.answered:
                self._check()
                if len(self._waiting) == self._running:
                    self._answer_all()
                    self._changed.notify_all()
                else:
                    self._changed.wait()
        if question.error is not None:
            raise question.error
        return question.results

    def _check(self) -> None:
        if self._stopped:
            raise RunError("another run failed, or the runs were stopped")

    def _answer_all(self) -> None:
        """Train what everybody waits for; a failure is everybody's."""
        questions, self._waiting = self._waiting, []
        orders = [order for question in questions for order in question.orders]
        try:
            results = iter(self._backend.train(orders))
            for question in questions:
                question.results = [next(results) for _ in question.orders]
        except Exception as error:  # noqa: BLE001 - raised again where it was asked
            for question in questions:
                question.error = error
        for question in questions:
            question.answered = True


class _Question:
    """What one run waits for."""

    def __init__(self, orders: list[Order]) -> None:
        self.orders = orders
        self.results: list[CohortResult] = []
        self.error: Exception | None = None
        self.answered = False


@final
class Member:
    """One run's backend."""

    def __init__(self, lockstep: Lockstep) -> None:
        self._lockstep = lockstep

    def run(self, jobs: Sequence[Job], contents: list[RecordDict]) -> list[Answer]:
        """Run what is no training."""
        return self._lockstep.run(jobs, contents)

    @property
    def kernel_seconds(self) -> None:
        """Everybody's, so no one's."""
        return None

    def train(self, orders: Sequence[Order]) -> list[CohortResult]:
        """Train together with the others."""
        return self._lockstep.train(orders)

    def close(self) -> None:
        """Take no more part."""
        self._lockstep.leave()


def in_lockstep(
    lockstep: Lockstep, width: int, runs: Sequence[Callable[[Backend], T]]
) -> list[T]:
    """Return what runs return, in their order.

    Args:
        lockstep: Where they meet.
        width: How many advance at the same time.
        runs: Each is given its backend.

    Raises:
        Exception: What the first run that failed raised; the others end where they
            ask next.
    """
    if not runs:
        return []
    results: list[Future[T]] = [Future() for _ in runs]
    waiting = deque(zip(results, runs, strict=True))
    # All of them join before one starts: else the first would not wait for the others.
    members = [lockstep.join() for _ in range(min(width, len(runs)))]
    with ThreadPoolExecutor(len(members), "fedunlearn-run") as pool:
        for member in members:
            pool.submit(_work_off, waiting, member)
        try:
            done, _ = wait(results, return_when=FIRST_EXCEPTION)
            for result in done:
                result.result()  # raises if it is the one that failed
            return [result.result() for result in results]
        except BaseException:
            waiting.clear()
            lockstep.stop()
            raise


def _work_off(
    waiting: deque[tuple[Future[T], Callable[[Backend], T]]], member: Member
) -> None:
    """Run one after another until none is left."""
    try:
        while waiting:
            result, run = waiting.popleft()
            try:
                result.set_result(run(member))
            except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                result.set_exception(error)
    except IndexError:  # another thread took the last one
        pass
    finally:
        member.close()
