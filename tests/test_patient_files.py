"""A run in lockstep waits for its disk aside, and only there."""

import threading

from fedunlearn.history import DiskHistory
from simulations import compare, load_scenario
from simulations.engine.lockstep import Lockstep
from simulations.patient_files import PatientFiles
from tests.history_helpers import LAYOUT, a_record, a_state, history_digest


class Waiting:
    """Makes calls on a thread of their own, and counts them."""

    def __init__(self):
        self.calls = []

    def aside(self, call):
        self.calls.append(call.func.__name__)
        found = []
        thread = threading.Thread(target=lambda: found.append(call()))
        thread.start()
        thread.join()
        return found[0]


def record(folder, **files):
    with DiskHistory.create(folder, LAYOUT, **files) as history:
        for index in (1, 2):
            history.append_round(a_record(index, (0, 1)), a_state(index))
        assert history.check(read_data=True) == []
        return history_digest(history)


def test_whoever_waits_the_history_is_the_same(tmp_path):
    grid = Waiting()
    found = record(tmp_path / "patient", files=PatientFiles(grid))
    assert found == record(tmp_path / "plain")
    assert {"sync", "sync_folder", "commit", "unlink"} == set(grid.calls)


def test_runs_in_lockstep_wait_aside(tmp_path, monkeypatch):
    aside, calls = Lockstep.aside, []

    def counted(self, call):
        calls.append(call.func.__name__)
        return aside(self, call)

    monkeypatch.setattr(Lockstep, "aside", counted)
    settings = ["rounds=2", "methods=[nothing]", "engine.noise_floor=false"]
    for folder, lockstep in (("together", 2), ("alone", 1)):
        scenario = load_scenario(
            "configs/scenario/quickstart.yaml",
            [*settings, "seeds=[0,1]", f"engine.lockstep={lockstep}"],
        )
        calls.clear()
        compare(scenario, out=tmp_path / folder)
        # Each of two rounds of two seeds is committed.
        assert calls.count("commit") >= 2 * 2 * (lockstep > 1)
        assert bool(calls) == (lockstep > 1)
