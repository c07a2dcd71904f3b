"""Looks for damage: what is there against what was recorded."""

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from fedunlearn.errors import DamagedError, HistoryError
from fedunlearn.history.append import record_facts
from fedunlearn.history.closing import check_index
from fedunlearn.history.erase import pending
from fedunlearn.history.files import half_written
from fedunlearn.history.log import Entry, faults
from fedunlearn.history.record import ClientId
from fedunlearn.history.round_table import (
    KEPT_ALL,
    KEPT_NONE,
    KEPT_SOME,
    Head,
    Participants,
)
from fedunlearn.history.seal import Written
from fedunlearn.history.segment import Segment, open_segment
from fedunlearn.history.settings import TipFile
from fedunlearn.history.store import SEGMENTS, Store
from fedunlearn.history.stored_arrays import read_round
from fedunlearn.history.thin import facts_without

_OWNER_ONLY = 0o077
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        what: A sentence.
        damage: Whether something recorded is lost; otherwise it is a leftover that the
            next writer removes.
        file: Where.
        round: Of which round, or None.
        client: Whose bytes, or None.
        offset: Where in the file, or None.
    """

    what: str
    damage: bool
    file: Path
    round: int | None = None
    client: ClientId | None = None
    offset: int | None = None

    @classmethod
    def of(cls, error: DamagedError, round_index: int | None = None) -> "Finding":
        """Return the finding an error stands for."""
        place = error.file or Path()
        where = error.round if error.round is not None else round_index
        return cls(str(error), True, place, where, error.client, error.offset)


def check_store(store: Store, *, read_data: bool) -> Iterator[Finding]:
    """Yield what is wrong with an open history, most basic first.

    Args:
        store: The history.
        read_data: Whether to read and authenticate every row of every file; otherwise
            only their sizes, headers and tags.
    """
    yield from check_index_and_log(store)
    yield from _check_keys(store)
    for index in store.table.rounds():
        row = partial(store.table.head, index)
        yield from _settled(row, partial(_check_round, store, read_data=read_data))
    tip = partial(getattr, store, "tip_file")
    yield from _settled(tip, partial(_check_tip, store, read_data=read_data))
    yield from _check_folder(store)


def check_references(store: Store) -> None:
    """Raise DamagedError if files could be removed on the word of a damaged index."""
    tip = store.tip_file
    for finding in (
        *check_index_and_log(store),
        *(_check_tip(store, tip, read_data=False) if tip else ()),
        *_check_names(store),
    ):
        if finding.damage:
            error = DamagedError(f"{finding.what}; repair it before it is written")
            error.file, error.round = finding.file, finding.round
            raise error


def _check_names(store: Store) -> Iterator[Finding]:
    for head in store.table.heads():
        if head.written is not None and not store.path(head.written).exists():
            what = f"its file {store.path(head.written)} is gone"
            yield _in_index(store, head.index, what)


def _settled(
    read: Callable[[], _Row | None], check: Callable[[_Row], Iterable[Finding]]
) -> list[Finding]:
    """Return what is wrong with what a row refers to, once no writer changes it."""
    try:
        while (row := read()) is not None:
            found = list(check(row))
            if not found or read() == row:
                return found
    except DamagedError as error:
        return [Finding.of(error)]
    return []


def check_index_and_log(store: Store) -> Iterator[Finding]:
    """Yield what is wrong with the index, whatever the files are."""
    yield from _check_index(store)
    yield from _check_log(store)


def _check_index(store: Store) -> Iterator[Finding]:
    path = store.index.path
    for test in (partial(check_index, store.index, store.ring.store), store.table.test):
        try:
            test()
        except DamagedError as error:
            yield Finding.of(error)
    for (answer,) in store.index.select("PRAGMA integrity_check"):
        if answer != "ok":
            yield Finding(f"{path} is damaged: {answer}", True, path)


def _check_keys(store: Store) -> Iterator[Finding]:
    for key_file in (store.key_files.ring_path, store.key_files.outer_path):
        if key_file.stat().st_mode & _OWNER_ONLY:
            yield Finding(f"{key_file} can be read by others", True, key_file)
    if pending(store) is not None:
        what = f"{store.folder} holds an erasure that is not finished"
        yield Finding(what, False, store.folder)


def _check_log(store: Store) -> Iterator[Finding]:
    """Compare the log with itself and with the rows it speaks of."""
    path = store.index.path
    with store.index.snapshot():
        entries, heads = store.index.log(), store.table.heads()
    broken = [f"{path} is damaged: {fault}" for fault in faults(entries)]
    yield from (Finding(what, True, path) for what in broken)
    if broken:
        return
    try:
        expected = _expected_rounds(entries)
    except (KeyError, TypeError) as error:
        what = f"{path} is damaged: an entry of its log lacks {error}"
        yield Finding(what, True, path)
        return
    found = {h.index: h.written.seal if h.written else None for h in heads}
    for index in sorted(expected.keys() | found.keys()):
        if index not in found:
            what = "its row is gone"
        elif index not in expected:
            what = "no log entry speaks of it"
        elif (expected[index] or None) != found[index]:
            what = "its file is not the one the log speaks of"
        else:
            continue
        yield Finding(f"{path} is damaged (round {index}): {what}", True, path, index)


def _expected_rounds(entries: list[Entry]) -> dict[int, str | None]:
    """Return round -> seal of its file as the log has it."""
    rounds: dict[int, str | None] = {}
    for entry in entries:
        fields = json.loads(entry.body)
        if fields["type"] in ("round", "lost") or (
            fields["type"] == "thin" and fields["round"] in rounds
        ):
            rounds[fields["round"]] = fields["seal"]
        elif fields["type"] == "erased":
            for index in fields["rounds"]:
                rounds.pop(index, None)
    return rounds


def _check_round(store: Store, head: Head, read_data: bool) -> Iterator[Finding]:
    who = store.table.participants(head.index)
    held = sum(row is not None for row in who.rows)
    kept = KEPT_ALL if held == len(who.rows) else KEPT_SOME if held else KEPT_NONE
    if kept != head.kept:
        yield _in_index(store, head.index, "it miscounts its updates")
    if head.written is None:
        return
    segment = yield from _opened(store, head.written, head.index)
    if segment is None:
        return
    if segment.place.index != head.index or "record" not in segment.facts:
        yield _in_index(store, head.index, "its file is another one's")
    elif _facts_differ(store, segment, head.index):
        yield _in_index(store, head.index, "its rows are others")
    elif _held_in(segment) != (head.broadcast, _held_by(who)):
        yield _in_index(store, head.index, "what it says is held is not in the file")
    if read_data:
        yield from _check_rows(store, segment)


def _check_tip(store: Store, tip: TipFile, read_data: bool) -> Iterator[Finding]:
    if tip.written is None:
        return
    segment = yield from _opened(store, tip.written, tip.round + 1)
    if segment is None:
        return
    if segment.place.index != tip.round + 1 or "record" in segment.facts:
        yield _in_index(store, None, "what it takes for the tip is another file")
    if read_data:
        yield from _check_rows(store, segment)


def _in_index(store: Store, index: int | None, what: str) -> Finding:
    return Finding.of(DamagedError.of(what, store.index.path, round_index=index))


def _opened(
    store: Store, written: Written, index: int
) -> Generator[Finding, None, Segment | None]:
    """Open a file; yield what is wrong with it or with what the index says of it."""
    try:
        return store.open_file(written)
    except DamagedError as error:
        path = error.file or store.index.path
        if path != store.index.path and _is_whole(store, path, written):
            yield _in_index(store, index, f"it miscounts the bytes of {path}")
        else:
            yield Finding.of(error, index)
    return None


def _is_whole(store: Store, path: Path, written: Written) -> bool:
    """Tell whether a file has the seal it should have, all the same."""
    try:
        found = open_segment(path, store.settings.store, store.keys)
    except DamagedError:
        return False
    return found.written.seal == written.seal


def _held_in(segment: Segment) -> tuple[bool, dict[ClientId | None, int]]:
    parts = segment.parts
    owners = parts["updates"].owners if "updates" in parts else ()
    return "broadcast" in parts, {owner: row for row, owner in enumerate(owners)}


def _held_by(who: Participants) -> dict[ClientId | None, int]:
    pairs = zip(who.clients, who.rows, strict=True)
    return {client: row for client, row in pairs if row is not None}


def _facts_differ(store: Store, segment: Segment, index: int) -> bool:
    """Compare file and rows; an erasure that goes on changes the file first."""
    record, promise = read_round(store, index), pending(store)
    gone = frozenset(promise.clients if promise else ())
    return record is None or (
        facts_without(record_facts(record), gone)
        != facts_without(segment.facts["record"], gone)
    )


def _check_rows(store: Store, segment: Segment) -> Iterator[Finding]:
    for part in segment.parts.values():
        for row in range(len(part.owners)):
            try:
                segment.rows(part.name, [row], store.keys)
            except DamagedError as error:
                yield Finding.of(error)
            except HistoryError as error:  # its key is gone: an unfinished erasure
                yield Finding(str(error), False, segment.path, segment.place.index)


def _check_folder(store: Store) -> Iterator[Finding]:
    folder = store.folder / SEGMENTS
    if not folder.is_dir():
        yield Finding(f"{folder} is gone", True, folder)
        return
    names = sorted(path.name for path in folder.iterdir())
    known = {head.written.name for head in store.table.heads() if head.written}
    tip = store.tip_file
    if tip is not None and tip.written is not None:
        known.add(tip.written.name)
    for path in (folder / name for name in names if name not in known):
        if path.exists():
            yield Finding(f"{path} belongs to no recorded round", False, path)
    for path in half_written(store.folder):
        yield Finding(f"{path} was never finished", False, path)
