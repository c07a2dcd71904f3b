"""Many messages that say the same, read as one order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedunlearn.client import read_order
from fedunlearn.cohort import CohortResult
from fedunlearn.history import ClientId
from fedunlearn.params import Layout, Vector
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """What one server wants from its clients.

    Attributes:
        model: Where they start, shape ``(P,)``.
        clients: Who.
        work: What they do.
    """

    model: Vector
    clients: tuple[ClientId, ...]
    work: LocalWork


@dataclass(frozen=True, slots=True)
class Piece:
    """Some clients of one of several orders.

    Attributes:
        order: Which order.
        begin: Position of the first client in it.
        end: Position after the last.
    """

    order: int
    begin: int
    end: int

    def of(self, orders: Sequence[Order]) -> Order:
        """Return the order to these clients."""
        whole = orders[self.order]
        return replace(whole, clients=whole.clients[self.begin : self.end])


def cut(orders: Sequence[Order], task: LocalTask, parts: int) -> list[list[Piece]]:
    """Cut orders into parts of about the same work, the largest first.

    Args:
        orders: What is to be trained.
        task: Knows how many examples each client holds.
        parts: How many, about.
    """
    work = [
        task.num_examples(client, order.work.view)
        * (order.work.epochs or task.training.epochs)
        + 1
        for order in orders
        for client in order.clients
    ]
    total, limit = sum(work), 1 / parts
    out, done, loads = list[list[Piece]](), 0.0, list[float]()
    each = iter(work)
    for at, order in enumerate(orders):
        for position in range(len(order.clients)):
            load = next(each)
            if not out or done >= len(out) * total * limit:
                out.append([])
                loads.append(0.0)
            _extend(out[-1], at, position)
            done += load
            loads[-1] += load
    largest_first = sorted(range(len(out)), key=lambda p: (-loads[p], p))
    return [out[p] for p in largest_first]


def _extend(pieces: list[Piece], order: int, position: int) -> None:
    if pieces and pieces[-1].order == order:
        pieces[-1] = replace(pieces[-1], end=position + 1)
    else:
        pieces.append(Piece(order, position, position + 1))


def joined(
    orders: Sequence[Order], results: Mapping[Piece, CohortResult]
) -> list[CohortResult]:
    """Return each order's result from those of its pieces."""
    out = []
    for at in range(len(orders)):
        mine = sorted((p for p in results if p.order == at), key=lambda p: p.begin)
        parts = [results[piece] for piece in mine]
        out.append(
            CohortResult(
                models=np.concatenate([part.models for part in parts]),
                num_examples=np.concatenate([part.num_examples for part in parts]),
                num_steps=np.concatenate([part.num_steps for part in parts]),
                num_samples=np.concatenate([part.num_samples for part in parts]),
                losses=np.concatenate([part.losses for part in parts]),
            )
        )
    return out


def shared_order(
    messages: list[Message], layout: Layout, num_clients: int
) -> Order | None:
    """Return what messages order if they order one thing of distinct clients.

    Args:
        messages: To be sent.
        layout: What the model must be.
        num_clients: How many there are.
    """
    if not messages or messages[0].metadata.message_type != MessageType.TRAIN:
        return None
    content, nodes = messages[0].content, list[int]()
    for message in messages:
        metadata = message.metadata
        if message.content is not content or metadata.message_type != MessageType.TRAIN:
            return None
        nodes.append(metadata.dst_node_id)
    known = min(nodes) >= 1 and max(nodes) <= num_clients
    if not known or len(set(nodes)) < len(nodes) or not _orders_a(layout, content):
        return None
    try:
        model, work = read_order(content, layout)
    except (ValueError, TypeError):  # each client says what is wrong with it
        return None
    return Order(model, tuple(node - 1 for node in nodes), work)


def _orders_a(layout: Layout, content: RecordDict) -> bool:
    records = list(content.values())
    arrays = [r for r in records if isinstance(r, ArrayRecord)]
    configs = [r for r in records if isinstance(r, ConfigRecord)]
    if len(arrays) != 1 or len(configs) > 1 or len(records) > 1 + len(configs):
        return False
    return arrays[0].keys() == set(layout.names)
