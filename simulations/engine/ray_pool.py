"""Clients on long-lived Ray actors, one intra-op thread each."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import ray
from flwr.app import Error, RecordDict
from flwr.clientapp import ClientApp
from ray.exceptions import RayActorError

from fedunlearn.cohort import CohortResult
from fedunlearn.errors import RunError
from fedunlearn.flower_compat import CLIENT_APP_CRASHED
from fedunlearn.models.state import single_thread
from simulations.engine.cluster import Cluster
from simulations.engine.orders import Order, Piece, cut, joined
from simulations.engine.ray_start import start_ray
from simulations.engine.trainer import CohortSpec
from simulations.engine.worker import Answer, ClientWorker, Job

_CHUNKS_PER_WORKER = 4
"""Chunks a batch is cut into per worker: more balance better, fewer cost less."""


class RayWorker:
    """A ClientWorker in a process of its own."""

    def __init__(
        self, shared: tuple[ClientApp, CohortSpec | None], num_partitions: int
    ) -> None:
        single_thread()
        app, cohorts = shared
        self._worker = ClientWorker(app, num_partitions, cohorts)

    def run(self, jobs: Sequence[Job], contents: list[Any]) -> list[Answer]:
        """Run the jobs; ``contents`` are references into the object store."""
        return self._worker.run(jobs, ray.get(contents))

    def train(self, orders: Sequence[Order], models: list[Any]) -> list[CohortResult]:
        """Train orders, each from the model its reference stands for."""
        held = ray.get(models)
        pairs = zip(orders, held, strict=True)
        return self._worker.train([replace(o, model=model) for o, model in pairs])


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an actor.

    Attributes:
        start: Starts it on an actor; returns a reference to the result.
        done: Takes the result.
        died: Returns what to call instead if the actor died.
    """

    start: Callable[[Any], Any]
    done: Callable[[Any], None]
    died: Callable[[], "list[Call]"]


@final
class RayPool:
    """A pool of actors; a dead one is replaced and its clients tried once more.

    Args:
        app: The ClientApp; it is placed in the object store once.
        num_partitions: Number of clients.
        workers: Number of actors.
        cluster: Where they run.
        cohorts: How whole cohorts are trained; placed there together with the app,
            so that both share the data.
    """

    def __init__(
        self,
        app: ClientApp,
        num_partitions: int,
        workers: int,
        cluster: Cluster,
        cohorts: CohortSpec | None = None,
    ) -> None:
        self._started = start_ray(workers, cluster)
        self._shared = ray.put((app, cohorts))
        self._cohorts = cohorts
        self._num_partitions = num_partitions
        self._actor_class = ray.remote(
            num_cpus=cluster.cpus_per_worker,
            num_gpus=cluster.gpus_per_worker,
            max_restarts=0,
        )(RayWorker)
        self._actors = [self._new_actor() for _ in range(workers)]
        self.replaced = 0

    def run(self, jobs: Sequence[Job], contents: list[RecordDict]) -> list[Answer]:
        """Run all jobs on whichever actor is free."""
        shared = [ray.put(content) for content in contents]
        answers: dict[int, Answer] = {}

        def call(positions: tuple[int, ...], *, last: bool = False) -> Call:
            part = [jobs[p] for p in positions]

            def done(result: list[Answer]) -> None:
                answers.update(zip(positions, result, strict=True))

            def died() -> list[Call]:
                if not last:
                    # One by one, so that only the client that kills its worker is
                    # given up.
                    return [call((p,), last=True) for p in positions]
                crashed = Error(CLIENT_APP_CRASHED, "the client's worker died twice")
                done([Answer(None, crashed, job.state) for job in part])
                return []

            return Call(lambda actor: actor.run.remote(part, shared), done, died)

        self._work_off(map(call, _chunks(len(jobs), len(self._actors))))
        return [answers[p] for p in range(len(jobs))]

    @property
    def kernel_seconds(self) -> None:
        """The actors' own; nobody asks them."""
        return None

    def train(self, orders: Sequence[Order]) -> list[CohortResult]:
        """Train cohorts in pieces of about the same work."""
        if self._cohorts is None:
            raise RunError("these workers were given no kernel")
        models = [ray.put(order.model) for order in orders]
        bare = [replace(order, model=order.model[:0]) for order in orders]
        results: dict[Piece, CohortResult] = {}

        def call(pieces: list[Piece], *, last: bool = False) -> Call:
            part = [piece.of(bare) for piece in pieces]
            starts = [models[piece.order] for piece in pieces]

            def died() -> list[Call]:
                if last:
                    raise RunError("a worker died twice while it trained a cohort")
                return [call(pieces, last=True)]

            return Call(
                lambda actor: actor.train.remote(part, starts),
                lambda result: results.update(zip(pieces, result, strict=True)),
                died,
            )

        chunks = cut(orders, self._cohorts.task, len(self._actors) * _CHUNKS_PER_WORKER)
        self._work_off(map(call, chunks))
        return joined(orders, results)

    def close(self) -> None:
        """End the actors, and Ray if this pool started it."""
        for actor in self._actors:
            ray.kill(actor)
        if self._started:
            ray.shutdown()

    def _work_off(self, calls: Iterable[Call]) -> None:
        """Make all calls, each on whichever actor is free."""
        waiting = deque(calls)
        idle, busy = deque(range(len(self._actors))), dict[Any, tuple[int, Call]]()
        while waiting or busy:
            while waiting and idle:
                slot, call = idle.popleft(), waiting.popleft()
                busy[call.start(self._actors[slot])] = slot, call
            (ready, *_), _ = ray.wait(list(busy))
            slot, call = busy.pop(ready)
            idle.append(slot)
            try:
                call.done(ray.get(ready))
            except RayActorError:
                self._actors[slot] = self._new_actor()
                self.replaced += 1
                waiting.extend(call.died())
            except ray.exceptions.RayError as error:
                raise RunError(f"a Ray worker failed: {error}") from error

    def _new_actor(self) -> Any:  # noqa: ANN401 - Ray's handles carry no type
        return self._actor_class.remote(self._shared, self._num_partitions)


def _chunks(jobs: int, workers: int) -> list[tuple[int, ...]]:
    size = max(1, -(-jobs // (workers * _CHUNKS_PER_WORKER)))
    return [tuple(range(at, min(at + size, jobs))) for at in range(0, jobs, size)]
