"""An append-only log of JSON objects: a hash chain with a Merkle tree over it.

The chain finds any change of an entry; only a :class:`Head` kept elsewhere finds a log
that was cut short or written anew.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import final

from fedunlearn.errors import DataError
from fedunlearn.history.merkle import HEX, Head, head_of, utf8

MOST_LEVELS = 32
"""How deeply lists and objects of an entry may be nested."""

_LINE = re.compile('{"body":({.*}),"hash":"([0-9a-f]{64})"}')
_BEFORE_ALL = "00" * 32


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.

    Attributes:
        seq: Its number, from 0.
        body: A canonical JSON object with that number under ``"seq"``.
        hash: SHA-256 of the hash before it (32 bytes, zeros at first) and of ``body``.
    """

    seq: int
    body: str
    hash: str


def canonical(fields: Mapping[str, object]) -> str:
    """Return the one JSON text of an object: ASCII, keys sorted, no spaces.

    Raises:
        ValueError: If it holds anything but text (without lone surrogates), integers,
            booleans, None, lists and dictionaries with text for keys, or is too deep.
    """
    plain = dict(fields)
    _check(plain, 0)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check(value: object, level: int) -> None:
    if level > MOST_LEVELS:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
    if isinstance(value, str):
        value.encode()  # raises on a lone surrogate: two of them would read as one sign
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text")  # noqa: TRY004
            _check(key, level)
            _check(item, level + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, level + 1)
    elif value is not None and not isinstance(value, int):
        raise ValueError(f"a {type(value).__name__} has no canonical JSON form")


def next_entry(last: Entry | None, fields: Mapping[str, object]) -> Entry:
    """Return the entry that follows ``last`` (None: the first one).

    Raises:
        ValueError: If a field is named ``seq`` or :func:`canonical` refuses them.
    """
    if "seq" in fields:
        raise ValueError("the log itself numbers its entries: no field may be 'seq'")
    seq = 0 if last is None else last.seq + 1
    body = canonical({**fields, "seq": seq})
    return Entry(seq, body, _chained(_BEFORE_ALL if last is None else last.hash, body))


def _chained(previous: str, body: str) -> str:
    return sha256(bytes.fromhex(previous) + utf8(body)).hexdigest()


def _seq_in(body: str) -> int:
    """Return the number in a body, or raise ValueError if it is not in order."""
    try:
        fields = json.loads(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(fields, dict) or canonical(fields) != body:
        raise ValueError("it is not a canonical JSON object")
    if type(seq := fields.get("seq")) is not int:
        raise ValueError("it has no number")
    return seq


def faults(entries: Iterable[Entry], old: Head | None = None) -> Iterator[str]:
    """Yield one sentence a fault: none if all is in order and continues ``old``."""
    previous, bodies = _BEFORE_ALL, []
    for i, entry in enumerate(entries):
        try:
            if (entry.seq, seq := _seq_in(entry.body)) != (i, i):
                yield f"entry {i} carries the numbers {entry.seq} and {seq}"
        except ValueError as why:
            yield f"the text of entry {i} is damaged: {why}"
        right = _chained(previous, entry.body)
        if entry.hash != right:
            yield (
                f"the chain is broken at entry {i}: its hash is not that of its text "
                "and of the hash before it"
            )
        previous = entry.hash if HEX.fullmatch(entry.hash) else right
        bodies.append(entry.body)
    if old is not None and len(bodies) < old.size:
        yield f"the log has {len(bodies)} entries, the head was taken of {old.size}"
    elif old is not None and head_of(bodies[: old.size]) != old:
        yield f"the first {old.size} entries are not those the head was taken of"


def to_jsonl(entries: Iterable[Entry]) -> str:
    r"""Return the log as text, one line an entry, each ended by ``\n``.

    Raises:
        DataError: If an entry's body, number or hash does not have the right form.
    """
    lines = []
    for entry in entries:
        lines.append(f'{{"body":{entry.body},"hash":"{entry.hash}"}}')
        if _entry(lines[-1], f"entry {entry.seq}") != entry:
            raise DataError(f"entry {entry.seq} carries another number in its text")
    return "".join(line + "\n" for line in lines)


def from_jsonl(text: str) -> list[Entry]:
    r"""Return the entries of a text; what it accepts, :func:`to_jsonl` gives back.

    Decode a file's bytes for it: Python's text mode would turn a damaged ``\r`` into
    a line end.

    Raises:
        DataError: If a line is damaged or incomplete (the chain is not looked at).
    """
    *lines, rest = text.split("\n")
    if rest:
        raise DataError(f"line {len(lines) + 1} of the log is incomplete")
    return [_entry(line, f"line {i} of the log") for i, line in enumerate(lines, 1)]


def _entry(line: str, name: str) -> Entry:
    if (match := _LINE.fullmatch(line)) is None:
        raise DataError(f"{name} does not have the form of an entry")
    try:
        return Entry(_seq_in(match[1]), match[1], match[2])
    except ValueError as why:
        raise DataError(f"the text of {name} is damaged: {why}") from why
