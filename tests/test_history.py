"""Both histories keep the same promises; the one on disk keeps them after a crash."""

import errno
import json
import os
import re
import sqlite3
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save

from fedunlearn.errors import HistoryError
from fedunlearn.history import (
    ArraysInMemory,
    DiskHistory,
    InMemoryHistory,
    RoundRecord,
    SetAside,
    first_round_of,
    records,
)
from fedunlearn.params import Layout

LAYOUT = Layout(("weight", "bias"), ((2, 2), ()))
AWKWARD = [-0.0, 1e-45, np.float32(3.4028235e38), np.inf, -1.1754942e-38]


def a_record(index=1, clients=(0, 3, 7), **changes):
    rng = np.random.default_rng(abs(int(index)))
    count = len(clients)
    fields = {
        "index": index,
        "clients": clients,
        "num_examples": np.arange(10, 10 + count, dtype=np.int64),
        "num_steps": np.arange(count, dtype=np.int64),
        "num_samples": np.arange(100, 100 + count, dtype=np.int64),
        "asked": tuple(sorted({*clients, 99})),
        "set_aside": (SetAside(99, "late"), SetAside(None, "Ünbekannt")),
        "arrays": ArraysInMemory(
            rng.standard_normal(5, np.float32),
            rng.standard_normal((count, 5), np.float32),
        ),
    }
    return RoundRecord(**{**fields, **changes})


def assert_same(one, other):
    for name in ("index", "clients", "asked", "set_aside"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("num_examples", "num_steps", "num_samples", "broadcast", "updates"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first.dtype, first.shape) == (second.dtype, second.shape), name
        assert first.tobytes() == second.tobytes(), name


@pytest.fixture
def disk(tmp_path):
    history = DiskHistory.create(tmp_path / "history", LAYOUT)
    yield history
    history.close()


@pytest.fixture(params=["memory", "disk"])
def history(request):
    if request.param == "memory":
        return InMemoryHistory(LAYOUT)
    return request.getfixturevalue("disk")


# --- what both promise ---------------------------------------------------------------


def test_a_new_history_is_empty(history):
    assert history.rounds == ()
    assert history.layout == LAYOUT
    assert history.keeps == ("all", "all")
    assert history.rounds_of(3) == ()
    with pytest.raises(HistoryError, match=r"round 1 was not recorded.*no round"):
        history.round(1)


def test_a_round_comes_back_as_it_went_in(history):
    record = a_record()
    history.append_round(record)
    assert_same(history.round(1), record)


def test_awkward_floats_keep_their_bits(history):
    matrix = np.array([AWKWARD, AWKWARD[::-1]], np.float32)
    matrix[1, 0] = np.nan
    arrays_ = ArraysInMemory(np.array(AWKWARD, np.float32), matrix)
    record = a_record(clients=(1, 2), arrays=arrays_)
    history.append_round(record)
    assert_same(history.round(1), record)


def test_strided_arrays_keep_their_values(history):
    matrix = np.asfortranarray(np.arange(15, dtype=np.float32).reshape(3, 5))
    model = np.arange(10, dtype=np.float32)[::2]
    history.append_round(a_record(arrays=ArraysInMemory(model, matrix)))
    assert history.round(1).updates.tolist() == matrix.tolist()
    assert history.round(1).broadcast.tolist() == [0, 2, 4, 6, 8]


def test_a_round_in_which_nobody_answered_can_be_kept(history):
    record = a_record(clients=())
    history.append_round(record)
    assert_same(history.round(1), record)
    assert history.round(1).updates.shape == (0, 5)


def test_rounds_are_appended_in_order_and_may_leave_gaps(history):
    for index in (1, 2, 5, 9):
        history.append_round(a_record(index))
    assert history.rounds == (1, 2, 5, 9)
    assert [r.index for r in records(history)] == [1, 2, 5, 9]


@pytest.mark.parametrize("index", [0, -1, 1, 2])
def test_a_round_that_does_not_follow_the_last_is_refused(history, index):
    history.append_round(a_record(2))
    with pytest.raises(HistoryError, match=f"round {index} cannot follow round 2"):
        history.append_round(a_record(index, clients=(5,)))
    assert history.rounds == (2,)
    assert_same(history.round(2), a_record(2))


def test_an_unknown_round_is_named_with_the_span_that_is_known(history):
    history.append_round(a_record(2))
    history.append_round(a_record(4))
    with pytest.raises(
        HistoryError, match="round 3 was not recorded; the history holds rounds 2 to 4"
    ):
        history.round(3)


def test_the_rounds_of_a_client_are_those_it_was_aggregated_in(history):
    history.append_round(a_record(1, clients=(0, 3)))
    history.append_round(a_record(2, clients=(3, 5)))
    history.append_round(a_record(4, clients=(0, 5)))
    assert history.rounds_of(0) == (1, 4)
    assert history.rounds_of(3) == (1, 2)
    assert history.rounds_of(99) == ()  # asked every time, never aggregated


def test_a_numpy_integer_is_as_good_an_id_as_a_python_one(history):
    """SQLite finds nothing under one: rollback then took the leaver for a stranger."""
    ids = tuple(np.arange(3))
    history.append_round(a_record(np.int64(1), clients=ids, asked=ids))
    assert history.rounds_of(np.int64(2)) == (1,)
    assert history.rounds_of(2) == (1,)
    assert history.round(np.int64(1)).clients == (0, 1, 2)
    assert first_round_of(history, frozenset({np.int64(1)})) == 1


def test_the_first_round_of_several_clients_is_the_earliest(history):
    history.append_round(a_record(2, clients=(0, 3)))
    history.append_round(a_record(4, clients=(3, 5)))
    assert first_round_of(history, {5}) == 4
    assert first_round_of(history, {3, 5}) == 2
    assert first_round_of(history, {1, 99}) is None
    assert first_round_of(history, set()) is None


def test_updates_come_in_the_order_they_are_asked_for(history):
    history.append_round(a_record())
    record, whole = history.round(1), a_record().updates
    assert record.updates_of((7, 0)).tolist() == whole[[2, 0]].tolist()
    assert record.updates_of(()).shape == (0, 5)
    assert record.examples_of((7, 0)).tolist() == [12, 10]


def test_a_client_that_is_not_in_the_round_is_named(history):
    history.append_round(a_record())
    for ask in (history.round(1).updates_of, history.round(1).examples_of):
        with pytest.raises(HistoryError, match="round 1 holds no update of client 99"):
            ask((0, 99))
    with pytest.raises(HistoryError, match="it holds those of 0, 3, 7"):
        history.round(1).share_of(1)


def test_shares_follow_example_counts_and_sum_to_one(history):
    history.append_round(a_record(num_examples=np.array([10, 30, 60], np.int64)))
    shares = [history.round(1).share_of(c) for c in (0, 3, 7)]
    assert shares == pytest.approx([0.1, 0.3, 0.6])
    assert sum(shares) == pytest.approx(1)


def test_nothing_can_be_written_through_a_record(history):
    history.append_round(a_record())
    record = history.round(1)
    for array in (record.broadcast, record.updates):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    record.updates_of((3,))[...] = 0  # a copy
    assert_same(history.round(1), a_record())


def test_rounds_can_be_appended_from_another_thread(history):
    failures = []

    def work():
        try:
            for index in (1, 2, 3):
                history.append_round(a_record(index))
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    assert history.rounds == (1, 2, 3)
    assert_same(history.round(2), a_record(2))


FLOATS = st.floats(width=32, allow_subnormal=True)


@given(
    arrays(np.float32, st.tuples(st.integers(0, 4), st.just(5)), elements=FLOATS),
    st.data(),
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_round_survives_closing_and_reopening(tmp_path_factory, matrix, data):
    count = len(matrix)
    ids = data.draw(
        st.lists(st.integers(0, 2**40), min_size=count, max_size=count, unique=True)
    )
    record = a_record(
        data.draw(st.integers(1, 10**9)),
        clients=tuple(sorted(ids)),
        arrays=ArraysInMemory(
            data.draw(arrays(np.float32, 5, elements=FLOATS)), matrix
        ),
        set_aside=tuple(SetAside(None, text) for text in data.draw(TEXTS)),
    )
    folder = tmp_path_factory.mktemp("history")
    disk = DiskHistory.create(folder, LAYOUT)
    disk.append(record)
    disk.close()
    reopened = DiskHistory.open(folder)
    assert_same(reopened.round(record.index), record)
    reopened.close()


MODELS = arrays(np.float32, 5, elements=FLOATS)
TEXTS = st.lists(st.text(st.characters(codec="utf-8")), max_size=3)


# --- the one on disk -----------------------------------------------------------------


@pytest.fixture
def folder(disk, tmp_path):
    """A closed history of rounds 1 and 2."""
    disk.append(a_record(1))
    disk.append(a_record(2))
    disk.close()
    return tmp_path / "history"


def segment(folder, index):
    return folder / "rounds" / f"{index:06d}.safetensors"


@pytest.fixture
def opened(folder):
    history = DiskHistory.open(folder)
    yield history
    history.close()


def test_it_can_be_reopened_and_continued(folder):
    history = DiskHistory.open(folder)
    assert history.layout == LAYOUT
    assert history.rounds == (1, 2)
    history.append_round(a_record(3))
    history.close()
    again = DiskHistory.open(folder)
    for index in (1, 2, 3):
        assert_same(again.round(index), a_record(index))
    again.close()


def test_updates_are_memory_mapped(opened):
    record = opened.round(1)
    assert isinstance(record.updates, np.memmap)
    assert isinstance(record.broadcast, np.memmap)
    assert record.updates.mode == "r"


def test_a_record_stays_readable_after_closing(opened):
    record = opened.round(1)
    opened.close()
    assert_same(record, a_record(1))


def test_a_round_file_is_plain_safetensors(folder):
    found = load_file(segment(folder, 1))
    assert found.keys() == {"broadcast", "updates"}
    assert found["updates"].tobytes() == a_record(1).updates.tobytes()


def test_it_knows_how_many_bytes_its_rounds_take(opened, folder):
    sizes = [path.stat().st_size for path in (folder / "rounds").iterdir()]
    assert opened.nbytes == sum(sizes)


def test_an_empty_history_takes_no_bytes(disk):
    assert disk.nbytes == 0


def test_a_folder_that_holds_a_history_is_refused(folder):
    with pytest.raises(HistoryError, match="already holds a history"):
        DiskHistory.create(folder, LAYOUT)
    history = DiskHistory.open(folder)
    assert history.rounds == (1, 2)
    history.close()


def test_a_folder_without_a_history_is_named(tmp_path):
    with pytest.raises(HistoryError, match=re.escape(f"{tmp_path} holds no history")):
        DiskHistory.open(tmp_path)


def flip_length(content):
    return (2**63 - 1).to_bytes(8, "little") + content[8:]


def other_json(text):
    def damage(content):
        size = int.from_bytes(content[:8], "little")
        return content[:8] + text.ljust(size).encode() + content[8 + size :]

    return damage


DAMAGE = {
    "truncated": lambda content: content[:-1],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"x",
    "garbage": lambda content: b"\xff" * len(content),
    "zeros": lambda content: bytes(len(content)),
    "endless header": flip_length,
    "header without tensors": other_json("{}"),
    "header that is a list": other_json("[1, 2]"),
    "tensor that is a number": other_json('{"broadcast": 1, "updates": 1}'),
    "tensor beyond the file": other_json(
        '{"broadcast": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]},'
        '"updates": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}'
    ),
    "tensor of doubles": other_json(
        '{"broadcast": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]},'
        '"updates": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}'
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_round_file_is_named_and_the_others_stay_readable(
    folder, damage, request
):
    path = segment(folder, 1)
    path.write_bytes(damage(path.read_bytes()))
    history = DiskHistory.open(folder)
    request.addfinalizer(history.close)
    for read in (
        lambda: history.round(1).updates,
        lambda: history.round(1).broadcast,
        lambda: history.round(1).updates_of((3,)),
    ):
        with pytest.raises(HistoryError, match=re.escape(str(path))):
            read()
    assert_same(history.round(2), a_record(2))


def test_a_missing_round_file_is_named(folder, request):
    segment(folder, 2).unlink()
    history = DiskHistory.open(folder)
    request.addfinalizer(history.close)
    assert history.rounds == (1, 2)
    with pytest.raises(HistoryError, match=re.escape(str(segment(folder, 2)))):
        _ = history.round(2).broadcast


def change_index(folder, *statements):
    with sqlite3.connect(folder / "index.db") as db:
        for statement in statements:
            db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE meta",
        "DELETE FROM meta WHERE key = 'layout'",
        "DELETE FROM meta WHERE key = 'format'",
        "UPDATE meta SET value = 'one' WHERE key = 'format'",
        "UPDATE meta SET value = 'no json' WHERE key = 'layout'",
        "UPDATE meta SET value = '3' WHERE key = 'layout'",
        "UPDATE meta SET value = '[[\"a\"], [3]]' WHERE key = 'layout'",
    ],
)
def test_a_damaged_index_is_named_when_it_is_opened(folder, statement):
    change_index(folder, statement)
    with pytest.raises(HistoryError, match=r"index\.db is damaged"):
        DiskHistory.open(folder)


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, b"SQLite format 3\0junk"])
def test_an_index_that_is_no_database_is_named(folder, content):
    for leftover in folder.glob("index.db-*"):
        leftover.unlink()
    (folder / "index.db").write_bytes(content)
    with pytest.raises(HistoryError, match=r"index\.db is damaged"):
        DiskHistory.open(folder)


def test_an_index_that_breaks_later_is_named(folder, request):
    change_index(folder, "DROP TABLE rounds", "DROP TABLE updates")
    history = DiskHistory.open(folder)
    request.addfinalizer(history.close)
    for read in (
        lambda: history.rounds,
        lambda: history.round(1),
        lambda: history.rounds_of(3),
        lambda: history.nbytes,
    ):
        with pytest.raises(HistoryError, match=r"index\.db is damaged"):
            read()


def test_a_newer_format_is_refused_even_if_its_layout_is_written_otherwise(folder):
    change_index(
        folder,
        "UPDATE meta SET value = '2' WHERE key = 'format'",
        "UPDATE meta SET value = 'binary' WHERE key = 'layout'",
    )
    with pytest.raises(HistoryError, match="has format 2, this version reads 1"):
        DiskHistory.open(folder)


def refuse(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "call", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.open"]
)
def test_a_full_disk_leaves_the_earlier_rounds_intact(opened, monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        with pytest.raises(HistoryError, match=r"round 3 not recorded.*No space left"):
            opened.append(a_record(3))
    assert opened.rounds == (1, 2)
    assert opened.rounds_of(3) == (1, 2)
    for index in (1, 2):
        assert_same(opened.round(index), a_record(index))
    opened.append(a_record(3))
    assert_same(opened.round(3), a_record(3))


def test_a_round_whose_row_cannot_be_written_does_not_exist(opened, folder):
    change_index(
        folder,
        "CREATE TRIGGER full BEFORE INSERT ON updates WHEN NEW.client = 7"
        " BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
    )
    with pytest.raises(HistoryError, match=r"round 3 not recorded: .*disk is full"):
        opened.append(a_record(3))
    assert opened.rounds == (1, 2)
    assert opened.rounds_of(0) == (1, 2)
    opened.append(a_record(3, clients=(0, 3)))
    assert_same(opened.round(3), a_record(3, clients=(0, 3)))


def test_a_crash_between_file_and_row_leaves_no_round(folder):
    orphan = segment(folder, 3)
    orphan.write_bytes(save({"broadcast": np.zeros(1, np.float32)}))
    (folder / "rounds" / "000004.tmp").write_bytes(b"half")
    history = DiskHistory.open(folder)
    assert history.rounds == (1, 2)
    with pytest.raises(HistoryError, match="round 3 was not recorded"):
        history.round(3)
    history.append_round(a_record(3))
    assert_same(history.round(3), a_record(3))
    history.close()


def test_a_round_is_written_and_synced_before_it_is_named(opened, monkeypatch):
    seen = []
    real = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (seen.append(sorted(p.name for p in rounds.iterdir())), real(fd))[1],
    )
    rounds = opened.round(1).arrays.path.parent
    opened.append(a_record(3))
    named = "000003.safetensors"
    assert named not in seen[0]
    assert named in seen[1]


def test_arrays_of_another_type_are_refused(disk):
    for model, matrix, name in (
        (np.zeros(5), np.zeros((3, 5), np.float32), "broadcast"),
        (np.zeros(5, np.float32), np.zeros((3, 5), np.float64), "updates"),
        (np.zeros(5, np.float32), np.zeros((3, 5), ">f4"), "updates"),
    ):
        with pytest.raises(HistoryError, match=f"{name} must be float32"):
            disk.append(a_record(arrays=ArraysInMemory(model, matrix)))
    assert disk.rounds == ()


def test_its_layout_survives_as_text_and_shapes(folder):
    with sqlite3.connect(folder / "index.db") as db:
        (text,) = db.execute("SELECT value FROM meta WHERE key = 'layout'").fetchone()
    db.close()
    assert json.loads(text) == [["weight", "bias"], [[2, 2], []]]


def test_two_readers_see_what_one_writer_commits(opened, folder):
    reader = DiskHistory.open(folder)
    opened.append(a_record(3))
    assert reader.rounds == (1, 2, 3)
    assert_same(reader.round(3), a_record(3))
    reader.close()
