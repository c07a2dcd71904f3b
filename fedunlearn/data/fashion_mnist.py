"""Fashion-MNIST from its four idx files."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedunlearn.data.dataset import Dataset, Features
from fedunlearn.errors import DataError

DEBIAN_PATH = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package puts the files."""
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""Training images, training labels, test images, test labels; each may end in .gz."""
MEAN, STD = 0.2860, 0.3530
"""Published constants for pixels in [0, 1]; not computed from the data at hand."""

Bytes = npt.NDArray[np.uint8]

_MAGIC = b"\x00\x00\x08"
"""Two zeros and the code for unsigned bytes; the number of axes follows."""
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class FashionMnist:
    """60,000 + 10,000 pictures of clothes, 10 classes, shape ``(1, 28, 28)``.

    Attributes:
        path: Folder with the four files of ``FILES``, plain or with ``.gz``.
        limit: How many training images to keep, from the first; 0 keeps all.
    """

    path: str = DEBIAN_PATH
    limit: int = 0

    def __post_init__(self) -> None:
        """Refuse a negative limit."""
        if self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")

    def load(self) -> Dataset:
        """Return the data set.

        Raises:
            DataError: If a file is missing, damaged or shorter than ``limit``.
        """
        found = [find(Path(self.path).expanduser(), name) for name in FILES]
        x, y, x_test, y_test = (
            read_idx(file, axes) for file, axes in zip(found, (3, 1, 3, 1), strict=True)
        )
        if self.limit > len(x):
            raise DataError(
                f"data.limit is {self.limit}, but {found[0]} has {len(x)} images"
            )
        keep = slice(self.limit or None)
        return Dataset(
            "fashion_mnist",
            _standardised(x[keep]),
            y[keep].astype(np.int64),
            _standardised(x_test),
            y_test.astype(np.int64),
        ).validated(self.path)


def find(folder: Path, name: str) -> Path:
    """Return the file ``name`` or ``name.gz`` of a folder.

    Raises:
        DataError: If neither is there; the error says how to get them.
    """
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"{folder / name}[.gz] is missing: run `apt-get install dataset-fashion-mnist` "
        "or point data.path at a folder with the four idx files"
    )


def read_idx(path: Path, axes: int) -> Bytes:
    """Return the array of an idx file of unsigned bytes.

    Args:
        path: The file, plain or compressed by gzip.
        axes: How many axes its array must have.

    Raises:
        DataError: If the file is damaged, truncated or something else.
    """
    raw = _content(path)
    start = len(_MAGIC) + 1 + 4 * axes
    if len(raw) < start or raw[: len(_MAGIC) + 1] != _MAGIC + bytes([axes]):
        raise DataError(f"{path}: this is no idx file of bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", raw[len(_MAGIC) + 1 : start])
    if len(raw) - start != prod(shape):
        raise DataError(
            f"{path}: the header promises {prod(shape)} bytes of shape {shape}, "
            f"{len(raw) - start} follow"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path}: the file cannot be read: {error}") from error


def _standardised(images: Bytes) -> Features:
    """Return ``(n, height, width)`` bytes as ``(n, 1, height, width)`` float32."""
    x = images[:, None].astype(np.float32)
    x /= 255
    x -= np.float32(MEAN)
    x /= np.float32(STD)
    return x
