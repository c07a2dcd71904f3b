"""A history on disk: one safetensors file a round and an SQLite index.

A round exists if and only if its row exists: the file is written, synced and renamed
before the row is committed. Updates are read through memory maps. Client ids are
integers and never become part of a path.
"""

import json
import sqlite3
from pathlib import Path
from typing import Any, final

import numpy as np

from fedunlearn.errors import HistoryError
from fedunlearn.history.memory import check_next, no_such_round
from fedunlearn.history.record import (
    Broadcasts,
    ClientId,
    Counts,
    Kept,
    RoundRecord,
    SetAside,
)
from fedunlearn.history.segment import ArraysOnDisk, write_segment
from fedunlearn.params import Layout

FORMAT = 1
"""Version of the files this module writes and reads."""

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, asked TEXT NOT NULL,
    set_aside TEXT NOT NULL);
CREATE TABLE updates (
    round INTEGER NOT NULL, client INTEGER NOT NULL, row INTEGER NOT NULL,
    num_examples INTEGER NOT NULL, num_steps INTEGER NOT NULL,
    num_samples INTEGER NOT NULL, PRIMARY KEY (round, client));
CREATE INDEX updates_of_client ON updates (client, round);
"""


@final
class DiskHistory:
    """An append-only folder of rounds.

    Args:
        folder: A folder made by :meth:`create`.

    Raises:
        HistoryError: If the folder holds no history this version can read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = folder / "index.db"
        if not index.is_file():
            raise HistoryError(f"{folder} holds no history (no index.db)")
        self._db = sqlite3.connect(index, check_same_thread=False)
        try:
            self._layout = self._read_layout()
            self._db.execute("PRAGMA synchronous=FULL")
        except (sqlite3.DatabaseError, KeyError, TypeError, ValueError) as error:
            self._db.close()
            raise HistoryError(f"{index} is damaged: {error}") from error
        except HistoryError:
            self._db.close()
            raise

    def _read_layout(self) -> Layout:
        meta = dict(self._db.execute("SELECT key, value FROM meta"))
        if int(meta["format"]) != FORMAT:
            raise HistoryError(
                f"{self._folder} has format {meta['format']}, "
                f"this version reads {FORMAT}"
            )
        names, shapes = json.loads(meta["layout"])
        return Layout(tuple(names), tuple(tuple(s) for s in shapes))

    @classmethod
    def create(cls, folder: Path, layout: Layout) -> "DiskHistory":
        """Make an empty history in ``folder``, which must not hold one yet."""
        if (folder / "index.db").exists():
            raise HistoryError(f"{folder} already holds a history")
        (folder / "rounds").mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(folder / "index.db") as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(_TABLES)
            db.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [
                    ("format", str(FORMAT)),
                    ("layout", json.dumps([layout.names, layout.shapes])),
                ],
            )
        db.close()
        return cls(folder)

    def close(self) -> None:
        """Release the index; records that were handed out stay readable."""
        self._db.close()

    @property
    def layout(self) -> Layout:
        """Names and shapes of the recorded model's arrays."""
        return self._layout

    @property
    def rounds(self) -> tuple[int, ...]:
        """Indices of the recorded rounds, ascending."""
        rows = self._select("SELECT round FROM rounds ORDER BY round")
        return tuple(index for (index,) in rows)

    @property
    def keeps(self) -> tuple[Kept, Broadcasts]:
        """Everything."""
        return "all", "all"

    @property
    def nbytes(self) -> int:
        """Bytes of all round files, without the index."""
        return sum(size for (size,) in self._select("SELECT bytes FROM rounds"))

    def append(self, record: RoundRecord) -> None:
        """Commit a round.

        Raises:
            HistoryError: If its index is not larger than the last one's, or if the
                disk refuses.
        """
        check_next(record.index, self.rounds)
        path = self._path(record.index)
        try:
            write_segment(path, record)
            with self._db:
                self._insert(record, path.stat().st_size)
        except (OSError, sqlite3.Error) as error:
            raise HistoryError(f"round {record.index} not recorded: {error}") from error

    def round(self, index: int) -> RoundRecord:
        """Return one round; its arrays are memory-mapped on first use."""
        index = int(index)
        heads = self._select(
            "SELECT bytes, asked, set_aside FROM rounds WHERE round = ?", index
        )
        if not heads:
            raise no_such_round(index, self.rounds)
        head = heads[0]
        clients, examples, steps, samples = self._participants(index)
        return RoundRecord(
            index=index,
            clients=clients,
            num_examples=examples,
            num_steps=steps,
            num_samples=samples,
            asked=tuple(json.loads(head[1])),
            set_aside=tuple(SetAside(*pair) for pair in json.loads(head[2])),
            arrays=ArraysOnDisk(self._path(index), head[0]),
        )

    def rounds_of(self, client: ClientId) -> tuple[int, ...]:
        """Return the rounds in which the client's update was aggregated."""
        rows = self._select(
            "SELECT round FROM updates WHERE client = ? ORDER BY round", client
        )
        return tuple(index for (index,) in rows)

    def _select(self, query: str, *values: int) -> list[Any]:
        # SQLite matches no row with a NumPy integer, without a word: hence int().
        try:
            return self._db.execute(query, tuple(map(int, values))).fetchall()
        except sqlite3.DatabaseError as error:
            raise HistoryError(
                f"{self._folder / 'index.db'} is damaged: {error}"
            ) from error

    def _path(self, index: int) -> Path:
        return self._folder / "rounds" / f"{index:06d}.safetensors"

    def _participants(
        self, index: int
    ) -> tuple[tuple[ClientId, ...], Counts, Counts, Counts]:
        rows = self._select(
            "SELECT client, num_examples, num_steps, num_samples FROM updates"
            " WHERE round = ? ORDER BY row",
            index,
        )
        columns = np.array(rows, np.int64).reshape(-1, 4).T
        return tuple(columns[0].tolist()), columns[1], columns[2], columns[3]

    def _insert(self, record: RoundRecord, nbytes: int) -> None:
        aside = [[s.client, s.reason] for s in record.set_aside]
        asked = [int(client) for client in record.asked]
        self._db.execute(
            "INSERT INTO rounds VALUES (?, ?, ?, ?)",
            (int(record.index), nbytes, json.dumps(asked), json.dumps(aside)),
        )
        counts = (record.num_examples, record.num_steps, record.num_samples)
        self._db.executemany(
            "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?)",
            [
                (int(record.index), int(client), row, *(int(c[row]) for c in counts))
                for row, client in enumerate(record.clients)
            ],
        )
