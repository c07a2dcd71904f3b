"""A Flower Grid whose nodes are simulated clients."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from types import TracebackType
from typing import Self, TypeVar, final

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from typing_extensions import override

from fedunlearn.client import read_work
from fedunlearn.errors import ConfigError, RunError
from fedunlearn.flower_compat import NODE_UNAVAILABLE, claim_identity, with_id
from fedunlearn.history import ClientId
from fedunlearn.training import LocalWork
from simulations.engine.cluster import Cluster
from simulations.engine.lockstep import Lockstep, in_lockstep
from simulations.engine.orders import shared_order
from simulations.engine.threads import one_thread
from simulations.engine.trainer import CohortSpec
from simulations.engine.worker import Answer, Backend, ClientWorker, Job
from strategies.cohort_replies import CohortReplies

T = TypeVar("T")
Answering = Callable[[LocalWork, tuple[ClientId, ...]], Sequence[bool]]
"""Given an order and who gets it, tells who answers."""
_THIS_MACHINE = Cluster()


@final
class SimulationGrid(Grid):
    """Runs any ClientApp for any Flower strategy, without a SuperLink.

    Client ``i`` of ``num_clients`` has partition id ``i`` and node id ``i + 1``.
    Use it in a ``with`` statement::

        with SimulationGrid(app, num_clients=10, workers=2) as grid:
            FedAvg().start(grid, initial_arrays, num_rounds=3)

    Args:
        client_app: The ClientApp of every client, ours or a user's.
        num_clients: Number of clients.
        workers: 0 runs the clients in this process, N on N Ray actors; the results are
            the same bits.
        cluster: Where those actors run.
        cohorts: How orders to train are carried out when all nodes get the same one:
            by a kernel, as one, instead of by ``client_app``. It must be the same task.
        answering: Tells who of those that are ordered to train answers; the others are
            silent. None lets everybody answer.

    Raises:
        ConfigError: If there is no client or a negative number of workers.
    """

    def __init__(
        self,
        client_app: ClientApp,
        *,
        num_clients: int,
        workers: int = 0,
        cluster: Cluster = _THIS_MACHINE,
        cohorts: CohortSpec | None = None,
        answering: Answering | None = None,
    ) -> None:
        if num_clients < 1:
            raise ConfigError(f"a grid needs at least one client, got {num_clients}")
        if workers < 0:
            raise ConfigError(f"engine.workers must not be negative, got {workers}")
        claim_identity()
        self._app = client_app
        self._num_clients = num_clients
        self._workers = workers
        self._cluster = cluster
        self._cohorts = cohorts
        self._answering = answering
        self._open = ExitStack()
        self._backend: Backend | None = None
        self._states: dict[int, RecordDict] = {}
        self._message_ids = count(1)
        self._replies: dict[str, Message] = {}
        self._run: Run | None = None

    def __enter__(self) -> Self:
        """Start the backend."""
        if self._backend is not None:
            raise RunError("this SimulationGrid is inside a with statement already")
        with ExitStack() as opening:
            opening.enter_context(one_thread())
            backend = self._start()
            opening.callback(backend.close)
            self._backend, self._open = backend, opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the backend."""
        self._backend = None
        self._open.close()

    @property
    def kernel_seconds(self) -> float | None:
        """Time spent in the kernel so far, or None where nobody can tell."""
        return None if self._backend is None else self._backend.kernel_seconds

    def in_lockstep(
        self, width: int, runs: Sequence[Callable[["SimulationGrid"], T]]
    ) -> list[T]:
        """Return what runs return that advance together, each on a grid of its own.

        What they ask at the same time is trained in one pass; their numbers are the
        same as if each ran alone.

        Args:
            width: How many advance at the same time.
            runs: Each is ordinary code; they take turns in this thread.
        """
        if self._backend is None:
            raise RunError("a SimulationGrid works inside its with statement only")

        def beside(run: Callable[[SimulationGrid], T], lockstep: Lockstep) -> T:
            return run(self._twin(lockstep))

        return in_lockstep(self._backend, width, [partial(beside, r) for r in runs])

    def aside(self, call: Callable[[], T]) -> T:
        """Make a call that takes time but no processor, such as waiting for a disk.

        In lockstep the other runs go on meanwhile, and a thread makes it.
        """
        if isinstance(self._backend, Lockstep):
            return self._backend.aside(call)
        return call()

    def _twin(self, backend: Lockstep) -> "SimulationGrid":
        """Return a grid of the same clients for one of several runs."""
        twin = SimulationGrid(
            self._app,
            num_clients=self._num_clients,
            cohorts=self._cohorts,
            answering=self._answering,
        )
        twin._backend = backend
        return twin

    def _start(self) -> Backend:
        if self._workers == 0:
            return ClientWorker(self._app, self._num_clients, self._cohorts)
        from simulations.engine.ray_pool import RayPool

        return RayPool(
            self._app, self._num_clients, self._workers, self._cluster, self._cohorts
        )

    @override
    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    @override
    def run(self) -> Run:
        if self._run is None:
            raise RunError("this grid was given no Flower run (grid.set_run)")
        return self._run

    @override
    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    @override
    def get_node_ids(self) -> range:
        return range(1, self._num_clients + 1)

    @override
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        replies = self._exchange(list(messages))
        self._replies.update(replies)
        return list(replies)

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    @override
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the messages' clients; replies come in the order of the messages.

        ``timeout`` has no effect: who does not answer does so at once.
        """
        orders = self._heard(list(messages))
        if self._cohorts is not None and self._backend is not None:
            order = shared_order(orders, self._cohorts.layout, self._num_clients)
            if order is not None:
                (result,) = self._backend.train([order])
                return CohortReplies(orders, self._cohorts.layout, result)
        return list(self._exchange(orders).values())

    def _heard(self, messages: list[Message]) -> list[Message]:
        """Return the messages that will be answered."""
        train = [m.metadata.message_type == MessageType.TRAIN for m in messages]
        if self._answering is None or not messages or not all(train):
            return messages
        clients = tuple(m.metadata.dst_node_id - 1 for m in messages)
        answers = self._answering(read_work(messages[0].content), clients)
        return [m for m, there in zip(messages, answers, strict=True) if there]

    def _exchange(self, messages: list[Message]) -> dict[str, Message]:
        """Return message id -> reply, in the order of the messages."""
        if self._backend is None:
            raise RunError("a SimulationGrid works inside its with statement only")
        numbered = [with_id(m, str(next(self._message_ids))) for m in messages]
        there = [
            m for m in numbered if 1 <= m.metadata.dst_node_id <= self._num_clients
        ]
        found: dict[str, Message] = {}
        for wave in _waves(there):
            found |= self._run_wave(self._backend, wave)
        return {
            m.metadata.message_id: found.get(m.metadata.message_id) or _nobody(m)
            for m in numbered
        }

    def _run_wave(self, backend: Backend, wave: list[Message]) -> dict[str, Message]:
        contents = {id(m.content): m.content for m in wave}
        positions = {key: at for at, key in enumerate(contents)}
        jobs = [self._job(m, positions[id(m.content)]) for m in wave]
        answers = backend.run(jobs, list(contents.values()))
        return {
            m.metadata.message_id: self._reply(m, answer)
            for m, answer in zip(wave, answers, strict=True)
        }

    def _job(self, message: Message, content: int) -> Job:
        node = message.metadata.dst_node_id
        return Job(
            node=node,
            partition=node - 1,
            content=content,
            message_type=message.metadata.message_type,
            message_id=message.metadata.message_id,
            group_id=message.metadata.group_id,
            state=self._states.setdefault(node, RecordDict()),
        )

    def _reply(self, message: Message, answer: Answer) -> Message:
        self._states[message.metadata.dst_node_id] = answer.state
        if answer.content is None:
            return Message(answer.error or Error(0), reply_to=message)
        return Message(answer.content, reply_to=message)


def identify(grid: Grid, nodes: Collection[int]) -> dict[int, ClientId]:  # noqa: ARG001
    """Return node id -> client id of a SimulationGrid, without asking anybody."""
    return {node: node - 1 for node in nodes}


def _waves(messages: list[Message]) -> list[list[Message]]:
    """Split so that a wave has a node once: its state passes from wave to wave."""
    waves, seen = list[list[Message]](), Counter[int]()
    for message in messages:
        node = message.metadata.dst_node_id
        if seen[node] == len(waves):
            waves.append([])
        waves[seen[node]].append(message)
        seen[node] += 1
    return waves


def _nobody(message: Message) -> Message:
    node = message.metadata.dst_node_id
    return Message(Error(NODE_UNAVAILABLE, f"no node {node} here"), reply_to=message)
