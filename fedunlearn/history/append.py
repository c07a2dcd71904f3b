"""Appending a round: files first, all synced, then one transaction."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedunlearn.history.accept import accepted
from fedunlearn.history.files import remove_stray, sync_folder
from fedunlearn.history.record import ClientId, RoundRecord, ServerState
from fedunlearn.history.retention import Keep, loss_of
from fedunlearn.history.seal import Bytes, Part, Written
from fedunlearn.history.segment_write import write_segment
from fedunlearn.history.settings import TipFile
from fedunlearn.history.shares import add_shares, sensitivities
from fedunlearn.history.state import pack_state
from fedunlearn.history.store import SEGMENTS, Store
from fedunlearn.history.witness import commitments, pseudonym
from fedunlearn.params import Matrix, Vector


def append_round(store: Store, record: RoundRecord, state: ServerState | None) -> None:
    """Commit a round and where the server stands after it."""
    record = _accepted(store, record)
    settings = store.settings
    if settings.retention.losses:
        loss_of(record)
    if settings.retention.sensitivities and record.sensitivities is None:
        record = _with_sensitivities(record)
    ends = store.table.first_and_last()
    keep = settings.retention.at_append(record.index, ends[0] if ends else record.index)
    after = None if state is None else state_part(state)
    with store.changing(f"recording round {record.index}"):
        written, rows = _write_round(store, record, keep)
        sums, tip = _write_tip(store, record, after)
        if written is not None or tip.written is not None:
            sync_folder(store.files, store.folder / SEGMENTS)
        store.files.reached("append.durable")
        old = store.tip_file
        with store.index.transaction(store.files, "append"):
            store.table.insert(record, store.generation, written, rows, keep.broadcast)
            store.index.set_meta("tip", tip.to_json())
            held = sum(row is not None for row in rows)
            new_sums = len(sums or ()) - len(store.sums or ())
            note_bytes(store, payload_bytes(store, held, keep.broadcast, new_sums))
            store.index.add_entry(round_entry(store, record, written))
        store.sums = sums
        if old is not None and old.written is not None:
            remove_stray(store.files, store.path(old.written))
        store.files.reached("append.done")


def _accepted(store: Store, record: RoundRecord) -> RoundRecord:
    """Return the round in plain numbers, or raise HistoryError if it cannot follow."""
    tip, ends = store.tip_file, store.table.first_and_last()
    last = max(ends[1] if ends else 0, tip.round if tip else 0)
    return accepted(record, store.settings.layout, last, store.withdrawn)


def note_bytes(store: Store, change: int) -> None:
    """Add to the payload bytes inside a transaction; raise the peak if need be."""
    nbytes = int(store.index.meta("nbytes")) + change
    store.index.set_meta("nbytes", str(nbytes))
    peak = max(int(store.index.meta("peak_bytes")), nbytes)
    store.index.set_meta("peak_bytes", str(peak))


def payload_bytes(store: Store, updates: int, broadcasts: int, sums: int) -> int:
    """Return the bytes of so many updates, broadcasts and running sums."""
    layout = store.settings.layout
    row = store.settings.codec.row_bytes(layout)
    return updates * row + (broadcasts + sums) * 4 * layout.size


def _with_sensitivities(record: RoundRecord) -> RoundRecord:
    if not record.clients:
        return record
    felt = sensitivities(record.updates, record.num_examples)
    return replace(record, sensitivities=felt)


def _write_round(
    store: Store, record: RoundRecord, keep: Keep
) -> tuple[Written | None, list[int | None]]:
    """Write what is kept of a round; return the file and each client's row in it."""
    everybody = keep.updates is None
    held = [c for c in record.clients if everybody or c in (keep.updates or ())]
    parts = []  # the state is last: its odd size would leave the matrix unaligned
    if keep.broadcast:
        broadcast = _bytes_of(record.broadcast[None])
        parts.append(_server_part("broadcast", "F32", broadcast))
    if held:
        rows = record.updates if everybody else record.updates_of(held)
        codec, layout = store.settings.codec, store.settings.layout
        encoded = codec.encode(np.ascontiguousarray(rows), layout)
        parts.append(Part("updates", codec.dtype, encoded, tuple(map(int, held))))
    state = pack_state(record.arrays.state())
    if keep.broadcast and state.size:
        parts.append(_server_part("state", "U8", state))
    if not parts:
        return None, [None] * len(record.clients)
    written = write_segment(
        store.files,
        store.new_path("round", record.index),
        store.place(record.index, store.generation),
        parts,
        {"record": record_facts(record), "codec": store.settings.codec.name},
        store.keys,
        "append.round",
    )
    where = {client: row for row, client in enumerate(held)}
    return written, [where.get(client) for client in record.clients]


def _write_tip(
    store: Store, record: RoundRecord, state: Part | None
) -> tuple[dict[ClientId, Vector] | None, TipFile]:
    sums = None
    parts = []
    if store.settings.retention.sums:
        sums = add_shares(store.read_sums(), record)
        nobody = np.empty((0, 4 * store.settings.layout.size), np.uint8)
        rows = [nobody, *(_bytes_of(sums[c][None]) for c in sorted(sums))]
        parts.append(Part("sums", "F32", np.concatenate(rows), tuple(sorted(sums))))
    parts.append(state or state_part(ServerState()))
    written = None
    if state is not None or sums is not None:
        written = write_tip(store, record.index, store.generation, parts, "append.tip")
    return sums, TipFile(record.index, store.generation, written)


def write_tip(
    store: Store, index: int, generation: int, parts: Sequence[Part], step: str
) -> Written:
    """Write the file of a tip; it is sealed with the key of the round that follows."""
    return write_segment(
        store.files,
        store.new_path("tip", index),
        store.place(index + 1, generation),
        parts,
        {},
        store.keys,
        step,
    )


def state_part(state: ServerState) -> Part:
    """Return a server's state as a part of a file."""
    return _server_part("state", "U8", pack_state(state))


def _server_part(name: str, dtype: str, rows: Bytes) -> Part:
    return Part(name, dtype, rows, (None,))


def _bytes_of(rows: Matrix) -> Bytes:
    return np.ascontiguousarray(rows, "<f4").view(np.uint8)


def record_facts(record: RoundRecord) -> str:
    """Return all of a round but its arrays as JSON, to rebuild an index from."""
    felt = record.sensitivities
    return json.dumps(
        {
            "clients": [int(c) for c in record.clients],
            "num_examples": record.num_examples.tolist(),
            "num_steps": record.num_steps.tolist(),
            "num_samples": record.num_samples.tolist(),
            "sensitivities": None if felt is None else felt.tolist(),
            "asked": [int(c) for c in record.asked],
            "set_aside": [[s.client, s.reason] for s in record.set_aside],
            "loss": record.loss,
            "seconds": record.seconds,
        }
    )


def round_entry(
    store: Store, record: RoundRecord, written: Written | None
) -> dict[str, object]:
    """Return the log's entry of a round: keyed commitments, no name and no number."""
    seal = "" if written is None else written.seal
    return {
        "type": "round",
        "round": int(record.index),
        "generation": store.generation,
        "seal": seal,
        "clients": [
            [pseudonym(store.keys, c), commitments(store.keys, c, record.index, seal)]
            for c in record.clients
        ],
    }
