"""A history that remembers what was read from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedunlearn.history import (
    ClientId,
    Holdings,
    RoundArrays,
    RoundRecord,
    ServerState,
    Tip,
    UpdateHistory,
)
from fedunlearn.params import Layout, Matrix, Vector

_MODEL, _SUMS = -1, -1
"""Stand for a row and a round: the model sent out, and running sums of no round."""


@dataclass(frozen=True, slots=True)
class MeteredArrays:
    """Notes which vectors of a round are read as ``(round, row)``."""

    inner: RoundArrays
    index: int
    count: int
    read: set[tuple[int, int]]

    def broadcast(self) -> Vector:
        """Read the model sent out."""
        self.read.add((self.index, _MODEL))
        return self.inner.broadcast()

    def updates(self) -> Matrix:
        """Read all updates."""
        self.read.update((self.index, row) for row in range(self.count))
        return self.inner.updates()

    def rows(self, positions: Sequence[int]) -> Matrix:
        """Read some updates."""
        self.read.update((self.index, row) for row in positions)
        return self.inner.rows(positions)

    def state(self) -> ServerState:
        """Read the server's state, which is no client's and small beside them."""
        return self.inner.state()


@dataclass(frozen=True, slots=True)
class MeteredHistory:
    """A history that remembers what was read from it."""

    inner: UpdateHistory
    read: set[tuple[int, int]] = field(default_factory=set)

    @property
    def layout(self) -> Layout:
        """Names and shapes of the recorded model's arrays."""
        return self.inner.layout

    @property
    def rounds(self) -> tuple[int, ...]:
        """Indices of the recorded rounds, ascending."""
        return self.inner.rounds

    @property
    def holds(self) -> Holdings:
        """What there is to read."""
        return self.inner.holds

    @property
    def tip(self) -> Tip | None:
        """Where the federation stands."""
        return self.inner.tip

    def round(self, index: int) -> RoundRecord:
        """Return one round, watched."""
        record = self.inner.round(index)
        arrays = MeteredArrays(record.arrays, index, len(record.clients), self.read)
        return replace(record, arrays=arrays)

    def rounds_of(self, client: ClientId) -> tuple[int, ...]:
        """Return the rounds in which the client's update was aggregated."""
        return self.inner.rounds_of(client)

    def sum_of(self, client: ClientId) -> Vector:
        """Return a client's running sum."""
        self.read.add((_SUMS, client))
        return self.inner.sum_of(client)

    @property
    def nbytes(self) -> int:
        """Stored bytes of the distinct vectors read."""
        holds = self.inner.holds
        exact = sum(row == _MODEL or index == _SUMS for index, row in self.read)
        return (
            exact * holds.broadcast_bytes
            + (len(self.read) - exact) * holds.update_bytes
        )
