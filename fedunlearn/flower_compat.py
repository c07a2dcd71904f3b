"""Everything that touches names Flower does not make public.

Flower's ``Message`` takes its identity from a process-wide ``TaskIdentity`` that only
its own runtime sets, and a message gets its id from the SuperLink. An engine that
drives Flower strategies and client apps without a SuperLink has to do both itself.
``tests/test_flower_compat.py`` says for which Flower versions this holds.
"""

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

Record = ArrayRecord | ConfigRecord | MetricRecord

TESTED_FLOWER = ("1.42",)
"""Flower releases (major.minor) these touches are tested with."""

SERVER_NODE_ID = 1
"""The node id our own grids send from, as Flower's SuperLink does."""

CLIENT_APP_RAISED = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
CLIENT_APP_CRASHED = int(ErrorCode.CLIENT_APP_CRASHED)
NODE_UNAVAILABLE = int(ErrorCode.NODE_UNAVAILABLE)


def claim_identity() -> None:
    """Give this process the identity messages need, unless a runtime gave it one."""
    unset: int | None = TaskIdentity.__dict__["_task_id"]
    if unset is None:
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = 1
        TaskIdentity.node_id = SERVER_NODE_ID


def with_id(message: Message, message_id: str) -> Message:
    """Return a copy of ``message`` with an id; it shares the content."""
    twin, metadata = Message.__new__(Message), Metadata.__new__(Metadata)
    metadata.__dict__.update(message.metadata.__dict__, _message_id=message_id)
    twin.__dict__.update(message.__dict__, _metadata=metadata)
    return twin


def copy_records(content: RecordDict) -> RecordDict:
    """Return ``content`` with new records around the same bytes.

    Whoever gets the copy may empty or rewrite its records without harm to others.
    """
    return RecordDict({name: _own(record) for name, record in content.items()})


def _own(record: Record) -> Record:
    # An ArrayRecord copies the arrays it is made of, not their bytes.
    values = {k: list(v) if isinstance(v, list) else v for k, v in record.items()}
    return type(record)(values)  # type: ignore[arg-type]


def with_own_records(reply: Message) -> Message:
    """Return a copy of a reply around the same bytes; see ``copy_records``."""
    twin = Message.__new__(Message)
    twin.__dict__.update(reply.__dict__, _content=copy_records(reply.content))
    return twin
