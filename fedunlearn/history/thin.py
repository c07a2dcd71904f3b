"""Keeping less of what was recorded: retention, and erasure of a client's own rows."""

import json
from collections.abc import Mapping, Sequence

from fedunlearn.history.append import note_bytes, payload_bytes
from fedunlearn.history.files import remove_stray, sync_folder
from fedunlearn.history.record import ClientId
from fedunlearn.history.retention import Keep
from fedunlearn.history.segment import Segment
from fedunlearn.history.segment_write import copy_segment
from fedunlearn.history.settings import TipFile
from fedunlearn.history.store import SEGMENTS, Store


def thin_round(
    store: Store, index: int, keep: Keep, forget: frozenset[ClientId] = frozenset()
) -> None:
    """Keep less of a recorded round from now on; nothing is opened for it.

    Args:
        store: The history.
        index: The round.
        keep: What stays of what is there.
        forget: Clients whose counts go from the file as well.
    """
    head = store.table.head(index)
    if head is None or head.written is None:
        return
    segment = store.open_file(head.written)
    kept = _rows_to_keep(segment, keep)
    facts = facts_without(segment.facts["record"], forget)
    stored = {name: len(part.owners) for name, part in segment.parts.items()}
    same = {name: len(rows) for name, rows in kept.items()} == stored
    if same and facts == segment.facts["record"]:
        return
    with store.changing(f"thinning round {index}"):
        written = None
        if kept:
            written = copy_segment(
                store.files,
                store.new_path("round", index),
                segment,
                kept,
                {"record": facts, "codec": segment.facts["codec"]},
                store.keys,
                "thin.round",
            )
            sync_folder(store.files, store.folder / SEGMENTS)
        store.files.reached("thin.durable")
        owners = segment.parts["updates"].owners if "updates" in segment.parts else ()
        held = [owners[row] for row in kept.get("updates", ())]
        lost = payload_bytes(
            store,
            len(owners) - len(held),
            len(segment.parts.keys() & {"broadcast"})
            - len(kept.keys() & {"broadcast"}),
            0,
        )
        with store.index.transaction(store.files, "thin"):
            note_bytes(store, -lost)
            store.table.point_to(
                index, written, [c for c in held if c is not None], "broadcast" in kept
            )
            seal = None if written is None else written.seal
            store.index.add_entry({"type": "thin", "round": index, "seal": seal})
        remove_stray(store.files, store.path(head.written))


def thin_tip(store: Store, gone: frozenset[ClientId]) -> None:
    """Rewrite the tip without the running sums of some clients."""
    tip = store.tip_file
    if tip is None or tip.written is None:
        return
    segment = store.open_file(tip.written)
    if "sums" not in segment.parts or not gone & set(segment.parts["sums"].owners):
        return
    kept: dict[str, Sequence[int]] = {"state": [0]}
    owners = segment.parts["sums"].owners
    kept["sums"] = [row for row, owner in enumerate(owners) if owner not in gone]
    path = store.new_path("tip", tip.round)
    written = copy_segment(
        store.files, path, segment, kept, {}, store.keys, "thin.round"
    )
    sync_folder(store.files, store.folder / SEGMENTS)
    with store.index.transaction(store.files, "thin"):
        lost = len(owners) - len(kept["sums"])
        note_bytes(store, -payload_bytes(store, 0, 0, lost))
        new = TipFile(tip.round, tip.generation, written)
        store.index.set_meta("tip", new.to_json())
        entry = {"type": "thin", "round": tip.round + 1, "seal": written.seal}
        store.index.add_entry(entry)
    remove_stray(store.files, store.path(tip.written))


def _rows_to_keep(segment: Segment, keep: Keep) -> Mapping[str, Sequence[int]]:
    kept: dict[str, Sequence[int]] = {}
    for name, part in segment.parts.items():
        if name == "updates":
            wanted = [
                row
                for row, owner in enumerate(part.owners)
                if keep.updates is None or owner in keep.updates
            ]
            if wanted:
                kept[name] = wanted
        elif keep.broadcast:
            kept[name] = range(len(part.owners))
    return kept


def facts_without(facts: str, gone: frozenset[ClientId]) -> str:
    """Return the facts of a round without some of its clients."""
    if not gone:
        return facts
    fields = json.loads(facts)
    stays = [at for at, client in enumerate(fields["clients"]) if client not in gone]
    for name in (
        "clients",
        "num_examples",
        "num_steps",
        "num_samples",
        "sensitivities",
    ):
        if fields[name] is not None:
            fields[name] = [fields[name][at] for at in stays]
    fields["asked"] = [client for client in fields["asked"] if client not in gone]
    fields["set_aside"] = [pair for pair in fields["set_aside"] if pair[0] not in gone]
    return json.dumps(fields)
