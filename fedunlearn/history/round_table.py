"""The rounds of a history as rows of its index: who took part, and what is held."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import DamagedError
from fedunlearn.history.index import Index
from fedunlearn.history.record import ClientId, Counts, RoundRecord, SetAside
from fedunlearn.history.seal import Written

KEPT_NONE, KEPT_SOME, KEPT_ALL = 0, 1, 2
"""How many of a round's updates are held."""


@dataclass(frozen=True, slots=True)
class Head:
    """The row of a round, without its participants."""

    index: int
    generation: int
    written: Written | None
    kept: int
    broadcast: bool
    asked: tuple[ClientId, ...]
    set_aside: tuple[SetAside, ...]
    loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Participants:
    """Who took part in a round, ascending, and in which row of its file each is."""

    clients: tuple[ClientId, ...]
    rows: tuple[int | None, ...]
    num_examples: Counts
    num_steps: Counts
    num_samples: Counts
    sensitivities: npt.NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class RoundTable:
    """The tables ``rounds`` and ``updates``."""

    database: Index

    def test(self) -> None:
        """Raise DamagedError unless all tables and settings can be read."""
        self.database.names()
        for key in ("generation", "nbytes", "peak_bytes", "sums_from", "pending"):
            self.database.meta(key)

    def rounds(self) -> tuple[int, ...]:
        """Return the recorded rounds, ascending."""
        return tuple(
            i for (i,) in self.database.select("SELECT round FROM rounds ORDER BY 1")
        )

    def first_and_last(self) -> tuple[int, int] | None:
        """Return the first and the last recorded round, or None."""
        ((first, last),) = self.database.select(
            "SELECT min(round), max(round) FROM rounds"
        )
        return None if first is None else (first, last)

    def head(self, index: int) -> Head | None:
        """Return the row of a round, or None."""
        rows = self.database.select("SELECT * FROM rounds WHERE round = ?", index)
        return self._head(rows[0]) if rows else None

    def heads(self) -> list[Head]:
        """Return the rows of all rounds, ascending."""
        return [
            self._head(row)
            for row in self.database.select("SELECT * FROM rounds ORDER BY 1")
        ]

    def _head(self, row: tuple[Any, ...]) -> Head:
        try:
            return _head(*row)
        except (TypeError, ValueError) as error:
            raise self._unreadable(row[0], error) from error

    def _unreadable(self, index: int, error: Exception) -> DamagedError:
        what = f"a row of it is unreadable: {error}"
        return DamagedError.of(what, self.database.path, round_index=index)

    def participants(self, index: int) -> Participants:
        """Return who took part in a round."""
        rows = self.database.select(
            "SELECT client, row, num_examples, num_steps, num_samples, sensitivity"
            " FROM updates WHERE round = ? ORDER BY client",
            index,
        )
        columns = list(zip(*rows, strict=True)) or [()] * 6
        known = rows and all(value is not None for value in columns[5])
        try:
            examples, steps, samples = (np.array(c, np.int64) for c in columns[2:5])
            felt = np.array(columns[5], np.float64) if known else None
            return Participants(
                tuple(columns[0]), tuple(columns[1]), examples, steps, samples, felt
            )
        except (TypeError, ValueError) as error:
            raise self._unreadable(index, error) from error

    def rounds_of(self, client: ClientId) -> tuple[int, ...]:
        """Return the rounds in which a client took part."""
        query = "SELECT round FROM updates WHERE client = ? ORDER BY round"
        return tuple(index for (index,) in self.database.select(query, client))

    def clients(self) -> tuple[ClientId, ...]:
        """Return who ever took part, ascending."""
        rows = self.database.select(
            "SELECT DISTINCT client FROM updates ORDER BY client"
        )
        return tuple(client for (client,) in rows)

    def insert(
        self,
        record: RoundRecord,
        generation: int,
        written: Written | None,
        rows: Sequence[int | None],
        broadcast: bool,
    ) -> None:
        """Insert a round; ``rows`` tells where in the file each client's update is."""
        held = sum(row is not None for row in rows)
        kept = KEPT_ALL if held == len(rows) else KEPT_SOME if held else KEPT_NONE
        aside = [[s.client, s.reason] for s in record.set_aside]
        self.database.write(
            "INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            record.index,
            generation,
            *_file(written),
            kept,
            broadcast,
            json.dumps([int(client) for client in record.asked]),
            json.dumps(aside),
            record.loss,
            record.seconds,
        )
        counts = (record.num_examples, record.num_steps, record.num_samples)
        felt = record.sensitivities
        for at, client in enumerate(record.clients):
            self.database.write(
                "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?)",
                record.index,
                client,
                rows[at],
                *(count[at] for count in counts),
                None if felt is None else float(felt[at]),
            )

    def held(self) -> tuple[int, int]:
        """Return how many updates and broadcasts are held."""
        ((updates,),) = self.database.select("SELECT count(row) FROM updates")
        ((broadcasts,),) = self.database.select("SELECT total(broadcast) FROM rounds")
        return updates, int(broadcasts)

    def recount(self) -> None:
        """Count the updates that are held anew, after some rows were deleted."""
        held = "(SELECT count(row) FROM updates WHERE updates.round = rounds.round)"
        rows = "(SELECT count(*) FROM updates WHERE updates.round = rounds.round)"
        self.database.write(
            f"UPDATE rounds SET kept = CASE WHEN {held} = {rows} THEN {KEPT_ALL}"  # noqa: S608 - no value of anybody's
            f" WHEN {held} > 0 THEN {KEPT_SOME} ELSE {KEPT_NONE} END"
        )

    def point_to(
        self,
        index: int,
        written: Written | None,
        owners: Sequence[ClientId],
        broadcast: bool,
    ) -> None:
        """Let a round refer to a file that holds fewer rows, those of ``owners``."""
        total = len(self.participants(index).clients)
        kept = KEPT_ALL if len(owners) == total else KEPT_SOME if owners else KEPT_NONE
        self.database.write(
            "UPDATE rounds SET file = ?, bytes = ?, seal = ?, kept = ?, broadcast = ?"
            " WHERE round = ?",
            *_file(written),
            kept,
            broadcast,
            index,
        )
        self.database.write("UPDATE updates SET row = NULL WHERE round = ?", index)
        for row, client in enumerate(owners):
            self.database.write(
                "UPDATE updates SET row = ? WHERE round = ? AND client = ?",
                row,
                index,
                client,
            )


def _file(written: Written | None) -> tuple[str | None, int | None, str | None]:
    return (
        (None,) * 3
        if written is None
        else (
            written.name,
            written.nbytes,
            written.seal,
        )
    )


def _head(  # noqa: PLR0913, PLR0917 - one parameter a column
    index: int,
    generation: int,
    file: str | None,
    nbytes: int,
    seal: str,
    kept: int,
    broadcast: int,
    asked: str,
    aside: str,
    loss: float | None,
    seconds: float,
) -> Head:
    return Head(
        index,
        generation,
        None if file is None else Written(file, nbytes, seal),
        kept,
        bool(broadcast),
        tuple(json.loads(asked)),
        tuple(SetAside(*pair) for pair in json.loads(aside)),
        loss,
        seconds,
    )
