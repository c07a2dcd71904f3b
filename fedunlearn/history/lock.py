"""One writer at a time: an advisory lock that ends with its process."""

import fcntl
import os
from pathlib import Path

from fedunlearn.errors import HistoryError


class Lock:
    """Held from construction to :meth:`release`, or until the process ends.

    Args:
        folder: What is locked; the file ``LOCK`` in it names the holder.

    Raises:
        HistoryError: If another writer holds it, with its process id, or the folder
            cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._handle = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise HistoryError(f"{folder} cannot be written: {error}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._handle, 32).decode("ascii", "replace").strip()
            os.close(self._handle)
            raise HistoryError(
                f"{folder} is in use by process {holder or 'unknown'}: it has one "
                "writer at a time"
            ) from error
        try:
            # A dead holder's number is overwritten: the kernel has released its lock.
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()}\n".encode("ascii"), 0)
        except OSError as error:
            os.close(self._handle)
            raise HistoryError(f"{folder} cannot be written: {error}") from error

    def release(self) -> None:
        """Let the next writer in."""
        os.ftruncate(self._handle, 0)
        os.close(self._handle)
