"""Turns Flower replies into updates; a bad reply is set aside, never aggregated."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from zipfile import BadZipFile

import numpy as np
from flwr.app import Array, ArrayRecord, Message

from fedunlearn.arrays import numpy_arrays
from fedunlearn.client import NUM_EXAMPLES, NUM_SAMPLES, NUM_STEPS, TRAIN_LOSS
from fedunlearn.history import ClientId, Counts, SetAside
from fedunlearn.params import Array as NumpyArray
from fedunlearn.params import Layout, Vector
from fedunlearn.updates import Updates

WEIGHT_KEY = NUM_EXAMPLES

_COUNT_LIMIT = 2**53
"""Counts above it are not exact as floating-point numbers."""

Form = tuple[str, str, frozenset[tuple[str, int | None]]]
"""Names of the array and metric record, and each metric with its list length."""


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
        dtypes: Name -> dtype in the first broadcast. A server rule may widen what it
            sends later (Flower's ``FedAdam`` sends float64, its averages turn integers
            into float64); clients may answer in either.
        layout: Layout of the first broadcast's floating-point arrays.
        model: Those arrays as they are sent now, as a vector, shape ``(P,)``.
        asked: Who was asked, ascending.
    """

    arrays: ArrayRecord
    dtypes: Mapping[str, str]
    layout: Layout
    model: Vector
    asked: tuple[ClientId, ...]

    @classmethod
    def of(
        cls,
        arrays: ArrayRecord,
        asked: tuple[ClientId, ...],
        earlier: "Broadcast | None" = None,
    ) -> "Broadcast":
        """Return the yardstick for a record.

        Args:
            arrays: What is sent.
            asked: To whom, ascending.
            earlier: An earlier broadcast of the same run, which fixed the layout.
        """
        named = numpy_arrays(arrays)
        layout = Layout.of(named) if earlier is None else earlier.layout
        dtypes = {name: array.dtype for name, array in arrays.items()}
        return cls(
            arrays=arrays,
            dtypes=dtypes if earlier is None else earlier.dtypes,
            layout=layout,
            model=layout.flatten(named),
            asked=asked,
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
    for client in _odd_ones(good):
        del good[client]
        aside.append(SetAside(client, "names its records or metrics unlike the others"))
    aside.sort(key=lambda s: (-1 if s.client is None else s.client, s.reason))
    return [good[c] for c in sorted(good)], aside


def as_updates(replies: list[Reply], sent: Broadcast) -> Updates:
    """Return the replies as one cohort's updates."""
    rows = [r.model for r in replies]
    return Updates(
        clients=tuple(r.client for r in replies),
        before=sent.model,
        after=np.stack(rows) if rows else np.zeros((0, len(sent.model)), np.float32),
        num_examples=_counts(r.num_examples for r in replies),
        num_steps=_counts(r.num_steps for r in replies),
        num_samples=_counts(r.num_samples for r in replies),
    )


def mean_loss(replies: list[Reply]) -> float | None:
    """Return the mean training loss, weighted by examples, or None if one is silent."""
    losses = [loss for reply in replies if (loss := _loss(reply)) is not None]
    if len(losses) < len(replies):
        return None
    return weighted_loss([reply.num_examples for reply in replies], losses)


def weighted_loss(counts: Sequence[int], losses: Sequence[float]) -> float | None:
    """Return the mean of losses, or None if there is none or one is not finite."""
    if not losses or not all(map(isfinite, losses)):
        return None
    total = sum(counts)
    pairs = zip(counts, losses, strict=True)
    return sum(count / total * loss for count, loss in pairs)


def _loss(reply: Reply) -> float | None:
    metrics = next(iter(reply.message.content.metric_records.values()))
    loss = metrics.get(TRAIN_LOSS)
    return float(loss) if isinstance(loss, int | float) and isfinite(loss) else None


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
        whole_number(metrics.get(weight_key)) or 0,
        whole_number(metrics.get(NUM_STEPS)) or 0,
        whole_number(metrics.get(NUM_SAMPLES)) or 0,
    )


def whole_number(value: object) -> int | None:
    """Return a metric that is a non-negative whole number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value <= _COUNT_LIMIT or value != int(value):
        return None
    return int(value)


def _odd_ones(good: Mapping[ClientId, Reply]) -> list[ClientId]:
    """Return the clients whose records are not named as most clients' are.

    Flower aggregates a round only if all its replies have the same names and kinds:
    without this, one odd reply would stop the run.
    """
    forms = {client: _form(good[client].message) for client in sorted(good)}
    # The form seen first, so the lowest client's, wins a tie.
    usual = Counter(forms.values()).most_common(1)
    return [client for client, form in forms.items() if form != usual[0][0]]


def _form(message: Message) -> Form:
    content = message.content
    (arrays,) = content.array_records
    ((name, metrics),) = content.metric_records.items()
    lengths = {k: len(v) if isinstance(v, list) else None for k, v in metrics.items()}
    return arrays, name, frozenset(lengths.items())


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
    if not whole_number(weight):
        return f"{weight_key} is {_short(weight)}, not a positive whole number"
    return _array_fault(next(iter(content.array_records.values())), sent)


def _array_fault(arrays: ArrayRecord, sent: Broadcast) -> str | None:
    if odd := sorted(arrays.keys() ^ sent.arrays.keys()):
        return f"array {odd[0]!r} is {'missing' if odd[0] in sent.arrays else 'extra'}"
    for name, expected in sent.arrays.items():
        found = readable(arrays[name])
        if found is None:
            return f"array {name!r} cannot be read"
        if found.shape != tuple(expected.shape):
            return f"array {name!r} has shape {found.shape}, not {expected.shape}"
        if found.dtype not in (expected.dtype, sent.dtypes.get(name)):
            return f"array {name!r} is {found.dtype}, not {sent.dtypes.get(name)}"
        if not np.isfinite(found).all():
            return f"array {name!r} holds NaN or infinity"
    return None


def readable(array: Array) -> NumpyArray | None:
    """Return what the bytes say, whatever the array claims; None for rubbish."""
    try:
        found: object = array.numpy()
    except (ValueError, TypeError, EOFError, OSError, MemoryError, BadZipFile):
        return None
    return found if isinstance(found, np.ndarray) else None


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or value < _COUNT_LIMIT else "huge"
    return text if len(text) <= 40 else f"{text[:37]}..."  # noqa: PLR2004
