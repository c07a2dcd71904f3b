"""The index of a history: an SQLite file with the commit log and no update bytes.

A round exists if and only if its row exists. The log is a table of the same file, so
that a round and its log entry are committed together. Write-ahead logging with
``synchronous=FULL`` makes a commit durable; ``secure_delete`` overwrites deleted rows.
"""

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from fedunlearn.errors import DamagedError, HistoryError
from fedunlearn.history.files import Files, sync_folder
from fedunlearn.history.log import Entry, next_entry
from fedunlearn.history.record import ClientId

FORMAT = 2
"""Version of the files this package writes."""

_NUMBERS = {
    "generation": re.compile("[1-9][0-9]{0,17}"),
    "nbytes": re.compile("[0-9]{1,18}"),
    "peak_bytes": re.compile("[0-9]{1,18}"),
    "sums_from": re.compile("([1-9][0-9]{0,17})?"),
}
"""What some of the settings look like."""
# SQLite quotes damaged bytes in its messages, and Python decodes those.
_DAMAGED = (sqlite3.DatabaseError, UnicodeDecodeError)
_REFUSED = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
)
"""What keeps SQLite from working but is no damage of the file."""
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE clients (client INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY, generation INTEGER NOT NULL, file TEXT, bytes INTEGER,
    seal TEXT, kept INTEGER NOT NULL, broadcast INTEGER NOT NULL, asked TEXT NOT NULL,
    set_aside TEXT NOT NULL, loss REAL, seconds REAL NOT NULL);
CREATE TABLE updates (
    round INTEGER NOT NULL, client INTEGER NOT NULL, row INTEGER,
    num_examples INTEGER NOT NULL, num_steps INTEGER NOT NULL,
    num_samples INTEGER NOT NULL, sensitivity REAL,
    PRIMARY KEY (round, client)) WITHOUT ROWID;
CREATE INDEX updates_of_client ON updates (client, round);
CREATE TABLE log (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL);
"""


class Index:
    """Typed access to the SQLite file.

    Args:
        path: The file, made by :meth:`create`.
        write: Whether to open it for writing.

    Raises:
        HistoryError: If there is none.
        DamagedError: If SQLite cannot read it.
    """

    def __init__(self, path: Path, *, write: bool) -> None:
        if not path.is_file():
            raise HistoryError(f"{path.parent} holds no history (no {path.name})")
        self.path, self._write = path, write
        self._settings: dict[str, str] = {}
        self._db = _connect(path, write)
        if write:
            with self._guarded():
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("PRAGMA secure_delete=ON")

    @classmethod
    def create(
        cls,
        path: Path,
        meta: Mapping[str, str],
        names: Mapping[ClientId, str],
        files: Files,
    ) -> None:
        """Make an empty index; it is complete whenever it has its name."""
        new = path.with_name(path.name + ".new")
        new.unlink(missing_ok=True)
        database = sqlite3.connect(new, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("PRAGMA secure_delete=ON")
            database.execute("BEGIN IMMEDIATE")
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
            database.executemany("INSERT INTO clients VALUES (?, ?)", [*names.items()])
            files.commit(database)
            # Closing would do this as well, but says nothing if the disk is full, and
            # the file would take its name without what still lies beside it.
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            database.close()
        new.chmod(0o600)
        files.rename(new, path)
        sync_folder(files, path.parent)

    def close(self) -> None:
        """Close it; the last writer leaves one file with everything in it."""
        self._settings.clear()
        self._db.close()

    def try_to_empty_wal(self) -> bool:
        """Do as :meth:`empty_wal` if nobody is reading; tell whether it is empty."""
        checkpoint = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ((busy, _, _),) = checkpoint.fetchall()
        return not busy

    def empty_wal(self) -> None:
        """Move all commits into the file and cut the write-ahead log to nothing.

        Raises:
            HistoryError: If a reader holds an old state, so that deleted rows linger.
        """
        if not self.try_to_empty_wal():
            raise HistoryError(
                f"{self.path} is being read by another process: its write-ahead log "
                "cannot be emptied yet"
            )

    @contextmanager
    def transaction(self, files: Files, step: str) -> Iterator[None]:
        """Commit what is written inside, all or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            files.reached(f"{step}.inserted")
            files.commit(self._db)
        except BaseException:
            self._settings.clear()
            if self._db.in_transaction:
                self._db.rollback()
            raise
        files.reached(f"{step}.committed")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all that is selected inside be of one moment."""
        with self._guarded():
            self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.rollback()

    def select(self, query: str, *values: object) -> list[Any]:
        """Return the rows of a query."""
        with self._guarded():
            return self._db.execute(query, _plain(values)).fetchall()

    def write(self, query: str, *values: object) -> None:
        """Execute a statement inside a transaction."""
        self._db.execute(query, _plain(values))

    def meta(self, key: str) -> str:
        """Return a setting; a writer is alone and remembers what it read."""
        if key in self._settings:
            return self._settings[key]
        rows = self.select("SELECT value FROM meta WHERE key = ?", key)
        if not rows:
            raise DamagedError.of(f"it says nothing about {key}", self.path)
        value = str(rows[0][0])
        if key in _NUMBERS and not _NUMBERS[key].fullmatch(value):
            raise DamagedError.of(f"{key} is {value!r}", self.path)
        if self._write:
            self._settings[key] = value
        return value

    def set_meta(self, key: str, value: str) -> None:
        """Change a setting inside a transaction."""
        self._settings.pop(key, None)
        self.write("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)

    def names(self) -> dict[ClientId, str]:
        """Return the clients' names, as far as they have one."""
        return dict(self.select("SELECT client, name FROM clients ORDER BY client"))

    def log(self) -> list[Entry]:
        """Return all log entries, oldest first."""
        return [_entry(*r) for r in self.select("SELECT * FROM log ORDER BY seq")]

    def last_entry(self) -> Entry | None:
        """Return the last log entry, or None."""
        rows = self.select("SELECT * FROM log ORDER BY seq DESC LIMIT 1")
        return _entry(*rows[0]) if rows else None

    def add_entry(self, fields: dict[str, object]) -> None:
        """Append to the log inside a transaction."""
        entry = next_entry(self.last_entry(), fields)
        self.write(
            "INSERT INTO log VALUES (?, ?, ?)", entry.seq, entry.body, entry.hash
        )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise HistoryError(f"{self.path.parent} is closed") from error
        except sqlite3.OperationalError as error:
            code = getattr(
                error, "sqlite_errorcode", 0
            )  # Python's own errors have none
            if code & 0xFF not in _REFUSED:
                raise DamagedError.of(str(error), self.path) from error
            raise HistoryError(f"{self.path} cannot be read: {error}") from error
        except _DAMAGED as error:
            raise DamagedError.of(str(error), self.path) from error


def _connect(path: Path, write: bool) -> sqlite3.Connection:
    """Return a connection; a reader never changes the file."""
    uri = f"file:{quote(str(path))}?mode={'rw' if write else 'ro'}"
    for address in (uri, uri + "&immutable=1"):  # the second for a read-only medium
        try:
            database = sqlite3.connect(
                address, uri=True, isolation_level=None, check_same_thread=False
            )
            database.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except sqlite3.OperationalError as error:
            if write or has_wal(path) or not _cannot_open(error) or address != uri:
                raise HistoryError(f"{path} cannot be opened: {error}") from error
        except _DAMAGED as error:
            raise DamagedError.of(str(error), path) from error
        else:
            return database
    raise HistoryError(f"{path} cannot be opened")


def _entry(seq: int, body: object, digest: object) -> Entry:
    # What is no text is a damaged entry: no body and no hash looks like this.
    return Entry(seq, *(v if isinstance(v, str) else repr(v) for v in (body, digest)))


def has_wal(path: Path) -> bool:
    """Tell whether commits lie in a write-ahead log beside the file."""
    wal = path.with_name(path.name + "-wal")
    return wal.exists() and wal.stat().st_size > 0


def _cannot_open(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)  # Python's own errors have none
    return code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


def _plain(values: Sequence[object]) -> tuple[Any, ...]:
    # SQLite stores a NumPy integer as bytes and matches no row with it, without a word.
    return tuple(int(v) if isinstance(v, np.integer) else v for v in values)
