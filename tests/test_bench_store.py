"""The benchmark of the store runs; a streamed sum is the sum."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedunlearn.errors import HistoryError
from fedunlearn.history import DiskHistory, InMemoryHistory, records
from fedunlearn.history.stream import weighted_sum
from tests.history_helpers import LAYOUT, a_record

ROOT = Path(__file__).parent.parent


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


@pytest.fixture(params=["memory", "unsealed", "sealed"])
def history(request, tmp_path):
    if request.param == "memory":
        opened = InMemoryHistory(LAYOUT)
    else:
        sealed = request.param == "sealed"
        opened = DiskHistory.create(tmp_path / "h", LAYOUT, sealed=sealed)
    for index, clients in ((1, (0, 2)), (2, (1,)), (5, (0, 1, 2))):
        opened.append_round(a_record(index, clients))
    yield opened
    if request.param != "memory":
        opened.close()


def test_a_streamed_sum_is_the_sum(history):
    found = weighted_sum(history, lambda r: {c: r.share_of(c) for c in r.clients})
    expected = sum(
        r.share_of(c) * r.updates_of((c,))[0].astype(np.float64)
        for r in records(history)
        for c in r.clients
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_only_who_has_a_weight_is_added(history):
    found = weighted_sum(history, lambda r: {2: -2.0} if 2 in r.clients else {})
    rows = [r.updates_of((2,))[0] for r in records(history) if 2 in r.clients]
    np.testing.assert_allclose(found, -2 * np.sum(rows, axis=0), rtol=1e-5, atol=1e-6)


def test_a_stranger_is_loud(history):
    with pytest.raises(HistoryError, match="no update of client 9"):
        weighted_sum(history, lambda _: {9: 1.0})


def test_the_smoke_benchmark_prints_every_row(tmp_path):
    lines = run("history.py", "--smoke", "--folder", tmp_path).splitlines()
    parts = [line.split("|")[1].split()[0].rstrip(",") for line in lines[2:]]
    assert [parts.count(p) for p in ("append", "read", "stream", "memory")] == [
        5,
        10,
        4,
        2,
    ]
    assert list(tmp_path.iterdir()) == []


def test_memory_stays_below_two_rounds_whatever_the_length(tmp_path):
    """Rounds of 8 MB, thirty of them, in a process of its own."""
    script = (
        "import sys; sys.path.insert(0, {0!r}); import history as b;"
        "from pathlib import Path; p = Path({1!r});"
        "b.fill(p, 30, 20_000, {2});"
        "print(b.memory_lines(p, 30, 20_000, 'x')[0])"
    )
    for sealed in (False, True):
        code = script.format(
            str(ROOT / "benchmarks"), str(tmp_path / f"h{sealed}"), sealed
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        grown = float(done.stdout.split("|")[3].split()[0])
        assert grown < 2


def test_random_kills_lose_nothing():
    """Three of the hundred of ``benchmarks/kills.py``."""
    assert "none lost" in run("kills.py", "--kills", 3)
