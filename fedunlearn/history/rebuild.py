"""A new index from the files of a history: their headers hold all that a row does."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fedunlearn.errors import HistoryError
from fedunlearn.history.append import note_bytes, payload_bytes, round_entry
from fedunlearn.history.erase import Promise
from fedunlearn.history.files import Files
from fedunlearn.history.index import Index
from fedunlearn.history.keys import KeyRing
from fedunlearn.history.record import (
    ArraysInMemory,
    ClientId,
    RoundRecord,
    SetAside,
    without,
)
from fedunlearn.history.segment import Segment, open_segment
from fedunlearn.history.settings import Settings, TipFile, first_meta
from fedunlearn.history.store import INDEX, SEGMENTS, Store


def rebuild_index(
    folder: Path, files: Files, ring: KeyRing, settings: Settings
) -> None:
    """Write a new index.

    Args:
        folder: The history; its old index is out of the way.
        files: The disk.
        ring: Its keys.
        settings: What it is.
    """
    Index.create(folder / INDEX, first_meta(settings), {}, files)
    index = Index(folder / INDEX, write=True)
    try:
        store = Store(folder, files, index, ring, settings, lock=None)
        rounds, tip = _sorted_out(_readable(store))
        generation = max(ring.generations)
        with index.transaction(files, "append"):
            index.add_entry({"type": "rebuilt"})
            index.set_meta("generation", str(generation))
            index.set_meta("tip", _tip_file(tip).to_json() if tip else "")
            if generation > 1 or tip is None:  # nobody knows where the sums begin
                index.set_meta("sums_from", "")
            back = {c for s in rounds.values() for c in _named_in(s) & store.withdrawn}
            for number in sorted(rounds):
                _insert(store, rounds[number])
            if back:
                index.set_meta("pending", _finish(back, generation))
            updates, broadcasts = store.table.held()
            sums = len(tip.parts["sums"].owners) if tip and "sums" in tip.parts else 0
            note_bytes(store, payload_bytes(store, updates, broadcasts, sums))
    finally:
        index.close()


def _finish(back: set[ClientId], generation: int) -> str:
    """Return the promise to take out what erased clients have left in the files."""
    promise = Promise(
        clients=sorted(back),
        pseudonyms=[],
        first=None,
        below=generation,
        reason="found while the index was rebuilt",
        updates=0,
        rounds=[],
    )
    return json.dumps(asdict(promise))


def _readable(store: Store) -> Iterator[Segment]:
    """Yield the files that are whole and whose keys are left."""
    for path in sorted((store.folder / SEGMENTS).iterdir()):
        try:
            segment = open_segment(path, store.settings.store, store.keys)
            store.keys.round_key(segment.place.generation, segment.place.index)
        except HistoryError:
            continue
        yield segment


def _sorted_out(
    segments: Iterator[Segment],
) -> tuple[dict[int, Segment], Segment | None]:
    """Return the rounds and the tip; of two files of a round the thinner is newer."""
    rounds: dict[int, Segment] = {}
    tip: Segment | None = None
    for segment in segments:
        index = segment.place.index
        if "record" in segment.facts:
            known = rounds.get(index)
            if known is None or segment.raw.size < known.raw.size:
                rounds[index] = segment
        elif tip is None or _age(segment) > _age(tip):
            tip = segment
    return rounds, tip


def _age(tip: Segment) -> tuple[int, int, int]:
    return tip.place.generation, tip.place.index, -tip.raw.size


def _tip_file(tip: Segment) -> TipFile:
    return TipFile(tip.place.index - 1, tip.place.generation, tip.written)


def _named_in(segment: Segment) -> frozenset[ClientId]:
    record = read_facts(segment)
    aside = {s.client for s in record.set_aside if s.client is not None}
    return frozenset({*record.clients, *record.asked, *aside})


def _insert(store: Store, segment: Segment) -> None:
    record = read_facts(segment)
    owners = segment.parts["updates"].owners if "updates" in segment.parts else ()
    where = {owner: row for row, owner in enumerate(owners)}
    rows = [where.get(client) for client in record.clients]
    generation = segment.place.generation
    has_broadcast = "broadcast" in segment.parts
    store.table.insert(record, generation, segment.written, rows, has_broadcast)
    remaining = without(record, store.withdrawn)  # those who still have a key
    store.index.add_entry(round_entry(store, remaining, segment.written))


def read_facts(segment: Segment) -> RoundRecord:
    """Return the round a file's header speaks of, without its arrays."""
    facts = json.loads(segment.facts["record"])
    felt = facts["sensitivities"]
    return RoundRecord(
        index=segment.place.index,
        clients=tuple(facts["clients"]),
        num_examples=np.array(facts["num_examples"], np.int64),
        num_steps=np.array(facts["num_steps"], np.int64),
        num_samples=np.array(facts["num_samples"], np.int64),
        asked=tuple(facts["asked"]),
        set_aside=tuple(SetAside(*pair) for pair in facts["set_aside"]),
        sensitivities=None if felt is None else np.array(felt),
        loss=facts["loss"],
        seconds=facts["seconds"],
        arrays=ArraysInMemory(np.empty(0, np.float32), np.empty((0, 0), np.float32)),
    )
