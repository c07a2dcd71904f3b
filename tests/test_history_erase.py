"""What an erasure takes away, what it leaves, and what of it can still be found.

The scans look at the files of a history's folder. What a medium keeps of overwritten
bytes, and copies an operator made, no program can reach: the promise rests on keys that
are destroyed, and the tests of copies say exactly which ones it does not cover.
"""

import base64
import hashlib
import hmac
import json
import shutil
import sqlite3
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedunlearn.errors import DamagedError, HistoryError, RequestError
from fedunlearn.history import (
    ArraysInMemory,
    DiskHistory,
    InMemoryHistory,
    ServerState,
    SetAside,
)
from fedunlearn.history.keys import KeyFiles
from fedunlearn.history.log import faults
from fedunlearn.history.repair import repair
from fedunlearn.history.seal import Keys
from fedunlearn.history.segment import open_segment
from fedunlearn.history.witness import commitments, pseudonym
from fedunlearn.params import Layout
from tests.history_helpers import LATE, LAYOUT, a_record, a_state

LEAVER, STAYS = 3, (0, 7)
WHO = (0, 3, 7)
NAMES = {0: "Ada", 3: "Bartholomew-the-leaver", 7: "Cyd"}
PARTS = {1: (0, 7), 2: WHO, 3: (0, 7), 4: WHO}
"""Who takes part when: the leaver comes in round 2."""
CLEAN = a_state(99)


def grow(history, rounds=PARTS):
    for index, clients in rounds.items():
        history.append_round(a_record(index, clients), a_state(index))
    return history


@pytest.fixture(params=["memory", "disk"])
def history(request, tmp_path):
    """A history of four rounds, in memory and on disk."""
    if request.param == "memory":
        yield grow(InMemoryHistory(LAYOUT))
        return
    with DiskHistory.create(tmp_path / "h", LAYOUT, names=NAMES) as disk:
        yield grow(disk)


@pytest.fixture
def disk(tmp_path):
    with DiskHistory.create(tmp_path / "history", LAYOUT, names=NAMES) as history:
        yield grow(history)


def same_state(one, other):
    pairs = ((one.arrays, other.arrays), (one.rule, other.rule))
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert array.tobytes() == theirs[name].tobytes()
    assert one.random == other.random
    return True


def same_round(found, true, clients, asked=None):
    """Check that a round holds these clients, each with what was recorded of it."""
    assert found.clients == found.kept == clients
    assert found.dropped == frozenset()
    assert found.updates.tobytes() == true.updates_of(clients).tobytes()
    assert found.num_examples.tolist() == true.examples_of(clients).tolist()
    rows = [true.clients.index(client) for client in clients]
    assert found.num_steps.tolist() == true.num_steps[rows].tolist()
    assert found.num_samples.tolist() == true.num_samples[rows].tolist()
    assert found.broadcast.tobytes() == true.broadcast.tobytes()
    assert same_state(found.arrays.state(), true.arrays.state())
    assert (found.loss, found.seconds) == (true.loss, true.seconds)
    assert found.asked == ((*clients, LATE) if asked is None else asked)
    return True


def in_order(history):
    if isinstance(history, InMemoryHistory):
        return True
    assert [f.what for f in history.check(read_data=True)] == []
    assert list(faults(history._store.index.log())) == []
    return True


# --- with a clean model ---------------------------------------------------------------


def test_with_a_clean_model_only_the_rounds_before_the_client_stay(history):
    history.erase([LEAVER], CLEAN)
    assert history.rounds == (1,)
    assert same_round(history.round(1), a_record(1, STAYS), STAYS)
    assert history.tip.round == 4
    assert same_state(history.tip.state, CLEAN)
    assert history.withdrawn == {LEAVER}
    assert history.clients == STAYS
    assert history.rounds_of(LEAVER) == ()
    assert history.rounds_of(0) == (1,)
    assert history.holds.updates == history.holds.broadcasts == {1}
    assert in_order(history)
    with pytest.raises(HistoryError, match="round 2 was not recorded"):
        history.round(2)


def test_the_federation_goes_on_where_it_stood(history):
    history.erase([LEAVER], CLEAN)
    for index in (2, 4):
        with pytest.raises(HistoryError, match=f"round {index} cannot follow round 4"):
            history.append_round(a_record(index, STAYS))
    history.append_round(a_record(5, STAYS), a_state(5))
    assert history.rounds == (1, 5)
    assert same_round(history.round(5), a_record(5, STAYS), STAYS)
    assert same_state(history.tip.state, a_state(5))
    assert in_order(history)


def test_an_erased_client_cannot_be_recorded_again(history):
    for state in (None, CLEAN):
        history.erase([LEAVER], state)
        with pytest.raises(HistoryError, match="client 3 was erased from this history"):
            history.append_round(a_record(9, WHO))
        with pytest.raises(HistoryError, match="client 3 was erased"):
            history.append_round(a_record(9, (3,)))
    assert history.tip.round == 4
    history.append_round(a_record(9, STAYS))


def test_what_is_destroyed_is_reported(disk):
    size = sum(p.stat().st_size for p in (disk.folder / "segments").iterdir())
    done = disk.erase([LEAVER], CLEAN, reason="they asked")
    left = sum(p.stat().st_size for p in (disk.folder / "segments").iterdir())
    assert (done.clients, done.updates, done.rounds) == ((3,), 2, (2, 3, 4))
    assert done.contaminated == ()
    assert done.nbytes == size - left > 0
    entry = json.loads(disk._store.index.last_entry().body)
    assert (entry["type"], entry["reason"]) == ("erased", "they asked")


# --- without one ----------------------------------------------------------------------


def test_without_a_model_only_the_clients_own_updates_go(history):
    history.erase([LEAVER])
    assert history.rounds == (1, 2, 3, 4)
    for index, clients in PARTS.items():
        assert same_round(history.round(index), a_record(index, clients), STAYS)
    assert history.tip.round == 4
    assert same_state(history.tip.state, a_state(4))
    assert history.withdrawn == {LEAVER}
    assert history.clients == STAYS
    assert history.rounds_of(LEAVER) == ()
    assert history.holds.updates == {1, 2, 3, 4}
    assert in_order(history)
    history.append_round(a_record(5, STAYS), a_state(5))
    assert in_order(history)


def test_rounds_that_hold_what_came_of_the_client_are_named(disk):
    done = disk.erase([LEAVER])
    assert (done.clients, done.updates, done.rounds) == ((3,), 2, ())
    assert done.contaminated == (2, 3, 4)


def test_a_client_alone_in_a_round_leaves_an_empty_one(history):
    history.append_round(a_record(5, (LEAVER,)), a_state(5))
    history.erase([LEAVER])
    record = history.round(5)
    assert same_round(record, a_record(5, (LEAVER,)), ())
    assert record.updates.shape == (0, LAYOUT.size)
    assert in_order(history)


def test_a_client_that_was_asked_and_never_answered_is_no_longer_named(history):
    """Before its first round and in none: the files are rewritten all the same."""
    history.append_round(
        replace(
            a_record(5, STAYS),
            asked=(0, 7, LATE, 60),
            set_aside=(SetAside(60, "sixty"), SetAside(LATE, "late"), SetAside(0, "")),
        )
    )
    history.erase([60])
    assert history.withdrawn == {60}
    assert history.rounds == (1, 2, 3, 4, 5)
    assert history.round(5).asked == (0, 7, LATE)
    assert history.round(5).set_aside == (SetAside(LATE, "late"), SetAside(0, ""))
    history.erase([LATE], CLEAN)
    assert [history.round(i).asked for i in (1, 2, 5)] == [STAYS, WHO, (0, 7)]
    assert history.round(5).set_aside == (SetAside(0, ""),)
    assert history.round(1).set_aside == ()
    assert same_state(history.tip.state, CLEAN)
    assert in_order(history)


# --- several clients, all, nobody, again ----------------------------------------------


@pytest.mark.parametrize("clients", [[0, 3], (3, 0), {np.int64(0), np.int64(3)}])
def test_several_clients_go_at_once(history, clients):
    history.erase(clients)
    assert history.withdrawn == {0, 3}
    for index in PARTS:
        true = a_record(index, PARTS[index])
        assert same_round(history.round(index), true, (7,))
    assert in_order(history)


def test_several_clients_go_one_after_the_other(history):
    history.erase([LEAVER])
    history.erase([0], CLEAN)
    assert history.withdrawn == {0, LEAVER}
    assert history.rounds == ()
    assert history.clients == ()
    history.append_round(a_record(5, (7, 9)), a_state(5))
    history.erase([9])
    assert same_round(history.round(5), a_record(5, (7, 9)), (7,))
    history.erase([7, 8], ServerState())
    assert history.withdrawn == {0, 3, 7, 8, 9}
    assert history.rounds == ()
    assert same_state(history.tip.state, ServerState())
    assert in_order(history)


def test_with_a_clean_model_the_earliest_of_several_counts(history):
    history.append_round(a_record(5, (7, 9)), a_state(5))
    history.erase([9, LEAVER], CLEAN)
    assert history.rounds == (1,)
    assert in_order(history)


@pytest.mark.parametrize("state", [None, CLEAN], ids=["own", "clean"])
def test_everybody_can_go(history, state):
    history.erase(WHO, state)
    assert history.clients == ()
    assert history.withdrawn == set(WHO)
    assert history.rounds == (() if state else (1, 2, 3, 4))
    for index in history.rounds:
        assert same_round(history.round(index), a_record(index, PARTS[index]), ())
    assert in_order(history)
    history.append_round(a_record(5, (8,)))
    assert in_order(history)


@pytest.mark.parametrize("state", [None, CLEAN], ids=["own", "clean"])
def test_a_client_that_never_took_part_is_kept_out_from_now_on(history, state):
    history.erase([8], state)
    assert history.withdrawn == {8}
    assert history.rounds == (1, 2, 3, 4)
    for index, clients in PARTS.items():
        assert same_round(history.round(index), a_record(index, clients), clients)
    assert same_state(history.tip.state, state or a_state(4))
    assert in_order(history)
    with pytest.raises(HistoryError, match="client 8 was erased"):
        history.append_round(a_record(5, (8,)))


def test_an_erasure_of_nobody_changes_nothing(disk):
    keys, log = files_of(disk.folder)["keys.bin"], disk._store.index.log()
    assert disk.erase([]).clients == ()
    assert disk.erase([], CLEAN).clients == ()
    assert files_of(disk.folder)["keys.bin"] == keys
    assert disk._store.index.log() == log
    assert same_state(disk.tip.state, a_state(4))


def test_an_erasure_can_be_repeated(disk):
    first = disk.erase([LEAVER], CLEAN)
    before = files_of(disk.folder)
    again = disk.erase([LEAVER], a_state(5), reason="again")
    assert (again.clients, again.updates, again.rounds, again.nbytes) == ((), 0, (), 0)
    assert first.clients == (LEAVER,)
    assert files_of(disk.folder) == before
    assert same_state(disk.tip.state, CLEAN)
    both = disk.erase([LEAVER, 0])
    assert both.clients == (0,)
    assert disk.withdrawn == {0, LEAVER}


def test_what_was_erased_before_is_passed_over(history):
    history.erase([LEAVER], CLEAN)
    history.append_round(a_record(5, STAYS), a_state(5))
    for clients in ([], [LEAVER], [np.int64(LEAVER)]):
        history.erase(clients, a_state(77))
        assert history.rounds == (1, 5)
        assert same_state(history.tip.state, a_state(5))
    assert in_order(history)


def test_an_unsealed_history_is_not_erased(tmp_path):
    with DiskHistory.create(tmp_path, LAYOUT, sealed=False) as history:
        grow(history)
        before = files_of(tmp_path)
        with pytest.raises(RequestError, match="is not sealed: there is no key"):
            history.erase([LEAVER], CLEAN)
        assert files_of(tmp_path) == before
        assert history.rounds == (1, 2, 3, 4)
        assert history.withdrawn == frozenset()


@pytest.mark.parametrize("client", [-1, 2**32, 2**70])
def test_an_id_that_can_be_nobodys_is_refused(disk, client):
    before = files_of(disk.folder)
    with pytest.raises(RequestError, match="ids of clients lie between 0 and"):
        disk.erase([LEAVER, client], CLEAN)
    assert files_of(disk.folder) == before


def test_a_reader_cannot_erase(disk):
    disk.close()
    with (
        DiskHistory.open(disk.folder) as reader,
        pytest.raises(HistoryError, match="reading only"),
    ):
        reader.erase([LEAVER])


def test_a_state_that_cannot_be_stored_erases_nobody(disk):
    before = files_of(disk.folder)
    with pytest.raises(HistoryError, match="'a'"):
        disk.erase([LEAVER], ServerState({"a": np.array(["text"])}))
    assert disk.withdrawn == frozenset()
    assert disk.rounds == (1, 2, 3, 4)
    assert files_of(disk.folder).keys() == before.keys()
    disk.close()
    with DiskHistory.open(disk.folder) as history:
        assert history.rounds == (1, 2, 3, 4)
        assert in_order(history)


@pytest.mark.parametrize("state", [None, CLEAN], ids=["own", "clean"])
def test_it_lasts(disk, state):
    disk.erase([LEAVER], state)
    seen = {i: disk.round(i).updates.tobytes() for i in disk.rounds}
    disk.close()
    for write in (False, True, False):
        with DiskHistory.open(disk.folder, write=write) as history:
            assert history.withdrawn == {LEAVER}
            assert {i: history.round(i).updates.tobytes() for i in seen} == seen
            assert history.rounds == tuple(seen)
            assert history.names == {0: "Ada", 7: "Cyd"}
            assert same_state(history.tip.state, state or a_state(4))
            assert in_order(history)
            if write:
                with pytest.raises(HistoryError, match="client 3 was erased"):
                    history.append_round(a_record(9, WHO))


@pytest.mark.parametrize("state", [None, CLEAN], ids=["own", "clean"])
@pytest.mark.parametrize(
    "retention",
    ["all", "every:2", "last:2", "sums", "sensitivities", "crab:0.1,0.5,0.5"],
)
@pytest.mark.parametrize("codec", ["float32", "int8", "top_k:0.5"])
def test_nothing_is_out_of_order_afterwards_whatever_is_kept(
    tmp_path, retention, codec, state
):
    with DiskHistory.create(
        tmp_path, LAYOUT, retention=retention, codec=codec, names=NAMES
    ) as history:
        grow(history)
        kept = {
            (i, c): history.round(i).updates_of([c]).tobytes()
            for i in history.rounds
            for c in history.round(i).kept
        }
        felt = {i: history.round(i).sensitivities for i in history.rounds}
        history.erase([LEAVER], state)
        assert in_order(history)
        nbytes = history.stats().nbytes
        payload = sum(nbytes[k] for k in ("updates", "broadcasts", "sums"))
        assert history.holds.nbytes == payload <= history.holds.peak_bytes
        assert history.rounds == ((1,) if state else (1, 2, 3, 4))
        for index in history.rounds:
            record, true = history.round(index), a_record(index, PARTS[index])
            assert record.clients == STAYS
            assert record.num_examples.tolist() == true.examples_of(STAYS).tolist()
            for client in record.kept:
                found = record.updates_of([client]).tobytes()
                assert found == kept[index, client]
            if retention == "sensitivities":
                rows = [true.clients.index(c) for c in STAYS]
                assert record.sensitivities.tolist() == felt[index][rows].tolist()
        history.append_round(a_record(5, STAYS), a_state(5))
        assert in_order(history)
        secrets = [NAMES[LEAVER].encode()]
        assert not any(s in d for s in secrets for d in files_of(tmp_path).values())
    with DiskHistory.open(tmp_path, write=True) as history:
        assert in_order(history)


# --- running sums ---------------------------------------------------------------------


@pytest.fixture
def sums(tmp_path):
    with DiskHistory.create(tmp_path / "sums", LAYOUT, retention="sums") as history:
        yield grow(history)


def test_the_sums_of_others_stay(sums):
    before = {c: sums.sum_of(c).tobytes() for c in WHO}
    sums.erase([LEAVER])
    for _ in range(2):
        assert {c: sums.sum_of(c).tobytes() for c in STAYS} == {
            c: before[c] for c in STAYS
        }
        with pytest.raises(HistoryError, match="no running sum of client 3"):
            sums.sum_of(LEAVER)
        assert sums.holds.sums_from == 1
        assert same_state(sums.tip.state, a_state(4))
        sums._store.sums = None  # read them anew
    assert in_order(sums)
    sums.append_round(a_record(5, STAYS))
    straight = InMemoryHistory(LAYOUT)
    for index, clients in {**PARTS, 5: STAYS}.items():
        straight.append_round(a_record(index, clients))
    assert sums.sum_of(7).tobytes() == straight.sum_of(7).tobytes()


def test_after_a_clean_model_sums_begin_anew(sums):
    sums.erase([LEAVER], CLEAN)
    assert sums.holds.sums_from == 5
    for client in WHO:
        with pytest.raises(HistoryError, match="no running sum of client"):
            sums.sum_of(client)
    sums.append_round(a_record(5, STAYS))
    fresh = InMemoryHistory(LAYOUT)
    fresh.append_round(a_record(5, STAYS))
    assert sums.sum_of(7).tobytes() == fresh.sum_of(7).tobytes()
    assert in_order(sums)


def test_everybodys_sums_can_go(sums):
    sums.erase(WHO)
    for client in WHO:
        with pytest.raises(HistoryError, match="no running sum"):
            sums.sum_of(client)
    assert in_order(sums)
    sums.append_round(a_record(5, (8,)))
    assert sums.sum_of(8).tobytes() == a_record(5, (8,)).updates[0].tobytes()


def test_a_round_in_which_nobody_answered_can_be_erased_from(tmp_path):
    for retention in ("all", "sums", "sensitivities", "every:2", "last:1"):
        place = tmp_path / retention
        with DiskHistory.create(place, LAYOUT, retention=retention) as history:
            history.append_round(a_record(1, ()), a_state(1))
            history.append_round(a_record(2, ()), a_state(2))
            history.append_round(a_record(3, WHO), a_state(3))
            history.erase([LATE])
            history.erase([LEAVER], CLEAN)
            assert history.rounds == (1, 2)
            assert history.round(1).asked == ()
            assert in_order(history)


# --- keys -----------------------------------------------------------------------------


def files_of(folder):
    """Path -> bytes of every file but SQLite's shared memory and the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "LOCK"))
    }


def lay_out(place, *files):
    """Write files into a new folder, later ones over earlier ones."""
    for name, data in {k: v for some in files for k, v in some.items()}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
        (place / name).chmod(0o600)
    return place


def part_of(files, *names):
    return {k: v for k, v in files.items() if k.startswith(names)}


@pytest.fixture(params=[None, CLEAN], ids=["own", "clean"])
def copies(request, disk):
    """The files of a history before and after an erasure."""
    disk.close()
    before = files_of(disk.folder)
    with DiskHistory.open(disk.folder, write=True) as history:
        history.erase([LEAVER], request.param)
    return before, files_of(disk.folder)


def test_every_erasure_changes_both_key_files(copies):
    before, after = copies
    for name in ("keys.bin", "outer.key"):
        assert before[name] != after[name]
    assert len(after["outer.key"]) == 64
    assert before["outer.key"][:32] not in after["outer.key"]


def test_a_copy_without_its_outer_key_opens_nothing(copies, tmp_path):
    """All of the folder but one file of 64 bytes."""
    before, after = copies
    current = part_of(after, "outer.key")
    with pytest.raises(DamagedError, match="does not open"):
        DiskHistory.open(lay_out(tmp_path / "a", before, current))
    with pytest.raises(DamagedError):
        KeyFiles(tmp_path / "a").read()


def test_a_copy_of_the_ring_alone_opens_nothing(copies, tmp_path):
    before, after = copies
    ring = part_of(before, "keys.bin")
    with pytest.raises(DamagedError, match="does not open"):
        DiskHistory.open(lay_out(tmp_path / "a", after, ring))


def test_a_copy_of_the_outer_key_alone_opens_nothing(copies, tmp_path):
    before, after = copies
    with pytest.raises(DamagedError, match="does not open"):
        DiskHistory.open(lay_out(tmp_path / "a", after, part_of(before, "outer.key")))


def test_old_files_do_not_open_under_the_keys_of_now(copies, tmp_path):
    """A backup of the rounds is worth nothing where the keys are not in it."""
    before, after = copies
    place = lay_out(tmp_path / "a", before, part_of(after, "keys.bin", "outer.key"))
    ring = KeyFiles(place).read()
    keys = Keys(ring.store, ring.clients.key, ring.round_key)
    store = json.loads(ring.settings)["store"]
    for path in sorted((place / "segments").glob("round-*")):
        segment = open_segment(path, store, keys)
        owners = segment.parts["updates"].owners
        clean = 2 in ring.generations
        for row, owner in enumerate(owners):
            if owner == LEAVER or (clean and segment.place.index > 1):
                with pytest.raises(HistoryError, match="destroyed"):
                    segment.rows("updates", [row], keys)
            else:
                segment.rows("updates", [row], keys)
        if clean and segment.place.index > 1:
            for part in ("broadcast", "state"):
                with pytest.raises(HistoryError, match="destroyed"):
                    segment.rows(part, [0], keys)
    # Put back into the folder, they are leftovers, and the next writer removes them.
    place = lay_out(tmp_path / "b", after, part_of(before, "segments"))
    with DiskHistory.open(place) as history:
        assert not any(f.damage for f in history.check(read_data=True))
    with DiskHistory.open(place, write=True) as history:
        assert in_order(history)
    assert files_of(place).keys() == after.keys()


def test_whoever_copied_both_key_files_keeps_what_they_open(copies, tmp_path):
    """The documented hole: asserted, so that the documentation stays honest."""
    before, after = copies
    with DiskHistory.open(lay_out(tmp_path / "a", before)) as history:
        for index, clients in PARTS.items():
            true = a_record(index, clients)
            assert same_round(history.round(index), true, clients)
    keys = part_of(before, "keys.bin", "outer.key")
    place = lay_out(tmp_path / "b", keys, part_of(before, "segments"))
    ring = KeyFiles(place).read()
    found = Keys(ring.store, ring.clients.key, ring.round_key)
    (path,) = (place / "segments").glob("round-000002-*")
    segment = open_segment(path, json.loads(ring.settings)["store"], found)
    row = segment.parts["updates"].owners.index(LEAVER)
    read = segment.rows("updates", [row], found).tobytes()
    assert read == a_record(2, WHO).updates_of([LEAVER]).tobytes()
    # What was erased in place does not come back with the keys.
    place = lay_out(tmp_path / "c", after, keys)
    with DiskHistory.open(place) as history:
        assert LEAVER not in history.clients


def test_no_destroyed_key_is_in_the_ring(copies, tmp_path):
    """Nor a node above it: 32 levels of either tree are walked down."""
    before, after = copies
    old = KeyFiles(lay_out(tmp_path / "a", before)).read()
    new = KeyFiles(lay_out(tmp_path / "b", after)).read()
    path = nodes_above(old.clients.nodes[0][2], LEAVER)
    assert path[-1] == old.clients.key(LEAVER)
    rounds = nodes_above(old.generations[1].nodes[0][2], 2)
    assert rounds[-1] == old.generations[1].key(2)
    text = new.to_json()
    assert not any(node.hex() in text for node in path)
    if 2 in new.generations:
        assert not any(node.hex() in text for node in rounds)
    assert new.clients.key(0) == old.clients.key(0)
    assert new.store == old.store


def nodes_above(root, leaf):
    """Return the 33 nodes from the root to a leaf, as RFC 2104 has it, by hand."""
    out = [root]
    for bit in f"{leaf:032b}":
        message = b"fedunlearn tree" + bytes([int(bit)])
        out.append(hmac.new(out[-1], message, hashlib.sha256).digest())
    return out


# --- bytes ----------------------------------------------------------------------------

SIZE = 96
WIDE = Layout(("w",), ((SIZE,),))
SECRET = 1.0 + np.random.default_rng(7).random((2, SIZE), np.float32)
"""Two updates; no window of 16 bytes of any form occurs twice."""


def bfloat16(row):
    bits = row.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def forms_of(row):
    """Return every form in which an update might lie about."""
    raw, half = row.astype("<f4").tobytes(), row.astype("<f2").tobytes()
    out = {
        "raw": raw,
        "big-endian": row.astype(">f4").tobytes(),
        "float64": row.astype("<f8").tobytes(),
        "float16": half,
        "bfloat16": bfloat16(row),
        "text": ", ".join(map(str, row.tolist())).encode(),
        "zlib": zlib.compress(raw)[6:],
        "zlib of halves": zlib.compress(half)[6:],
    }
    for name in ("raw", "float16", "bfloat16"):
        data = out[name]
        out[f"hex of {name}"] = data.hex().encode()
        out[f"HEX of {name}"] = data.hex().upper().encode()
        for start in range(3):
            out[f"base64 of {name} from {start}"] = base64.b64encode(data[start:])[:-4]
            url = base64.urlsafe_b64encode(data[start:])[:-4]
            out[f"base64url of {name} from {start}"] = url
    return out


WINDOW = 16


def windows(data):
    return {data[at : at + WINDOW] for at in range(len(data) - WINDOW + 1)}


FORMS = [forms_of(row) for row in SECRET]


def found_in(folder, forms=FORMS):
    """Return the forms of which 16 bytes occur in a file of the folder."""
    out = set()
    for data in files_of(folder).values():
        there = windows(data)
        for form in forms:
            out |= {name for name, value in form.items() if windows(value) & there}
    return out


def record_with_secret(index, row=0):
    rest = np.zeros((2, SIZE), np.float32)
    return replace(
        a_record(index, WHO),
        arrays=ArraysInMemory(
            np.zeros(SIZE, np.float32), np.insert(rest, 1, SECRET[row], axis=0)
        ),
    )


def test_the_pattern_is_one_that_can_be_found():
    values = [value for form in FORMS for value in form.values()]
    assert all(len(windows(v)) == len(v) - WINDOW + 1 for v in values)
    # What is stored is what is looked for.
    for row, form in zip(SECRET, FORMS, strict=True):
        assert form["raw"] == row.tobytes()


@pytest.mark.parametrize(
    ("codec", "form"),
    [("float32", "raw"), ("float16", "float16"), ("bfloat16", "bfloat16")],
)
@pytest.mark.parametrize("retention", ["all", "last:1", "sums"])
def test_no_bytes_of_an_update_are_found(tmp_path, codec, form, retention):
    """Not even before the erasure, and in an unsealed history they are."""
    for sealed in (False, True):
        place = tmp_path / str(sealed)
        with DiskHistory.create(
            place, WIDE, sealed=sealed, codec=codec, retention=retention, names=NAMES
        ) as history:
            alone = replace(
                record_with_secret(1),
                clients=(LEAVER,),
                num_examples=np.array([5]),
                num_steps=np.array([5]),
                num_samples=np.array([5]),
                arrays=ArraysInMemory(np.zeros(SIZE, np.float32), SECRET[:1]),
            )
            history.append_round(alone, a_state(1))
            if retention == "sums":  # a share of 1: the sum is the update
                form = "raw"
            expected = set() if sealed else {form}
            assert found_in(place) == expected
            history.append_round(record_with_secret(2, 1), a_state(2))
            if not sealed:
                continue
            assert found_in(place) == set()
            history.erase([LEAVER])
            assert found_in(place) == set()
            history.append_round(a_record_of_zeros(3), a_state(3))
        assert found_in(place) == set()


def a_record_of_zeros(index):
    return replace(
        a_record(index, STAYS),
        arrays=ArraysInMemory(
            np.zeros(SIZE, np.float32), np.zeros((2, SIZE), np.float32)
        ),
    )


NUMBERS = {
    "num_examples": 0x0123_4567_89AB,
    "num_steps": 0x0BAD_F00D_CAFE,
    "num_samples": 0x0F0E_D0C0_B0A0,
}
FELT = 1234.56789


def forms_of_number(number):
    size = 6
    return {
        str(number).encode(),
        number.to_bytes(size, "big"),
        number.to_bytes(size, "little"),
    }


def told_of_the_leaver(folder):
    """Return what of the client's name, numbers and id is in a file."""
    wanted = {"name": {NAMES[LEAVER].encode(), NAMES[LEAVER].encode("utf-16-le")}}
    wanted |= {name: forms_of_number(n) for name, n in NUMBERS.items()}
    felt = np.float64(FELT)
    wanted["felt"] = {repr(FELT).encode(), felt.tobytes(), felt.byteswap().tobytes()}
    wanted["id"] = {b"1193046", (1193046).to_bytes(4, "big")}
    wanted["reason"] = {b"tardiness-of-3"}
    every = b"\n".join(files_of(folder).values())
    return {name for name, forms in wanted.items() if any(f in every for f in forms)}


WHAT_IS_TOLD = {"name", *NUMBERS, "felt", "id", "reason"}
ODD = 1193046
"""An id whose four bytes are not found by chance."""


def record_with_numbers(index):
    clients = (0, 7, ODD)
    felt = np.array([1.0, 2.0, FELT])
    counts = {name: np.array([1, 2, n]) for name, n in NUMBERS.items()}
    return replace(
        a_record(index, clients),
        asked=clients,
        set_aside=(SetAside(ODD, "tardiness-of-3"),),
        sensitivities=felt,
        **counts,
    )


@pytest.mark.parametrize("state", [None, CLEAN], ids=["own", "clean"])
@pytest.mark.parametrize("retention", ["all", "sums", "every:2", "last:1"])
@pytest.mark.parametrize("closed", [False, True])
def test_no_name_and_no_count_is_found(tmp_path, retention, state, closed):
    """Neither in the index, its free pages and its log, nor in a file's header."""
    names = {0: "Ada", ODD: NAMES[LEAVER]}
    with DiskHistory.create(
        tmp_path, LAYOUT, retention=retention, names=names
    ) as history:
        for index in (1, 2, 3):
            history.append_round(record_with_numbers(index), a_state(index))
        for index in range(4, 40):  # more than a page of others
            history.append_round(a_record(index, STAYS))
        assert told_of_the_leaver(tmp_path) == WHAT_IS_TOLD
        history.erase([ODD], state, reason="they asked")
        if not closed:
            assert told_of_the_leaver(tmp_path) == set()
    assert told_of_the_leaver(tmp_path) == set()
    with DiskHistory.open(tmp_path, write=True) as history:
        assert in_order(history)
        assert history.names == {0: "Ada"}
    assert told_of_the_leaver(tmp_path) == set()


def test_in_the_middle_of_a_reading_an_erasure_says_what_lingers(disk):
    """The keys are gone; the old rows are in SQLite's log until it can be emptied."""
    folder, name = disk.folder, NAMES[LEAVER].encode()
    reading = sqlite3.connect(folder / "index.db", isolation_level=None)
    reading.execute("BEGIN")
    reading.execute("SELECT * FROM clients").fetchall()
    with pytest.raises(HistoryError, match="is being read by another process"):
        disk.erase([LEAVER], CLEAN)
    assert disk.withdrawn == {LEAVER}
    assert disk.rounds == (1,)
    assert any(name in data for data in files_of(folder).values())
    reading.close()
    disk.erase([LEAVER])  # again: it only tidies up
    assert not any(name in data for data in files_of(folder).values())
    disk.close()
    with DiskHistory.open(folder, write=True) as history:
        assert in_order(history)


def test_a_client_that_was_only_asked_leaves_no_trace(tmp_path):
    with DiskHistory.create(tmp_path, LAYOUT, names={ODD: NAMES[LEAVER]}) as history:
        record = replace(
            a_record(1, STAYS),
            asked=(*STAYS, ODD),
            set_aside=(SetAside(ODD, "tardiness-of-3"),),
        )
        history.append_round(record)
        history.append_round(replace(record, index=2))
        assert told_of_the_leaver(tmp_path) == {"name", "id", "reason"}
        history.erase([ODD])
        assert told_of_the_leaver(tmp_path) == set()
        assert in_order(history)


def test_deleted_rows_are_overwritten_whatever_sqlite_was_built_for(
    tmp_path, monkeypatch
):
    """Debian's does so anyway: here only what is asked of it can be looked at."""
    asked = []

    class Listening(sqlite3.Connection):
        def execute(self, statement, *values):
            asked.append(statement)
            return super().execute(statement, *values)

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", partial(real, factory=Listening))
    wanted = {"PRAGMA secure_delete=ON", "PRAGMA synchronous=FULL"}
    DiskHistory.create(tmp_path, LAYOUT).close()
    assert {asked.count(statement) for statement in wanted} == {2}  # made, opened
    asked.clear()
    DiskHistory.open(tmp_path, write=True).close()
    assert wanted < set(asked)


def test_no_name_is_found_in_the_quarantine(disk):
    disk.close()
    raw = bytearray((disk.folder / "index.db").read_bytes())
    raw[-1] ^= 1
    (disk.folder / "index.db").write_bytes(raw)
    repair(disk.folder)
    with DiskHistory.open(disk.folder, write=True) as history:
        history.erase([LEAVER])
    assert not any(
        NAMES[LEAVER].encode() in data for data in files_of(disk.folder).values()
    )


# --- the log --------------------------------------------------------------------------


def entries_of(history):
    return [json.loads(entry.body) for entry in history._store.index.log()]


@pytest.mark.parametrize("state", [None, CLEAN], ids=["own", "clean"])
def test_the_log_goes_on_and_verifies(disk, state):
    head = disk.stats().head
    before = disk._store.index.log()
    disk.erase([LEAVER], state, reason="they asked")
    log = disk._store.index.log()
    assert log[: len(before)] == before
    assert list(faults(log, head)) == []
    assert list(faults(log)) == []
    kinds = [entry["type"] for entry in entries_of(disk)]
    assert kinds[:4] == ["round"] * 4
    assert kinds[4] == "unlearned"
    assert kinds[-1] == "erased"
    assert kinds[5:-1] == ([] if state else ["thin", "thin"])
    erased = entries_of(disk)[-1]
    assert erased["rounds"] == ([2, 3, 4] if state else [])
    unlearned = entries_of(disk)[4]
    assert unlearned["generation"] == (2 if state else 1)
    assert unlearned["first"] == (2 if state else None)
    assert disk.stats().generation == unlearned["generation"]
    assert erased["clients"] == entries_of(disk)[4]["clients"]
    assert len(erased["clients"]) == 1


def test_before_the_erasure_the_client_can_be_shown_in_the_log(disk):
    keys = disk._store.keys
    (_, entry, *_) = entries_of(disk)
    assert [pseudonym(keys, c) for c in WHO] == [name for name, _ in entry["clients"]]
    seal = entry["seal"]
    for client, (_, commitment) in zip(WHO, entry["clients"], strict=True):
        assert commitments(keys, client, 2, seal) == commitment
        key = hmac.digest(keys.client_key(client), b"fedunlearn log", "sha256")
        by_hand = hmac.digest(key, f"update|2|{seal}".encode(), "sha256")
        assert by_hand[:16].hex() == commitment
    assert len({name for name, _ in entry["clients"]}) == 3


def all_remaining_keys(history):
    """Return every key that is left, and leaves near the destroyed ones."""
    ring = KeyFiles(history.folder).read()
    outer = (history.folder / "outer.key").read_bytes()
    out = {ring.store, outer[:32], outer[32:], bytes(32)}
    for tree in (ring.clients, *ring.generations.values()):
        out |= {key for _, _, key in tree.nodes}
        out |= {tree.key(i) for i in range(64) if tree.covers(i)}
    return out


def macs_under(key, seals):
    """Return all that the log could say of a client with this key."""
    keys = Keys(bytes(32), lambda _: key, lambda *_: key)
    of_rounds = {commitments(keys, 0, i, seal) for i in range(6) for seal in seals}
    return of_rounds | {pseudonym(keys, 0)}


def values_in_log(history):
    """Return pseudonyms and commitments, the seals, and the pairs of each entry."""
    entries = entries_of(history)
    seals = {entry.get("seal") or "" for entry in entries}
    pairs = [
        v for e in entries if e["type"] == "round" for p in e["clients"] for v in p
    ]
    alone = [v for e in entries if e["type"] != "round" for v in e.get("clients", ())]
    return {*pairs, *alone}, seals


@pytest.mark.parametrize("state", [None, CLEAN], ids=["own", "clean"])
def test_afterwards_no_key_links_the_log_to_the_client(disk, state):
    lost = disk._store.ring.clients.key(LEAVER)
    logged, seals = values_in_log(disk)
    of_leaver = macs_under(lost, seals) & logged
    assert len(of_leaver) == 1 + 2  # a pseudonym, and a commitment a round
    disk.erase([LEAVER], state)
    logged, more = values_in_log(disk)
    assert of_leaver <= logged  # the log still says that somebody took part
    keys = all_remaining_keys(disk)
    assert len(keys) > 64
    assert lost not in keys
    possible = {v for key in keys for v in macs_under(key, seals | more)}
    assert not possible & of_leaver
    assert len(possible & logged) == 2 + 8  # those of the others: the search finds
    with pytest.raises(HistoryError, match="the key of client 3 was destroyed"):
        pseudonym(disk._store.keys, LEAVER)


@pytest.mark.parametrize("state", [None, CLEAN], ids=["own", "clean"])
def test_no_plain_hash_of_an_update_is_anywhere(disk, state):
    """A simulation can be run again: a hash would confirm what was erased."""
    plain = [a_record(index, WHO).updates_of([LEAVER])[0] for index in (2, 4)]
    hashes = {
        digest(data)
        for row in plain
        for data in forms_of(row).values()
        for digest in (
            lambda d: hashlib.sha256(d).digest(),
            lambda d: hashlib.sha1(d).digest(),  # noqa: S324 - to be found, not used
            lambda d: hashlib.md5(d).digest(),  # noqa: S324
            lambda d: hashlib.blake2b(d).digest(),
        )
    }
    wanted = hashes | {h.hex().encode() for h in hashes}
    wanted |= {h[:16] for h in hashes} | {h[:16].hex().encode() for h in hashes}
    for moment in range(2):
        every = b"\n".join(files_of(disk.folder).values())
        assert not any(value in every for value in wanted)
        if moment == 0:
            disk.erase([LEAVER], state)


def test_the_log_names_nobody(disk):
    disk.erase([LEAVER], CLEAN, reason="they asked")
    text = json.dumps(entries_of(disk))
    assert not any(name in text for name in NAMES.values())
    assert "num_examples" not in text


def test_two_histories_share_no_pseudonym(tmp_path, disk):
    """Who leaves one federation is not found by the log of another."""
    with DiskHistory.create(tmp_path / "other", LAYOUT) as other:
        grow(other)
        ours = {n for e in entries_of(disk) for n, _ in e.get("clients", ())}
        theirs = {n for e in entries_of(other) for n, _ in e.get("clients", ())}
    assert len(ours) == len(theirs) == 3
    assert not ours & theirs


def test_nobody_is_erased_from_a_copy_by_mistake(disk, tmp_path):
    """An erasure reaches the folder it is asked of, and no copy of it."""
    disk.close()
    copy = Path(shutil.copytree(disk.folder, tmp_path / "copy"))
    with DiskHistory.open(disk.folder, write=True) as history:
        history.erase([LEAVER], CLEAN)
    with DiskHistory.open(copy) as history:
        assert history.rounds == (1, 2, 3, 4)
        assert in_order(history)
