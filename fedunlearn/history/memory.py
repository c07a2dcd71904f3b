"""A history held in a list: the reference, and the choice for throw-away runs."""

from dataclasses import dataclass, field

from fedunlearn.errors import HistoryError
from fedunlearn.history.record import (
    Broadcasts,
    ClientId,
    Kept,
    RoundRecord,
)
from fedunlearn.params import Layout


@dataclass(frozen=True, slots=True)
class InMemoryHistory:
    """Rounds in memory; gone with the process."""

    layout: Layout
    _records: dict[int, RoundRecord] = field(default_factory=dict, repr=False)

    @property
    def rounds(self) -> tuple[int, ...]:
        """Indices of the recorded rounds, ascending."""
        return tuple(self._records)

    @property
    def keeps(self) -> tuple[Kept, Broadcasts]:
        """Everything."""
        return "all", "all"

    def append(self, record: RoundRecord) -> None:
        """Add a round.

        Raises:
            HistoryError: If its index is not larger than the last one's.
        """
        check_next(record.index, self.rounds)
        self._records[record.index] = record

    def round(self, index: int) -> RoundRecord:
        """Return one round."""
        if index not in self._records:
            raise no_such_round(index, self.rounds)
        return self._records[index]

    def rounds_of(self, client: ClientId) -> tuple[int, ...]:
        """Return the rounds in which the client's update was aggregated."""
        return tuple(i for i, r in self._records.items() if client in r.clients)


def check_next(index: int, rounds: tuple[int, ...]) -> None:
    """Raise HistoryError unless ``index`` continues ``rounds``."""
    if index < 1 or (rounds and index <= rounds[-1]):
        last = rounds[-1] if rounds else 0
        raise HistoryError(
            f"round {index} cannot follow round {last}: a history only grows"
        )


def no_such_round(index: int, rounds: tuple[int, ...]) -> HistoryError:
    """Return the error for a round that was never recorded."""
    span = f"rounds {rounds[0]} to {rounds[-1]}" if rounds else "no round"
    return HistoryError(f"round {index} was not recorded; the history holds {span}")
