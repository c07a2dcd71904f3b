"""Every byte of a closed history is flipped, every file is cut at every length.

Two small stores are taken apart: three clients, three rounds, a state and names; one
sealed, one not. Whatever is done to a file, either the history does not open, or
reading what it says raises, and what does not raise is what was recorded.

Two facts limit what can be found, and tests below say so: a whole folder put back as it
was is a history that is in order (only a head of its log kept elsewhere shows it), and
without its seal (as after a crash) the index is protected by the log's chain and by
the headers of the files only.
"""

import json
import os
import re
import shutil
import sqlite3
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fedunlearn.errors import DamagedError, HistoryError
from fedunlearn.history import DiskHistory
from fedunlearn.history.check import Finding, _settled
from fedunlearn.history.keys import KeyFiles
from fedunlearn.history.log import faults
from fedunlearn.history.repair import Loss, repair
from fedunlearn.history.seal import mac
from fedunlearn.history.segment import open_segment
from tests.history_helpers import (
    LATE,
    LAYOUT,
    WatchedFiles,
    a_record,
    a_state,
    history_digest,
)

WHO, ROUNDS = (0, 3, 7), (1, 2, 3)
NAMES = {0: "Ada", 3: "Bob", 7: "Cyd"}
KINDS = {"sealed": True, "unsealed": False}
WIDTH = 4 * LAYOUT.size
READERS = ("broadcast", "updates", "state")


def make(folder, *, sealed, rounds=ROUNDS, **settings):
    """Make a closed history; its index has small pages, so that it has few bytes."""
    DiskHistory.create(folder, LAYOUT, sealed=sealed, names=NAMES, **settings).close()
    database = sqlite3.connect(folder / "index.db", isolation_level=None)
    for pragma in ("journal_mode=DELETE", "page_size=512"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("VACUUM")
    database.execute("PRAGMA journal_mode=WAL")
    database.close()
    grow(folder, rounds)
    return folder


def grow(folder, rounds, clients=WHO):
    with DiskHistory.open(folder, write=True) as history:
        for index in rounds:
            history.append_round(a_record(index, clients), a_state(index))


def content(record):
    """Everything a record says, in bytes; raises where it cannot be read."""
    state = record.arrays.state()
    return {
        "who": repr((record.index, record.clients, record.asked, record.set_aside)),
        "numbers": repr((record.loss, record.seconds, record.dropped)),
        "counts": b"".join(
            a.tobytes()
            for a in (record.num_examples, record.num_steps, record.num_samples)
        ),
        "broadcast": record.broadcast.tobytes(),
        "updates": record.updates.tobytes(),
        "state": repr([*state.arrays.items(), *state.rule.items(), state.random]),
    }


def tip_content(tip):
    state = tip.state
    return repr((tip.round, [*state.arrays.items()], [*state.rule.items()]))


ORIGINAL = {index: content(a_record(index, WHO)) for index in ROUNDS}


def files_of(folder):
    """Path -> bytes of every file but those of an open SQLite and the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal", "LOCK"))
    }


def restore(folder, files):
    """Put a folder back as :func:`files_of` found it."""
    for path in folder.rglob("*"):
        if path.is_file() and str(path.relative_to(folder)) not in files:
            path.unlink()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    shutil.rmtree(folder / "quarantine", ignore_errors=True)


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    place = tmp_path_factory.mktemp("stores")
    return {kind: make(place / kind, sealed=s) for kind, s in KINDS.items()}


@pytest.fixture(params=KINDS)
def folder(request, templates, tmp_path):
    """A copy of a closed history."""
    return Path(shutil.copytree(templates[request.param], tmp_path / "history"))


def only(folder, start):
    (path,) = (folder / "segments").glob(f"{start}-*")
    return path


def damage_in(folder):
    """Return the damage that is found, as sentences; opening may end it."""
    try:
        with DiskHistory.open(folder) as history:
            return [f.what for f in history.check(read_data=True) if f.damage]
    except HistoryError as error:
        return [str(error)]


# --- every byte, every length ---------------------------------------------------------


def flips_of(path):
    """Yield ``(position, mask)`` of each flip that is tried on a file."""
    size = path.stat().st_size
    for position in range(size):
        yield position, 1 + position * 37 % 255
    if path.suffix in (".seal", ".safetensors"):
        yield from ((position, 0x20) for position in range(size))


def tried(folder):
    """Return the files that are flipped and cut; the lock is empty."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "LOCK")


def _count(cases):
    with tempfile.TemporaryDirectory() as place:
        stores = [make(Path(place) / kind, sealed=s) for kind, s in KINDS.items()]
        return sum(cases(path) for store in stores for path in tried(store))


def count_flips():
    """Return how many flips of one byte are tried; for the documentation."""
    return _count(lambda path: sum(1 for _ in flips_of(path)))


def count_truncations():
    """Return how many truncations are tried."""
    return _count(lambda path: path.stat().st_size)


@dataclass
class Watch:
    """Looks at a history whose file ``path`` is damaged."""

    folder: Path
    path: Path
    found: int = 0

    def __post_init__(self):
        self.in_segment = self.path.parent.name == "segments"
        # Damage of a segment shows when it is read: this one stays open.
        self.history = DiskHistory.open(self.folder) if self.in_segment else None

    def close(self):
        if self.history is not None:
            self.history.close()

    def look(self, what):
        """Fail unless the damage is found and nothing of it is used."""
        found = self._reading() if self.in_segment else self._opening()
        assert found, f"{what} of {self.path.name} was not found"
        self.found += 1

    def _opening(self):
        try:
            history = DiskHistory.open(self.folder)
        except HistoryError:
            return True
        with history:
            return any(f.damage for f in history.check(read_data=True))

    def _reading(self):
        """Read the damaged file; what can be read must be what was recorded."""
        index = int(self.path.name.split("-")[1])
        if self.path.name.startswith("tip"):
            try:
                same = tip_content(self.history.tip) == tip_content(TIP)
            except DamagedError:
                return True
            assert same, "a damaged tip was used"
            return False
        found = False
        arrays = self.history.round(index).arrays
        for name in READERS:
            try:
                value = getattr(arrays, name)()
                value = value if name == "state" else value.tobytes()
            except DamagedError:
                found = True
            else:
                if name == "state":
                    value = content_of_state(value)
                assert value == ORIGINAL[index][name], "damaged bytes were used"
        return found


@dataclass
class TipLike:
    round: int
    state: object


TIP = TipLike(3, a_state(3))


def content_of_state(state):
    return repr([*state.arrays.items(), *state.rule.items(), state.random])


@pytest.mark.parametrize(
    "start",
    ["index.db", "index.seal", "keys.bin", "outer.key", "round-1", "tip", "round-2"],
)
def test_every_flipped_byte_is_found(folder, start):
    path = {p.name: p for p in tried(folder)}.get(start)
    if path is None:
        name, _, number = start.partition("-")
        path = only(folder, f"{name}-{int(number or 3):06d}")
    watch = Watch(folder, path)
    handle = os.open(path, os.O_RDWR)
    try:
        before = path.read_bytes()
        for position, mask in flips_of(path):
            os.pwrite(handle, bytes([before[position] ^ mask]), position)
            watch.look(f"byte {position} xor {mask:#x}")
            os.pwrite(handle, before[position : position + 1], position)
        assert watch.found >= len(before)
        assert path.read_bytes() == before
    finally:
        os.close(handle)
        watch.close()
    assert damage_in(folder) == []


@pytest.mark.parametrize(
    "start", ["index.db", "index.seal", "keys.bin", "outer.key", "round", "tip"]
)
def test_every_truncation_is_found(folder, start):
    for path in tried(folder):
        if not path.name.startswith(start):
            continue
        before = path.read_bytes()
        watch = Watch(folder, path)
        try:
            for size in range(len(before) - 1, -1, -1):
                os.truncate(path, size)
                watch.look(f"cut at {size}")
            path.write_bytes(before)
            for more in (b"\0", b"x" * 100):
                path.write_bytes(before + more)
                watch.look("more bytes")
        finally:
            watch.close()
            path.write_bytes(before)
    assert damage_in(folder) == []


@pytest.mark.parametrize("step", [13])
def test_the_check_finds_what_reading_finds(folder, step):
    """A full check for every 13th byte of every segment, and what it says."""
    for path in sorted((folder / "segments").iterdir()):
        before = bytearray(path.read_bytes())
        index = int(path.name.split("-")[1])
        with DiskHistory.open(folder) as history:
            for position in range(0, len(before), step):
                before[position] ^= 0x41
                path.write_bytes(before)
                before[position] ^= 0x41
                found = history.check(read_data=True)
                assert [f.file for f in found if f.damage] == [path]
                assert found[0].round == (3 + 1 if path.name[0] == "t" else index)
            path.write_bytes(before)
            assert history.check(read_data=True) == []


def test_the_counts_are_those_of_the_files(templates):
    sizes = [p.stat().st_size for t in templates.values() for p in tried(t)]
    # Salts and keys differ in value from store to store, hardly in length.
    assert abs(count_truncations() - sum(sizes)) < 64
    assert count_flips() > 1.3 * count_truncations() > 20_000


# --- a flipped row is named exactly ---------------------------------------------------


@pytest.mark.parametrize("client", WHO)
@pytest.mark.parametrize("index", ROUNDS)
def test_a_damaged_update_is_named_by_file_round_client_and_offset(
    folder, index, client
):
    path = only(folder, f"round-{index:06d}")
    begin = offset_of(path, "updates") + WHO.index(client) * WIDTH
    flip(path, begin + 5)
    expected = Finding(
        f"{path} is damaged (round {index}, client {client}, byte {begin}): its "
        "updates are not what was recorded",
        True,
        path,
        index,
        client,
        begin,
    )
    with DiskHistory.open(folder) as history:
        assert history.check() == []  # headers and tags are in order
        assert history.check(read_data=True) == [expected]
        record = history.round(index)
        with pytest.raises(DamagedError) as caught:
            _ = record.updates
        error = caught.value
        assert (error.file, error.round, error.client, error.offset) == (
            path,
            index,
            client,
            begin,
        )
        others = [c for c in WHO if c != client]
        assert record.updates_of(others).tobytes() == (
            a_record(index, WHO).updates_of(others).tobytes()
        )
        with pytest.raises(DamagedError):
            record.updates_of([client])


@pytest.mark.parametrize(("part", "client"), [("broadcast", None), ("state", None)])
def test_a_damaged_part_of_the_server_is_named(folder, part, client):
    path = only(folder, "round-000002")
    begin = offset_of(path, part)
    flip(path, begin + 3)
    with DiskHistory.open(folder) as history:
        (found,) = history.check(read_data=True)
        assert (found.file, found.round, found.client, found.offset) == (
            path,
            2,
            None,
            begin,
        )
        assert f"its {part} are not what was recorded" in found.what
        assert history.round(2).updates.tobytes() == ORIGINAL[2]["updates"]


def test_damage_of_a_header_names_file_and_round(folder):
    path = only(folder, "round-000002")
    flip(path, 30)
    with DiskHistory.open(folder) as history:
        (found,) = history.check()
        assert (found.damage, found.file, found.round) == (True, path, 2)
        assert str(path) in found.what
    path = only(folder, "tip")
    flip(path, 30)
    assert any(str(path) in what for what in damage_in(folder))


def test_a_file_that_was_cut_says_by_how_much(folder):
    path = only(folder, "round-000002")
    size = path.stat().st_size
    cut(path, 700)
    (found,) = damage_in(folder)
    assert found == (f"{path} is damaged: it has 700 bytes, {size} were recorded")


def header_of(path):
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return end, json.loads(raw[8:end])


def offset_of(path, part):
    end, fields = header_of(path)
    return end + fields[part]["data_offsets"][0]


def flip(path, position, mask=0x41):
    raw = bytearray(path.read_bytes())
    raw[position] ^= mask
    path.write_bytes(raw)


# --- what an attacker moves about -----------------------------------------------------


def test_two_swapped_files_are_found(folder):
    one, two = only(folder, "round-000001"), only(folder, "round-000002")
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with DiskHistory.open(folder) as history:
        found = history.check()
        assert {f.round for f in found if f.damage} == {1, 2}
        for index in (1, 2):
            with pytest.raises(DamagedError):
                _ = history.round(index).updates
        assert content(history.round(3)) == ORIGINAL[3]


def exchanged(raw, width, one, two):
    """Return bytes with two stretches of them exchanged."""
    out = bytearray(raw)
    out[one : one + width], out[two : two + width] = (
        raw[two : two + width],
        raw[one : one + width],
    )
    return bytes(out)


def copied(raw, width, source, target):
    return raw[:target] + raw[source : source + width] + raw[target + width :]


@pytest.mark.parametrize("change", [exchanged, copied])
@pytest.mark.parametrize("with_tags", [False, True])
@pytest.mark.parametrize("with_seal", [False, True])
def test_rows_that_were_moved_are_found(folder, change, with_tags, with_seal):
    """Even by somebody who has the key of the seals: a row is bound to its owner."""
    path = only(folder, "round-000002")
    raw, rows, tags = path.read_bytes(), offset_of(path, "updates"), tag_of(path, 3)
    raw = change(raw, WIDTH, rows, rows + WIDTH)
    if with_tags:
        raw = change(raw, 16, tags, tags + 16)
    if with_seal:
        raw = sealed_again(folder, raw)
    path.write_bytes(raw)
    assert damage_in(folder)
    with DiskHistory.open(folder) as history:
        store = history._store
        for ids in ([0], [3], [0, 3]):  # a copied row leaves its source as it was
            value = quietly(lambda i=ids: history.round(2).updates_of(i))
            true = a_record(2, WHO).updates_of(ids)
            assert value is None or value.tobytes() == true.tobytes()
        with pytest.raises(DamagedError):
            _ = history.round(2).updates
        if with_seal:
            segment = open_segment(path, store.settings.store, store.keys)
            bad = [1] if change is copied else [0, 1]
            for row in bad:
                with pytest.raises(DamagedError, match=f"client {WHO[row]}"):
                    segment.rows("updates", [row], store.keys)
            assert segment.rows("updates", [2], store.keys).tobytes() == (
                a_record(2, WHO).updates[2].tobytes()
            )


def tag_of(path, owner):
    """Return where the tag of an update's row begins, counting from client 0's."""
    del owner
    end, fields = header_of(path)
    owners = json.loads(fields["__metadata__"]["owners"])
    before = 0
    for part, whose in owners.items():
        if part == "updates":
            break
        before += len(whose)
    return end + fields["tags"]["data_offsets"][0] + 16 * before


def sealed_again(folder, raw):
    """Return a file with the seal its header and tags ought to have."""
    end = 8 + int.from_bytes(raw[:8], "little")
    begin, stop = json.loads(raw[8:end])["tags"]["data_offsets"]
    key = KeyFiles(folder).read().store
    return raw[: end + stop] + mac(key, raw[:end], raw[end + begin : end + stop])


def test_a_row_of_another_round_is_found(folder):
    """The same client, the same row, another round, and the seal made to fit."""
    one, two = only(folder, "round-000001"), only(folder, "round-000002")
    raw, other = two.read_bytes(), one.read_bytes()
    for begin, width in ((offset_of(one, "updates"), WIDTH), (tag_of(one, 0), 16)):
        raw = raw[:begin] + other[begin : begin + width] + raw[begin + width :]
    two.write_bytes(sealed_again(folder, raw))
    with DiskHistory.open(folder) as history:
        store = history._store
        segment = open_segment(two, store.settings.store, store.keys)
        with pytest.raises(DamagedError, match="round 2, client 0"):
            segment.rows("updates", [0], store.keys)
    assert damage_in(folder)


def test_a_header_that_names_another_owner_is_found(folder):
    """Client 3's row is given to client 4, in the header and under a right seal."""
    path = only(folder, "round-000002")
    raw = path.read_bytes().replace(b"[0, 3, 7]", b"[0, 4, 7]")
    assert raw != path.read_bytes()
    path.write_bytes(sealed_again(folder, raw))
    with DiskHistory.open(folder) as history:
        store = history._store
        segment = open_segment(path, store.settings.store, store.keys)
        with pytest.raises(DamagedError, match="client 4"):
            segment.rows("updates", [1], store.keys)
    assert damage_in(folder)


def test_a_file_of_another_history_is_found(folder, tmp_path, request):
    sealed = "unsealed" not in request.node.name
    other = make(tmp_path / "other", sealed=sealed)
    path = only(folder, "round-000002")
    path.write_bytes(only(other, "round-000002").read_bytes())
    with DiskHistory.open(folder) as history:
        with pytest.raises(DamagedError):
            _ = history.round(2).broadcast
        store = history._store
        with pytest.raises(DamagedError, match="not what was recorded"):
            open_segment(path, store.settings.store, store.keys)
        path.write_bytes(sealed_again(folder, path.read_bytes()))
        with pytest.raises(DamagedError, match="belongs to another history"):
            open_segment(path, store.settings.store, store.keys)
    assert damage_in(folder)


def test_another_historys_index_or_keys_are_found(folder, tmp_path):
    other = make(tmp_path / "other", sealed=True)
    whole = files_of(folder)
    for names in (
        ["index.db"],
        ["index.db", "index.seal"],
        ["index.seal"],
        ["keys.bin"],
        ["outer.key"],
        ["keys.bin", "outer.key"],
    ):
        for name in names:
            shutil.copy(other / name, folder / name)
        with pytest.raises(DamagedError):
            DiskHistory.open(folder)
        restore(folder, whole)
    assert damage_in(folder) == []


# --- what was there before is put back ------------------------------------------------


@pytest.fixture
def older(folder):
    """The history with one round more, and its files and head from before."""
    with DiskHistory.open(folder) as history:
        head = history.stats().head
    files = files_of(folder)
    grow(folder, [4])
    return folder, files, head


def put_back(folder, files, *starts):
    for name, data in files.items():
        if name.startswith(starts):
            (folder / name).write_bytes(data)


def test_an_older_index_alone_is_found(older):
    folder, files, _ = older
    put_back(folder, files, "index.db")
    assert damage_in(folder) == [
        f"{folder}/index.db is damaged: it lacks entries it had when it was closed"
    ]


def test_an_older_seal_alone_is_as_after_a_crash(older):
    """Not found, and nothing is lost: the index is newer and its log goes on."""
    folder, files, _ = older
    put_back(folder, files, "index.seal")
    assert damage_in(folder) == []
    with DiskHistory.open(folder) as history:
        assert history.rounds == (1, 2, 3, 4)


def test_an_older_index_with_its_seal_is_found_by_the_tip_that_is_gone(older):
    folder, files, head = older
    put_back(folder, files, "index.db", "index.seal")
    (found,) = damage_in(folder)
    assert str(next(iter(n for n in files if "tip" in n))) in found
    assert newer_than(folder, head) == []


def newer_than(folder, head):
    """Return what the log's head from elsewhere says about a history."""
    with DiskHistory.open(folder) as history:
        return list(faults(history._store.index.log(), head))


def test_a_whole_folder_put_back_is_found_with_the_newer_head_only(older):
    """The hole that no program can close: the head must be kept elsewhere."""
    folder, files, _ = older
    with DiskHistory.open(folder) as history:
        newer_head = history.stats().head
    restore(folder, files)
    assert damage_in(folder) == []
    (fault,) = newer_than(folder, newer_head)
    assert re.search(r"the log has \d+ entries, the head was taken of", fault)


def test_a_rewritten_log_is_found_with_the_older_head_only(older):
    """Another third round, under the same keys: the log forks."""
    folder, files, head = older
    with DiskHistory.open(folder) as history:
        newer_head = history.stats().head
    assert newer_than(folder, head) == []
    restore(folder, files)
    grow(folder, [4], clients=(0, 3))
    assert damage_in(folder) == []
    (fault,) = newer_than(folder, newer_head)
    assert "are not those the head was taken of" in fault


def test_a_seal_of_another_branch_is_found(older):
    """Both branches are longer than what the seal names."""
    folder, files, _ = older
    seal = (folder / "index.seal").read_bytes()
    restore(folder, files)
    grow(folder, [4, 5], clients=(0, 3))
    assert damage_in(folder) == []
    (folder / "index.seal").write_bytes(seal)
    assert damage_in(folder) == [
        f"{folder}/index.db is damaged: it lacks entries it had when it was closed"
    ]


def test_an_older_file_of_a_round_is_found(tmp_path):
    """An erasure took client 3's row out of the file; the file is put back."""
    folder = make(tmp_path / "history", sealed=True)
    old = only(folder, "round-000002")
    whole = old.read_bytes()
    with DiskHistory.open(folder, write=True) as history:
        history.erase([3])
    new = only(folder, "round-000002")
    assert new != old
    old.write_bytes(whole)  # under its own name: a leftover nobody reads
    with DiskHistory.open(folder) as history:
        (found,) = history.check(read_data=True)
        assert (found.file, found.damage) == (old, False)
        assert history.round(2).clients == (0, 7)
    old.rename(new)  # under the new name
    assert damage_in(folder)
    with DiskHistory.open(folder) as history, pytest.raises(DamagedError):
        _ = history.round(2).updates


class Refusing(WatchedFiles):
    """A disk that is full when a round is to be committed."""

    def commit(self, database):
        raise OSError(28, "No space left on device")


def attempt_and_commit(folder, attempted, committed):
    """Record a round that is not committed, then another of the same index.

    Returns:
        The files of both, the one that was never committed read before it is removed.
    """
    with DiskHistory.open(folder, write=True, files=Refusing()) as history:
        with pytest.raises(HistoryError, match="No space left"):
            history.append_round(attempted, a_state(4))
        first = only(folder, "round-000004").read_bytes()
    with DiskHistory.open(folder, write=True) as history:
        history.append_round(committed, a_state(4))
    return first, only(folder, "round-000004")


def test_a_file_that_was_never_committed_is_found_in_place_of_the_one_that_was(folder):
    """Of the same round, the same size, sealed with the same keys."""
    attempted = a_record(4, WHO, seed=1)
    first, path = attempt_and_commit(folder, attempted, a_record(4, WHO))
    assert len(first) == path.stat().st_size
    assert damage_in(folder) == []
    path.write_bytes(first)
    assert damage_in(folder)
    with DiskHistory.open(folder) as history, pytest.raises(DamagedError):
        _ = history.round(4).updates


def test_no_key_is_used_for_two_files(templates, tmp_path):
    """With GCM the same key and nonce would give away the difference of two updates."""
    folder = Path(shutil.copytree(templates["sealed"], tmp_path / "history"))
    zeros = a_record(4, WHO)
    nothing = np.zeros((3, LAYOUT.size), np.float32)
    zeros = replace(zeros, arrays=replace(zeros.arrays, matrix=nothing))
    first, path = attempt_and_commit(folder, zeros, zeros)
    begin = offset_of(path, "updates")
    streams = [raw[begin : begin + 3 * WIDTH] for raw in (first, path.read_bytes())]
    assert streams[0] != streams[1]
    rows = [s[k * WIDTH : (k + 1) * WIDTH] for s in streams for k in range(3)]
    assert len(set(rows)) == 6  # nor for two rows
    paths = (folder / "segments").iterdir()
    salts = [header_of(path)[1]["__metadata__"]["salt"] for path in paths]
    assert len(salts) == len(set(salts)) == 5
    assert all(re.fullmatch("[0-9a-f]{32}", salt) for salt in salts)


def test_older_keys_are_found(tmp_path):
    folder = make(tmp_path / "history", sealed=True)
    files = files_of(folder)
    with DiskHistory.open(folder, write=True) as history:
        history.erase([3])
    now = files_of(folder)
    for start in ("keys.bin", "outer.key"):
        put_back(folder, files, start)
        with pytest.raises(DamagedError):
            DiskHistory.open(folder)
        restore(folder, now)
    # Both together are the operator's copy that docs/reliability.md warns of.
    put_back(folder, files, "keys.bin", "outer.key")
    with DiskHistory.open(folder) as history:
        assert history.withdrawn == frozenset()
        assert history.round(2).clients == (0, 7)


# --- files that are gone, files that are there ----------------------------------------


@pytest.mark.parametrize("name", ["index.db", "keys.bin", "outer.key"])
def test_without_one_of_three_files_nothing_opens(folder, name):
    (folder / name).unlink()
    for write in (False, True):
        with pytest.raises(HistoryError, match=re.escape(str(folder))):
            DiskHistory.open(folder, write=write)


@pytest.mark.parametrize("start", ["round-000001", "round-000003", "tip"])
def test_a_file_that_is_gone_is_found(folder, start):
    path = only(folder, start)
    path.unlink()
    with DiskHistory.open(folder) as history:
        (found,) = history.check()
        assert (found.damage, found.file) == (True, path)


def test_a_folder_of_files_that_is_gone_is_found(folder):
    shutil.rmtree(folder / "segments")
    found = damage_in(folder)
    assert len([what for what in found if "round-" in what]) == 3
    with pytest.raises(HistoryError):
        DiskHistory.open(folder, write=True)


def test_a_seal_that_is_gone_is_as_after_a_crash(folder):
    """Not found: a history that was never closed has none. The next writer seals."""
    (folder / "index.seal").unlink()
    assert damage_in(folder) == []
    DiskHistory.open(folder, write=True).close()
    assert (folder / "index.seal").exists()
    assert damage_in(folder) == []


def test_the_lock_is_no_part_of_it(folder):
    (folder / "LOCK").write_text("99999\n")
    assert damage_in(folder) == []
    (folder / "LOCK").unlink()
    assert damage_in(folder) == []
    DiskHistory.open(folder, write=True).close()


def test_a_stray_file_is_a_leftover_and_the_next_writer_removes_it(folder):
    strays = [folder / "segments" / n for n in ("stray", "round-000009-0.safetensors")]
    for stray in strays:
        stray.write_bytes(b"\xff" * 100)
    (folder / "segments" / "sub").mkdir()
    (folder / "segments" / "sub").rmdir()
    with DiskHistory.open(folder) as history:
        found = history.check(read_data=True)
        assert {f.file for f in found} == set(strays)
        assert not any(f.damage for f in found)
    DiskHistory.open(folder, write=True).close()
    assert not any(stray.exists() for stray in strays)
    assert damage_in(folder) == []


def test_keys_that_others_can_read_are_found_and_repaired(folder):
    (folder / "outer.key").chmod(0o640)
    (found,) = damage_in(folder)
    assert "outer.key can be read by others" in found
    repair(folder)
    assert damage_in(folder) == []


# --- an index without its seal, as after a crash --------------------------------------

CHANGES = {
    "a round's row gone": "DELETE FROM rounds WHERE round = 2",
    "its participants gone": "DELETE FROM updates WHERE round = 2",
    "one of them gone": "DELETE FROM updates WHERE round = 2 AND client = 3",
    "one more": "INSERT INTO updates VALUES (2, 9, NULL, 1, 1, 1, NULL)",
    "others' rows": "UPDATE updates SET row = 2 - row WHERE round = 2",
    "one row for all": "UPDATE updates SET row = 0 WHERE round = 2",
    "a row beyond": "UPDATE updates SET row = 9 WHERE round = 2 AND client = 7",
    "a row before": "UPDATE updates SET row = -1 WHERE round = 2 AND client = 7",
    "no row": "UPDATE updates SET row = NULL WHERE round = 2 AND client = 7",
    "another count": "UPDATE updates SET num_examples = 99 WHERE round = 2",
    "another step": "UPDATE updates SET num_steps = num_steps + 1 WHERE client = 3",
    "another sample": "UPDATE updates SET num_samples = 0 WHERE client = 3",
    "text for a count": "UPDATE updates SET num_examples = 'ten' WHERE round = 2",
    "a blob for a count": "UPDATE updates SET num_steps = x'00ff' WHERE round = 2",
    "a sensitivity": "UPDATE updates SET sensitivity = 1.5 WHERE round = 2",
    "another loss": "UPDATE rounds SET loss = 0.1 WHERE round = 2",
    "another time": "UPDATE rounds SET seconds = 9 WHERE round = 2",
    "nobody asked": "UPDATE rounds SET asked = '[]' WHERE round = 2",
    "no list": "UPDATE rounds SET asked = 'no json' WHERE round = 2",
    "a number": "UPDATE rounds SET asked = '3' WHERE round = 2",
    "other reasons": "UPDATE rounds SET set_aside = '[]' WHERE round = 2",
    "half a reason": "UPDATE rounds SET set_aside = '[[1]]' WHERE round = 2",
    "another seal": "UPDATE rounds SET seal = upper(seal) WHERE round = 2",
    "another size": "UPDATE rounds SET bytes = bytes + 1 WHERE round = 2",
    "no file": "UPDATE rounds SET file = NULL WHERE round = 2",
    "a file outside": "UPDATE rounds SET file = '../keys.bin' WHERE round = 2",
    "an absolute file": "UPDATE rounds SET file = '/etc/passwd' WHERE round = 2",
    "the folder": "UPDATE rounds SET file = '..' WHERE round = 2",
    "no name": "UPDATE rounds SET file = '' WHERE round = 2",
    "another generation": "UPDATE rounds SET generation = 2 WHERE round = 2",
    "fewer kept": "UPDATE rounds SET kept = 1 WHERE round = 2",
    "no broadcast": "UPDATE rounds SET broadcast = 0 WHERE round = 2",
    "files exchanged": "UPDATE rounds SET (file, bytes, seal) = (SELECT file, bytes,"
    " seal FROM rounds AS r WHERE r.round = 3 - rounds.round) WHERE round IN (1, 2)",
    "a round twice": "INSERT INTO rounds SELECT 9, generation, file, bytes, seal, kept,"
    " broadcast, asked, set_aside, loss, seconds FROM rounds WHERE round = 2",
    "no tip": "UPDATE meta SET value = '' WHERE key = 'tip'",
    "no tip's text": "UPDATE meta SET value = 'x' WHERE key = 'tip'",
    "half a tip": "UPDATE meta SET value = '[3]' WHERE key = 'tip'",
    "a round for the tip": "UPDATE meta SET value = (SELECT json_array(2, 1,"
    " json_array(file, bytes, seal)) FROM rounds WHERE round = 3) WHERE key = 'tip'",
    "a tip of another round": "UPDATE meta SET value = replace(value, '[3,', '[2,')"
    " WHERE key = 'tip'",
    "a tip outside": "UPDATE meta SET value = replace(value, 'tip-', '../tip-')"
    " WHERE key = 'tip'",
    "no promise's text": "UPDATE meta SET value = 'x' WHERE key = 'pending'",
    "half a promise": "UPDATE meta SET value = '{}' WHERE key = 'pending'",
    "no generation": "UPDATE meta SET value = 'x' WHERE key = 'generation'",
    "a setting gone": "DELETE FROM meta WHERE key = 'tip'",
    "all settings gone": "DELETE FROM meta WHERE key != 'format'",
    "no settings": "DROP TABLE meta",
    "no rounds": "DROP TABLE rounds",
    "no updates": "DROP TABLE updates",
    "no names": "DROP TABLE clients",
    "no log": "DROP TABLE log",
    "the last entry gone": "DELETE FROM log WHERE seq = 2",
    "the first entry gone": "DELETE FROM log WHERE seq = 0",
    "an entry that is none": "UPDATE log SET body = 'x' WHERE seq = 1",
    "an empty entry": "UPDATE log SET body = '{}' WHERE seq = 1",
    "an entry of null": "UPDATE log SET body = 'null' WHERE seq = 1",
    "a blob for an entry": "UPDATE log SET body = x'80' WHERE seq = 1",
    "a blob for a hash": "UPDATE log SET hash = x'80' WHERE seq = 1",
    "a number for a hash": "UPDATE log SET hash = 7 WHERE seq = 1",
    "another word in an entry": "UPDATE log SET body = replace(body, 'round', 'r0und')",
    "entries exchanged": "UPDATE log SET body = (SELECT body FROM log AS l WHERE"
    " l.seq = 1 - log.seq) WHERE seq < 2",
}
UNSEEN = {
    "no tip": "where the server stood is told by nothing else",
    "another generation": "it is not used: the files carry their own",
}
"""What only the seal of a closed index protects."""


def change_index(folder, statement):
    """Change the index and take away its seal."""
    (folder / "index.seal").unlink()
    database = sqlite3.connect(folder / "index.db", isolation_level=None)
    database.execute(statement)
    database.close()


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_index_without_a_seal_is_found_by_log_and_headers(folder, what):
    change_index(folder, CHANGES[what])
    found = damage_in(folder)
    assert bool(found) != (what in UNSEEN)
    assert_nothing_false_is_read(folder)


def assert_nothing_false_is_read(folder, rounds=ORIGINAL):
    """Arrays that can be read are those that were recorded of this client and round."""
    try:
        history = DiskHistory.open(folder)
    except HistoryError:
        return
    with history:
        for index in quietly(lambda: history.rounds, ()):
            record = quietly(lambda i=index: history.round(i))
            if record is None or index not in rounds:
                continue
            model = quietly(lambda r=record: r.broadcast)
            assert model is None or model.tobytes() == rounds[index]["broadcast"]
            for client in record.clients:
                update = quietly(lambda r=record, c=client: r.updates_of([c]))
                if update is not None:
                    true = a_record(index, WHO).updates_of([client])
                    assert update.tobytes() == true.tobytes()
        tip = quietly(lambda: history.tip)
        if tip is not None and tip.state.arrays:
            assert tip_content(tip) == tip_content(TIP)


def quietly(read, default=None):
    try:
        return read()
    except HistoryError:
        return default


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_index_is_found_by_its_seal(folder, what):
    seal = (folder / "index.seal").read_bytes()
    change_index(folder, CHANGES[what])
    (folder / "index.seal").write_bytes(seal)
    with pytest.raises(HistoryError):
        DiskHistory.open(folder)


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_index_is_repaired(folder, what):
    """With and without its seal; the arrays of all rounds are there afterwards."""
    change_index(folder, CHANGES[what])
    losses = repair(folder)
    assert bool(losses) != (what in UNSEEN)
    assert damage_in(folder) == []
    assert_nothing_false_is_read(folder)
    with DiskHistory.open(folder, write=True) as history:
        assert history.rounds == ROUNDS
        for index in ROUNDS:
            assert content(history.round(index)) == ORIGINAL[index]
        history.append_round(a_record(4, WHO), a_state(4))
    assert damage_in(folder) == []


def test_no_file_outside_is_touched_on_the_word_of_an_index(folder):
    """Old tips are removed and damaged files moved: only those among the segments."""
    outside = folder.parent / "precious"
    outside.write_text("mine")
    whole = files_of(folder)
    for change in (
        'UPDATE meta SET value = \'[3, 1, ["../../precious", 4, "00"]]\''
        " WHERE key = 'tip'",
        "UPDATE rounds SET file = '../../precious' WHERE round = 2",
    ):
        change_index(folder, change)
        with suppress(HistoryError):
            grow(folder, [4])
        assert outside.read_text() == "mine"
        repair(folder)
        assert outside.read_text() == "mine"
        assert damage_in(folder) == []
        restore(folder, whole)


@pytest.mark.parametrize("what", sorted(CHANGES.keys() - UNSEEN.keys()))
def test_no_round_is_removed_on_the_word_of_an_index(folder, what):
    """After a crash nobody refers to some files; a damaged index is no witness."""
    before = set((folder / "segments").iterdir())
    change_index(folder, CHANGES[what])
    with suppress(HistoryError):
        DiskHistory.open(folder, write=True).close()
    assert set((folder / "segments").iterdir()) == before


def test_a_history_closed_while_somebody_reads_is_sealed(folder):
    with DiskHistory.open(folder) as reader:
        assert reader.rounds == ROUNDS
        grow(folder, [4])
        assert reader.rounds == (*ROUNDS, 4)
    wal = folder / "index.db-wal"
    assert not wal.exists() or wal.stat().st_size == 0
    flip(folder / "index.db", (folder / "index.db").stat().st_size - 1)
    with pytest.raises(DamagedError):
        DiskHistory.open(folder)


def test_a_history_closed_in_the_middle_of_a_reading_is_as_after_a_crash(
    templates, tmp_path
):
    """Its log cannot be emptied then; the next writer seals."""
    folder = Path(shutil.copytree(templates["sealed"], tmp_path / "history"))
    seal = (folder / "index.seal").read_bytes()
    reading = sqlite3.connect(folder / "index.db", isolation_level=None)
    reading.execute("BEGIN")
    reading.execute("SELECT * FROM log").fetchall()
    grow(folder, [4])
    assert (folder / "index.seal").read_bytes() == seal
    assert damage_in(folder) == []
    reading.close()
    assert damage_in(folder) == []
    with DiskHistory.open(folder, write=True) as history:
        assert history.rounds == (*ROUNDS, 4)
    assert (folder / "index.seal").read_bytes() != seal
    assert damage_in(folder) == []


def test_a_log_of_sqlite_laid_beside_it_opens_no_changed_index(folder):
    flip(folder / "index.db", (folder / "index.db").stat().st_size - 1)
    (folder / "index.db-wal").write_bytes(b"x" * 100)
    with pytest.raises(DamagedError):
        DiskHistory.open(folder)


# --- repair ---------------------------------------------------------------------------


def cut(path, size):
    os.truncate(path, size)


DAMAGE = {
    "an update": lambda f: flip(r2(f), offset_of(r2(f), "updates") + WIDTH),
    "two updates": lambda f: [
        flip(r2(f), offset_of(r2(f), "updates") + k * WIDTH) for k in (0, 2)
    ],
    "all updates": lambda f: [
        flip(r2(f), offset_of(r2(f), "updates") + k * WIDTH) for k in range(3)
    ],
    "the broadcast": lambda f: flip(r2(f), offset_of(r2(f), "broadcast")),
    "the state": lambda f: flip(r2(f), offset_of(r2(f), "state") + 9),
    "every row": lambda f: [
        flip(r2(f), at)
        for at in (
            offset_of(r2(f), "broadcast"),
            offset_of(r2(f), "state"),
            *(offset_of(r2(f), "updates") + k * WIDTH for k in range(3)),
        )
    ],
    "the header": lambda f: flip(r2(f), 50),
    "the tags": lambda f: flip(r2(f), offset_of(r2(f), "tags")),
    "a cut file": lambda f: cut(r2(f), 700),
    "an empty file": lambda f: cut(r2(f), 0),
    "a file gone": lambda f: r2(f).unlink(),
    "the tip": lambda f: flip(only(f, "tip"), -1),
    "the tip gone": lambda f: only(f, "tip").unlink(),
    "round and tip": lambda f: (flip(r2(f), 50), flip(only(f, "tip"), 50)),
    "the index": lambda f: flip(f / "index.db", 2_000),
    "the index's header": lambda f: flip(f / "index.db", 2),
    "the index empty": lambda f: cut(f / "index.db", 0),
    "the index cut": lambda f: cut(f / "index.db", 1_000),
    "the index gone": lambda f: (f / "index.db").unlink(),
    "index and update": lambda f: (
        flip(f / "index.db", 2_000),
        flip(r2(f), offset_of(r2(f), "updates") + WIDTH),
    ),
    "the seal": lambda f: flip(f / "index.seal", 3),
    "an empty seal": lambda f: cut(f / "index.seal", 0),
}
LOST = {  # what of round 2; "" is the whole file
    "an update": [3],
    "two updates": [0, 7],
    "all updates": [0, 3, 7],
    "the broadcast": ["broadcast"],
    "the state": ["state"],
    "every row": ["broadcast", "state", 0, 3, 7],
    **dict.fromkeys(
        ("the header", "the tags", "a cut file", "an empty file", "a file gone"),
        ("broadcast", "state", 0, 3, 7),
    ),
    "round and tip": ["broadcast", "state", 0, 3, 7],
    "index and update": [3],
}
ROW_BY_ROW = {"an update", "two updates", "all updates", "the broadcast", "the state"}
ROW_BY_ROW |= {"every row", "index and update"}
LOST_TIP = {"the tip", "the tip gone", "round and tip"}
LOST_INDEX = {what for what in DAMAGE if "index" in what}


def r2(folder):
    return only(folder, "round-000002")


@pytest.mark.parametrize("what", DAMAGE)
def test_a_dry_run_changes_no_byte(folder, what):
    DAMAGE[what](folder)
    before = files_of(folder)
    losses = repair(folder, dry_run=True)
    assert losses
    assert all(isinstance(loss, Loss) and loss.what for loss in losses)
    assert files_of(folder) == before
    assert not (folder / "quarantine").exists()


@pytest.mark.parametrize("what", DAMAGE)
def test_a_repair_lists_the_losses_and_keeps_the_rest(folder, what):
    DAMAGE[what](folder)
    before, foretold = files_of(folder), repair(folder, dry_run=True)
    damaged = {loss.file for loss in foretold}
    losses = repair(folder)
    assert set(foretold) <= set(losses)
    assert {loss.file for loss in losses} >= damaged
    assert damage_in(folder) == []
    assert repair(folder) == ()
    check_losses(folder, what, losses)
    check_rest(folder, what)
    for path in {loss.file for loss in losses}:
        name = str(path.relative_to(folder))
        if name in before:
            kept = folder / "quarantine" / path.name
            assert kept.read_bytes() == before[name]


def check_losses(folder, what, losses):
    of_round = [loss for loss in losses if loss.round == 2]
    assert bool(of_round) == (what in LOST)
    named = {loss.client for loss in of_round if loss.client is not None}
    if what in ROW_BY_ROW:
        assert len(of_round) == len(LOST[what])
        assert named == {who for who in LOST[what] if isinstance(who, int)}
        parts = {part for part in LOST[what] if isinstance(part, str)}
        assert parts == {
            p
            for p in READERS
            if any(f"its {p} are" in x.what for x in of_round if x.client is None)
        }
    elif of_round:
        assert [(loss.client, loss.file.name[:12]) for loss in of_round] == [
            (None, "round-000002")
        ]
    server_lost = [loss for loss in losses if "where the server stood" in loss.what]
    assert len(server_lost) == (what in LOST_TIP)
    index_lost = [loss for loss in losses if loss.file.name == "index.db"]
    assert len(index_lost) == (what in LOST_INDEX)
    assert all(str(folder) in loss.what or server_lost for loss in losses)


def check_rest(folder, what):
    lost = LOST.get(what, [])
    with DiskHistory.open(folder, write=True) as history:
        count = history.stats().nbytes
        assert history.holds.nbytes == count["updates"] + count["broadcasts"]
        assert history.rounds == ROUNDS
        assert history.names == ({} if what in LOST_INDEX else NAMES)
        for index in (1, 3):
            assert content(history.round(index)) == ORIGINAL[index]
        record, true = history.round(2), a_record(2, WHO)
        assert record.dropped == {who for who in lost if isinstance(who, int)}
        assert record.clients == WHO
        assert record.updates_of(record.kept).tobytes() == (
            true.updates_of(record.kept).tobytes()
        )
        for client in record.dropped:
            with pytest.raises(HistoryError, match="not kept"):
                record.updates_of([client])
        assert (2 in history.holds.broadcasts) == ("broadcast" not in lost)
        if "broadcast" not in lost:
            assert record.broadcast.tobytes() == ORIGINAL[2]["broadcast"]
        if "state" not in lost:
            assert content_of_state(record.arrays.state()) == ORIGINAL[2]["state"]
        check_tip(history, what)
        history.append_round(a_record(4, WHO), a_state(4))
        assert content(history.round(4)) == content(a_record(4, WHO))
    assert damage_in(folder) == []


def check_tip(history, what):
    assert history.tip.round == 3
    if what in LOST_TIP:
        assert not history.tip.state.arrays
    else:
        assert tip_content(history.tip) == tip_content(TIP)


@pytest.mark.parametrize("position", range(5, 7_600, 331))
def test_an_index_flipped_anywhere_is_rebuilt(folder, position):
    flip(folder / "index.db", position % (folder / "index.db").stat().st_size)
    assert repair(folder)
    check_rest(folder, "the index")


def test_an_index_that_is_gone_is_rebuilt_from_the_files(folder):
    with DiskHistory.open(folder) as history:
        named = history_digest(history)
    (folder / "index.db").write_bytes(b"")
    losses = repair(folder)
    assert [loss.file for loss in losses] == [folder / "index.db"]
    assert "the clients' names" in losses[0].what
    with DiskHistory.open(folder) as history:
        assert history.names == {}
        assert history_digest(history) != named
        assert history_digest(Named(history)) == named


class Named:
    """A history with the names it lost."""

    def __init__(self, history):
        self.history, self.names = history, NAMES

    def __getattr__(self, name):
        return getattr(self.history, name)


def test_what_is_in_order_is_not_repaired(folder):
    before = files_of(folder)
    assert repair(folder, dry_run=True) == ()
    assert repair(folder) == ()
    assert not (folder / "quarantine").exists()
    after = files_of(folder)
    assert {k: v for k, v in after.items() if k != "index.seal"} == {
        k: v for k, v in before.items() if k != "index.seal"
    }


def test_two_repairs_keep_what_both_put_away(folder):
    for _ in range(2):
        flip(folder / "index.db", 2_000)
        repair(folder)
    names = [path.name for path in (folder / "quarantine").iterdir()]
    indexes = [name for name in names if not name.startswith("index.db-")]
    assert len([name for name in indexes if name.startswith("index.db")]) == 2


@pytest.mark.parametrize("name", ["keys.bin", "outer.key"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_without_keys_nothing_can_be_repaired(folder, name, dry_run):
    whole = files_of(folder)
    for damage in (lambda p: flip(p, 40), lambda p: cut(p, 3), lambda p: p.unlink()):
        damage(folder / name)
        before = files_of(folder)
        with pytest.raises(DamagedError, match=name):
            repair(folder, dry_run=dry_run)
        assert files_of(folder) == before
        restore(folder, whole)


def test_what_is_no_history_is_not_repaired(tmp_path):
    (tmp_path / "other").mkdir()
    for place in (tmp_path / "missing", tmp_path / "other"):
        with pytest.raises(HistoryError, match="holds no history"):
            repair(place)
    assert [p.name for p in tmp_path.rglob("*")] == ["other"]


def test_a_history_of_another_format_is_not_repaired(folder):
    """This version knows nothing of it: what looks damaged need not be."""
    change_index(folder, "UPDATE meta SET value = '3' WHERE key = 'format'")
    before = files_of(folder)
    with pytest.raises(HistoryError, match="newer version"):
        repair(folder)
    assert files_of(folder) == before


def test_a_history_in_use_is_not_repaired(folder):
    with (
        DiskHistory.open(folder, write=True),
        pytest.raises(HistoryError, match="in use by process"),
    ):
        repair(folder)


def test_sums_that_are_lost_are_not_begun_again_in_silence(tmp_path):
    folder = make(tmp_path / "history", sealed=True, retention="sums")
    flip(only(folder, "tip"), -1)
    for write in (False, True):
        with DiskHistory.open(folder, write=write) as history:
            for _ in range(2):
                with pytest.raises(DamagedError):
                    history.sum_of(0)
            if write:
                for _ in range(2):
                    with pytest.raises(DamagedError):
                        history.append_round(a_record(4, WHO))
    repair(folder)
    with DiskHistory.open(folder, write=True) as history:
        assert history.holds.sums_from is None
        assert history.holds.nbytes == WIDTH  # the first broadcast
        history.append_round(a_record(4, WHO))
        assert history.holds.sums_from is None
        with pytest.raises(HistoryError, match="no running sum"):
            history.sum_of(0)
    assert damage_in(folder) == []


def test_a_rebuilt_index_does_not_claim_sums_it_cannot_vouch_for(tmp_path):
    folder = make(tmp_path / "history", sealed=True, retention="sums")
    with DiskHistory.open(folder, write=True) as history:
        sums = {c: history.sum_of(c).tobytes() for c in WHO}
    cut(folder / "index.db", 0)
    repair(folder)
    with DiskHistory.open(folder, write=True) as history:
        assert history.holds.sums_from == 1
        assert {c: history.sum_of(c).tobytes() for c in WHO} == sums
        history.erase([3], a_state(9))
        assert history.holds.sums_from == 4
        history.append_round(a_record(4, (0, 7)))
    cut(folder / "index.db", 0)
    repair(folder)
    with DiskHistory.open(folder) as history:
        assert history.holds.sums_from in (None, 4)


def test_of_two_files_of_a_round_the_index_is_rebuilt_from_the_newer(tmp_path):
    """The older one holds a row that was erased: it must not come back."""
    folder = make(tmp_path / "history", sealed=True)
    older = {p.name: p.read_bytes() for p in (folder / "segments").glob("round-*")}
    with DiskHistory.open(folder, write=True) as history:
        history.erase([3])
    for name, data in older.items():
        (folder / "segments" / name).write_bytes(data)
    cut(folder / "index.db", 0)
    repair(folder)
    for write in (False, True):
        with DiskHistory.open(folder, write=write) as history:
            for index in ROUNDS:
                record, true = history.round(index), a_record(index, WHO)
                assert record.clients == (0, 7)
                assert record.updates.tobytes() == true.updates_of((0, 7)).tobytes()
            assert history.withdrawn == {3}
    assert not older.keys() & {p.name for p in (folder / "segments").iterdir()}
    assert damage_in(folder) == []


@pytest.mark.parametrize("first", [False, True])
def test_of_two_tips_the_index_is_rebuilt_with_the_newer(folder, first):
    """Whichever comes first by name, of an older round or of an older generation."""
    older = only(folder, "tip")
    data, sealed = older.read_bytes(), files_are_sealed(older)
    with DiskHistory.open(folder, write=True) as history:
        if sealed:
            history.erase([99], a_state(9))  # nobody: no key of a round goes
        else:
            history.append_round(a_record(4, WHO), a_state(4))
    newer = only(folder, "tip")
    if sealed:
        assert newer.name[:10] == older.name[:10]
        name = f"{newer.name[:11]}{'f' if first else '0'}{newer.name[12:]}"
        newer = newer.rename(newer.with_name(name))
        name = f"{older.name[:11]}{'0' if first else 'f'}{older.name[12:]}"
        older = older.with_name(name)
    older.write_bytes(data)
    cut(folder / "index.db", 0)
    repair(folder)
    with DiskHistory.open(folder, write=True) as history:
        state = a_state(9 if sealed else 4)
        assert tip_content(history.tip) == tip_content(
            TipLike(3 if sealed else 4, state)
        )
    assert newer.exists()
    assert not older.exists()
    assert damage_in(folder) == []


def files_are_sealed(path):
    return header_of(path)[1]["__metadata__"]["sealed"] == "true"


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("lose_index", [False, True])
@pytest.mark.parametrize(
    "step", ["erase.keys_destroyed", "erase.rows.committed", "thin.durable"]
)
def test_an_erasure_that_was_interrupted_survives_a_repair(
    tmp_path, clean, lose_index, step
):
    folder = make(tmp_path / "history", sealed=True)
    interrupted(folder, step, clean)
    if lose_index:
        cut(folder / "index.db", 0)
    repair(folder)
    with DiskHistory.open(folder, write=True) as history:
        assert history.withdrawn == {3}
        assert 3 not in history.clients
        assert history.rounds_of(3) == ()
        assert history.rounds == (() if clean else ROUNDS)
        for index in history.rounds:
            record = history.round(index)
            assert record.clients == (0, 7)
            true = a_record(index, WHO).updates_of((0, 7))
            assert record.updates.tobytes() == true.tobytes()
    assert damage_in(folder) == []


class Stopped(BaseException):
    """Not an Exception: nothing on the way may take it for a failing disk."""


def interrupted(folder, step, clean):
    """Erase client 3 and stop at a step; go on as the next process would find it."""

    def stop(method, *args):
        if (method, args) == ("reached", (step,)):
            raise Stopped

    history = DiskHistory.open(folder, write=True, files=WatchedFiles(before=stop))
    state = a_state(9) if clean else None
    with suppress(Stopped):
        history.erase([3], state)
    history._store.failure = "it was killed"
    history.close()


def test_a_record_of_before_says_that_less_is_kept_now(tmp_path):
    """No damage: the file it speaks of was replaced while somebody held the record."""
    folder = make(tmp_path / "history", sealed=True)
    with DiskHistory.open(folder, write=True) as history:
        record, read = history.round(2), history.round(3)
        _ = read.updates
        history.erase([3])
        with pytest.raises(HistoryError, match="less is kept of round 2") as caught:
            _ = record.updates
        assert not isinstance(caught.value, DamagedError)


def test_what_a_writer_changes_meanwhile_is_looked_at_again():
    """What was found fits a row that is no longer there: it is no damage."""
    found = Finding("gone", True, Path("x"))
    rows = iter([1, 2, 2, 2, 3, 3])
    wrong = {1: [found], 2: [found], 3: []}
    assert _settled(lambda: next(rows), wrong.get) == [found]  # 2 and still 2
    assert list(rows) == [3, 3]
    rows = iter([1, 3])
    assert _settled(lambda: next(rows, 3), wrong.get) == []
    assert _settled(lambda: None, wrong.get) == []


def test_late_clients_are_only_in_what_was_asked(folder):
    """The helper's records name one more client: the tests above rely on it."""
    with DiskHistory.open(folder) as history:
        assert LATE not in history.clients
        assert LATE in history.round(1).asked
        record = replace(history.round(1))
        assert np.shares_memory(record.num_examples, record.num_examples)
