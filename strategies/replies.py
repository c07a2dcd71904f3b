"""Turns Flower replies into updates; a bad reply is set aside, never aggregated."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite

import numpy as np
from flwr.app import ArrayRecord, Message

from fedunlearn.arrays import numpy_arrays
from fedunlearn.history import ClientId, Counts, SetAside
from fedunlearn.params import Layout, Vector
from fedunlearn.updates import Updates

WEIGHT_KEY = "num-examples"


@dataclass(frozen=True, slots=True)
class Reply:
    """One good answer."""

    client: ClientId
    message: Message
    model: Vector
    num_examples: int
    num_steps: int
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """What was sent to the cohort: the yardstick for its replies.

    Attributes:
        arrays: The record that was sent.
        layout: Layout of its floating-point arrays.
        model: Those arrays as a vector, shape ``(P,)``.
        asked: Who was asked, ascending.
    """

    arrays: ArrayRecord
    layout: Layout
    model: Vector
    asked: tuple[ClientId, ...]

    @classmethod
    def of(cls, arrays: ArrayRecord, asked: tuple[ClientId, ...]) -> "Broadcast":
        """Return the yardstick for a record."""
        named = numpy_arrays(arrays)
        layout = Layout.of(named)
        return cls(
            arrays=arrays, layout=layout, model=layout.flatten(named), asked=asked
        )


def sort_replies(
    replies: Iterable[Message],
    sent: Broadcast,
    client_of: Callable[[int], ClientId | None],
    weight_key: str = WEIGHT_KEY,
) -> tuple[list[Reply], list[SetAside]]:
    """Split replies into good ones, ascending by client, and those set aside.

    Args:
        replies: As they came, in any order.
        sent: What they answer to.
        client_of: Node id -> client id.
        weight_key: Name of the example count among the metrics.
    """
    good: dict[ClientId, Reply] = {}
    aside: list[SetAside] = []
    for message in replies:
        client = client_of(message.metadata.src_node_id)
        if client is None or client not in sent.asked:
            aside.append(SetAside(client, "was not asked"))
        elif client in good:
            aside.append(SetAside(client, "answered twice"))
        elif reason := _fault(message, sent, weight_key):
            aside.append(SetAside(client, reason))
        else:
            good[client] = _read(client, message, sent, weight_key)
    aside.sort(key=lambda s: (-1 if s.client is None else s.client, s.reason))
    return [good[c] for c in sorted(good)], aside


def as_updates(replies: list[Reply], sent: Broadcast) -> Updates:
    """Return the replies as one cohort's updates.

    Raises:
        ValueError: If there is no reply.
    """
    return Updates(
        clients=tuple(r.client for r in replies),
        before=sent.model,
        after=np.stack([r.model for r in replies]),
        num_examples=_counts(r.num_examples for r in replies),
        num_steps=_counts(r.num_steps for r in replies),
        num_samples=_counts(r.num_samples for r in replies),
    )


def _counts(values: Iterable[int]) -> Counts:
    return np.fromiter(values, np.int64)


def _read(
    client: ClientId, message: Message, sent: Broadcast, weight_key: str
) -> Reply:
    content = message.content
    model = sent.layout.flatten(
        numpy_arrays(next(iter(content.array_records.values())))
    )
    metrics = next(iter(content.metric_records.values()))
    return Reply(
        client,
        message,
        model,
        int(metrics[weight_key]),  # type: ignore[arg-type]
        int(metrics.get("num-steps", 0)),  # type: ignore[arg-type]
        int(metrics.get("num-samples", 0)),  # type: ignore[arg-type]
    )


def _fault(message: Message, sent: Broadcast, weight_key: str) -> str | None:
    """Return what is wrong with a reply in a few words, or None."""
    if message.has_error():
        lines = (message.error.reason or "").strip().splitlines()
        return f"failed: {lines[-1] if lines else f'error {message.error.code}'}"
    content = message.content
    if len(content.array_records) != 1 or len(content.metric_records) != 1:
        return "does not hold exactly one array record and one metric record"
    metrics = next(iter(content.metric_records.values()))
    weight = metrics.get(weight_key)
    if not isinstance(weight, int | float) or not isfinite(weight) or weight < 1:
        return f"{weight_key} is {weight!r}, not a positive number"
    return _array_fault(next(iter(content.array_records.values())), sent)


def _array_fault(arrays: ArrayRecord, sent: Broadcast) -> str | None:
    if odd := sorted(arrays.keys() ^ sent.arrays.keys()):
        return f"array {odd[0]!r} is {'missing' if odd[0] in sent.arrays else 'extra'}"
    for name, expected in sent.arrays.items():
        found = arrays[name]
        if tuple(found.shape) != tuple(expected.shape):
            return f"array {name!r} has shape {found.shape}, not {expected.shape}"
        if found.dtype != expected.dtype:
            return f"array {name!r} is {found.dtype}, not {expected.dtype}"
        if not np.isfinite(found.numpy()).all():
            return f"array {name!r} holds NaN or infinity"
    return None
