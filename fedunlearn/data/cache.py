"""The folder of fetched data sets."""

import os
from collections.abc import Sequence
from pathlib import Path

from fedunlearn.data.npz import Arrays, read_npz
from fedunlearn.errors import DataError


def default_cache() -> Path:
    """Return the folder ``$FEDUNLEARN_CACHE``, or ``~/.cache/fedunlearn`` if unset.

    This is the only place below the command line that reads the environment.
    """
    chosen = os.environ.get("FEDUNLEARN_CACHE")
    return Path(chosen or "~/.cache/fedunlearn").expanduser()


def cached_file(name: str, cache: Path | str | None = None) -> Path:
    """Return where the data set ``name`` lies once it is fetched.

    Args:
        name: A fetchable data set.
        cache: The folder; None takes ``default_cache()``.
    """
    folder = default_cache() if cache is None else Path(cache).expanduser()
    return folder / f"{name}.npz"


def read_cached(name: str, keys: Sequence[str], cache: str | None = None) -> Arrays:
    """Return arrays of a fetched data set.

    Raises:
        DataError: If it was not fetched or its file is damaged; the error says how to
            fetch it.
    """
    file = cached_file(name, cache)
    if not file.is_file():
        raise DataError(
            f"data set {name!r} is not in {file.parent}: run `fedunlearn data fetch "
            f"{name}`"
        )
    try:
        return read_npz(file, keys)
    except DataError as error:
        raise DataError(
            f"{error}; delete the file and run `fedunlearn data fetch {name}`"
        ) from error
