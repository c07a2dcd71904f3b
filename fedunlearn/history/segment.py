"""Reads a file of a history: nothing that was not authenticated leaves it."""

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag

from fedunlearn.errors import DamagedError
from fedunlearn.history.files import unreadable
from fedunlearn.history.record import ClientId
from fedunlearn.history.seal import (
    SEAL_BYTES,
    TAG_BYTES,
    Bytes,
    Keys,
    Place,
    Written,
    asked_once,
    mac,
)


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One matrix of a file that was opened.

    Attributes:
        name: As in :class:`Part`.
        dtype: Its safetensors dtype.
        owners: Whose bytes each row is.
        offset: Where in the file the first row begins.
        width: Bytes of a row.
        first_tag: Number of its first row among all rows of the file.
    """

    name: str
    dtype: str
    owners: tuple[ClientId | None, ...]
    offset: int
    width: int
    first_tag: int

    def row_of(self, owner: ClientId | None) -> int:
        """Return the row of an owner, who must have one."""
        return self.owners.index(owner)


@dataclass(frozen=True, slots=True)
class Segment:
    """A file that was opened: header, tags and seal are authentic, rows not yet read.

    Attributes:
        path: The file.
        place: Where it belongs.
        parts: Name -> matrix.
        facts: All metadata.
        raw: The bytes, memory-mapped.
        tags: 16 bytes a row.
        seal: The MAC of header and tags.
    """

    path: Path
    place: Place
    parts: Mapping[str, StoredPart]
    facts: Mapping[str, str]
    raw: Bytes
    tags: bytes
    seal: bytes

    @property
    def written(self) -> Written:
        """The file as the index refers to it."""
        return Written(self.path.name, self.raw.size, self.seal.hex())

    def rows(self, part: str, wanted: Sequence[int], keys: Keys) -> Bytes:
        """Return rows of a part in the clear, shape ``(len(wanted), B)``.

        Rows of a part that is not encrypted are a view of the map if they follow each
        other.

        Raises:
            DamagedError: If a row is not what was written.
            HistoryError: If its key was destroyed.
        """
        stored, keys = self.parts[part], asked_once(keys)
        if not self.place.sealed:
            for row in wanted:
                self._open_row(stored, row, keys, None)
            return self.matrix(part)[_as_slice(wanted)]
        out = np.empty((len(wanted), stored.width), np.uint8)
        for target, row in zip(out, wanted, strict=True):
            self._open_row(stored, row, keys, target)
        return out

    def matrix(self, part: str) -> Bytes:
        """Return a part's rows as they are stored, read-only, shape ``(n, B)``."""
        stored = self.parts[part]
        count = len(stored.owners)
        end = stored.offset + count * stored.width
        return self.raw[stored.offset : end].reshape(count, stored.width)

    def tag(self, stored: StoredPart, row: int) -> bytes:
        """Return a row's tag."""
        at = (stored.first_tag + row) * TAG_BYTES
        return self.tags[at : at + TAG_BYTES]

    def _open_row(
        self, stored: StoredPart, row: int, keys: Keys, target: Bytes | None
    ) -> None:
        owner, begin = stored.owners[row], stored.offset + row * stored.width
        data = self.raw[begin : begin + stored.width]
        opener = self.place.cipher(keys, stored.name, owner).decryptor()
        opener.authenticate_additional_data(self.place.bound(stored.name, owner))
        if target is None:
            opener.authenticate_additional_data(data.data)
        else:
            opener.update_into(data.data, target.data)
        try:
            opener.finalize_with_tag(self.tag(stored, row))
        except InvalidTag as error:
            raise DamagedError.of(
                f"its {stored.name} are not what was recorded",
                self.path,
                round_index=self.place.index,
                client=owner,
                offset=begin,
            ) from error


def _as_slice(wanted: Sequence[int]) -> slice | list[int]:
    """Return rows as what NumPy takes a view of, if they follow each other."""
    rows = list(wanted)
    first = rows[0] if rows else 0
    follows = rows == list(range(first, first + len(rows)))
    return slice(first, first + len(rows)) if follows else rows


def open_segment(
    path: Path, store: str, keys: Keys, expected: Written | None = None
) -> Segment:
    """Map a file and authenticate its header and tags.

    Args:
        path: The file.
        store: The history's id.
        keys: The keys.
        expected: What the index says about it; None takes any file of the store.

    Raises:
        DamagedError: If it is not the file that was written.
    """
    try:
        with path.open("rb", buffering=0) as file:
            # Not numpy.memmap, which resolves the path as well.
            mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
        raw = np.frombuffer(mapped, np.uint8)
    except OSError as error:
        raise unreadable(error, path) from error
    except ValueError as error:
        raise DamagedError.of(str(error), path) from error
    if expected is not None and raw.size != expected.nbytes:
        raise DamagedError.of(
            f"it has {raw.size} bytes, {expected.nbytes} were recorded", path
        )
    try:
        segment = _parse(path, raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError.of(f"its header is unreadable: {error}", path) from error
    header = raw[: _header_end(raw)].tobytes()
    honest = hmac.compare_digest(mac(keys.store, header, segment.tags), segment.seal)
    if not honest or (expected is not None and segment.written != expected):
        raise DamagedError.of("its header or tags are not what was recorded", path)
    if segment.place.store != store:
        raise DamagedError.of("it belongs to another history", path)
    return segment


def _header_end(raw: Bytes) -> int:
    return 8 + int.from_bytes(raw[:8].tobytes(), "little")


def _parse(path: Path, raw: Bytes) -> Segment:
    start = _header_end(raw)
    if start > raw.size:
        raise ValueError(f"it announces {start} bytes")
    fields = json.loads(raw[8:start].tobytes())
    facts = fields.pop("__metadata__")
    owners = json.loads(facts["owners"])
    parts, first_tag = {}, 0
    for name, whose in owners.items():
        begin, end = fields[name]["data_offsets"]
        width = (end - begin) // len(whose) if whose else 0
        parts[name] = StoredPart(
            name, fields[name]["dtype"], tuple(whose), start + begin, width, first_tag
        )
        first_tag += len(whose)
    begin, end = (start + at for at in fields["tags"]["data_offsets"])
    if end + SEAL_BYTES != raw.size:
        raise ValueError(f"it should have {end + SEAL_BYTES} bytes")
    place = Place(
        facts["store"],
        int(facts["generation"]),
        int(facts["round"]),
        facts["salt"],
        facts["sealed"] == "true",
    )
    tags, seal = raw[begin:end].tobytes(), raw[end:].tobytes()
    return Segment(path, place, parts, facts, raw, tags, seal)
