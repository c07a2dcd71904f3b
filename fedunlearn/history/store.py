"""What all operations of a history on disk share: folder, index, keys, settings."""

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fedunlearn.errors import DamagedError, HistoryError
from fedunlearn.history.files import Files, SyncError
from fedunlearn.history.index import Index
from fedunlearn.history.keys import KeyFiles, KeyRing
from fedunlearn.history.lock import Lock
from fedunlearn.history.record import ClientId, ServerState, Tip
from fedunlearn.history.round_table import RoundTable
from fedunlearn.history.seal import Keys, Place, Written, new_salt
from fedunlearn.history.segment import Segment, open_segment
from fedunlearn.history.settings import Settings, TipFile
from fedunlearn.history.state import unpack_state
from fedunlearn.params import Vector

INDEX, SEGMENTS, QUARANTINE = "index.db", "segments", "quarantine"
_NAME = re.compile(r"(round|tip)-[0-9]{6,}-[0-9a-f]{8}\.safetensors")
_Read = TypeVar("_Read")


@dataclass(slots=True)
class Store:
    """An open folder.

    Attributes:
        folder: Where everything lies.
        files: The disk.
        index: The index.
        ring: The keys.
        settings: What is fixed.
        lock: Held by a writer; None for a reader.
        failure: Why nothing more can be written, or "".
        sums: The running sums, once they are read.
    """

    folder: Path
    files: Files
    index: Index
    ring: KeyRing
    settings: Settings
    lock: Lock | None
    failure: str = ""
    sums: dict[ClientId, Vector] | None = None
    _sums_at: TipFile | None = None
    _ring_stamp: tuple[int, int] | None = None
    _client_keys: dict[ClientId, bytes] = field(default_factory=dict)

    @property
    def table(self) -> RoundTable:
        """The rounds."""
        return RoundTable(self.index)

    @property
    def key_files(self) -> KeyFiles:
        """The files of the keys."""
        return KeyFiles(self.folder)

    @property
    def keys(self) -> Keys:
        """The keys as they are now; a record that was handed out keeps asking here."""
        return Keys(self.ring.store, self._client_key, self._round_key)

    @property
    def generation(self) -> int:
        """The number of the current generation, from 1."""
        return int(self.index.meta("generation"))

    @property
    def withdrawn(self) -> frozenset[ClientId]:
        """Clients that were erased: they cannot be recorded again."""
        self._follow_ring()
        return frozenset(c for gap in self.ring.clients.gaps for c in gap)

    @property
    def tip_file(self) -> TipFile | None:
        """Where the tip is."""
        try:
            return TipFile.from_json(self.index.meta("tip"))
        except (TypeError, ValueError) as error:
            what = f"where the tip is cannot be read: {error}"
            raise DamagedError.of(what, self.index.path) from error

    def change_ring(self, ring: KeyRing) -> None:
        """Write another key ring; the old keys are gone when this returns."""
        self.key_files.rewrite(self.files, ring)
        self.ring = ring
        self._client_keys.clear()

    def place(self, index: int, generation: int) -> Place:
        """Return the place of a new file sealed with a round's key."""
        return Place(
            self.settings.store, generation, index, new_salt(), self.settings.sealed
        )

    def path(self, written: Written) -> Path:
        """Return where a file is."""
        if not _NAME.fullmatch(written.name):
            what = f"it refers to a file called {written.name!r}"
            raise DamagedError.of(what, self.index.path)
        return self.folder / SEGMENTS / written.name

    def new_path(self, kind: str, index: int) -> Path:
        """Return a name that nobody refers to yet; only numbers enter it."""
        name = f"{kind}-{index:06d}-{os.urandom(4).hex()}.safetensors"
        return self.folder / SEGMENTS / name

    def open_file(self, written: Written) -> Segment:
        """Open a file and authenticate its header."""
        return open_segment(self.path(written), self.settings.store, self.keys, written)

    def tip(self) -> Tip | None:
        """Read where the federation stands."""
        return self._at_tip(self._tip_in)

    def _tip_in(self, file: TipFile | None) -> Tip | None:
        if file is None or file.written is None:
            return None if file is None else Tip(file.round, ServerState())
        segment = self._open_tip(file.round, file.written)
        state = segment.rows("state", [0], self.keys)
        return Tip(file.round, unpack_state(state))

    def read_sums(self) -> dict[ClientId, Vector]:
        """Return the running sums."""
        if self.sums is None or (self.lock is None and self._sums_at != self.tip_file):
            self.sums, self._sums_at = self._at_tip(self._sums_in)
        return self.sums

    def _sums_in(
        self, file: TipFile | None
    ) -> tuple[dict[ClientId, Vector], TipFile | None]:
        if file is None or file.written is None:
            return {}, file
        segment = self._open_tip(file.round, file.written)
        owners = segment.parts["sums"].owners
        rows = segment.rows("sums", range(len(owners)), self.keys)
        vectors = rows.view("<f4").astype("f4", copy=False)
        pairs = zip(owners, vectors, strict=True)
        return {c: v for c, v in pairs if c is not None}, file

    def _open_tip(self, index: int, written: Written) -> Segment:
        segment = self.open_file(written)
        if segment.place.index != index + 1 or "record" in segment.facts:
            what = "what it takes for the tip is another file"
            raise DamagedError.of(what, self.index.path)
        return segment

    def _at_tip(self, read: Callable[[TipFile | None], _Read]) -> _Read:
        """Read the tip's file; its name changes with every round of a writer."""
        while True:
            file = self.tip_file
            try:
                return read(file)
            except DamagedError:
                if self.tip_file == file:
                    raise

    @contextmanager
    def changing(self, what: str) -> Iterator[None]:
        """Guard a change: no writer, no change; no certainty, no further change.

        Raises:
            HistoryError: If it is open for reading, if an earlier write could not be
                confirmed, or if the disk refuses now.
        """
        if self.lock is None:
            raise HistoryError(f"{self.folder} is open for reading only")
        if self.failure:
            raise HistoryError(
                f"{self.folder} takes no more writes: {self.failure}; open it again"
            )
        try:
            yield
        except (SyncError, sqlite3.Error, OSError) as error:
            if _uncertain(error):
                self.failure = f"{what} could not be confirmed ({error})"
            raise HistoryError(f"{what} failed: {error}") from error

    def _client_key(self, client: ClientId) -> bytes:
        if client not in self._client_keys:
            if not self.ring.clients.covers(client):
                raise HistoryError(f"the key of client {client} was destroyed")
            self._client_keys[client] = self.ring.clients.key(client)
        return self._client_keys[client]

    def _follow_ring(self) -> None:
        """Read the keys anew if a writer changed them."""
        if self.lock is None:
            path = self.key_files.ring_path
            try:
                found = path.stat()
            except OSError as error:
                raise DamagedError.of(f"{error.strerror}", path) from error
            stamp = (found.st_ino, found.st_mtime_ns)
            if stamp != self._ring_stamp:
                self.ring, self._ring_stamp = self.key_files.read(), stamp
                self._client_keys.clear()

    def _round_key(self, generation: int, index: int) -> bytes:
        if generation not in self.ring.generations:
            self._follow_ring()
        return self.ring.round_key(generation, index)


def _uncertain(error: Exception) -> bool:
    """Tell whether it is unknown what the disk holds; a full disk is no such case."""
    if isinstance(error, sqlite3.OperationalError):
        return "disk I/O" in str(error)
    return isinstance(error, SyncError)
