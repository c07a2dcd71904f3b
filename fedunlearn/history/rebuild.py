"""A new index from the files of a history: their headers hold all that a row does."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedunlearn.errors import HistoryError
from fedunlearn.history.append import note_bytes, payload_bytes, round_entry
from fedunlearn.history.files import Files
from fedunlearn.history.index import Index
from fedunlearn.history.keys import KeyRing
from fedunlearn.history.record import ArraysInMemory, RoundRecord, SetAside
from fedunlearn.history.segment import Segment, open_segment
from fedunlearn.history.store import (
    INDEX,
    SEGMENTS,
    Settings,
    Store,
    TipFile,
    first_meta,
)


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
        with index.transaction(files, "append"):
            index.add_entry({"type": "rebuilt"})
            index.set_meta("generation", str(max(ring.generations)))
            index.set_meta("tip", tip.to_json() if tip else "")
            for number in sorted(rounds):
                _insert(store, rounds[number])
            updates, broadcasts = store.table.held()
            note_bytes(store, payload_bytes(store, updates, broadcasts, 0))
    finally:
        index.close()


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
) -> tuple[dict[int, Segment], TipFile | None]:
    """Return the rounds and the tip; of two files of a round the thinner is newer."""
    rounds: dict[int, Segment] = {}
    tip: TipFile | None = None
    for segment in segments:
        index, generation = segment.place.index, segment.place.generation
        if "record" in segment.facts:
            known = rounds.get(index)
            if known is None or segment.raw.size < known.raw.size:
                rounds[index] = segment
        elif tip is None or index > tip.round:
            tip = TipFile(index - 1, generation, segment.written)
    return rounds, tip


def _insert(store: Store, segment: Segment) -> None:
    record = read_facts(segment)
    owners = segment.parts["updates"].owners if "updates" in segment.parts else ()
    where = {owner: row for row, owner in enumerate(owners)}
    rows = [where.get(client) for client in record.clients]
    generation = segment.place.generation
    has_broadcast = "broadcast" in segment.parts
    store.table.insert(record, generation, segment.written, rows, has_broadcast)
    store.index.add_entry(round_entry(store, record, segment.written))


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
