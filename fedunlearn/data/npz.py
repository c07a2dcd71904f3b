"""Data sets of one's own, in NumPy's ``.npz`` archives."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import NpzFile

from fedunlearn.data.dataset import Dataset
from fedunlearn.errors import DataError

Arrays = dict[str, npt.NDArray[Any]]
"""The arrays of an archive by key."""

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("client_train", "client_test")

_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,  # an array of objects, which would need pickle; a broken header
    MemoryError,  # a header that claims a size nobody has
    NotImplementedError,  # a compression zipfile does not know
    RuntimeError,  # an encrypted member
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Npz:
    """A data set in an ``.npz`` file with the keys of ``REQUIRED`` and ``OPTIONAL``.

    Attributes:
        path: The file. Examples have shape ``(n, ...)`` and are used as they are, so
            scale them by constants before; labels are integers from 0; client keys are
            integers or strings.
    """

    path: str

    def load(self) -> Dataset:
        """Return the data set.

        Raises:
            DataError: If the file is missing or damaged, or an array is missing or
                malformed; the error names the file and the key.
        """
        arrays = read_npz(Path(self.path).expanduser(), REQUIRED, OPTIONAL)
        scalar = next((key for key in REQUIRED if not arrays[key].ndim), None)
        if scalar is not None:
            raise DataError(f"{self.path}: array {scalar!r} is a single value")
        return Dataset(name="npz", **arrays).validated(self.path)


def read_npz(
    path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> Arrays:
    """Return arrays of an archive; those of ``optional`` only where present.

    Args:
        path: An ``.npz`` file; pickled objects in it are refused.
        required: Keys that must be there.
        optional: Keys that may be there.

    Raises:
        DataError: If the file is missing or damaged, or a required key is missing.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        # The file is opened here because np.load leaks its own on a damaged archive.
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(
                    f"{path}: this is not an .npz archive, or a damaged one"
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return _arrays(path, archive, required, optional)
    except _UNREADABLE as error:
        raise DataError(f"{path}: the archive cannot be read: {error}") from error


def _arrays(
    path: Path, archive: NpzFile, required: Sequence[str], optional: Sequence[str]
) -> Arrays:
    missing = [key for key in required if key not in archive.files]
    if missing:
        raise DataError(
            f"{path}: there is no array {missing[0]!r} (found: "
            f"{', '.join(archive.files) or 'none'})"
        )
    present = [key for key in (*required, *optional) if key in archive.files]
    return {key: _array(path, archive, key) for key in present}


def _array(path: Path, archive: NpzFile, key: str) -> npt.NDArray[Any]:
    try:
        array = archive[key]
    except _UNREADABLE as error:
        raise DataError(f"{path}: array {key!r} cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key!r} is not an array")
    return array
