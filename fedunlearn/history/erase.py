"""Erasing clients: promise, destroy keys, forget rows, remove files.

The clean model is committed first, together with the promise to erase. From then on an
interrupted erasure is finished whenever the history is opened for writing; before, it
never happened. Destroying the keys is what erases; the rest is tidiness.
"""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np

from fedunlearn.errors import DamagedError, RequestError
from fedunlearn.history.accept import MOST_CLIENTS
from fedunlearn.history.append import (
    note_bytes,
    payload_bytes,
    state_part,
    write_tip,
)
from fedunlearn.history.files import half_written, sync_folder
from fedunlearn.history.record import ClientId, ServerState
from fedunlearn.history.retention import Keep
from fedunlearn.history.seal import Part
from fedunlearn.history.settings import TipFile
from fedunlearn.history.store import QUARANTINE, SEGMENTS, Store
from fedunlearn.history.thin import thin_round, thin_tip
from fedunlearn.history.witness import pseudonym


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure destroyed.

    Attributes:
        clients: Who was erased, ascending; empty if all of them were already.
        updates: How many updates of theirs became unreadable.
        rounds: Rounds whose models and updates of everybody were destroyed, because
            they were computed from models the clients had contributed to.
        nbytes: Bytes of the files that were removed.
        contaminated: Rounds that still hold what was computed from such models.
    """

    clients: tuple[ClientId, ...]
    updates: int
    rounds: tuple[int, ...]
    nbytes: int
    contaminated: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Promise:
    """An erasure that was committed to, as the index keeps it until it is done."""

    clients: list[ClientId]
    pseudonyms: list[str]
    first: int | None
    below: int
    reason: str
    updates: int
    rounds: list[int]


def erase_clients(
    store: Store,
    clients: Collection[ClientId],
    state: ServerState | None,
    reason: str,
) -> Erasure:
    """Erase clients.

    Args:
        store: The history, open for writing.
        clients: Who; those already erased are passed over.
        state: The clean model, and the server's state if it has one. With it, every
            round since the clients' first one is destroyed and the federation goes on
            from this state. None destroys the clients' own updates only.
        reason: For the log.

    Raises:
        RequestError: If an id can be no client's.
    """
    wanted = sorted(set(map(int, clients)) - store.withdrawn)
    if wanted and not 0 <= wanted[0] <= wanted[-1] < MOST_CLIENTS:
        raise RequestError(
            f"ids of clients lie between 0 and {MOST_CLIENTS - 1}, "
            f"got {wanted[0]} to {wanted[-1]}"
        )
    if not wanted:
        with store.changing("emptying the index's log"):
            store.index.empty_wal()
        return Erasure((), 0, (), 0, ())
    seen = sorted({r for c in wanted for r in store.table.rounds_of(c)})
    first = seen[0] if seen and state is not None else None
    touched = [r for r in store.table.rounds() if seen and r >= seen[0]]
    updates = sum(len(store.table.rounds_of(c)) for c in wanted)
    with store.changing("erasing"):
        size = _stored_bytes(store)
        promise = Promise(
            clients=wanted,
            pseudonyms=[pseudonym(store.keys, c) for c in wanted],
            first=first,
            below=store.generation + (state is not None),
            reason=reason,
            updates=updates,
            rounds=touched if first is not None else [],
        )
        _promise(store, promise, state)
        finish_erasure(store)
        removed = size - _stored_bytes(store)
    left = tuple(touched) if first is None else ()
    return Erasure(tuple(wanted), updates, tuple(promise.rounds), removed, left)


def pending(store: Store) -> Promise | None:
    """Return the erasure that was committed to and is not finished, if there is one."""
    text = store.index.meta("pending")
    try:
        return Promise(**json.loads(text)) if text else None
    except (TypeError, ValueError) as error:
        what = f"the erasure it promises cannot be read: {error}"
        raise DamagedError.of(what, store.index.path) from error


def finish_erasure(store: Store) -> None:
    """Carry out a promised erasure, from wherever it stopped."""
    promise = pending(store)
    if promise is None:
        return
    gone = frozenset(promise.clients)
    if any(store.ring.clients.covers(c) for c in gone):
        ring = store.ring.without(gone, promise.below, promise.first)
        store.change_ring(ring)
    store.files.reached("erase.keys_destroyed")
    store.sums = None
    _clean_files(store, promise, gone)
    _clear_quarantine(store)
    with store.index.transaction(store.files, "erase.rows"):
        _forget(store, promise, gone)
        store.index.add_entry(
            {
                "type": "erased",
                "clients": promise.pseudonyms,
                "rounds": promise.rounds,
                "reason": promise.reason,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        store.index.set_meta("pending", "")
    store.index.empty_wal()
    remove_strays(store)
    store.files.reached("erase.files_removed")


def _clear_quarantine(store: Store) -> None:
    """Remove what repairs kept: a damaged index holds names and counts in the clear."""
    folder = store.folder / QUARANTINE
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            store.files.unlink(path)
        sync_folder(store.files, folder)


def _promise(store: Store, promise: Promise, state: ServerState | None) -> None:
    tip = None
    if state is not None:
        if promise.below not in store.ring.generations:
            store.change_ring(store.ring.with_generation(promise.below))
        store.files.reached("erase.key_added")
        tip = _clean_tip(store, promise, state)
    with store.index.transaction(store.files, "erase.promise"):
        if tip is not None:
            store.index.set_meta("tip", tip.to_json())
            store.index.set_meta("generation", str(promise.below))
            if store.settings.retention.sums:
                store.index.set_meta("sums_from", str(tip.round + 1))
        store.index.set_meta("pending", json.dumps(asdict(promise)))
        store.index.add_entry(
            {
                "type": "unlearned",
                "clients": promise.pseudonyms,
                "generation": promise.below,
                "first": promise.first,
                "tip": tip.written.seal if tip is not None and tip.written else None,
            }
        )


def _clean_tip(store: Store, promise: Promise, state: ServerState) -> TipFile:
    ends, old = store.table.first_and_last(), store.tip_file
    index = max(ends[1] if ends else 0, old.round if old else 0)
    parts = []
    if store.settings.retention.sums:
        empty = np.empty((0, 4 * store.settings.layout.size), np.uint8)
        parts.append(Part("sums", "F32", empty, ()))
    parts.append(state_part(state))
    written = write_tip(store, index, promise.below, parts, "erase.tip")
    sync_folder(store.files, store.folder / SEGMENTS)
    store.files.reached("erase.tip.durable")
    return TipFile(index, promise.below, written)


def _clean_files(store: Store, promise: Promise, gone: frozenset[ClientId]) -> None:
    """Rewrite the files that stay and speak of the clients; no row is opened."""
    for head in store.table.heads():
        named = {*head.asked, *(s.client for s in head.set_aside)}
        clients = frozenset(store.table.participants(head.index).clients)
        goes = head.index in promise.rounds and head.generation < promise.below
        if not goes and gone & (named | clients):
            keep = Keep(updates=clients - gone)
            thin_round(store, head.index, keep, forget=gone)
    if promise.first is None:
        thin_tip(store, gone)


def _forget(store: Store, promise: Promise, gone: frozenset[ClientId]) -> None:
    """Delete all rows about the clients, and those of destroyed rounds."""
    index = store.index
    if promise.first is not None:
        old = "round >= ? AND round IN (SELECT round FROM rounds WHERE generation < ?)"
        for table in ("updates", "rounds"):
            index.write(
                f"DELETE FROM {table} WHERE {old}",  # noqa: S608 - two fixed names
                promise.first,
                promise.below,
            )
    for client in gone:
        index.write("DELETE FROM updates WHERE client = ?", client)
        index.write("DELETE FROM clients WHERE client = ?", client)
    for head in store.table.heads():
        asked = [c for c in head.asked if c not in gone]
        aside = [[s.client, s.reason] for s in head.set_aside if s.client not in gone]
        index.write(
            "UPDATE rounds SET asked = ?, set_aside = ? WHERE round = ?",
            json.dumps(asked),
            json.dumps(aside),
            head.index,
        )
    store.table.recount()
    updates, broadcasts = store.table.held()
    sums = len(store.read_sums()) if store.settings.retention.sums else 0
    now = payload_bytes(store, updates, broadcasts, sums)
    note_bytes(store, now - int(index.meta("nbytes")))


def referenced(store: Store) -> set[str]:
    """Return the names of the files the index refers to."""
    names = {head.written.name for head in store.table.heads() if head.written}
    tip = store.tip_file
    if tip is not None and tip.written is not None:
        names.add(tip.written.name)
    return names


def remove_strays(store: Store) -> None:
    """Remove files nobody refers to: what a crash left."""
    known = referenced(store)
    for path in sorted((store.folder / SEGMENTS).iterdir()):
        if path.name not in known:
            store.files.unlink(path)
    for path in half_written(store.folder):
        store.files.unlink(path)


def _stored_bytes(store: Store) -> int:
    return sum(p.stat().st_size for p in (store.folder / SEGMENTS).iterdir())
