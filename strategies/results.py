"""Reads what clients' own procedures returned; a bad reply is set aside."""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import Message

from fedunlearn.client import NUM_EXAMPLES, NUM_SAMPLES, NUM_STEPS, RESULT
from fedunlearn.history import ClientId, SetAside
from fedunlearn.local import Results
from fedunlearn.params import Vector
from strategies.replies import readable, whole_number

_COUNTS = (NUM_EXAMPLES, NUM_STEPS, NUM_SAMPLES)


def read_results(
    replies: Iterable[Message],
    asked: tuple[ClientId, ...],
    client_of: Callable[[int], ClientId | None],
) -> tuple[Results, list[SetAside]]:
    """Return the good results, ascending by client, and the replies set aside.

    Args:
        replies: As they came, in any order.
        asked: Who was asked.
        client_of: Node id -> client id.
    """
    good: dict[ClientId, tuple[Vector, list[int]]] = {}
    aside = list[SetAside]()
    for message in replies:
        client = client_of(message.metadata.src_node_id)
        found = _read(message)
        if client is None or client not in asked or client in good:
            aside.append(SetAside(client, "was not asked, or answered twice"))
        elif isinstance(found, str):
            aside.append(SetAside(client, found))
        else:
            good[client] = found
    sizes = Counter(len(good[client][0]) for client in sorted(good))
    usual = sizes.most_common(1)[0][0] if sizes else 0
    clients = tuple(c for c in sorted(good) if len(good[c][0]) == usual)
    for client in sorted(good.keys() - set(clients)):
        aside.append(SetAside(client, f"result is not of length {usual}"))
    counts = np.array([good[c][1] for c in clients], np.int64).reshape(-1, 3)
    results = Results(
        clients=clients,
        values=np.array([good[c][0] for c in clients], np.float32).reshape(
            len(clients), usual
        ),
        num_examples=counts[:, 0],
        num_steps=counts[:, 1],
        num_samples=counts[:, 2],
    )
    return results, aside


def _read(message: Message) -> tuple[Vector, list[int]] | str:
    """Return a reply's vector and counts, or what is wrong with it."""
    if message.has_error():
        return f"failed: {message.error.reason}"
    content = message.content
    arrays = next(iter(content.array_records.values()), None)
    metrics = next(iter(content.metric_records.values()), None)
    if arrays is None or metrics is None or RESULT not in arrays:
        return f"does not hold an array {RESULT!r} and metrics"
    values = readable(arrays[RESULT])
    if values is None or values.ndim != 1 or values.dtype != np.float32:
        return f"array {RESULT!r} is no vector of float32"
    if not np.isfinite(values).all():
        return f"array {RESULT!r} holds NaN or infinity"
    counts = [whole_number(metrics.get(name)) for name in _COUNTS]
    if None in counts:
        return "a count is not a whole number"
    return np.asarray(values, np.float32), [count or 0 for count in counts]
