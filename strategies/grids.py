"""Grids that stand between a strategy and the transport."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn, final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from typing_extensions import override

from fedunlearn.errors import RunError


@final
@dataclass(frozen=True, slots=True)
class CohortGrid(Grid):
    """A grid that shows the nodes of one cohort only, in canonical order.

    Attributes:
        inner: The grid behind it.
        nodes: The node ids to show, or what tells them each time it is asked: a live
            federation's strategy waits here for nodes to come.
    """

    inner: Grid
    nodes: tuple[int, ...] | Callable[[], tuple[int, ...]]

    @override
    def set_run(self, run: Run) -> None:
        self.inner.set_run(run)

    @property
    @override
    def run(self) -> Run:
        return self.inner.run

    @override
    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self.inner.create_message(
            content, message_type, dst_node_id, group_id, ttl
        )

    @override
    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes() if callable(self.nodes) else self.nodes)

    @override
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self.inner.push_messages(messages)

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.inner.pull_messages(message_ids)

    @override
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.inner.send_and_receive(messages, timeout=timeout)


@final
@dataclass(frozen=True, slots=True)
class NoGrid(Grid):
    """A grid with no transport: a strategy can plan on it, nobody can be reached."""

    @override
    def set_run(self, run: Run) -> NoReturn:
        raise _no_transport()

    @property
    @override
    def run(self) -> NoReturn:
        raise _no_transport()

    @override
    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> NoReturn:
        raise _no_transport()

    @override
    def get_node_ids(self) -> Iterable[int]:
        return []

    @override
    def push_messages(self, messages: Iterable[Message]) -> NoReturn:
        raise _no_transport()

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> NoReturn:
        raise _no_transport()

    @override
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> NoReturn:
        raise _no_transport()


def _no_transport() -> RunError:
    return RunError("a strategy used as a server rule tried to reach a client")
