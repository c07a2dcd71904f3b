"""Making and opening the folder of a history."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from fedunlearn.errors import HistoryError
from fedunlearn.history.closing import check_index, seal_index
from fedunlearn.history.files import Files, sync_folder
from fedunlearn.history.index import FORMAT, Index
from fedunlearn.history.keys import KeyFiles, KeyRing
from fedunlearn.history.lock import Lock
from fedunlearn.history.record import ClientId
from fedunlearn.history.settings import Settings, first_meta
from fedunlearn.history.store import INDEX, SEGMENTS, Store


def create_store(
    folder: Path, settings: Settings, names: Mapping[ClientId, str], files: Files
) -> None:
    """Make the folder of an empty history.

    Raises:
        HistoryError: If it holds one or cannot be written.
    """
    try:
        _make(folder, files)
        lock = Lock(folder)
        try:
            if (folder / INDEX).exists():
                raise HistoryError(f"{folder} already holds a history")
            if any((folder / SEGMENTS).iterdir()):
                raise HistoryError(
                    f"{folder} holds rounds of a history whose {INDEX} is gone: "
                    "repair it, or move it away"
                )
            KeyFiles(folder).create(files, KeyRing.fresh(settings.to_json()))
            Index.create(folder / INDEX, first_meta(settings), names, files)
            files.reached("create.committed")
        finally:
            lock.release()
    except (OSError, sqlite3.Error) as error:
        raise HistoryError(f"{folder} cannot be written: {error}") from error


def _make(folder: Path, files: Files) -> None:
    """Make the folder so that its name, and those above it, survive a power loss."""
    missing = [path for path in folder.parents if not path.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    for new in (folder, folder / SEGMENTS):
        new.mkdir(exist_ok=True, mode=0o700)
    for path in (folder, *missing):
        sync_folder(files, path.parent)


def open_store(folder: Path, lock: Lock | None, files: Files) -> Store:
    """Open a folder.

    Raises:
        HistoryError: If its format is another one.
        DamagedError: If its keys or its index are damaged.
    """
    index = Index(folder / INDEX, write=lock is not None)
    try:
        check_format(index)
        ring = KeyFiles(folder).read()
        check_index(index, ring.store)
        settings = Settings.from_json(ring.settings)
        return Store(folder, files, index, ring, settings, lock)
    except BaseException:
        index.close()
        raise


def check_format(index: Index) -> None:
    """Raise HistoryError unless this version reads the format."""
    found = index.meta("format")
    if found == str(FORMAT):
        return
    folder = index.path.parent
    if found.isascii() and found.isdigit() and int(found) < FORMAT:
        raise HistoryError(
            f"{folder} has format {found}, this version writes {FORMAT}; "
            f"`fedunlearn history migrate {folder}` rewrites it and keeps the old one"
        )
    raise HistoryError(
        f"{folder} has format {found}, written by a newer version; "
        f"this one reads up to {FORMAT}"
    )


def close_store(store: Store) -> None:
    """Close a folder; a writer leaves a sealed index and lets the next one in."""
    writes = store.lock is not None and not store.failure
    try:
        last = store.index.last_entry() if writes else None
        if last is not None:
            with store.changing("closing"):
                store.index.try_to_empty_wal()
        store.index.close()
        if last is not None:
            with store.changing("closing"):
                place = (last.seq, last.hash)
                seal_index(store.folder, store.files, place, store.ring.store)
    finally:
        store.index.close()
        if store.lock is not None:
            store.lock.release()
            store.lock = None
