"""Making and opening the folder of a history."""

from collections.abc import Mapping
from pathlib import Path

from fedunlearn.errors import HistoryError
from fedunlearn.history.closing import check_index
from fedunlearn.history.files import Files
from fedunlearn.history.index import FORMAT, Index
from fedunlearn.history.keys import KeyFiles, KeyRing
from fedunlearn.history.lock import Lock
from fedunlearn.history.record import ClientId
from fedunlearn.history.store import INDEX, SEGMENTS, Settings, Store, first_meta


def create_store(
    folder: Path, settings: Settings, names: Mapping[ClientId, str], files: Files
) -> None:
    """Make the folder of an empty history.

    Raises:
        HistoryError: If it holds one or cannot be written.
    """
    try:
        (folder / SEGMENTS).mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = Lock(folder)
        try:
            if (folder / INDEX).exists():
                raise HistoryError(f"{folder} already holds a history")
            KeyFiles(folder).create(files, KeyRing.fresh(settings.to_json()))
            Index.create(folder / INDEX, first_meta(settings), names, files)
            files.reached("create.committed")
        finally:
            lock.release()
    except OSError as error:
        raise HistoryError(f"{folder} cannot be written: {error}") from error


def open_store(folder: Path, lock: Lock | None, files: Files) -> Store:
    """Open a folder.

    Raises:
        HistoryError: If its format is another one.
        DamagedError: If its keys or its index are damaged.
    """
    index = Index(folder / INDEX, write=lock is not None)
    try:
        _check_format(index)
        ring = KeyFiles(folder).read()
        check_index(index, ring.store)
        settings = Settings.from_json(ring.settings)
        return Store(folder, files, index, ring, settings, lock)
    except BaseException:
        index.close()
        raise


def _check_format(index: Index) -> None:
    """Raise HistoryError unless this version reads the format."""
    found = index.meta("format")
    if found == str(FORMAT):
        return
    folder = index.path.parent
    if found.isdigit() and int(found) < FORMAT:
        raise HistoryError(
            f"{folder} has format {found}, this version writes {FORMAT}; "
            f"`fedunlearn history migrate {folder}` rewrites it and keeps the old one"
        )
    raise HistoryError(
        f"{folder} has format {found}, written by a newer version; "
        f"this one reads up to {FORMAT}"
    )
