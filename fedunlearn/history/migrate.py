"""Rewriting a history of an older format; the old one is kept as it is."""

import shutil
from pathlib import Path

from fedunlearn.errors import HistoryError
from fedunlearn.history.disk import DiskHistory
from fedunlearn.history.files import Files, RealFiles
from fedunlearn.history.format1 import read_format1


def migrate(folder: Path, *, sealed: bool = True, files: Files | None = None) -> Path:
    """Rewrite a history of format 1 in place; return where the old one is kept.

    An interrupted migration is continued by calling it again: until the last step the
    old history is whole, under its own name or under the returned one.

    Args:
        folder: The history.
        sealed: Whether the new one is sealed.
        files: The disk; None takes the real one.

    Raises:
        HistoryError: If there is nothing to migrate, or the disk refuses.
    """
    files = RealFiles() if files is None else files
    new = folder.with_name(folder.name + ".migrating")
    old = folder.with_name(folder.name + ".format-1")
    if folder.exists() or not old.exists():
        if old.exists():
            raise HistoryError(f"{old} exists already: move it away first")
        files.reached("migrate.started")
        shutil.rmtree(new, ignore_errors=True)
        _copy(folder, new, sealed, files)
        files.reached("migrate.copied")
    try:
        if folder.exists():
            files.rename(folder, old)
            files.sync_folder(folder.parent)
        files.reached("migrate.old_moved")
        files.rename(new, folder)
        files.sync_folder(folder.parent)
    except OSError as error:
        raise HistoryError(f"{folder} cannot be migrated: {error}") from error
    files.reached("migrate.done")
    return old


def _copy(folder: Path, new: Path, sealed: bool, files: Files) -> None:
    layout, rounds = read_format1(folder)
    with DiskHistory.create(new, layout, sealed=sealed, files=files) as history:
        for record in rounds:
            history.append_round(record)
            files.reached("migrate.round_copied")
