"""Writes a file of a history: safetensors layout, every row sealed.

A file holds named parts. A part is a matrix of bytes, one row an owner: the updates of
a round are one contiguous matrix, a row a client. Two more parts end the file:
``tags``, 16 bytes a row, and ``seal``, a MAC of header and tags under the store's key.
``docs/history-format.md`` describes the format byte by byte.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from fedunlearn.history.files import Chunk, Files, write_new
from fedunlearn.history.seal import (
    SEAL_BYTES,
    TAG_BYTES,
    Bytes,
    Keys,
    Part,
    Place,
    Written,
    asked_once,
    mac,
)
from fedunlearn.history.segment import Segment

_ALIGN = 64
_CHUNK_BYTES = 1 << 20
"""Sealed and written at once, while it is in the processor's cache."""


def write_segment(
    files: Files,
    path: Path,
    place: Place,
    parts: Sequence[Part],
    facts: Mapping[str, str],
    keys: Keys,
    step: str,
) -> Written:
    """Write a file; the caller syncs the folder and refers to it afterwards.

    Args:
        files: The disk.
        path: A name that nobody refers to yet.
        place: Where it belongs.
        parts: Its matrices, in order.
        facts: More metadata, authenticated by the seal.
        keys: The keys.
        step: Name of the operation, for tests.
    """
    header, keys = _header(place, parts, facts), asked_once(keys)
    tags: list[bytes] = []
    seal: list[bytes] = []

    def chunks() -> Iterator[Chunk]:
        yield header
        for part in parts:
            yield from _rows(place, part, keys, tags)
        joined = b"".join(tags)
        seal.append(mac(keys.store, header, joined))
        yield joined + seal[0]

    size = write_new(files, path, chunks(), step)
    return Written(path.name, size, seal[0].hex())


def _header(place: Place, parts: Sequence[Part], facts: Mapping[str, str]) -> bytes:
    metadata = {
        "store": place.store,
        "generation": str(place.generation),
        "round": str(place.index),
        "salt": place.salt,
        "sealed": str(place.sealed).lower(),
        "owners": json.dumps({p.name: p.owners for p in parts}),
        **facts,
    }
    fields: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for part in parts:
        count, width = part.rows.shape
        dtype = "U8" if place.sealed else part.dtype
        shape = [count, width // _ITEM_BYTES[dtype]]
        fields[part.name] = _tensor(dtype, shape, at, at + part.rows.size)
        at += part.rows.size
    rows = sum(len(p.owners) for p in parts)
    tags = TAG_BYTES * rows
    fields["tags"] = _tensor("U8", [rows, TAG_BYTES], at, at + tags)
    fields["seal"] = _tensor("U8", [SEAL_BYTES], at + tags, at + tags + SEAL_BYTES)
    text = json.dumps(fields, separators=(",", ":")).encode("ascii")
    text += b" " * (-(len(text) + 8) % _ALIGN)  # the matrix begins at a cache line
    return len(text).to_bytes(8, "little") + text


_ITEM_BYTES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}


def _tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _rows(place: Place, part: Part, keys: Keys, tags: list[bytes]) -> Iterator[Chunk]:
    """Yield the rows as they are stored, in chunks; append their tags."""
    count, width = part.rows.shape
    at_once = max(1, _CHUNK_BYTES // max(1, width))
    buffer = np.empty((min(count, at_once) * place.sealed, width), np.uint8)
    for first in range(0, count, at_once):
        rows = part.rows[first : first + at_once]
        stored = buffer[: len(rows)] if place.sealed else rows
        owners = part.owners[first : first + at_once]
        for row, target, owner in zip(rows, stored, owners, strict=True):
            seal = place.cipher(keys, part.name, owner).encryptor()
            seal.authenticate_additional_data(place.bound(part.name, owner))
            if place.sealed:
                seal.update_into(row.data, target.data)
            else:
                seal.authenticate_additional_data(row.data)
            seal.finalize()
            tags.append(seal.tag)
        yield from _chunks(stored)


def _chunks(rows: Bytes) -> Iterator[Chunk]:
    """Yield the bytes of rows in pieces that a disk cache takes quickly."""
    flat = rows.reshape(-1)
    for at in range(0, flat.size, _CHUNK_BYTES):
        yield flat[at : at + _CHUNK_BYTES]


def thinned(
    segment: Segment, kept: Mapping[str, Sequence[int]]
) -> list[tuple[Part, list[bytes]]]:
    """Return parts of a file as they are stored, with fewer rows, and their tags."""
    out = []
    for name, rows in kept.items():
        stored = segment.parts[name]
        owners = tuple(stored.owners[row] for row in rows)
        part = Part(name, stored.dtype, segment.matrix(name)[list(rows)], owners)
        out.append((part, [segment.tag(stored, row) for row in rows]))
    return out


def copy_segment(
    files: Files,
    path: Path,
    segment: Segment,
    kept: Mapping[str, Sequence[int]],
    facts: Mapping[str, str],
    keys: Keys,
    step: str,
) -> Written:
    """Write a copy with fewer rows, without opening any.

    Args:
        files: The disk.
        path: A name that nobody refers to yet.
        segment: The file to copy.
        kept: Part -> rows to keep; parts that are not named go.
        facts: Metadata beside the place.
        keys: The keys.
        step: Name of the operation, for tests.
    """
    chosen = thinned(segment, kept)
    header = _header(segment.place, [part for part, _ in chosen], facts)
    tags = b"".join(tag for _, own in chosen for tag in own)
    seal = mac(keys.store, header, tags)
    bodies = (chunk for part, _ in chosen for chunk in _chunks(part.rows))
    size = write_new(files, path, chain([header], bodies, [tags + seal]), step)
    return Written(path.name, size, seal.hex())
