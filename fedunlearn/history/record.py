"""What one round leaves behind."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import HistoryError
from fedunlearn.params import Array, Matrix, Vector

ClientId = int
"""A client's partition id, from 0: stable over rounds and runs, unlike a node id."""

Counts = npt.NDArray[np.int64]
"""One non-negative integer per client of a round, shape ``(K,)``."""

Kept = Literal["none", "some", "leavers", "all"]
"""Whose updates are needed; ``some`` asks for one round with any."""
Broadcasts = Literal["none", "initial", "first", "all"]
"""Which of the models sent out are needed: none, the very first, the one the leavers
first received as well, or all."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """What the server needs, beside its clients, to go on from where it stands.

    Attributes:
        arrays: The global model as it is sent, name -> array of any dtype.
        rule: State of the server rule, such as a momentum; empty for an average.
        random: State of Python's generator as JSON, or "" if it plays no part.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    rule: Mapping[str, Array] = field(default_factory=dict)
    random: str = ""


@dataclass(frozen=True, slots=True)
class Tip:
    """Where a federation stands: what training goes on from.

    Attributes:
        round: The last round that is behind it; 0 before the first.
        state: The server after that round.
    """

    round: int
    state: ServerState


class RoundArrays(Protocol):
    """The heavy part of a round; read only when asked for.

    Everything raises HistoryError where it is not held (any more) or damaged.
    """

    def broadcast(self) -> Vector:
        """Return the model sent out, shape ``(P,)``."""
        ...

    def updates(self) -> Matrix:
        """Return all updates, shape ``(K, P)``, memory-mapped where possible."""
        ...

    def rows(self, positions: Sequence[int]) -> Matrix:
        """Return the updates at ``positions``, shape ``(len(positions), P)``."""
        ...

    def state(self) -> ServerState:
        """Return the server's state when the round began, as far as it has one."""
        ...


@dataclass(frozen=True, slots=True)
class ArraysInMemory:
    """The heavy part of a round held in memory; handed out as read-only views."""

    model: Vector
    matrix: Matrix
    server: ServerState = field(default_factory=ServerState)

    def broadcast(self) -> Vector:
        """Return the model sent out."""
        return read_only(self.model)

    def updates(self) -> Matrix:
        """Return all updates."""
        return read_only(self.matrix)

    def rows(self, positions: Sequence[int]) -> Matrix:
        """Return some updates."""
        return self.matrix[list(positions)]

    def state(self) -> ServerState:
        """Return the server's state when the round began."""
        return self.server


@dataclass(slots=True)
class DifferencesInMemory:
    """The heavy part of a round, known by the models before and after.

    The updates are worked out when somebody asks: a history that keeps none of them
    does not pay for them.
    """

    before: Vector
    after: Matrix
    server: ServerState
    _updates: Matrix | None = None

    def broadcast(self) -> Vector:
        """Return the model sent out."""
        return read_only(self.before)

    def updates(self) -> Matrix:
        """Return all updates."""
        if self._updates is None:
            self._updates = self.after - self.before
        return read_only(self._updates)

    def rows(self, positions: Sequence[int]) -> Matrix:
        """Return some updates."""
        return self.updates()[list(positions)]

    def state(self) -> ServerState:
        """Return the server's state when the round began."""
        return self.server


def read_only(array: Matrix) -> Matrix:
    """Return a view of an array that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True)
class SetAside:
    """A reply that was not aggregated.

    Attributes:
        client: Who sent it, or None if nobody knows.
        reason: One sentence.
    """

    client: ClientId | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One round: what was sent out and what came back.

    Attributes:
        index: Number of the round, from 1.
        clients: Whose updates were aggregated, ascending.
        num_examples: Training examples each of them holds (the weight), ``(K,)``.
        num_steps: Local optimiser steps each took, ``(K,)``; 0 if it did not say.
        num_samples: Examples each passed through its model, ``(K,)``; 0 likewise.
        asked: Who was asked, ascending; a superset of ``clients``.
        set_aside: Replies that were refused, with the reason.
        dropped: Those of ``clients`` whose update is not held (any more).
        sensitivities: How far the new model would lie from itself without each client,
            ``||Agg(I) - Agg(I without k)||_2``, shape ``(K,)``; None if not recorded.
        loss: Mean training loss the clients reported, weighted by examples, or None.
        seconds: Wall-clock seconds the round took.
        arrays: Where the broadcast and the updates are.
    """

    index: int
    clients: tuple[ClientId, ...]
    num_examples: Counts
    num_steps: Counts
    num_samples: Counts
    asked: tuple[ClientId, ...]
    set_aside: tuple[SetAside, ...] = ()
    dropped: frozenset[ClientId] = frozenset()
    sensitivities: npt.NDArray[np.float64] | None = None
    loss: float | None = None
    seconds: float = 0.0
    arrays: RoundArrays = field(repr=False)

    @property
    def broadcast(self) -> Vector:
        """The model sent out at the start of the round, shape ``(P,)``."""
        return self.arrays.broadcast()

    @property
    def kept(self) -> tuple[ClientId, ...]:
        """The clients whose update is held, ascending."""
        return tuple(c for c in self.clients if c not in self.dropped)

    @property
    def updates(self) -> Matrix:
        """After minus before, a row a client as in ``clients``, shape ``(K, P)``."""
        return self.arrays.updates()

    def updates_of(self, clients: Collection[ClientId]) -> Matrix:
        """Return the updates of ``clients``, in that order, shape ``(k, P)``."""
        return self.arrays.rows(self._positions(clients))

    def examples_of(self, clients: Collection[ClientId]) -> Counts:
        """Return the example counts of ``clients``, in that order, shape ``(k,)``."""
        return self.num_examples[self._positions(clients)]

    def share_of(self, client: ClientId) -> float:
        """Return the client's weight in this round's mean, in ``(0, 1]``."""
        return float(self.examples_of((client,))[0] / self.num_examples.sum())

    def _positions(self, clients: Collection[ClientId]) -> list[int]:
        where = {client: row for row, client in enumerate(self.clients)}
        if strangers := [client for client in clients if client not in where]:
            raise HistoryError(
                f"round {self.index} holds no update of client {strangers[0]}; "
                f"it holds those of {', '.join(map(str, self.clients)) or 'nobody'}"
            )
        return [where[client] for client in clients]


def without(record: RoundRecord, gone: frozenset[ClientId]) -> RoundRecord:
    """Return a round in which some clients are not named; its arrays are as before."""
    stays = [at for at, client in enumerate(record.clients) if client not in gone]
    felt = record.sensitivities
    return replace(
        record,
        clients=tuple(record.clients[at] for at in stays),
        num_examples=record.num_examples[stays],
        num_steps=record.num_steps[stays],
        num_samples=record.num_samples[stays],
        sensitivities=None if felt is None else felt[stays],
        asked=tuple(c for c in record.asked if c not in gone),
        set_aside=tuple(s for s in record.set_aside if s.client not in gone),
        dropped=record.dropped - gone,
    )
