"""What one round leaves behind, and the protocol of a sequence of rounds."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import HistoryError
from fedunlearn.params import Layout, Matrix, Vector

ClientId = int
"""A client's partition id, from 0: stable over rounds and runs, unlike a node id."""

Counts = npt.NDArray[np.int64]
"""One non-negative integer per client of a round, shape ``(K,)``."""

Kept = Literal["none", "leavers", "all"]
"""Whose updates are kept or needed."""
Broadcasts = Literal["none", "initial", "all"]
"""Which of the models sent out are kept or needed."""


class RoundArrays(Protocol):
    """The heavy part of a round; read only when asked for."""

    def broadcast(self) -> Vector:
        """Return the model sent out, shape ``(P,)``."""
        ...

    def updates(self) -> Matrix:
        """Return all updates, shape ``(K, P)``, memory-mapped where possible."""
        ...

    def rows(self, positions: Sequence[int]) -> Matrix:
        """Return the updates at ``positions``, shape ``(len(positions), P)``."""
        ...


@dataclass(frozen=True, slots=True)
class ArraysInMemory:
    """The heavy part of a round held in memory; handed out as read-only views."""

    model: Vector
    matrix: Matrix

    def broadcast(self) -> Vector:
        """Return the model sent out."""
        return _read_only(self.model)

    def updates(self) -> Matrix:
        """Return all updates."""
        return _read_only(self.matrix)

    def rows(self, positions: Sequence[int]) -> Matrix:
        """Return some updates."""
        return self.matrix[list(positions)]


def _read_only(array: Matrix) -> Matrix:
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
        arrays: Where the broadcast and the updates are.
    """

    index: int
    clients: tuple[ClientId, ...]
    num_examples: Counts
    num_steps: Counts
    num_samples: Counts
    asked: tuple[ClientId, ...]
    set_aside: tuple[SetAside, ...] = ()
    arrays: RoundArrays = field(repr=False)

    @property
    def broadcast(self) -> Vector:
        """The model sent out at the start of the round, shape ``(P,)``."""
        return self.arrays.broadcast()

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


class UpdateHistory(Protocol):
    """Read-only, lazy sequence of rounds, addressed by round index and client id."""

    @property
    def layout(self) -> Layout:
        """Names and shapes of the recorded model's arrays."""
        ...

    @property
    def rounds(self) -> tuple[int, ...]:
        """Indices of the recorded rounds, ascending."""
        ...

    @property
    def keeps(self) -> tuple[Kept, Broadcasts]:
        """Whose updates and which broadcasts every recorded round holds."""
        ...

    def round(self, index: int) -> RoundRecord:
        """Return one round.

        Raises:
            HistoryError: If the round was never recorded or its file is damaged.
        """
        ...

    def rounds_of(self, client: ClientId) -> tuple[int, ...]:
        """Return the rounds in which the client's update was aggregated."""
        ...


def records(history: UpdateHistory) -> Iterator[RoundRecord]:
    """Yield the recorded rounds, oldest first, one at a time."""
    return (history.round(index) for index in history.rounds)


def first_round_of(history: UpdateHistory, clients: Collection[ClientId]) -> int | None:
    """Return the first round any of ``clients`` contributed to, or None."""
    firsts = [own[0] for client in clients if (own := history.rounds_of(client))]
    return min(firsts, default=None)
