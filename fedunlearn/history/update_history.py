"""What every history can do, wherever it keeps its rounds."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from fedunlearn.history.record import ClientId, RoundRecord, Tip
from fedunlearn.params import Layout, Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What can be read from a history.

    Attributes:
        updates: Rounds whose updates are all held.
        some_updates: Rounds of which at least one update is held.
        broadcasts: Rounds whose broadcast is held.
        sums_from: First round that the running sums include; None if there are none.
        sensitivities: Rounds whose sensitivities are held.
        update_bytes: Stored bytes of one update.
        broadcast_bytes: Stored bytes of one broadcast.
        nbytes: Stored bytes of all broadcasts, updates and running sums.
        peak_bytes: The most these ever were.
    """

    updates: frozenset[int] = frozenset()
    some_updates: frozenset[int] = frozenset()
    broadcasts: frozenset[int] = frozenset()
    sums_from: int | None = None
    sensitivities: frozenset[int] = frozenset()
    update_bytes: int = 0
    broadcast_bytes: int = 0
    nbytes: int = 0
    peak_bytes: int = 0


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
    def holds(self) -> Holdings:
        """What there is to read, beside who took part when."""
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

    @property
    def tip(self) -> Tip | None:
        """Where the federation stands, or None if nobody said."""
        ...

    def sum_of(self, client: ClientId) -> Vector:
        """Return the sum over rounds of the client's share times its update, ``(P,)``.

        Raises:
            HistoryError: If no running sums are held (see ``holds.sums_from``).
        """
        ...


def records(history: UpdateHistory) -> Iterator[RoundRecord]:
    """Yield the recorded rounds, oldest first, one at a time."""
    return (history.round(index) for index in history.rounds)


def first_round_of(history: UpdateHistory, clients: Collection[ClientId]) -> int | None:
    """Return the first round any of ``clients`` contributed to, or None."""
    firsts = [own[0] for client in clients if (own := history.rounds_of(client))]
    return min(firsts, default=None)
