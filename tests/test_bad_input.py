"""Wrong requests and broken worlds: one sentence, the right exit code, no traceback."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import ConfigRecord
from typer.testing import CliRunner

from fedunlearn.arrays import to_arrays
from fedunlearn.client import client_app
from fedunlearn.errors import EmptyRoundError, RequirementError, RunError
from fedunlearn.history import InMemoryHistory
from fedunlearn.history.files import RealFiles
from fedunlearn.method import Requires
from simulations import compare, load_scenario
from simulations.cli import app
from simulations.engine import SimulationGrid
from simulations.prepare import prepare
from strategies import RecordingStrategy

QUICKSTART = Path(__file__).parent.parent / "configs" / "scenario" / "quickstart.yaml"
TINY = ["seeds=[0]", "rounds=1", "methods=[]"]


def run(*arguments):
    return CliRunner().invoke(app, ["run", str(QUICKSTART), *TINY, *arguments])


REQUESTS = {
    "method": (["methods=[retran]"], "did you mean 'retrain'"),
    "data set": (["data.name=digit"], "did you mean 'digits'"),
    "model": (["model.name=mpl"], "did you mean 'mlp'"),
    "partition": (["partition.name=dirichle"], "did you mean 'dirichlet'"),
    "server rule": (["server.name=fedavg"], "did you mean 'fed_avg'"),
    "key": (["ronds=3"], "did you mean 'rounds'"),
    "nested key": (["training.epoch=3"], "did you mean 'training.epochs'"),
    "method's key": (["subtract.weight=lazy"], "did you mean 'subtract.weighting'"),
    "variant": (
        ["methods=[fed_eraser@fast]", "fed_eraser@fst.interval=1"],
        "did you mean 'fed_eraser@fast'",
    ),
    "client": (["forget=[nobody]"], "unknown client 'nobody'"),
    "leaver out of range": (["forget=[10]"], "unknown client '10'"),
    "negative leaver": (["forget=[-1]"], "unknown client '-1'"),
    "all leave": (["forget=[0,1,2,3,4,5,6,7,8,9]"], "all 10 clients are leaving"),
    "nobody leaves": (["forget=[]"], "at least one client"),
    "no rounds": (["rounds=0"], "rounds must be at least 1"),
    "a word for a number": (["rounds=ten"], "rounds must be an integer"),
    "alpha": (["partition.alpha=0"], "partition.alpha must be positive"),
    "not finite": (["training.lr=nan"], "training.lr must be finite"),
    "a choice": (["fed_eraser.norm_scale=both"], "one of stored, interval"),
    "workers": (["engine.workers=-1"], "engine.workers must not be negative"),
    "cohort": (["clients_per_round=11"], "there are 10 clients"),
    "no file": (["data.name=npz"], "data.path must be given"),
    "missing file": (["data.name=npz", "data.path=no.npz"], "no such file"),
    "model on data": (["model.name=lenet5"], "at least 16x16"),
    "trigger": (["backdoor.target=10"], "not one of 10 classes"),
    "no natural clients": (["partition.name=natural"], "no natural clients"),
    "not a pair": (["rounds"], "key=value"),
}


@pytest.mark.parametrize(("arguments", "words"), REQUESTS.values(), ids=REQUESTS.keys())
def test_a_wrong_request_is_one_sentence_and_exit_code_2(arguments, words, tmp_path):
    result = run(*arguments, "--out", str(tmp_path / "run"))

    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_corrupt_npz_is_named(tmp_path):
    path = tmp_path / "broken.npz"
    path.write_bytes(b"PK\x03\x04 and nothing more")

    result = run("data.name=npz", f"data.path={path}", "--out", str(tmp_path / "run"))

    assert result.exit_code == 2
    assert "broken.npz" in result.stderr


def test_an_unwritable_output_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")

    result = run("--out", str(tmp_path / "file" / "run"))

    assert result.exit_code == 2
    assert "cannot write to" in result.stderr


def test_a_folder_with_a_run_is_not_written_over(tmp_path):
    first = run("--out", str(tmp_path / "run"))
    second = run("--out", str(tmp_path / "run"))

    assert (first.exit_code, second.exit_code) == (0, 2)
    assert "already holds a run" in second.stderr


def test_debug_shows_the_traceback(tmp_path):
    result = run("methods=[retran]", "--debug", "--out", str(tmp_path / "run"))

    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_a_full_disk_ends_the_run_with_exit_code_1(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RealFiles, "write", full)

    result = run("--out", str(tmp_path / "run"))

    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    assert "No space left" in result.stderr


def train(task, history):
    strategy = RecordingStrategy(
        load_scenario(QUICKSTART, TINY).server.strategy(), history
    )
    with SimulationGrid(client_app(task), num_clients=len(task.clients)) as grid:
        strategy.start(
            grid,
            to_arrays(task.initial_model(0), task.layout),
            num_rounds=1,
            train_config=ConfigRecord({"seed": 0}),
        )


@dataclass(frozen=True)
class Faulty:
    """A task whose client 2 fails; all fail if ``everybody``."""

    task: object
    fault: object
    everybody: bool = False

    def __getattr__(self, name):
        return getattr(self.task, name)

    def train(self, client, model, work):
        result = self.task.train(client, model, work)
        return self.fault(result) if client == 2 or self.everybody else result


def with_nan(result):
    result.model[3] = np.nan
    return result


def raising(_):
    raise ValueError("the sensor is broken")


@pytest.fixture
def task():
    return prepare(load_scenario(QUICKSTART, TINY)).task


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(with_nan, "holds NaN or infinity"), (raising, "the sensor is broken")],
)
def test_a_client_that_fails_is_set_aside_and_the_others_go_on(task, fault, reason):
    history = InMemoryHistory(task.layout)

    train(Faulty(task, fault), history)

    (refused,) = history.round(1).set_aside
    assert refused.client == 2
    assert reason in refused.reason
    assert 2 not in history.round(1).clients
    assert 2 in history.round(1).asked


def test_a_round_in_which_everybody_fails_says_so(task):
    with pytest.raises(EmptyRoundError, match=r"round 1 .*the sensor is broken"):
        train(Faulty(task, raising, everybody=True), InMemoryHistory(task.layout))


@dataclass(frozen=True)
class Returning:
    """A method that returns what it is told to."""

    make: object
    requires: ClassVar[Requires] = Requires()

    def unlearn(self, model, ctx):
        return self.make(model)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: m * np.float32(np.nan), "not finite"),
        (lambda m: m[:-1].copy(), "returned float32"),
        (lambda m: m.astype(np.float64), "returned float64"),
    ],
)
def test_a_method_that_returns_no_model_is_named(make, words):
    with pytest.raises(RunError, match=rf"Returning .*{words}"):
        compare(load_scenario(QUICKSTART, TINY), methods={"mine": Returning(make)})


@dataclass(frozen=True)
class NeedsTheLeaver:
    """A method that wants to ask the leaver."""

    requires: ClassVar[Requires] = Requires(leaver=True)

    def unlearn(self, model, ctx):
        return model


def test_a_method_that_cannot_be_served_is_refused_with_those_that_can():
    with pytest.raises(RequirementError, match=r"'mine' needs the leaver.*fed_eraser"):
        compare(
            load_scenario(QUICKSTART, [*TINY, "leavers_online=false"]),
            methods={"mine": NeedsTheLeaver()},
        )


@pytest.mark.parametrize("label", ["../up", "", "a/b", "trained", "x" * 65])
def test_a_label_that_no_file_can_bear_is_refused(label):
    with pytest.raises(Exception, match="cannot be labelled"):
        compare(load_scenario(QUICKSTART, TINY), methods={label: Returning(abs)})
