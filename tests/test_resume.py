"""A run that was killed goes on to the same bits, whatever was being done."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedunlearn.errors import ConfigError, HistoryError
from fedunlearn.history import DiskHistory, InMemoryHistory
from fedunlearn.params import Layout
from fedunlearn.updates import Updates
from simulations import compare, load_scenario
from simulations.journal import JournaledClients, close_journal
from simulations.prepare import prepare
from simulations.run_folder import RunFolder
from tests.history_helpers import history_digest

CHILD = Path(__file__).with_name("killed_run.py")
WANDERING = ("wall_seconds", "server_seconds")
"""Costs that are another number every time."""


def essence(run):
    """All of a run that must not depend on having been killed."""
    rows = json.loads((run / "results.json").read_text())["rows"]
    for row in rows:
        for name in WANDERING:
            del row["cost"][name]
            del row["cost"]["ratio_to_retrain"][name]
    models = {p.name: p.read_bytes() for p in sorted((run / "models").iterdir())}
    digests, curves = {}, {}
    for folder in sorted((run / "history").iterdir()):
        with DiskHistory.open(folder) as history:
            assert history.check(read_data=True) == []
            digests[folder.name] = history_digest(history)
        curves[folder.name] = (run / "parts" / f"{folder.name}.curve.jsonl").read_text()
    return rows, models, digests, curves


def killed(scenario, out, kind, count, overrides):
    """Run in a child until it kills itself."""
    child = subprocess.run(
        [sys.executable, CHILD, scenario, out, kind, str(count), *overrides],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]


METHODS = "methods=[rollback,fed_eraser,fine_tune]"
CASES = {
    "first round": (["server=fed_avg"], [("round", 1)]),
    "last round, momentum": (["server=fed_avgm"], [("round", 3)]),
    "twice in training, Adam": (["server=fed_adam"], [("round", 1), ("round", 1)]),
    "in retraining and in a method": (
        ["server=fed_adam", "clients_per_round=3"],
        [("tick", 2), ("tick", 4)],
    ),
    "between two seeds": (["seeds=[0,1]"], [("train", 2)]),
    "running sums": (
        ["history.retention=sums", "methods=[subtract]"],
        [("round", 2), ("tick", 1)],
    ),
    "last rounds in float16": (
        ["history.retention=last:2", "history.codec=float16", "methods=[fine_tune]"],
        [("round", 3), ("method", 2)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_as_if_it_had_not_been(case, tiny, tmp_path):
    overrides, kills = CASES[case]
    overrides = [METHODS, *overrides]
    compare(load_scenario(tiny, overrides), out=tmp_path / "straight")
    for kind, count in kills:
        killed(tiny, tmp_path / "killed", kind, count, overrides)
    assert not (tmp_path / "killed" / "results.json").exists()

    heard = []
    compare(
        load_scenario(tiny, overrides),
        out=tmp_path / "killed",
        listeners=(heard.append,),
        resume=True,
    )

    assert essence(tmp_path / "killed") == essence(tmp_path / "straight")
    assert not (tmp_path / "killed" / "unfinished").exists()
    (resumed,) = [e for e in heard if e.kind == "resume"]
    assert resumed.facts["changed"] == []


def test_what_was_done_is_not_done_again(tiny, tmp_path):
    overrides = [METHODS]
    # Three rounds of training, three of retraining; killed in the second of those.
    killed(tiny, tmp_path / "run", "tick", 2, overrides)
    heard = []
    compare(
        load_scenario(tiny, overrides),
        out=tmp_path / "run",
        listeners=(heard.append,),
        resume=True,
    )
    assert [e for e in heard if e.kind == "round"] == []

    heard.clear()
    compare(
        load_scenario(tiny, overrides),
        out=tmp_path / "run",
        listeners=(heard.append,),
        resume=True,
    )
    assert [e for e in heard if e.kind in ("round", "tick", "method")] == []


def test_a_run_of_another_scenario_is_not_resumed(tiny, tmp_path):
    compare(load_scenario(tiny), out=tmp_path / "run")
    other = load_scenario(tiny, ["training.lr=0.1"])
    with pytest.raises(ConfigError, match=r"training: .*0\.2.*not.*0\.1"):
        compare(other, out=tmp_path / "run", resume=True)


def test_a_folder_without_a_run_is_not_resumed(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"no file .*config\.yaml"):
        compare(load_scenario(tiny), out=tmp_path, resume=True)


def test_a_new_run_into_a_used_folder_is_pointed_to_resume(tiny, tmp_path):
    compare(load_scenario(tiny), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=f"--resume {tmp_path / 'run'}"):
        compare(load_scenario(tiny), out=tmp_path / "run")


def test_two_runs_cannot_share_a_folder(tiny, tmp_path):
    scenario = load_scenario(tiny)
    folder = RunFolder.create(tmp_path / "run", prepare(scenario).scenario)
    with folder.locked(), pytest.raises(HistoryError, match=f"process {os.getpid()}"):
        compare(scenario, out=tmp_path / "run", resume=True)


def test_other_versions_of_packages_are_told(tiny, tmp_path):
    compare(load_scenario(tiny), out=tmp_path / "run")
    file = tmp_path / "run" / "environment.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({**before, "torch": "0.1"}))
    heard = []
    compare(
        load_scenario(tiny),
        out=tmp_path / "run",
        listeners=(heard.append,),
        resume=True,
    )
    (event,) = [e for e in heard if e.kind == "resume"]
    assert event.facts["changed"] == [f"torch 0.1 is now {before['torch']}"]


# --- the journal


LAYOUT = Layout(("w",), ((3,),))


class Counting:
    """Clients whose answers differ every time."""

    ids = frozenset({1, 2})

    def __init__(self):
        self.calls = 0

    def train(self, model, ids, *, round_index, epochs=None):
        self.calls += 1
        after = np.stack([model + self.calls + c for c in sorted(ids)])
        ones = np.ones(len(ids), np.int64)
        return Updates(
            clients=tuple(sorted(ids)),
            before=model,
            after=after.astype(np.float32),
            num_examples=ones,
            num_steps=ones * 2,
            num_samples=ones * 3,
        )


def ask(folder, inner, models):
    with JournaledClients(inner, folder, LAYOUT, patience=0) as clients:
        return [
            clients.train(model, {2, 1}, round_index=i, epochs=0.5)
            for i, model in enumerate(models, 1)
        ]


def test_a_journal_answers_what_was_asked_before(tmp_path):
    # A third is no float32: differences would lose its last bit.
    models = [np.full(3, i / 3, np.float32) for i in range(4)]
    first, second = Counting(), Counting()
    before = ask(tmp_path / "j", first, models[:3])
    after = ask(tmp_path / "j", second, models)
    assert (first.calls, second.calls) == (3, 1)
    for one, other in zip(before, after[:3], strict=True):
        assert one.after.tobytes() == other.after.tobytes()
        assert one.before.tobytes() == other.before.tobytes()
        assert one.clients == other.clients
        for count in ("num_examples", "num_steps", "num_samples"):
            np.testing.assert_array_equal(getattr(one, count), getattr(other, count))


def test_another_question_is_refused(tmp_path):
    models = [np.zeros(3, np.float32), np.ones(3, np.float32)]
    ask(tmp_path / "j", Counting(), models)
    changed = [models[0], models[1] + np.float32(1e-6)]
    with pytest.raises(HistoryError, match="question 2 differs"):
        ask(tmp_path / "j", Counting(), changed)


def test_a_journal_goes_with_its_keys(tmp_path):
    ask(tmp_path / "unfinished" / "j", Counting(), [np.zeros(3, np.float32)])
    close_journal(tmp_path / "unfinished" / "j")
    assert list(tmp_path.iterdir()) == []
    close_journal(tmp_path / "unfinished" / "j")


def test_an_in_memory_history_continues_too():
    """The strategy asks the history where it stands, whichever it is."""
    history = InMemoryHistory(LAYOUT)
    assert history.tip is None
