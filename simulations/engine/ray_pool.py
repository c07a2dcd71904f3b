"""Clients on long-lived Ray actors, one intra-op thread each."""

import logging
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import ray
from flwr.app import Error, RecordDict
from flwr.clientapp import ClientApp
from ray._private import ray_constants
from ray.exceptions import RayActorError

from fedunlearn.errors import ConfigError, RunError
from fedunlearn.flower_compat import CLIENT_APP_CRASHED
from fedunlearn.models.state import single_thread
from simulations.engine.worker import Answer, ClientWorker, Job

_CHUNKS_PER_WORKER = 4
"""Chunks a batch is cut into per worker: more balance better, fewer cost less."""


class RayWorker:
    """A ClientWorker in a process of its own."""

    def __init__(self, app: ClientApp, num_partitions: int) -> None:
        single_thread()
        self._worker = ClientWorker(app, num_partitions)

    def run(self, jobs: Sequence[Job], contents: list[Any]) -> list[Answer]:
        """Run the jobs; ``contents`` are references into the object store."""
        return self._worker.run(jobs, ray.get(contents))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions of the jobs one call runs; ``last`` if they will not be tried again."""

    positions: tuple[int, ...]
    last: bool = False


@final
class RayPool:
    """A pool of actors; a dead one is replaced and its clients tried once more.

    Args:
        app: The ClientApp; it is placed in the object store once.
        num_partitions: Number of clients.
        workers: Number of actors.
    """

    def __init__(self, app: ClientApp, num_partitions: int, workers: int) -> None:
        self._started = _start_ray(workers)
        self._app = ray.put(app)
        self._num_partitions = num_partitions
        self._actor_class = ray.remote(num_cpus=1, max_restarts=0)(RayWorker)
        self._actors = [self._new_actor() for _ in range(workers)]
        self.replaced = 0

    def run(self, jobs: Sequence[Job], contents: list[RecordDict]) -> list[Answer]:
        """Run all jobs on whichever actor is free."""
        shared = [ray.put(content) for content in contents]
        waiting = deque(_chunks(len(jobs), len(self._actors)))
        idle, busy = deque(range(len(self._actors))), dict[Any, tuple[int, Chunk]]()
        answers: dict[int, Answer] = {}
        while waiting or busy:
            while waiting and idle:
                chunk, slot = waiting.popleft(), idle.popleft()
                part = [jobs[p] for p in chunk.positions]
                call = self._actors[slot].run.remote(part, shared)
                busy[call] = slot, chunk
            (done, *_), _ = ray.wait(list(busy))
            slot, chunk = busy.pop(done)
            idle.append(slot)
            answers.update(self._collect(done, slot, chunk, jobs, waiting))
        return [answers[p] for p in range(len(jobs))]

    def close(self) -> None:
        """End the actors, and Ray if this pool started it."""
        for actor in self._actors:
            ray.kill(actor)
        if self._started:
            ray.shutdown()

    def _collect(
        self,
        done: Any,  # noqa: ANN401 - Ray's references carry no type
        slot: int,
        chunk: Chunk,
        jobs: Sequence[Job],
        waiting: deque[Chunk],
    ) -> dict[int, Answer]:
        """Return the chunk's answers; if its actor died, replace it and queue anew."""
        try:
            return dict(zip(chunk.positions, ray.get(done), strict=True))
        except RayActorError:
            self._actors[slot] = self._new_actor()
            self.replaced += 1
        except ray.exceptions.RayError as error:
            raise RunError(f"a Ray worker failed: {error}") from error
        if chunk.last:
            crashed = Error(CLIENT_APP_CRASHED, "the client's worker died twice")
            return {p: Answer(None, crashed, jobs[p].state) for p in chunk.positions}
        # One by one, so that only the client that kills its worker is given up.
        waiting.extend(Chunk((p,), last=True) for p in chunk.positions)
        return {}

    def _new_actor(self) -> Any:  # noqa: ANN401 - Ray's handles carry no type
        return self._actor_class.remote(self._app, self._num_partitions)


def _chunks(jobs: int, workers: int) -> list[Chunk]:
    size = max(1, -(-jobs // (workers * _CHUNKS_PER_WORKER)))
    return [
        Chunk(tuple(range(at, min(at + size, jobs)))) for at in range(0, jobs, size)
    ]


def _start_ray(workers: int) -> bool:
    """Start Ray on this machine's loopback unless it runs; return whether it did."""
    if ray.is_initialized():
        _check_room(workers)
        return False
    # No telemetry, and the coming default, which warns at every start until set.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's servers listen on every interface unless the node's address is 127.0.0.1,
    # and it replaces that address by an outside one except on systems without cluster
    # support. This says so of the local one; Ray 2.55 to 2.60 has no public setting.
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
    return True


def _check_room(workers: int) -> None:
    """Refuse more workers than the running Ray has CPUs: they would wait for ever."""
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if cpus < workers:
        raise ConfigError(
            f"engine.workers is {workers}, the Ray that is running has {cpus} CPUs"
        )
