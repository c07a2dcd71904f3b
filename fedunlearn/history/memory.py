"""A history held in a list: the reference, and the choice for throw-away runs.

It keeps everything, unsealed, and is gone with the process.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from fedunlearn.errors import HistoryError
from fedunlearn.history.accept import accepted
from fedunlearn.history.record import (
    ArraysInMemory,
    ClientId,
    DifferencesInMemory,
    RoundRecord,
    ServerState,
    Tip,
    without,
)
from fedunlearn.history.shares import add_shares
from fedunlearn.history.update_history import Holdings, first_round_of
from fedunlearn.params import Layout, Vector


@dataclass(slots=True)
class InMemoryHistory:
    """Rounds in memory.

    Attributes:
        layout: Names and shapes of the recorded model's arrays.
        tip: Where the federation stands, or None if nobody said.
    """

    layout: Layout
    tip: Tip | None = None
    _records: dict[int, RoundRecord] = field(default_factory=dict, repr=False)
    _withdrawn: frozenset[ClientId] = frozenset()
    _peak_bytes: int = 0

    @property
    def rounds(self) -> tuple[int, ...]:
        """Indices of the recorded rounds, ascending."""
        return tuple(self._records)

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """Whose updates were recorded, ascending."""
        return tuple(sorted({c for r in self._records.values() for c in r.clients}))

    @property
    def withdrawn(self) -> frozenset[ClientId]:
        """Clients that were erased and cannot be recorded again."""
        return self._withdrawn

    @property
    def holds(self) -> Holdings:
        """Everything but running sums."""
        everything = frozenset(self._records)
        felt = [i for i, r in self._records.items() if r.sensitivities is not None]
        vector_bytes = 4 * self.layout.size
        return Holdings(
            updates=frozenset(i for i, r in self._records.items() if not r.dropped),
            some_updates=frozenset(i for i, r in self._records.items() if r.kept),
            broadcasts=everything,
            sensitivities=frozenset(felt),
            update_bytes=vector_bytes,
            broadcast_bytes=vector_bytes,
            nbytes=self._nbytes,
            peak_bytes=self._peak_bytes,
        )

    @property
    def _nbytes(self) -> int:
        vectors = sum(1 + len(r.kept) for r in self._records.values())
        return 4 * self.layout.size * vectors

    def append_round(
        self, record: RoundRecord, state: ServerState | None = None
    ) -> None:
        """Add a round.

        Args:
            record: The round.
            state: The server after it.

        Raises:
            HistoryError: If its index is not larger than the last one's, a client was
                erased or an array does not fit.
        """
        last = max(self.rounds[-1:] + _behind(self.tip), default=0)
        record = accepted(record, self.layout, last, self._withdrawn)
        arrays = record.arrays
        if isinstance(arrays, DifferencesInMemory):  # the models after are not kept
            arrays = ArraysInMemory(arrays.before, arrays.updates(), arrays.server)
        self._records[record.index] = replace(record, arrays=arrays)
        self.tip = Tip(record.index, state or ServerState())
        self._peak_bytes = max(self._peak_bytes, self._nbytes)

    def round(self, index: int) -> RoundRecord:
        """Return one round."""
        if index not in self._records:
            raise no_such_round(index, self.rounds)
        return self._records[index]

    def rounds_of(self, client: ClientId) -> tuple[int, ...]:
        """Return the rounds in which the client's update was aggregated."""
        return tuple(i for i, r in self._records.items() if client in r.clients)

    def sum_of(self, client: ClientId) -> Vector:
        """Return the sum over rounds of the client's share times its update, ``(P,)``.

        Raises:
            HistoryError: If the client never took part.
        """
        sums: dict[ClientId, Vector] = {}
        for index in self.rounds_of(client):
            sums = add_shares(sums, self._records[index])
        if client not in sums:
            raise HistoryError(f"no running sum of client {client} is kept")
        return sums[client]

    def erase(
        self,
        clients: Collection[ClientId],
        state: ServerState | None = None,
        reason: str = "withdrawal",
    ) -> None:
        """Forget clients, as :meth:`DiskHistory.erase` does.

        Args:
            clients: Who. Those already erased are passed over.
            state: The unlearned model; with it, every round since the clients' first
                one goes. None drops their own updates only.
            reason: Not kept.
        """
        del reason
        gone = frozenset(map(int, clients)) - self._withdrawn
        if not gone:
            return
        first = first_round_of(self, gone)
        last = max((*self.rounds[-1:], *_behind(self.tip)), default=0)
        for index in self.rounds:
            if state is not None and first is not None and index >= first:
                del self._records[index]
            else:
                self._records[index] = _forgetting(self._records[index], gone)
        if state is not None:
            self.tip = Tip(last, state)
        self._withdrawn |= gone


def _behind(tip: Tip | None) -> tuple[int, ...]:
    return () if tip is None else (tip.round,)


def _forgetting(record: RoundRecord, gone: frozenset[ClientId]) -> RoundRecord:
    if not gone.intersection(record.clients):
        return without(record, gone)
    stays = [client for client in record.clients if client not in gone]
    arrays = ArraysInMemory(
        np.array(record.broadcast), record.updates_of(stays), record.arrays.state()
    )
    return replace(without(record, gone), arrays=arrays)


def no_such_round(index: int, rounds: tuple[int, ...]) -> HistoryError:
    """Return the error for a round that was never recorded."""
    span = f"rounds {rounds[0]} to {rounds[-1]}" if rounds else "no round"
    return HistoryError(f"round {index} was not recorded; the history holds {span}")
