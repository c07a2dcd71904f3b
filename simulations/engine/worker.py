"""Runs clients of a ClientApp one after another: the unit both backends share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedunlearn.cohort import CohortResult
from fedunlearn.errors import RunError
from fedunlearn.flower_compat import (
    CLIENT_APP_RAISED,
    claim_identity,
    copy_records,
    with_id,
)
from simulations.engine.orders import Order
from simulations.engine.trainer import CohortSpec


@dataclass(frozen=True, slots=True)
class Job:
    """One message for one client.

    Attributes:
        node: Node id of the client.
        partition: Its partition id.
        content: Position of the message's content among those of the batch: clients of
            a round mostly share one.
        message_type: Such as ``train`` or ``query.name``.
        message_id: Id of the message.
        group_id: Group of the message.
        state: The client's own records, kept between messages.
    """

    node: int
    partition: int
    content: int
    message_type: str
    message_id: str
    group_id: str
    state: RecordDict


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client gave: records or an error, and its state afterwards."""

    content: RecordDict | None
    error: Error | None
    state: RecordDict


class Backend(Protocol):
    """Runs jobs somewhere and gives the answers in the order of the jobs."""

    def run(self, jobs: Sequence[Job], contents: list[RecordDict]) -> list[Answer]:
        """Run all jobs; a client's failure is an answer with an error."""
        ...

    @property
    def kernel_seconds(self) -> float | None:
        """Time spent in the kernel so far, or None where nobody can tell."""
        ...

    def train(self, orders: Sequence[Order]) -> list[CohortResult]:
        """Train cohorts by the kernel; only if there is one."""
        ...

    def close(self) -> None:
        """Give back what the backend holds."""
        ...


class ClientWorker:
    """Runs clients in the process it lives in.

    Args:
        app: The ClientApp of every client.
        num_partitions: Number of clients, told to each in its ``node_config``.
        cohorts: How whole cohorts are trained, if they can be.
    """

    def __init__(
        self, app: ClientApp, num_partitions: int, cohorts: CohortSpec | None = None
    ) -> None:
        claim_identity()
        self._app = app
        self._num_partitions = num_partitions
        self._trainer = None if cohorts is None else cohorts.trainer()

    def run(self, jobs: Sequence[Job], contents: list[RecordDict]) -> list[Answer]:
        """Run the jobs in order."""
        return [self._answer(job, contents[job.content]) for job in jobs]

    @property
    def kernel_seconds(self) -> float | None:
        """Time spent in the kernel so far, or None without one."""
        return None if self._trainer is None else self._trainer.kernel_seconds

    def train(self, orders: Sequence[Order]) -> list[CohortResult]:
        """Train cohorts by the kernel."""
        if self._trainer is None:
            raise RunError("this worker was given no kernel")
        return self._trainer.train(orders)

    def close(self) -> None:
        """End the kernel's threads."""
        if self._trainer is not None:
            self._trainer.close()

    def _answer(self, job: Job, content: RecordDict) -> Answer:
        message = with_id(
            # A copy: clients of a round share the content and may write to theirs.
            Message(
                copy_records(content),
                dst_node_id=job.node,
                message_type=job.message_type,
                group_id=job.group_id,
            ),
            job.message_id,
        )
        context = Context(
            run_id=message.metadata.run_id,
            node_id=job.node,
            node_config={
                "partition-id": job.partition,
                "num-partitions": self._num_partitions,
            },
            state=job.state,
            run_config={},
        )
        try:
            reply: object = self._app(message, context)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - its answer, whatever
            fault = Error(CLIENT_APP_RAISED, f"{type(error).__name__}: {error}")
            return Answer(None, fault, context.state)
        if not isinstance(reply, Message):
            fault = Error(CLIENT_APP_RAISED, f"returned {reply!r}, not a Message")
            return Answer(None, fault, context.state)
        if reply.has_error():
            return Answer(None, reply.error, context.state)
        # A copy: the client's state may hold the records it sends.
        return Answer(copy_records(reply.content), None, context.state)
