"""The file of one round: a safetensors file with ``broadcast`` and ``updates``."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedunlearn.errors import HistoryError
from fedunlearn.history.record import RoundRecord
from fedunlearn.params import Matrix, Vector


@dataclass(frozen=True, slots=True)
class ArraysOnDisk:
    """The heavy part of a round in its safetensors file."""

    path: Path
    nbytes: int

    def broadcast(self) -> Vector:
        """Map the model sent out."""
        return self._map("broadcast")

    def updates(self) -> Matrix:
        """Map all updates."""
        return self._map("updates")

    def rows(self, positions: Sequence[int]) -> Matrix:
        """Read some updates."""
        return self._map("updates")[list(positions)]

    def _map(self, tensor: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        try:
            size = self.path.stat().st_size
            if size != self.nbytes:
                raise HistoryError(
                    f"{self.path} has {size} bytes, {self.nbytes} were recorded"
                )
            offset, shape = self._place(tensor)
            return np.memmap(self.path, np.float32, "r", offset, shape)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HistoryError(f"{self.path} is damaged: {error}") from error

    def _place(self, tensor: str) -> tuple[int, tuple[int, ...]]:
        with self.path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > self.nbytes:
                raise ValueError(f"it announces a header of {header_size} bytes")
            entry = json.loads(file.read(header_size))[tensor]
        if entry["dtype"] != "F32":
            raise ValueError(f"{tensor} is {entry['dtype']}, not F32")
        return 8 + header_size + entry["data_offsets"][0], tuple(entry["shape"])


def write_segment(path: Path, record: RoundRecord) -> None:
    """Write the round's file so that it is complete whenever it has its name.

    Raises:
        HistoryError: If an array is not float32.
    """
    from safetensors.numpy import save

    arrays = {"broadcast": record.broadcast, "updates": record.updates}
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise HistoryError(f"{name} must be float32, got {array.dtype}")
    # safetensors writes a strided array's buffer in its own order, without a word.
    payload = save({n: np.ascontiguousarray(a) for n, a in arrays.items()})
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
