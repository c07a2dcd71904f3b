"""The engine benchmark's workloads, child processes and contestants."""

import sys
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from fedunlearn.errors import ConfigError, RunError
from simulations.engine_bench import contestant
from simulations.engine_bench.child import MODEL, ROUND, Child, Command
from simulations.engine_bench.contestant import CONTESTANTS, Measured, agreement, race
from simulations.engine_bench.gemms import epoch_batches, step_gemms
from simulations.engine_bench.processes import Process, alive, cpu_seconds, kill, tree
from simulations.engine_bench.serve import Entry
from simulations.engine_bench.workloads import CLASSES, WORKLOADS

TINY = Entry(workload="W3", scale=0.005, seed=3)
"""Five clients of 20 examples each."""

ECHO = """
import json, sys
for line in sys.stdin:
    word = json.loads(line)
    if word == "quit":
        break
    sys.stdout.write(json.dumps({"seconds": 0.5, "heard": word}) + "\\n")
    sys.stdout.flush()
"""


def python(code):
    """Return the command of a child that is a few lines of Python."""
    return Command(argv=(sys.executable, "-c", code))


def tiny(name):
    """Return the command of a contestant, or skip the test where it cannot race."""
    command = CONTESTANTS[name](TINY)
    if isinstance(command, str):
        pytest.skip(f"{name}: {command}")
    return command


def raced(names, rounds=2, warmup=1):
    """Race contestants on the tiny workload; return what they came to."""
    seen = set()
    with ExitStack() as stack:
        children = {n: stack.enter_context(Child(tiny(n))) for n in names}
        measured = race(children, rounds=rounds, warmup=warmup)
        for child in children.values():
            seen |= child.processes()
    assert len(seen) >= len(names)
    assert not alive(seen)
    return measured


def initial():
    """Return the model all contestants start from."""
    return TINY.task().initial_model(TINY.seed)


# Workloads


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_the_same_every_time_and_skewed(name):
    workload = WORKLOADS[name]
    first, again, other = workload.client(2), workload.client(2), workload.client(3)
    assert first.x.shape == (workload.samples, *workload.shape)
    assert first.x.dtype == np.float32
    assert first.x.tobytes() == again.x.tobytes()
    assert first.y.tobytes() == again.y.tobytes()
    assert first.x.tobytes() != other.x.tobytes()
    assert np.bincount(first.y, minlength=CLASSES).max() > 1.5 * workload.samples / 10


def test_a_smaller_workload_has_the_same_first_clients():
    workload = WORKLOADS["W1"]
    small = workload.scaled(0.02)
    assert small.clients == 2
    assert small.client(1).x.tobytes() == workload.client(1).x.tobytes()
    assert workload.scaled(1e-9).clients == 1
    for scale in (0, -1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="scale must lie in"):
            workload.scaled(scale)


@pytest.mark.parametrize(
    ("name", "scale", "rounds"),
    [("W1", 0.03, 3), ("W2", 0.08, 25), ("W3", 0.03, 30)],
)
def test_workloads_can_be_learnt(name, scale, rounds):
    from fedunlearn.params import weighted_mean
    from fedunlearn.training import LocalWork

    workload = WORKLOADS[name].scaled(scale)
    task = workload.task()
    model, losses = task.initial_model(0), []
    for index in range(1, rounds + 1):
        work = LocalWork(seed=0, round_index=index)
        results = [task.train(c, model, work) for c in range(workload.clients)]
        model = weighted_mean(
            [r.model for r in results], [r.num_examples for r in results]
        )
        losses.append(np.mean([r.loss for r in results]))
    assert losses[-1] < 0.7 * losses[0]


# The protocol


def test_a_child_answers_and_ends():
    with Child(python(ECHO)) as child:
        with pytest.raises(RunError, match="start it first"):
            child.ask(ROUND)
        child.start()
        with pytest.raises(RunError, match="started before"):
            child.start()
        assert child.ask(ROUND) == {"seconds": 0.5, "heard": ROUND}
        assert child.ask(MODEL)["heard"] == MODEL
        mine = child.processes()
        assert alive(mine)
    assert not alive(mine)
    assert child.processes() == frozenset()


def test_a_dead_child_says_why():
    with Child(python("import sys; sys.exit('no luck today')")).start() as child:
        with pytest.raises(RunError, match=r"(?s)died \(exit code 1\).*no luck today"):
            child.ask(ROUND)
        with pytest.raises(RunError, match="died"):
            child.ask(ROUND)


def test_a_child_that_dies_while_it_trains_says_why():
    code = "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)"
    with (
        Child(python(code)).start() as child,
        pytest.raises(RunError, match=r"died \(exit code -9\)"),
    ):
        child.ask(ROUND)


def test_a_silent_child_and_one_that_talks_nonsense():
    with (
        pytest.raises(RunError, match=r"no answer in 0\.2 s"),
        Child(python("import time; time.sleep(60)"), timeout=0.2).start() as child,
    ):
        child.ask(ROUND)
    for nonsense in ("hello", "[1]"):
        with (
            Child(python(f"print({nonsense!r}); input()")).start() as child,
            pytest.raises(RunError, match="no JSON object"),
        ):
            child.ask(ROUND)


def test_closing_kills_grandchildren_that_outlive_their_parent():
    code = """
import json, subprocess, sys
sys.stdin.readline()
made = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                        stdin=subprocess.DEVNULL, start_new_session=True)
print(json.dumps({"pid": made.pid}), flush=True)
sys.exit(0)
"""
    with Child(python(code)).start() as child:
        pid = child.ask(ROUND)["pid"]
        time.sleep(0.3)  # its parent has ended: only the mark tells whose it is
        assert any(p.pid == pid for p in tree(pid))
    assert not any(p.pid == pid for p in tree(pid))


def test_nobody_is_killed_who_only_has_the_same_number():
    with Child(python(ECHO)).start() as child:
        child.ask(ROUND)
        (mine,) = child.processes()
        kill([Process(mine.pid, mine.start + 1)], timeout=0.1)
        assert child.ask(ROUND)["heard"] == ROUND
        assert cpu_seconds([mine]) > 0


def test_a_round_without_seconds_is_refused():
    code = ECHO.replace('"seconds": 0.5, ', "")
    with (
        Child(python(code)) as child,
        pytest.raises(RunError, match="tells no seconds"),
    ):
        race({"odd": child}, rounds=1, warmup=0)


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, -1)])
def test_a_race_needs_a_round(rounds, warmup):
    with pytest.raises(ConfigError, match="cannot race"):
        race({}, rounds=rounds, warmup=warmup)


def test_everybody_goes_first_in_turn(tmp_path):
    log = tmp_path / "log"
    code = ECHO.replace(
        "if word", f"open({str(log)!r}, 'a').write(sys.argv[1]); if word"
    )
    code = code.replace("; if word", "\n    if word").replace(
        '"heard": word', f'"path": {str(tmp_path / "m.npy")!r}'
    )
    np.save(tmp_path / "m.npy", np.zeros(1, np.float32))
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(Child(Command(argv=(*python(code).argv, name))))
            for name in "abc"
        }
        measured = race(children, rounds=3, warmup=1)
    first, warm, rounds = "abc", "abc", "abcbcacab"
    assert log.read_text().startswith(first + warm + rounds)
    assert measured["a"].seconds == (0.5, 0.5, 0.5)
    assert measured["a"].kernel_seconds is None


# Contestants


def test_agreement_is_relative_to_what_was_learnt():
    start, first = np.zeros(2, np.float32), np.array([3, 4], np.float32)
    other = first + np.array([0, 0.5], np.float32)
    assert agreement(start, [first]) == 0
    assert agreement(start, [first, first, other]) == pytest.approx(0.1)
    with pytest.raises(RunError, match="nothing was learned"):
        agreement(start, [start, first])
    with pytest.raises(RunError, match="cannot agree"):
        agreement(start, [first, np.zeros(3, np.float32)])


def test_eager_trains_what_the_task_trains():
    from fedunlearn.params import weighted_mean
    from fedunlearn.training import LocalWork

    measured = raced(["eager"])["eager"]
    task, model = TINY.task(), initial()
    for index in range(1, 5):
        work = LocalWork(seed=TINY.seed, round_index=index)
        results = [task.train(c, model, work) for c in range(len(task.clients))]
        model = weighted_mean([r.model for r in results], [20] * len(results))
    assert agreement(initial(), [model, measured.model]) <= 1e-5
    assert len(measured.seconds) == len(measured.kernel_seconds) == 2
    for whole, kernel in zip(measured.seconds, measured.kernel_seconds, strict=True):
        assert 0 < kernel <= whole
    assert measured.first_round_seconds > max(measured.seconds)
    assert 50 < measured.peak_mb < 2000
    assert len(measured.foreign_cores) == 2
    assert min(measured.foreign_cores) >= 0


def test_the_floor_is_measured_on_all_processors():
    with Child(tiny("floor")).start() as child:
        answers = [child.ask(ROUND) for _ in range(2)]
        assert len(child.processes()) == TINY.cpus
        assert child.model().shape == (0,)
    # Two steps a client, two products a step: (10, 64) @ (64, 10) and its gradient.
    assert answers[0]["flops"] == 5 * 2 * 2 * (2 * 10 * 64 * 10)
    for answer in answers:
        assert answer["seconds"] == pytest.approx(answer["flops"] / answer["rate"])
        assert answer["rate"] > 1e8
        assert answer["kernel_seconds"] > answer["seconds"]
    assert answers[1]["rate"] >= answers[0]["rate"]


def test_flops_of_the_workloads():
    """The figures of the performance reference, counted there by hand."""
    per_sample = {"W1": 639_200, "W2": 2_263_920, "W3": 2_560}
    for name, flops in per_sample.items():
        task = WORKLOADS[name].scaled(1e-9).task()
        assert sum(gemm.flops for gemm in step_gemms(task, 7)) == 7 * flops
    assert epoch_batches(600, 32) == [32] * 18 + [24]
    assert epoch_batches(20, 10) == [10, 10]


def test_pfl_that_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(contestant, "_has_pfl", lambda env: False)
    assert contestant.pfl(TINY) == "not installed: pip install 'pfl==0.6.0'"


@pytest.mark.slow
def test_pfl_gives_the_same_model():
    measured = raced(["eager", "pfl"])
    assert_same(measured["eager"], measured["pfl"])


@pytest.mark.ray
@pytest.mark.slow
def test_flower_gives_the_same_model():
    measured = raced(["eager", "flower"])
    assert_same(measured["eager"], measured["flower"])


def assert_same(eager: Measured, other: Measured):
    """Both trained the same, and the other one told all there is to tell."""
    assert agreement(initial(), [eager.model, other.model]) <= 1e-3
    assert len(other.seconds) == len(other.kernel_seconds) == 2
    assert all(k > 0 for k in other.kernel_seconds)
    assert other.first_round_seconds > max(other.seconds)


def test_an_entry_survives_a_command_line():
    entry = replace(TINY, cpus=1, rank=0)
    assert Entry.of_json(entry.as_json()) == entry
