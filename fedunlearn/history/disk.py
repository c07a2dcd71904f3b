"""A history on disk: an append-only folder of rounds.

A round exists if and only if its row in the index exists: its file is written and
synced before the row is committed. ``docs/history-format.md`` describes the files,
``docs/reliability.md`` what is promised and how it is tested.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, final
from uuid import uuid4

from fedunlearn.errors import HistoryError, RequestError
from fedunlearn.history.append import append_round
from fedunlearn.history.check import Finding, check_references, check_store
from fedunlearn.history.closing import check_index
from fedunlearn.history.codecs import codec as read_codec
from fedunlearn.history.erase import (
    Erasure,
    erase_clients,
    finish_erasure,
    remove_strays,
)
from fedunlearn.history.files import Files, RealFiles
from fedunlearn.history.folder import close_store, create_store, open_store
from fedunlearn.history.lineage import Trace, traces_of
from fedunlearn.history.lock import Lock
from fedunlearn.history.memory import no_such_round
from fedunlearn.history.names import check_names
from fedunlearn.history.record import ClientId, RoundRecord, ServerState, Tip
from fedunlearn.history.retention import retention as read_retention
from fedunlearn.history.settings import Settings
from fedunlearn.history.stats import HistoryStats, holdings, stats
from fedunlearn.history.store import INDEX, Store
from fedunlearn.history.stored_arrays import read_round
from fedunlearn.history.thin import thin_round
from fedunlearn.history.update_history import Holdings
from fedunlearn.params import Layout, Vector


@final
class DiskHistory:
    """An append-only folder of rounds; made by :meth:`create` or :meth:`open`.

    Use it in a ``with`` statement, or call :meth:`close`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def create(  # noqa: PLR0913 - settings, by keyword
        cls,
        folder: Path,
        layout: Layout,
        *,
        sealed: bool = True,
        codec: str = "float32",
        retention: str = "all",
        names: Mapping[ClientId, str] | None = None,
        exist_ok: bool = False,
        files: Files | None = None,
    ) -> "DiskHistory":
        """Make an empty history and open it for writing.

        Args:
            folder: Where.
            layout: Names and shapes of the model's arrays.
            sealed: Whether payloads are encrypted. Only a sealed history can erase.
            codec: How updates are stored, such as ``float32`` or ``top_k:0.1``.
            retention: What of them stays, such as ``all`` or ``every:2``.
            names: Client id -> name, any text; for people only.
            exist_ok: Whether a history that is there already is opened instead, with
                the settings it has.
            files: The disk; None takes the real one.

        Raises:
            HistoryError: If the folder holds a history or cannot be written.
            RequestError: If codec, retention or a name is not allowed.
        """
        files = RealFiles() if files is None else files
        if exist_ok and (folder / INDEX).exists():
            return cls.open(folder, write=True, files=files)
        chosen = (read_codec(codec), read_retention(retention))
        settings = Settings(uuid4().hex, layout, *chosen, sealed)
        create_store(folder, settings, check_names(names or {}), files)
        return cls.open(folder, write=True, files=files)

    @classmethod
    def open(
        cls, folder: Path, *, write: bool = False, files: Files | None = None
    ) -> "DiskHistory":
        """Open a history.

        Args:
            folder: A folder made by :meth:`create`.
            write: Whether rounds will be appended. A writer is alone, and first ends
                what a crash interrupted.
            files: The disk; None takes the real one.

        Raises:
            HistoryError: If there is none, its format is another one, or another
                process is writing.
            DamagedError: If it is damaged.
        """
        if not (folder / INDEX).is_file():
            raise HistoryError(f"{folder} holds no history (no {INDEX})")
        lock = Lock(folder) if write else None
        try:
            store = open_store(folder, lock, files or RealFiles())
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        history = cls(store)
        if write:
            try:
                history._recover()
            except BaseException:
                history.close()
                raise
        return history

    def _recover(self) -> None:
        store = self._store
        if not check_index(store.index, store.ring.store):
            check_references(store)
        with store.changing("ending what a crash interrupted"):
            store.key_files.settle(store.files)
            finish_erasure(store)
            remove_strays(store)
        self._thin()

    def _finish_erasure(self) -> None:
        """Carry out what the disk refused to when it was promised."""
        if self._store.index.meta("pending"):
            with self._store.changing("finishing an erasure"):
                finish_erasure(self._store)

    def _thin(self) -> None:
        later = self._store.settings.retention.later(self)
        for index, keep in later.items():
            thin_round(self._store, index, keep)

    def close(self) -> None:
        """Close it; records that were handed out stay readable."""
        close_store(self._store)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._store.folder

    @property
    def layout(self) -> Layout:
        """Names and shapes of the recorded model's arrays."""
        return self._store.settings.layout

    @property
    def rounds(self) -> tuple[int, ...]:
        """Indices of the recorded rounds, ascending."""
        return self._store.table.rounds()

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """Whose updates were recorded, ascending; erased clients are not among them."""
        return self._store.table.clients()

    @property
    def names(self) -> Mapping[ClientId, str]:
        """Client id -> name, for those that have one."""
        return self._store.index.names()

    @property
    def withdrawn(self) -> frozenset[ClientId]:
        """Clients that were erased and cannot be recorded again."""
        return self._store.withdrawn

    @property
    def holds(self) -> Holdings:
        """What there is to read, beside who took part when."""
        return holdings(self._store)

    @property
    def tip(self) -> Tip | None:
        """Where the federation stands, or None if nobody said."""
        return self._store.tip()

    def append_round(
        self, record: RoundRecord, state: ServerState | None = None
    ) -> None:
        """Commit a round; when this returns, it survives a power loss.

        Args:
            record: The round.
            state: The server after it: what :attr:`tip` returns from now on.

        Raises:
            HistoryError: If its index is not larger than the last one's, a client was
                erased, an array does not fit, or the disk refuses.
        """
        self._finish_erasure()
        append_round(self._store, record, state)
        self._thin()

    def round(self, index: int) -> RoundRecord:
        """Return one round; its arrays are read, and authenticated, on use."""
        record = read_round(self._store, int(index))
        if record is None:
            raise no_such_round(index, self.rounds)
        return record

    def rounds_of(self, client: ClientId) -> tuple[int, ...]:
        """Return the rounds in which the client's update was aggregated."""
        return self._store.table.rounds_of(client)

    def sum_of(self, client: ClientId) -> Vector:
        """Return the sum over rounds of the client's share times its update, ``(P,)``.

        Raises:
            HistoryError: If no running sums are kept, or none of this client.
        """
        if not self._store.index.meta("sums_from"):
            raise HistoryError("this history keeps no running sums")
        sums = self._store.read_sums()
        if client not in sums:
            raise HistoryError(f"no running sum of client {client} is kept")
        return sums[client]

    def erase(
        self,
        clients: Collection[ClientId],
        state: ServerState | None = None,
        reason: str = "withdrawal",
    ) -> Erasure:
        """Destroy what is recorded of clients; to be called after unlearning.

        Args:
            clients: Who. Those already erased are passed over.
            state: The unlearned model. It is committed first; then every round since
                the clients' first one is destroyed, because its models and everybody's
                updates were computed from models the clients had contributed to. None
                destroys the clients' own updates and keeps those rounds.
            reason: For the log.

        Raises:
            RequestError: If the history is not sealed: its bytes can be deleted, but
                nobody can promise that they are gone.
            HistoryError: If the disk refuses; the erasure is finished at the next open.
        """
        if not self._store.settings.sealed:
            raise RequestError(
                f"{self.folder} is not sealed: there is no key to destroy; remove "
                "the folder instead"
            )
        self._finish_erasure()
        return erase_clients(self._store, clients, state, reason)

    def check(self, *, read_data: bool = False) -> list[Finding]:
        """Return what is wrong, most basic first.

        Args:
            read_data: Whether to read and authenticate every byte.
        """
        return list(check_store(self._store, read_data=read_data))

    def traces_of(self, client: ClientId) -> tuple[Trace, ...]:
        """Return every place where something derived from a client is."""
        return traces_of(self._store, client)

    def stats(self) -> HistoryStats:
        """Return sizes and settings."""
        return stats(self._store)
