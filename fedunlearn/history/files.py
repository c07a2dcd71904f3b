"""Every write of a history passes through here: the seam where tests make disks fail.

The real implementation is :class:`RealFiles`. Others make the n-th call fail, kill the
process at a named step, or record the calls and rebuild what a power loss may leave.
Reading needs no seam: what is on disk is checked whenever it is read.
"""

import errno
import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import DamagedError, HistoryError

Chunk = bytes | npt.NDArray[np.uint8]
"""Bytes to be written; an array is contiguous."""

WRITTEN_FILES = (
    "create.keys",
    "create.outer",
    "append.round",
    "append.tip",
    "thin.round",
    "erase.tip",
    "erase.outer",
    "erase.keys",
    "close.seal",
)
"""Files a history writes, by the operation that writes them."""
MOMENTS = ("created", "written", "synced")
"""What happens to each of them, in this order."""
STEPS = (
    *(f"{file}.{moment}" for file in WRITTEN_FILES for moment in MOMENTS),
    "create.outer.renamed",
    "create.keys.renamed",
    "create.committed",
    "append.durable",
    "append.inserted",
    "append.committed",
    "append.done",
    "thin.durable",
    "thin.inserted",
    "thin.committed",
    "erase.keys.renamed",
    "erase.outer.renamed",
    "erase.key_added",
    "erase.tip.durable",
    "erase.promise.inserted",
    "erase.promise.committed",
    "erase.keys_destroyed",
    "erase.rows.inserted",
    "erase.rows.committed",
    "erase.files_removed",
    "close.seal.renamed",
    "migrate.started",
    "migrate.round_copied",
    "migrate.copied",
    "migrate.old_moved",
    "migrate.done",
)
"""Every named step; the crash tests stop at each and fail if one is never reached."""


_NO_DAMAGE = (
    errno.EACCES,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EPERM,
)
"""What keeps a process from reading but says nothing about the file."""


class SyncError(OSError):
    """The disk could not confirm a write: nobody knows what it holds."""


class Files(Protocol):
    """What a history asks of a disk."""

    def create(self, path: Path) -> int:
        """Open an empty file for writing, readable by its owner only."""
        ...

    def write(self, handle: int, data: Chunk) -> None:
        """Append all of ``data``."""
        ...

    def sync(self, handle: int) -> None:
        """Return when the file's bytes would survive a power loss."""
        ...

    def close(self, handle: int) -> None:
        """Close the file."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Return when the folder's names would survive a power loss."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or folder, replacing a file of the new name."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file if it is there."""
        ...

    def commit(self, database: sqlite3.Connection) -> None:
        """Commit the open transaction."""
        ...

    def reached(self, step: str) -> None:
        """Take note of a step of ``STEPS``."""
        ...


class RealFiles:
    """The disk."""

    def create(self, path: Path) -> int:
        """Open an empty file for writing, readable by its owner only."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def write(self, handle: int, data: Chunk) -> None:
        """Append all of ``data``."""
        rest = memoryview(data).cast("B")  # type: ignore[arg-type]
        while rest:
            rest = rest[os.write(handle, rest) :]

    def sync(self, handle: int) -> None:
        """Return when the file's bytes would survive a power loss."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        """Close the file."""
        os.close(handle)

    def sync_folder(self, folder: Path) -> None:
        """Return when the folder's names would survive a power loss."""
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or folder, replacing a file of the new name."""
        old.replace(new)

    def unlink(self, path: Path) -> None:
        """Remove a file if it is there."""
        path.unlink(missing_ok=True)

    def commit(self, database: sqlite3.Connection) -> None:
        """Commit the open transaction."""
        database.commit()

    def reached(self, step: str) -> None:
        """Take note of a step: nothing to do."""


def write_new(files: Files, path: Path, chunks: Iterable[Chunk], step: str) -> int:
    """Write a file whose name nobody refers to yet; return its size in bytes.

    The folder must be synced before anybody refers to it.

    Raises:
        OSError: If the disk refuses; the file is removed then.
        SyncError: If the disk cannot confirm the bytes.
    """
    size = 0
    handle = files.create(path)
    try:
        files.reached(f"{step}.created")
        for chunk in chunks:
            files.write(handle, chunk)
            size += len(chunk)
        files.reached(f"{step}.written")
        _sync(files, handle)
        files.reached(f"{step}.synced")
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            files.close(handle)
        remove_stray(files, path)
        raise
    try:
        files.close(handle)
    except OSError:  # some network disks refuse a file only now
        remove_stray(files, path)
        raise
    return size


def replace(files: Files, path: Path, content: bytes, step: str) -> None:
    """Give a small file new content: a crash leaves the old or the new one, whole.

    The old content is overwritten once it has lost its name. On a copy-on-write or
    flash medium that is no erasure; nothing here relies on it.
    """
    new = path.with_name(path.name + ".new")
    write_new(files, new, [content], step)
    old = os.open(path, os.O_WRONLY) if path.exists() else None
    try:
        files.rename(new, path)
        files.reached(f"{step}.renamed")
        sync_folder(files, path.parent)
        if old is not None:
            os.write(old, os.urandom(os.fstat(old).st_size))
            os.fsync(old)
    finally:
        if old is not None:
            os.close(old)


def unreadable(error: OSError, path: Path) -> HistoryError:
    """Return the error for a file that cannot be read: it may not be damaged at all."""
    if error.errno in _NO_DAMAGE:
        return HistoryError(f"{path} cannot be read: {error.strerror}")
    return DamagedError.of(error.strerror or str(error), path)


def half_written(folder: Path) -> list[Path]:
    """Return the files of a folder that were to replace others when a crash came."""
    return sorted(folder.glob("*.new*"))


def sync_folder(files: Files, folder: Path) -> None:
    """Sync a folder's names.

    Raises:
        SyncError: If the disk cannot confirm them.
    """
    try:
        files.sync_folder(folder)
    except OSError as error:
        raise SyncError(error.errno, error.strerror, str(folder)) from error


def _sync(files: Files, handle: int) -> None:
    try:
        files.sync(handle)
    except OSError as error:
        raise SyncError(error.errno, error.strerror) from error


def remove_stray(files: Files, path: Path) -> None:
    """Remove a file that nobody refers to, or leave it to the next writer."""
    with suppress(OSError):
        files.unlink(path)
