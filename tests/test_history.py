"""All histories keep the same promises; those on disk keep them when opened again."""

import hashlib
import os
import re
import shutil
import sqlite3
import stat
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file

from fedunlearn.errors import (
    ConfigError,
    DamagedError,
    HistoryError,
    RequestError,
    UnknownNameError,
)
from fedunlearn.history import (
    DiskHistory,
    Holdings,
    InMemoryHistory,
    ServerState,
    SetAside,
    first_round_of,
    records,
)
from fedunlearn.history.format1 import read_format1
from fedunlearn.history.migrate import migrate
from fedunlearn.history.names import MOST_NAME_BYTES, find_client, printable
from fedunlearn.params import Layout
from tests.history_helpers import (
    LATE,
    LAYOUT,
    WatchedFiles,
    a_record,
    a_state,
)
from tests.nasty_names import DIGITS, LONE_SURROGATE, NASTY

WHO = (0, 3, 7)
P = LAYOUT.size
GOLDEN = Path(__file__).parent / "golden"
AWKWARD = [-0.0, 1e-45, np.float32(3.4028235e38), np.inf, -1.1754942e-38, 1, -np.inf, 0]
COUNTS = ("num_examples", "num_steps", "num_samples")


def a_round(index=1, clients=WHO, **changes):
    """A round whose fields can be replaced, the arrays by ``model`` and ``matrix``."""
    record = a_record(abs(int(index)) or 1, tuple(map(int, clients)))
    arrays_ = replace(
        record.arrays,
        **{k: changes.pop(k) for k in ("model", "matrix") if k in changes},
    )
    fields = {"index": index, "clients": clients, "arrays": arrays_, **changes}
    return replace(record, **fields)


def same_arrays(one, other):
    return (one.dtype, one.shape) == (
        other.dtype,
        other.shape,
    ) and one.tobytes() == other.tobytes()


def same_states(one, other):
    assert one.random == other.random
    for ours, theirs in ((one.arrays, other.arrays), (one.rule, other.rule)):
        assert list(ours) == list(theirs)
        for name, array in ours.items():
            assert same_arrays(np.asarray(array), np.asarray(theirs[name])), name
    return True


def assert_same(one, other):
    """Check that two records say the same, to the bit."""
    for name in ("index", "clients", "asked", "set_aside", "dropped", "loss"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.seconds == other.seconds
    for name in (*COUNTS, "broadcast", "updates"):
        assert same_arrays(getattr(one, name), getattr(other, name)), name
    felt = one.sensitivities, other.sensitivities
    assert felt[0] is felt[1] is None or same_arrays(*felt)
    assert same_states(one.arrays.state(), other.arrays.state())


DISKS = {"sealed": True, "unsealed": False}


@pytest.fixture(params=["memory", *DISKS])
def history(request, tmp_path):
    """An empty history of each kind, open for writing."""
    if request.param == "memory":
        yield InMemoryHistory(LAYOUT)
        return
    sealed = DISKS[request.param]
    with DiskHistory.create(tmp_path / "history", LAYOUT, sealed=sealed) as disk:
        yield disk


@pytest.fixture(params=DISKS.values(), ids=DISKS)
def sealed(request):
    return request.param


@pytest.fixture
def folder(sealed, tmp_path):
    """A closed history of rounds 1 and 2."""
    folder = tmp_path / "history"
    with DiskHistory.create(folder, LAYOUT, sealed=sealed) as history:
        history.append_round(a_round(1), a_state(1))
        history.append_round(a_round(2), a_state(2))
    return folder


@pytest.fixture
def opened(folder):
    """The same, open for writing."""
    with DiskHistory.open(folder, write=True) as history:
        yield history


def is_clean(folder):
    with DiskHistory.open(folder) as history:
        assert history.check(read_data=True) == []
    return True


def files_of(folder):
    """Path -> bytes of every file but those that belong to an open SQLite."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


# --- what all promise -----------------------------------------------------------------


def test_a_new_history_is_empty(history):
    assert history.rounds == history.clients == ()
    assert history.withdrawn == frozenset()
    assert history.layout == LAYOUT
    assert history.holds == Holdings(update_bytes=4 * P, broadcast_bytes=4 * P)
    assert history.tip is None
    assert history.rounds_of(3) == ()
    assert list(records(history)) == []
    with pytest.raises(HistoryError, match=r"round 1 was not recorded.*no round"):
        history.round(1)


def test_a_round_comes_back_as_it_went_in(history):
    record = a_round(set_aside=(SetAside(LATE, "late"), SetAside(None, "Ünbekannt")))
    history.append_round(record)
    assert_same(history.round(1), record)
    assert history.round(1).kept == WHO


def test_awkward_floats_keep_their_bits(history):
    matrix = np.array([AWKWARD, AWKWARD[::-1]], np.float32)
    matrix[1, 0] = np.nan
    matrix.view(np.uint32)[1, 1] = 0x7FA1_B2C3  # a NaN with a payload
    record = a_round(1, (1, 2), model=np.array(AWKWARD, np.float32), matrix=matrix)
    history.append_round(record)
    assert_same(history.round(1), record)


def test_strided_arrays_keep_their_values(history):
    matrix = np.asfortranarray(np.arange(3 * P, dtype=np.float32).reshape(3, P))
    model = np.arange(2 * P, dtype=np.float32)[::2]
    history.append_round(a_round(model=model, matrix=matrix))
    assert history.round(1).updates.tolist() == matrix.tolist()
    assert history.round(1).broadcast.tolist() == list(range(0, 2 * P, 2))


def test_a_round_in_which_nobody_answered_can_be_kept(history):
    record = a_round(clients=())
    history.append_round(record)
    history.append_round(a_round(2))
    assert_same(history.round(1), record)
    assert history.round(1).updates.shape == (0, P)
    assert history.round(1).updates_of(()).shape == (0, P)
    assert history.holds.updates == {1, 2}
    assert history.clients == WHO


def test_rounds_are_appended_in_order_and_may_leave_gaps(history):
    for index in (1, 2, 5, 9):
        history.append_round(a_round(index))
    assert history.rounds == (1, 2, 5, 9)
    assert [r.index for r in records(history)] == [1, 2, 5, 9]
    assert history.holds.updates == history.holds.broadcasts == {1, 2, 5, 9}


@pytest.mark.parametrize("index", [0, -1, 1, 2])
def test_a_round_that_does_not_follow_the_last_is_refused(history, index):
    history.append_round(a_round(2), a_state(2))
    with pytest.raises(HistoryError, match=f"round {index} cannot follow round 2"):
        history.append_round(a_round(index, (5,)), a_state(7))
    assert history.rounds == (2,)
    assert history.clients == WHO
    assert_same(history.round(2), a_round(2))
    assert same_states(history.tip.state, a_state(2))


def test_an_unknown_round_is_named_with_the_span_that_is_known(history):
    history.append_round(a_round(2))
    history.append_round(a_round(4))
    for index in (3, 1, 5, 0, -2, np.int64(3)):
        with pytest.raises(
            HistoryError,
            match=f"round {index} was not recorded; the history holds rounds 2 to 4",
        ):
            history.round(index)


def test_the_rounds_of_a_client_are_those_it_was_aggregated_in(history):
    history.append_round(a_round(1, (0, 3)))
    history.append_round(a_round(2, (3, 5)))
    history.append_round(a_round(4, (0, 5)))
    assert history.rounds_of(0) == (1, 4)
    assert history.rounds_of(3) == (1, 2)
    assert history.rounds_of(LATE) == ()  # asked every time, never aggregated
    assert history.clients == (0, 3, 5)


def test_a_numpy_integer_is_as_good_an_id_as_a_python_one(history):
    """SQLite finds nothing under one: rollback then took the leaver for a stranger."""
    ids = tuple(np.arange(3))
    record = a_round(
        np.int64(1), ids, asked=ids, set_aside=(SetAside(np.int64(9), "late"),)
    )
    history.append_round(record, a_state(1))
    assert history.rounds_of(np.int64(2)) == history.rounds_of(2) == (1,)
    assert_same(history.round(np.int64(1)), record)
    assert first_round_of(history, frozenset({np.int64(1)})) == 1
    assert history.round(1).updates_of(np.array([2, 0])).shape == (2, P)
    assert history.tip.round == 1
    history.append_round(a_round(2))


def test_the_first_round_of_several_clients_is_the_earliest(history):
    history.append_round(a_round(2, (0, 3)))
    history.append_round(a_round(4, (3, 5)))
    assert first_round_of(history, {5}) == 4
    assert first_round_of(history, {3, 5}) == 2
    assert first_round_of(history, {1, 99}) is None
    assert first_round_of(history, set()) is None


def test_updates_come_in_the_order_they_are_asked_for(history):
    history.append_round(a_round())
    record, whole = history.round(1), a_round().updates
    assert record.updates_of((7, 0)).tolist() == whole[[2, 0]].tolist()
    assert record.updates_of((3, 3)).tolist() == whole[[1, 1]].tolist()
    assert record.updates_of(WHO).tolist() == whole.tolist()
    assert record.updates_of(()).shape == (0, P)
    assert record.examples_of((7, 0)).tolist() == [18, 11]


def test_a_client_that_is_not_in_the_round_is_named(history):
    history.append_round(a_round())
    for ask in (history.round(1).updates_of, history.round(1).examples_of):
        with pytest.raises(HistoryError, match="round 1 holds no update of client 99"):
            ask((0, 99))
    with pytest.raises(HistoryError, match="it holds those of 0, 3, 7"):
        history.round(1).share_of(1)


def test_shares_follow_example_counts_and_sum_to_one(history):
    history.append_round(a_round(num_examples=np.array([10, 30, 60], np.int64)))
    shares = [history.round(1).share_of(c) for c in WHO]
    assert shares == pytest.approx([0.1, 0.3, 0.6])


def test_nothing_can_be_written_through_a_record(history):
    history.append_round(a_round())
    record = history.round(1)
    for array in (record.broadcast, record.updates):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with suppress(ValueError):  # read-only as well, or a copy
        record.updates_of((3,))[...] = 0
    assert_same(history.round(1), a_round())


def test_rounds_can_be_appended_from_another_thread(history):
    failures = []

    def work():
        try:
            for index in (1, 2, 3):
                history.append_round(a_round(index))
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    assert history.rounds == (1, 2, 3)
    assert_same(history.round(2), a_round(2))


# --- where the server stands ----------------------------------------------------------

ODD_ARRAYS = {
    "float64": np.array([np.pi, np.nan, -0.0, 5e-324]),
    "float32": np.float32([1, np.inf]),
    "float16": np.array([[0.1, 65504]], np.float16),
    "int64": np.array([2**63 - 1, -(2**63)]),
    "uint8": np.arange(5, dtype=np.uint8),
    "uint64": np.array([2**64 - 1], np.uint64),
    "bool": np.array([[True], [False]]),
    "complex": np.array([1j, 2], np.complex64),
    "0-d": np.array(7.25),
    "0-d int": np.array(7),
    "empty": np.empty((0, 3), np.float32),
    "transposed": np.arange(12.0).reshape(3, 4).T,
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(10)[::3],
    "backwards": np.arange(4.0)[::-1],
    "broadcast": np.broadcast_to(np.float32(3), (2, 2)),
    "z/../../etc": np.ones(1),
    "a\0\n\N{GRINNING FACE}": np.ones(2),
    "": np.ones(3),
    "random": np.ones(4),
}


def test_a_state_comes_back_with_every_dtype_shape_and_name(history):
    state = ServerState(ODD_ARRAYS, dict(reversed(ODD_ARRAYS.items())), '[3, "x"]')
    history.append_round(a_round(), state)
    assert history.tip.round == 1
    assert same_states(history.tip.state, state)


def test_a_round_keeps_the_state_it_began_with(history):
    state = ServerState(rule=ODD_ARRAYS, random="[1]")
    record = a_round()
    record = replace(record, arrays=replace(record.arrays, server=state))
    history.append_round(record, a_state(1))
    assert same_states(history.round(1).arrays.state(), state)
    assert same_states(history.tip.state, a_state(1))


def test_the_tip_is_that_of_the_last_round(history):
    history.append_round(a_round(1), a_state(1))
    history.append_round(a_round(5), a_state(5))
    assert history.tip.round == 5
    assert same_states(history.tip.state, a_state(5))
    history.append_round(a_round(6))
    assert history.tip.round == 6
    assert same_states(history.tip.state, ServerState())
    history.append_round(a_round(7), ServerState())
    assert same_states(history.tip.state, ServerState())


def test_numbers_in_another_byte_order_come_back_as_numbers(history):
    state = ServerState(
        {"a": np.arange(3, dtype=">f4"), "b": np.arange(3, dtype=">i8")}
    )
    history.append_round(a_round(), state)
    for name, array in state.arrays.items():
        assert history.tip.state.arrays[name].tolist() == array.tolist()


@pytest.mark.parametrize(
    "array",
    [np.array(["text"]), np.array([None]), np.array(["2020"], "M8[D]"), object()],
    ids=["text", "object", "date", "no array"],
)
def test_a_state_that_cannot_be_stored_is_refused_before_anything_is_written(
    opened, array
):
    before = files_of(opened.folder)
    for state in (ServerState({"a": array}), ServerState(rule={"a": array})):
        with pytest.raises(HistoryError, match="'a'"):
            opened.append_round(a_round(3), state)
        record = a_round(3)
        record = replace(record, arrays=replace(record.arrays, server=state))
        with pytest.raises(HistoryError, match="'a'"):
            opened.append_round(record)
    assert files_of(opened.folder) == before
    opened.append_round(a_round(3), a_state(3))


# --- what is refused ------------------------------------------------------------------

WRONG = {
    "double model": {"model": np.zeros(P)},
    "half model": {"model": np.zeros(P, np.float16)},
    "whole model": {"model": np.zeros(P, np.int32)},
    "swapped bytes": {"matrix": np.zeros((3, P), ">f4")},
    "double updates": {"matrix": np.zeros((3, P))},
    "a longer model": {"model": np.zeros(P + 1, np.float32)},
    "a flat matrix": {"matrix": np.zeros(3 * P, np.float32)},
    "a row too many": {"matrix": np.zeros((4, P), np.float32)},
    "a column too few": {"matrix": np.zeros((3, P - 1), np.float32)},
    "a matrix for a model": {"model": np.zeros((1, P), np.float32)},
    "no model": {"model": np.zeros(0, np.float32)},
    "not ascending": {"clients": (7, 3, 0)},
    "twice the same": {"clients": (3, 3, 7)},
    "below zero": {"clients": (-1, 3, 7)},
    "beyond 32 bits": {"clients": (0, 3, 2**32)},
    "beyond 64 bits": {"clients": (0, 3, 2**64)},
    "a late round": {"index": 2**32},
    "an endless round": {"index": 2**64},
    **{
        f"{name} {what}": {name: value}
        for name in COUNTS
        for what, value in {
            "too few": np.array([1, 2]),
            "too many": np.array([1, 2, 3, 4]),
            "fractions": np.array([1.5, 2, 3]),
            "in a column": np.array([[1], [2], [3]]),
            "negative": np.array([1, -2, 3]),
        }.items()
    },
    "sensitivities too few": {"sensitivities": np.array([1.0, 2.0])},
    "sensitivities NaN": {"sensitivities": np.array([1.0, np.nan, 2.0])},
    "loss NaN": {"loss": np.nan},
    "loss infinite": {"loss": np.inf},
    "time NaN": {"seconds": np.nan},
}


def mapped(fields):
    """Return a wrong round with the index 3 unless that is what is wrong."""
    record = a_round(3)
    arrays_ = replace(
        record.arrays, **{k: v for k, v in fields.items() if k in ("model", "matrix")}
    )
    rest = {k: v for k, v in fields.items() if k not in ("model", "matrix")}
    return replace(record, arrays=arrays_, **rest)


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG)
def test_a_wrong_round_is_refused_before_anything_is_written(history, fields):
    history.append_round(a_round(1), a_state(1))
    on_disk = isinstance(history, DiskHistory)
    before = files_of(history.folder) if on_disk else None
    with pytest.raises(HistoryError):
        history.append_round(mapped(fields), a_state(3))
    assert history.rounds == (1,)
    assert same_states(history.tip.state, a_state(1))
    if on_disk:
        assert files_of(history.folder) == before
    history.append_round(a_round(3), a_state(3))
    assert_same(history.round(3), a_round(3))


@pytest.mark.parametrize("retention", ["every:2", "sums", "sensitivities", "last:1"])
@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG)
def test_what_is_kept_of_a_round_does_not_decide_what_is_refused(
    tmp_path, fields, retention
):
    with DiskHistory.create(tmp_path, LAYOUT, retention=retention) as history:
        history.append_round(a_round(1))
        before = files_of(tmp_path)
        with pytest.raises(HistoryError):
            history.append_round(mapped(fields))
        assert files_of(tmp_path) == before
        assert history.check(read_data=True) == []


RETENTIONS = ("all", "every:2", "last:1", "sums", "sensitivities", "crab:0.1,0.5,0.5")


KEPT = {  # rounds whose updates, and rounds whose broadcast, are there after five
    "all": ({1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}),
    "every:2": ({1, 3, 5}, {1, 3, 5}),
    "last:2": ({4, 5}, {1, 4, 5}),
    "last:1": ({5}, {1, 5}),
    "sums": (set(), {1}),
    "sensitivities": (set(), {1, 2, 3, 4, 5}),
}


@pytest.mark.parametrize("codec", ["float32", "int8", "top_k:0.25"])
@pytest.mark.parametrize("retention", KEPT)
def test_what_is_not_kept_is_gone_from_the_files(tmp_path, sealed, retention, codec):
    updates, broadcasts = KEPT[retention]
    with DiskHistory.create(
        tmp_path, LAYOUT, sealed=sealed, retention=retention, codec=codec
    ) as history:
        for index in range(1, 6):
            history.append_round(a_round(index), a_state(index))
            nbytes = history.stats().nbytes
            payload = sum(nbytes[k] for k in ("updates", "broadcasts", "sums"))
            assert history.holds.nbytes == payload <= history.holds.peak_bytes
        assert history.rounds == (1, 2, 3, 4, 5)
        assert history.holds.updates == history.holds.some_updates == updates
        assert history.holds.broadcasts == broadcasts
        assert nbytes["updates"] == 3 * len(updates) * history.holds.update_bytes
        assert nbytes["broadcasts"] == 4 * P * len(broadcasts)
        assert nbytes["sums"] == (3 * 4 * P if retention == "sums" else 0)
    with DiskHistory.open(tmp_path) as history:
        for record in records(history):
            assert record.kept == (WHO if record.index in updates else ())
            if record.index not in updates:
                with pytest.raises(HistoryError, match="is not kept"):
                    _ = record.updates
            if record.index not in broadcasts:
                with pytest.raises(HistoryError, match="is not kept"):
                    _ = record.broadcast
    files = list((tmp_path / "segments").glob("round-*"))
    assert len(files) == len(updates | broadcasts)


@pytest.mark.parametrize("retention", RETENTIONS)
def test_rounds_in_which_nobody_answered_can_be_kept_however_little_is(
    tmp_path, retention, sealed
):
    who = {1: (), 2: (), 3: WHO, 4: (), 5: (3,)}
    with DiskHistory.create(
        tmp_path, LAYOUT, retention=retention, sealed=sealed
    ) as history:
        for index, clients in who.items():
            history.append_round(a_round(index, clients), a_state(index))
            assert history.check(read_data=True) == []
    with DiskHistory.open(tmp_path, write=True) as history:
        assert {r.index: r.clients for r in records(history)} == who
        assert history.check(read_data=True) == []


def test_a_round_whose_loss_is_needed_is_refused_without_it(tmp_path):
    """Or else it were recorded, and the history could never be written again."""
    with DiskHistory.create(tmp_path, LAYOUT, retention="crab") as history:
        history.append_round(a_round(1))
        before = files_of(tmp_path)
        with pytest.raises(HistoryError, match="needs the training loss of round 2"):
            history.append_round(a_round(2, loss=None))
        assert files_of(tmp_path) == before
        history.append_round(a_round(2))
    DiskHistory.open(tmp_path, write=True).close()


def test_numbers_of_any_kind_come_back_as_plain_ones(history):
    """SQLite keeps a NumPy float as a blob, without a word."""
    record = a_round(
        loss=np.float32(0.5),
        seconds=np.float32(1.5),
        num_steps=np.array([1, 2, 3], np.int32),
    )
    history.append_round(record)
    found = history.round(1)
    assert (found.loss, found.seconds) == (0.5, 1.5)
    assert found.num_steps.tolist() == [1, 2, 3]


def test_the_largest_ids_and_rounds_can_be_recorded(history):
    last = 2**32 - 2
    ids = (0, 2**32 - 1)
    history.append_round(a_round(last, ids, num_steps=np.array([0, 2**63 - 1])))
    assert history.rounds_of(2**32 - 1) == (last,)
    assert history.round(last).num_steps.tolist() == [0, 2**63 - 1]


# --- layouts without much in them -----------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        Layout((), ()),
        Layout(("nothing",), ((0, 3),)),
        Layout(("scalar",), ((),)),
        Layout(("a", "b"), ((), ())),
    ],
    ids=["no array", "empty array", "scalar", "scalars"],
)
@pytest.mark.parametrize("codec", ["float32", "float16", "bfloat16", "int8", "top_k:1"])
def test_small_models_are_models(sealed, tmp_path, layout, codec):
    size = layout.size
    record = a_round(
        model=np.arange(size, dtype=np.float32),
        matrix=np.arange(3 * size, dtype=np.float32).reshape(3, size),
    )
    with DiskHistory.create(tmp_path, layout, sealed=sealed, codec=codec) as history:
        history.append_round(record, a_state(1))
        history.append_round(replace(record, index=2))
    with DiskHistory.open(tmp_path) as history:
        assert history.layout == layout
        assert history.round(1).broadcast.tolist() == record.broadcast.tolist()
        assert history.round(2).updates.shape == (3, size)
        assert np.abs(history.round(2).updates - record.updates).sum() < 0.1
        assert history.round(1).updates_of((7,)).shape == (1, size)
    assert is_clean(tmp_path)


# --- running sums ---------------------------------------------------------------------


def test_sums_are_shares_times_updates(history, tmp_path):
    rounds = [a_round(1), a_round(2, (0, 7)), a_round(3, (3, 9))]
    with DiskHistory.create(tmp_path / "s", LAYOUT, retention="sums") as disk:
        for record in rounds:
            disk.append_round(record)
        for client in (0, 3, 7, 9):
            terms = [
                record.share_of(client) * record.updates_of((client,))[0].astype(float)
                for record in rounds
                if client in record.clients
            ]
            want = np.sum(terms, axis=0)
            np.testing.assert_allclose(disk.sum_of(client), want, rtol=1e-5, atol=1e-6)
        assert disk.holds.sums_from == 1
        assert disk.sum_of(np.int64(7)).tolist() == disk.sum_of(7).tolist()
        with pytest.raises(HistoryError, match="no running sum of client 1 is kept"):
            disk.sum_of(1)
        if isinstance(history, InMemoryHistory):
            for record in rounds:
                history.append_round(record)
            for client in (0, 3, 7, 9):
                assert same_arrays(history.sum_of(client), disk.sum_of(client))
            with pytest.raises(HistoryError, match="no running sum of client 1 is"):
                history.sum_of(1)
        else:
            with pytest.raises(HistoryError, match="keeps no running sums"):
                history.sum_of(0)


# --- those on disk --------------------------------------------------------------------

FLOATS = st.floats(width=32, allow_subnormal=True)
MODELS = arrays(np.float32, P, elements=FLOATS)
TEXTS = st.lists(st.text(st.characters(codec="utf-8")), max_size=3)
MATRICES = arrays(np.float32, st.tuples(st.integers(0, 4), st.just(P)), elements=FLOATS)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(MATRICES, st.data())
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_round_survives_closing_and_reopening(tmp_path_factory, matrix, data):
    count = len(matrix)
    counts = st.lists(st.integers(0, 2**63 - 1), min_size=count, max_size=count)
    ids = data.draw(
        st.lists(st.integers(0, 2**32 - 1), min_size=count, max_size=count, unique=True)
    )
    record = a_round(
        data.draw(st.integers(1, 10**9)),
        clients=tuple(sorted(ids)),
        model=data.draw(MODELS),
        matrix=matrix,
        set_aside=tuple(SetAside(None, text) for text in data.draw(TEXTS)),
        loss=data.draw(st.none() | FINITE),
        seconds=data.draw(FINITE),
        num_steps=np.array(data.draw(counts), np.int64),
    )
    folder = tmp_path_factory.mktemp("history")
    sealed = data.draw(st.booleans())
    with DiskHistory.create(folder, LAYOUT, sealed=sealed) as disk:
        disk.append_round(record)
    with DiskHistory.open(folder) as disk:
        assert_same(disk.round(record.index), record)
        assert disk.check(read_data=True) == []


def test_it_can_be_reopened_and_continued(folder):
    with DiskHistory.open(folder, write=True) as history:
        assert history.layout == LAYOUT
        assert history.rounds == (1, 2)
        assert same_states(history.tip.state, a_state(2))
        history.append_round(a_round(3), a_state(3))
    with DiskHistory.open(folder) as again:
        for index in (1, 2, 3):
            assert_same(again.round(index), a_round(index))
        assert same_states(again.tip.state, a_state(3))
    assert is_clean(folder)


def test_what_is_fixed_at_first_is_found_again(tmp_path):
    for codec, retention in (("int8", "last:2"), ("top_k:0.5", "crab:0.1,0.5,0.5")):
        place = tmp_path / codec
        DiskHistory.create(place, LAYOUT, codec=codec, retention=retention).close()
        with DiskHistory.open(place) as history:
            stats = history.stats()
            assert (stats.codec, stats.retention) == (codec, retention)
            assert stats.parameters == P
            assert history.layout == LAYOUT


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"codec": "flaot32"}, UnknownNameError),
        ({"codec": "top_k:2"}, ConfigError),
        ({"retention": "every:0"}, ConfigError),
        ({"retention": "some"}, UnknownNameError),
        ({"names": {0: "a", 1: "a"}}, RequestError),
    ],
    ids=str,
)
def test_a_wrong_setting_leaves_no_folder(tmp_path, setting, error):
    with pytest.raises(error):
        DiskHistory.create(tmp_path / "new", LAYOUT, **setting)
    assert list(tmp_path.iterdir()) == []


def test_updates_are_memory_mapped_if_they_are_stored_as_they_are(tmp_path):
    with DiskHistory.create(tmp_path, LAYOUT, sealed=False) as history:
        history.append_round(a_round())
    with DiskHistory.open(tmp_path) as history:
        record = history.round(1)
        for array in (record.updates, record.broadcast):
            assert not array.flags.writeable
            while isinstance(array, np.ndarray):
                array = array.base  # noqa: PLW2901 - down to what holds the bytes
            assert isinstance(array.obj, mmap)


def test_nothing_is_read_before_it_is_asked_for(folder):
    only(folder, "round-000001").unlink()
    with DiskHistory.open(folder) as history:
        record = history.round(1)
        assert record.clients == WHO
        assert record.num_examples.tolist() == a_round(1).num_examples.tolist()
        path = re.escape(str(folder / "segments" / "round-000001"))
        for read in (
            lambda: record.broadcast,
            lambda: record.updates,
            lambda: record.updates_of((3,)),
            record.arrays.state,
        ):
            with pytest.raises(DamagedError, match=path):
                read()
        assert_same(history.round(2), a_round(2))


def only(folder, start):
    (path,) = (folder / "segments").glob(f"{start}-*")
    return path


def test_a_record_stays_readable_after_closing(opened):
    before, after = opened.round(1), opened.round(2)
    assert_same(before, a_round(1))  # opened before, read again after
    opened.close()
    assert_same(before, a_round(1))
    assert_same(after, a_round(2))


def test_a_closed_history_says_that_it_is_closed(folder):
    for write in (False, True):
        history = DiskHistory.open(folder, write=write)
        history.close()
        history.close()
        for use in (
            lambda h: h.rounds,
            lambda h: h.round(1),
            lambda h: h.tip,
            lambda h: h.append_round(a_round(3)),
            DiskHistory.check,
        ):
            with pytest.raises(HistoryError, match="closed") as caught:
                use(history)
            assert not isinstance(caught.value, DamagedError)
    assert is_clean(folder)


@pytest.mark.parametrize(
    "codec", ["float32", "float16", "int8", "top_k:0.5"], ids=lambda c: c.split(":")[0]
)
def test_every_file_is_plain_safetensors(sealed, tmp_path, codec):
    with DiskHistory.create(tmp_path, LAYOUT, sealed=sealed, codec=codec) as history:
        history.append_round(a_round(1), a_state(1))
    found = load_file(only(tmp_path, "round-000001"))
    assert found.keys() == {"broadcast", "state", "updates", "tags", "seal"}
    assert found["tags"].shape == (5, 16)
    assert load_file(only(tmp_path, "tip-000001")).keys() == {"state", "tags", "seal"}
    if codec == "float32" and not sealed:
        assert same_arrays(found["updates"], a_round(1).updates)
        assert same_arrays(found["broadcast"][0], a_round(1).broadcast)
    if sealed:
        assert {array.dtype for array in found.values()} == {np.dtype(np.uint8)}


def test_the_files_take_the_bytes_that_are_counted(opened):
    stats = opened.stats()
    assert stats.nbytes["updates"] == 2 * 3 * 4 * P
    assert stats.nbytes["broadcasts"] == 2 * 4 * P
    everything = sum(p.stat().st_size for p in opened.folder.rglob("*") if p.is_file())
    assert stats.total_bytes == everything


def test_a_folder_that_holds_a_history_is_refused(folder):
    before = files_of(folder)
    with pytest.raises(HistoryError, match="already holds a history"):
        DiskHistory.create(folder, LAYOUT)
    assert files_of(folder) == before


def test_a_folder_whose_index_is_gone_is_not_taken_for_a_new_one(folder):
    """Its keys would be written over, and every round with them."""
    (folder / "index.db").unlink()
    before = files_of(folder)
    with pytest.raises(HistoryError, match="repair"):
        DiskHistory.create(folder, LAYOUT)
    assert files_of(folder) == before


def test_a_folder_without_a_history_is_named(tmp_path):
    for write in (False, True):
        for place in (tmp_path, tmp_path / "missing"):
            with pytest.raises(
                HistoryError, match=re.escape(f"{place} holds no history")
            ):
                DiskHistory.open(place, write=write)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(HistoryError, match=re.escape(str(place))):
            DiskHistory.create(place, LAYOUT)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_only_the_owner_can_read_it_whatever_the_umask(tmp_path, sealed, umask):
    folder = tmp_path / "a" / "history"
    old = os.umask(umask)
    try:
        history = DiskHistory.create(folder, LAYOUT, sealed=sealed, retention="last:1")
        history.append_round(a_round(1), a_state(1))
        history.append_round(a_round(2), a_state(2))
        if sealed:
            history.erase([3])
        while_open = modes(folder)
        history.close()
        with DiskHistory.open(folder) as reader:
            assert reader.rounds == (1, 2)
            while_read = modes(folder)
    finally:
        os.umask(old)
    for found in (while_open, while_read, modes(folder)):
        assert found.pop("segments") == found.pop(".") == 0o700
        assert set(found.values()) == {0o600}, found


def modes(folder):
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.rglob("*"))
    }


# --- one writer, many readers ---------------------------------------------------------


def test_a_reader_cannot_write(folder):
    before = files_of(folder)
    with DiskHistory.open(folder) as history:
        with pytest.raises(HistoryError, match="open for reading only"):
            history.append_round(a_round(3))
        with pytest.raises((HistoryError, RequestError)):
            history.erase([3])
    assert files_of(folder) == before


def test_a_second_writer_is_refused_with_the_first_ones_process(opened):
    with pytest.raises(HistoryError, match=f"process {os.getpid()}"):
        DiskHistory.open(opened.folder, write=True)
    program = (
        "import sys; from pathlib import Path; from fedunlearn.history import *\n"
        "DiskHistory.open(Path(sys.argv[1]), write=True)"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(opened.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 1
    assert f"process {os.getpid()}" in child.stderr
    opened.append_round(a_round(3))
    opened.close()
    with DiskHistory.open(opened.folder, write=True) as next_one:
        assert next_one.rounds == (1, 2, 3)
    assert (opened.folder / "LOCK").read_bytes() == b""


def test_two_readers_see_what_one_writer_commits(opened, folder):
    with DiskHistory.open(folder) as one, DiskHistory.open(folder) as two:
        assert one.rounds == two.rounds == (1, 2)
        opened.append_round(a_round(3), a_state(3))
        for reader in (one, two):
            assert reader.rounds == (1, 2, 3)
            assert_same(reader.round(3), a_round(3))
            assert same_states(reader.tip.state, a_state(3))
            assert reader.check(read_data=True) == []
        opened.close()
        assert_same(one.round(1), a_round(1))


def test_a_reader_sees_the_sums_of_the_last_round(tmp_path):
    with DiskHistory.create(tmp_path, LAYOUT, retention="sums") as writer:
        writer.append_round(a_round(1))
        with DiskHistory.open(tmp_path) as reader:
            assert same_arrays(reader.sum_of(0), writer.sum_of(0))
            writer.append_round(a_round(2))
            assert same_arrays(reader.sum_of(0), writer.sum_of(0))


def test_a_reader_sees_what_comes_after_an_erasure(tmp_path):
    with DiskHistory.create(tmp_path, LAYOUT) as writer:
        writer.append_round(a_round(1, (0, 7)))
        writer.append_round(a_round(2))
        with DiskHistory.open(tmp_path) as reader:
            assert reader.rounds == (1, 2)
            writer.erase([3], a_state(9))
            writer.append_round(a_round(3, (0, 7)), a_state(3))
            assert reader.rounds == (1, 3)
            assert reader.withdrawn == {3}
            assert_same(reader.round(3), a_round(3, (0, 7)))
            assert same_states(reader.tip.state, a_state(3))


def test_a_reader_is_never_told_of_damage_while_a_writer_is_busy(tmp_path):
    """The tip's file changes its name with every round; old rounds are thinned."""
    trouble, seen = [], []
    stop = threading.Event()

    def read():
        try:
            with DiskHistory.open(tmp_path) as history:
                while not stop.is_set():
                    tip = history.tip
                    seen.append(tip.round)
                    assert same_states(tip.state, a_state(tip.round))
                    trouble.extend(f.what for f in history.check() if f.damage)
        except Exception as error:  # noqa: BLE001
            trouble.append(repr(error))

    with DiskHistory.create(tmp_path, LAYOUT, retention="last:2") as writer:
        writer.append_round(a_round(1), a_state(1))
        thread = threading.Thread(target=read)
        thread.start()
        for index in range(2, 80):
            writer.append_round(a_round(index), a_state(index))
        stop.set()
        thread.join()
    assert trouble == []
    assert seen == sorted(seen)
    assert len(set(seen)) > 3


# --- names ----------------------------------------------------------------------------

NAMES = dict(enumerate(NASTY))


def test_any_text_is_a_name_and_none_becomes_a_path(tmp_path, sealed):
    place = tmp_path / "inner" / "history"
    with DiskHistory.create(place, LAYOUT, sealed=sealed, names=NAMES) as history:
        history.append_round(a_round(1, tuple(NAMES)))
        assert history.names == NAMES
    with DiskHistory.open(place) as history:
        assert history.names == NAMES
        assert list(history.names) == list(NAMES)
        for client, name in NAMES.items():
            assert find_client(name, history.clients, history.names) == client
    assert is_clean(place)
    paths = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    assert all(re.fullmatch(r"[\w./-]+", path) for path in paths)
    assert {path.split("/")[0] for path in paths} == {"inner"}


def test_names_may_be_given_under_numpy_ids(tmp_path):
    with DiskHistory.create(tmp_path, LAYOUT, names={np.int64(3): "c"}) as history:
        assert history.names == {3: "c"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({0: LONE_SURROGATE}, "name of client 0 is not text that can be stored"),
        ({0: f"a{LONE_SURROGATE}b"}, "name of client 0 is not text"),
        ({5: "x" * (MOST_NAME_BYTES + 1)}, f"client 5 has {MOST_NAME_BYTES + 1} bytes"),
        ({1: "é" * MOST_NAME_BYTES}, f"client 1 has {2 * MOST_NAME_BYTES} bytes"),
        ({2: "a\nb", 4: "a\nb"}, r"clients 2 and 4 have the same name a\\nb$"),
    ],
)
def test_a_name_that_cannot_be_kept_is_refused(tmp_path, names, message):
    with pytest.raises(RequestError, match=message):
        DiskHistory.create(tmp_path / "new", LAYOUT, names=names)
    assert not (tmp_path / "new").exists()


def test_a_name_of_the_largest_size_is_kept(tmp_path):
    name = "é" * (MOST_NAME_BYTES // 2)
    with DiskHistory.create(tmp_path, LAYOUT, names={0: name}) as history:
        assert history.names[0] == name


def test_a_client_is_found_by_name_before_id():
    names = {3: "7", 7: "Ann"}
    assert find_client("7", (3, 7), names) == 3
    assert find_client("3", (3, 7), names) == 3
    assert find_client("Ann", (3, 7), names) == 7
    assert find_client("0003", (3, 7), names) == 3
    for text in ("ann", "Ann ", "+3", "-3", "3.0", "٣", "²", "4", "", DIGITS):
        with pytest.raises(UnknownNameError, match="unknown client"):
            find_client(text, (3, 7), names)


@pytest.mark.parametrize("text", [*NASTY, LONE_SURROGATE], ids=ascii)
def test_a_name_nobody_has_is_named_in_one_harmless_line(text):
    with pytest.raises(UnknownNameError) as caught:
        find_client(f"{text}!", (0,), {0: text})
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    message.encode()


@pytest.mark.parametrize("text", [*NASTY, LONE_SURROGATE], ids=ascii)
def test_a_printable_name_is_one_short_harmless_line(text):
    line = printable(text)
    assert line.isprintable()
    assert len(line) <= 80
    line.encode()
    if text.isprintable() and len(text) <= 80:
        assert line == text


def test_printable_shows_what_it_hides():
    assert printable("\x1b[2J") == r"\x1b[2J"
    assert printable("a\nb\0") == r"a\nb\x00"
    assert printable("\N{RIGHT-TO-LEFT OVERRIDE}x") == r"\u202ex"
    assert printable("x" * 80) == "x" * 80
    assert printable("x" * 81) == "x" * 77 + "..."


# --- many rounds ----------------------------------------------------------------------

MANY = 3_000


def test_many_rounds_open_fast_and_the_last_costs_what_the_first_did(tmp_path):
    def hurry(method, args, _result):
        """Let no call wait for the disk: it is not what is measured."""
        if method == "commit":
            args[0].execute("PRAGMA synchronous=OFF")

    files = WatchedFiles(after=hurry)
    files.sync = files.sync_folder = lambda _: None
    layout = Layout(("w",), ((2,),))
    record = a_round(
        clients=(4,), model=np.zeros(2, np.float32), matrix=np.ones((1, 2), np.float32)
    )
    times = []
    with DiskHistory.create(tmp_path, layout, files=files) as history:
        for index in range(1, MANY + 1):
            start = time.perf_counter()
            history.append_round(replace(record, index=index))
            times.append(time.perf_counter() - start)
    start = time.perf_counter()
    with DiskHistory.open(tmp_path) as history:
        opening = time.perf_counter() - start
        assert len(history.rounds) == MANY
        assert history.round(MANY).updates.tolist() == [[1, 1]]
    assert opening < 2
    first, last = statistics.median(times[:300]), statistics.median(times[-300:])
    assert last < 5 * first + 0.002, (first, last)


# --- formats --------------------------------------------------------------------------


def golden_2(tmp_path):
    """Return a copy of the golden history; Git keeps no modes."""
    folder = Path(shutil.copytree(GOLDEN / "history-format-2", tmp_path / "history"))
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


def test_a_history_of_this_format_opens_for_ever(tmp_path):
    """Three clients, three rounds, state, names, sealed; its keys lie beside it.

    Made once, on 2026-11-25, by::

        names = {0: "Ada", 1: "B\\u00f6ge", 2: "\\u202eeve"}
        with DiskHistory.create(GOLDEN / "history-format-2", LAYOUT, names=names) as h:
            h.append_round(a_record(1, (0, 1)), a_state(1))
            h.append_round(a_record(2, (0, 1, 2)), a_state(2))
            h.append_round(a_record(4, (1, 2)), a_state(4))

    with LAYOUT, a_record and a_state of ``tests/history_helpers.py`` as they were then.
    """
    folder = golden_2(tmp_path)
    for write in (False, True):
        with DiskHistory.open(folder, write=write) as history:
            assert history.rounds == (1, 2, 4)
            assert history.rounds_of(0) == (1, 2)
            assert history.names == {0: "Ada", 1: "Böge", 2: "\u202eeve"}
            assert history.check(read_data=True) == []
            assert {r.index: digest_of(r) for r in records(history)} == ROUNDS_2
            assert history.tip.round == 4
            assert digest_of_state(history.tip.state) == TIP_2
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert size < 200_000


ROUNDS_2 = {
    1: "1f7e2b3ff80ec571334654683622866ec712c8e872490f3e4f4cfec61bb651ef2ebe6750",
    2: "0faa71cb19a48505f9a6a8f3d5dfa48fdf35862514dbbb0ae73f66b3fd5b7d030abe0daf",
    4: "d73ca2e7fadfc2b53a66c03e7028ca224402c88987abdd21758af9b0ed618d71ff1573b3",
}
TIP_2 = "60a800eecb6816afebfc18a2052e1c5ef267c1c169373bca602f64db809d8c30"


def change_index(folder, *statements):
    """Change a closed index, and take its seal away: as after a crash."""
    (folder / "index.seal").unlink(missing_ok=True)
    with sqlite3.connect(folder / "index.db") as database:
        for statement in statements:
            database.execute(statement)
    database.close()


@pytest.mark.parametrize("write", [False, True])
def test_a_newer_format_is_refused(tmp_path, write):
    folder = golden_2(tmp_path)
    change_index(folder, "UPDATE meta SET value = '3' WHERE key = 'format'")
    with pytest.raises(
        HistoryError, match=r"has format 3, written by a newer version.*up to 2"
    ) as caught:
        DiskHistory.open(folder, write=write)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("format_", ["0", "1.5", "²", "two", "-1", ""])
def test_a_format_that_is_none_is_refused(folder, format_):
    setting = f"UPDATE meta SET value = '{format_}' WHERE key = 'format'"  # noqa: S608
    change_index(folder, setting)
    with pytest.raises(HistoryError, match="format"):
        DiskHistory.open(folder)


@pytest.fixture
def old_format(tmp_path):
    folder = tmp_path / "history"
    shutil.copytree(GOLDEN / "history-format-1", folder)
    return folder


@pytest.mark.parametrize("write", [False, True])
def test_the_older_format_is_refused_with_the_way_out(old_format, write):
    with pytest.raises(
        HistoryError,
        match=f"format 1.*`fedunlearn history migrate {re.escape(str(old_format))}`",
    ):
        DiskHistory.open(old_format, write=write)


FORMAT_1_DIGESTS = {
    1: "ea6c7391fc1c61bb9f97194d106fc1ada830fcc293467db0273591629624634ce3b0c442",
    2: "e9b7bb69b175ab8cb162df8e74beee415885fec519159d38ae7965303a705b73e3b0c442",
    4: "c086fa4caf179d1550f08ae781679e0d3f91ab4023879b2d8f60bdc79341c209e3b0c442",
}


def test_migrating_keeps_the_rounds_and_the_old_folder(old_format, sealed):
    before = everything_in(old_format)
    layout, rounds = read_format1(old_format)
    rounds = list(rounds)
    kept = migrate(old_format, sealed=sealed)
    assert kept == old_format.with_name("history.format-1")
    assert everything_in(kept) == before
    assert before == everything_in(GOLDEN / "history-format-1")
    assert sorted(p.name for p in old_format.parent.iterdir()) == [
        "history",
        "history.format-1",
    ]
    with DiskHistory.open(old_format, write=True) as history:
        assert history.layout == layout
        assert history.rounds == (1, 2, 4)
        assert history.stats().sealed is sealed
        for record in rounds:
            assert_same(history.round(record.index), record)
        assert {r.index: digest_of(r) for r in records(history)} == FORMAT_1_DIGESTS
        history.append_round(a_round_like(rounds[-1], 5))
    assert is_clean(old_format)


def everything_in(folder):
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_rounds_in_sqlites_own_log_are_migrated_too(old_format):
    """As a process of that time left them when it was killed."""
    database = sqlite3.connect(old_format / "index.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("UPDATE rounds SET asked = '[0, 1, 2, 9]' WHERE round = 2")
    shutil.copytree(old_format, old_format.parent / "killed")
    database.close()
    killed = old_format.parent / "killed"
    (killed / "index.db-shm").unlink()
    assert (killed / "index.db-wal").stat().st_size > 0
    migrate(killed)
    with DiskHistory.open(killed) as history:
        assert history.round(2).asked == (0, 1, 2, 9)


def digest_of(record):
    """SHA-256 of a round, of what both formats hold; it is computed here alone."""
    aside = [(s.client, s.reason) for s in record.set_aside]
    said = repr((record.clients, record.asked, aside, record.loss))
    digest = hashlib.sha256(said.encode())
    for name in (*COUNTS, "broadcast", "updates"):
        digest.update(np.ascontiguousarray(getattr(record, name)).tobytes())
    return digest.hexdigest() + digest_of_state(record.arrays.state())[:8]


def digest_of_state(state):
    digest = hashlib.sha256(state.random.encode())
    for name, array in (*state.arrays.items(), *state.rule.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def a_round_like(record, index):
    return replace(record, index=index)


def test_what_is_not_of_format_1_is_not_migrated(folder, tmp_path):
    before = files_of(folder)
    with pytest.raises(HistoryError, match="has format 2, not 1"):
        migrate(folder)
    with pytest.raises(HistoryError, match="holds no history"):
        migrate(tmp_path / "nothing")
    assert files_of(folder) == before


def test_an_earlier_copy_is_never_written_over(old_format):
    kept = old_format.with_name("history.format-1")
    kept.mkdir()
    with pytest.raises(HistoryError, match="exists already"):
        migrate(old_format)
    assert files_of(old_format) == files_of(GOLDEN / "history-format-1")
    assert list(kept.iterdir()) == []


def test_a_damaged_old_history_is_not_migrated(old_format):
    path = old_format / "rounds" / "000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = files_of(old_format)
    for _ in range(2):
        with pytest.raises(DamagedError, match="000002"):
            migrate(old_format)
    assert files_of(old_format) == before
