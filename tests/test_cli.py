"""The command line: answers, exit codes, streams, start-up."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedunlearn import __version__
from fedunlearn.task import LocalTask
from simulations.cli import app
from strategies import METHODS

PROGRAM = str(Path(sys.executable).with_name("fedunlearn"))
QUICK = ["rounds=1", "methods=[nothing]"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs without --out go to a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def cli(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="fedunlearn")


def program(*arguments, **environment):
    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


# --- run


def test_run_prints_the_table_and_where_the_rest_is(tiny, tmp_path):
    result = cli("run", tiny, "--out", tmp_path / "out")
    assert result.exit_code == 0
    for word in ("trained", "retrain", "nothing", "rollback"):
        assert re.search(rf"^{word}\b", result.stdout, re.MULTILINE)
    assert str(tmp_path / "out" / "report.html") in result.stdout
    assert (tmp_path / "out" / "report.html").is_file()


def test_progress_goes_to_stderr_only(tiny, tmp_path):
    result = cli("run", tiny, *QUICK, "--out", tmp_path / "out")
    assert result.stderr.splitlines() == [
        "seed 0: train done",
        "seed 0: retrain done",
        "seed 0: nothing done",
    ]
    assert "done" not in result.stdout


def test_run_without_out_makes_a_folder_named_after_the_scenario(tiny, tmp_path):
    result = cli("run", tiny, *QUICK, "name=a/b c")
    assert result.exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"a-b-c-\d{8}-\d{6}", folder.name)
    assert str(Path("runs") / folder.name) in result.stdout


def test_run_answers_in_json_what_the_folder_holds(tiny, tmp_path):
    result = cli("run", tiny, *QUICK, "--out", tmp_path / "out", "--format", "json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "out" / "results.json").read_text())


def test_overrides_work_before_and_after_options(tiny, tmp_path):
    result = cli(
        "run",
        "--format",
        "json",
        tiny,
        "rounds=2",
        "--out",
        tmp_path / "o",
        "seeds=[5]",
    )
    found = json.loads(result.stdout)
    assert found["scenario"]["rounds"] == 2
    assert {row["seed"] for row in found["rows"]} == {5}


# --- other commands


def test_methods_lists_every_method_with_its_settings():
    result = cli("methods")
    assert result.exit_code == 0
    for name in METHODS:
        assert re.search(rf"^{name}\b", result.stdout, re.MULTILINE)
    assert "calibration_ratio=0.5" in result.stdout


@pytest.mark.parametrize("command", [("methods",), ("data", "list")])
def test_lists_answer_in_json(command):
    result = cli(*command, "--format", "json")
    assert result.exit_code == 0
    assert result.stderr == ""
    rows = json.loads(result.stdout)
    assert all(set(row) == set(rows[0]) for row in rows)
    names = [row["name"] for row in rows]
    if command == ("methods",):
        assert names == list(METHODS)
    else:
        assert names == ["digits", "fashion_mnist", "heart", "watch", "npz"]


def test_data_list_says_what_is_there_and_how_to_get_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDUNLEARN_CACHE", str(tmp_path))
    result = cli("data", "list")
    assert result.exit_code == 0
    assert re.search(r"^digits .*1,797 .*CC BY 4\.0 .*yes", result.stdout, re.MULTILINE)
    assert re.search(
        r"^heart .*fedunlearn data fetch heart", result.stdout, re.MULTILINE
    )


def test_config_show_prints_a_scenario_that_can_be_run(tiny, tmp_path):
    shown = cli("config", "show", tiny, "rounds=2", "methods=[fed_eraser]")
    file = tmp_path / "shown.yaml"
    file.write_text(shown.stdout)
    again = cli("config", "show", file)
    assert again.stdout == shown.stdout
    assert "interval: 2" in shown.stdout
    assert shown.stderr == ""


def test_config_show_answers_in_json(tiny):
    found = json.loads(cli("config", "show", tiny, "--format", "json").stdout)
    assert found["training"]["lr"] == 0.2
    assert found["partition"]["min_size"] == 10


def test_version():
    result = cli("--version")
    assert (result.exit_code, result.stdout) == (0, f"{__version__}\n")


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["methods"], ["data"], ["data", "fetch"], ["config", "show"]],
)
def test_every_command_explains_itself(command):
    result = cli(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


# --- wrong requests: exit code 2, one sentence, no traceback


def npz(folder, name, **changes):
    arrays = {
        "x_train": np.zeros((20, 4), np.float32),
        "y_train": np.arange(20) % 2,
        "x_test": np.zeros((4, 4), np.float32),
        "y_test": np.arange(4) % 2,
    }
    np.savez(folder / name, **{**arrays, **changes})


WRONG = {
    "unknown method": (["methods=[retrian]"], "unknown method 'retrian'; did you mean"),
    "unknown data set": (["data.name=mnist"], "unknown data set 'mnist'"),
    "unknown key": (["lr=3"], "unknown key 'lr'"),
    "unknown client": (["forget=[alice]"], "unknown client 'alice'"),
    "leaver out of range": (["forget=[5]"], "unknown client '5'"),
    "all leave": (["forget=[0,1,2,3,4]"], "all 5 clients are leaving"),
    "nobody leaves": (["forget=[]"], "forget must name at least one client"),
    "zero rounds": (["rounds=0"], "rounds must be at least 1, got 0"),
    "too many asked": (["clients_per_round=6"], "there are 5 clients"),
    "huge seed": (["seeds=[9223372036854775808]"], "must lie in [0, 2**63)"),
    "odd label": (["methods=[nothing@a/b]"], "cannot be labelled 'nothing@a/b'"),
    "broken override": (["rounds=[1"], "cannot read 'rounds=[1'"),
    "environment": (["name=${oc.env:HOME}"], "may only name another key"),
    "npz without path": (["data.name=npz"], "data.path must be given"),
    "npz missing": (["data.name=npz", "data.path=no.npz"], "no.npz: there is no such"),
    "npz corrupt": (["data.name=npz", "data.path=bad.npz"], "bad.npz: this is not an"),
    "npz cut": (["data.name=npz", "data.path=cut.npz"], "cut.npz"),
    "npz nan": (["data.name=npz", "data.path=nan.npz"], "x_train is not finite"),
    "npz pickled": (["data.name=npz", "data.path=pickled.npz"], "'y_test' cannot be"),
    "npz incomplete": (["data.name=npz", "data.path=less.npz"], "no array 'y_test'"),
    "not fetched": (["data={name: heart, cache: .}"], "fedunlearn data fetch heart"),
    "wrong model": (["model.name=lenet5"], "needs images"),
    "workers": (["engine.workers=-1"], "engine.workers must not be negative"),
}


@pytest.fixture
def bad_files(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"\x00not a zip")
    npz(tmp_path, "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    npz(tmp_path, "nan.npz", x_train=np.full((20, 4), np.nan))
    npz(tmp_path, "pickled.npz", y_test=np.array([{}, {}, {}, {}], object))
    np.savez(
        tmp_path / "less.npz", **dict.fromkeys(("x_train", "y_train", "x_test"), 1)
    )


def only_line(result):
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return line


@pytest.mark.parametrize(("overrides", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_answered_in_one_line_and_with_2(
    overrides, says, tiny, tmp_path, bad_files
):
    result = cli("run", tiny, *overrides, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert says in only_line(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/nowhere", "full"])
def test_an_output_folder_that_cannot_be_used_is_answered_with_2(where, tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.yaml").write_text("a run")
    result = cli("run", tiny, *QUICK, "--out", tmp_path / where)
    assert result.exit_code == 2
    assert re.search("cannot write to|already holds a run", only_line(result))


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "there is no file"), ("rounds: [", "cannot be read"), ("[1]", "must hold")],
)
@pytest.mark.parametrize("command", [["run"], ["config", "show"]])
def test_a_scenario_that_cannot_be_read_is_answered_with_2(
    command, text, says, tmp_path
):
    file = tmp_path / "scenario.yaml"
    if text is not None:
        file.write_text(text)
    result = cli(*command, file)
    assert result.exit_code == 2
    assert says in only_line(result)


def test_an_unknown_data_set_to_fetch_is_answered_with_2():
    result = cli("data", "fetch", "mnist")
    assert result.exit_code == 2
    assert "known: heart, watch" in only_line(result)


@pytest.mark.parametrize(
    "arguments",
    [["trian"], ["data", "get"], ["run"], ["methods", "--format", "xml"], ["--nope"]],
)
def test_what_is_no_command_is_answered_with_2(arguments):
    result = cli(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


# --- runs that fail: exit code 1


def test_training_that_diverges_says_whose_numbers_are_not_finite(tiny, tmp_path):
    result = cli(
        "run", tiny, "model.name=mlp", "training.lr=1e30", "--out", tmp_path / "out"
    )
    assert result.exit_code == 1
    line = only_line(result)
    assert "nobody gave a usable answer in round 1 (5 asked" in line
    assert "holds NaN or infinity" in line
    assert not (tmp_path / "out" / "results.json").exists()


def test_clients_that_always_raise_fail_the_run_with_their_words(
    tiny, tmp_path, monkeypatch
):
    def broken(self, client, model, work):
        raise OSError(f"sensor {client} is gone")

    monkeypatch.setattr(LocalTask, "train", broken)
    result = cli("run", tiny, "engine.kernel=reference", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "client 0: failed: OSError: sensor 0 is gone" in only_line(result)


def test_one_client_that_raises_is_set_aside_and_told_about(
    tiny, tmp_path, monkeypatch
):
    train = LocalTask.train

    def broken(self, client, model, work):
        if client == 2 and work.round_index == 2:
            raise OSError("sensor is gone")
        return train(self, client, model, work)

    monkeypatch.setattr(LocalTask, "train", broken)
    result = cli(
        "run",
        tiny,
        "methods=[]",
        "engine.kernel=reference",
        "--out",
        tmp_path / "out",
    )
    assert result.exit_code == 0
    said = (
        "seed 0, round 2: reply of client 2 set aside: failed: OSError: sensor is gone"
    )
    assert said in result.stderr.splitlines()
    log = (tmp_path / "out" / "events.jsonl").read_text()
    events = [json.loads(line) for line in log.splitlines()]
    (aside,) = [e for e in events if e["event"] == "set_aside"]
    assert (aside["client"], aside["round"]) == (2, 2)
    rounds = [e for e in events if e["event"] == "round"]
    assert [e["answered"] for e in rounds] == [5, 4, 5]


def test_a_full_disk_is_answered_with_1(tiny, tmp_path, monkeypatch):
    from fedunlearn.history import append

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(append, "write_segment", full)
    result = cli("run", tiny, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "recording round 1 failed: [Errno 28] No space left on device" in only_line(
        result
    )


def test_a_fault_of_our_own_is_one_line_that_says_how_to_see_more(tiny, monkeypatch):
    def fault(*args):
        raise KeyError("x\ny")

    monkeypatch.setattr("simulations.config.build", fault)
    result = cli("config", "show", tiny)
    assert result.exit_code == 1
    assert "KeyError" in only_line(result)
    assert "--debug" in result.stderr


@pytest.mark.parametrize(
    ("overrides", "code"), [(["rounds=0"], 2), (["training.lr=1e30"], 1)]
)
def test_debug_adds_the_traceback_and_keeps_the_exit_code(
    overrides, code, tiny, tmp_path
):
    arguments = ["run", tiny, "model.name=mlp", *overrides, "--out", tmp_path / "o"]
    result = cli(*arguments, "--debug")
    assert result.exit_code == code
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert result.stdout == ""


# --- in a process of its own


def test_exit_codes_and_streams_of_the_installed_program(tiny, tmp_path):
    fine = program("run", tiny, *QUICK, "--out", tmp_path / "a", "--format", "json")
    assert fine.returncode == 0
    assert json.loads(fine.stdout)["rows"]
    assert "\x1b" not in fine.stdout + fine.stderr
    wrong = program("run", tiny, "rounds=0")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: rounds must be at least 1, got 0\n"


@pytest.mark.parametrize("command", [["methods"], ["data", "list"]])
def test_a_table_in_a_pipe_is_not_cut_and_not_coloured(command):
    wide = json.loads(program(*command, "--format", "json").stdout)
    narrow = program(*command, COLUMNS="20").stdout
    assert "\x1b" not in narrow
    assert "…" not in narrow
    assert len(narrow.splitlines()) == 1 + len(wide)
    for row in wide:
        if command == ["methods"]:
            assert row["summary"] in narrow
        else:
            assert row["title"] in narrow


def on_terminal(*arguments, **environment):
    """Return what the program writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError:
        pass  # Linux's way to say that the other end is closed
    os.close(ours)
    assert process.wait(60) == 0
    return b"".join(parts).decode()


def test_no_color_takes_the_colours_off_a_terminal(tiny, tmp_path):
    colours = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])[;m]")
    plain = on_terminal("run", str(tiny), *QUICK, "--out", "a", NO_COLOR="1")
    assert not colours.search(plain)
    assert "retrain" in plain


def fastest(*command):
    """Return the least wall-clock seconds of three runs."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_help_takes_under_a_second():
    assert fastest(PROGRAM, "--help") < 1.0


def test_importing_the_package_takes_under_a_third_of_a_second():
    bare = fastest(sys.executable, "-c", "pass")
    assert fastest(sys.executable, "-c", "import fedunlearn") - bare < 0.3


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["--version"], ["data", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from simulations.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'flwr', 'ray', 'omegaconf', 'sklearn', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"


def descendants(tag):
    """Return the processes that inherited ``tag`` in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if tag.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for_end(process, seconds=20):
    """Return once the process ended or the time is over."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    select.select([handle], [], [], seconds)
    os.close(handle)


HEARS_CTRL_C = [
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.execv(sys.argv[1], sys.argv[1:])",
]
"""What a shell starts in the background ignores Ctrl-C, and so does all below it."""


def interrupt(tiny, *overrides, **environment):
    """Press Ctrl-C on a run once its first training is done; return how it ended."""
    process = subprocess.Popen(
        [*HEARS_CTRL_C, PROGRAM, "run", str(tiny), *overrides, "--out", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stderr.readline() == "seed 0: train done\n"
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, stdout, stderr


def test_ctrl_c_ends_a_run_with_130_and_a_later_run_works(tiny, tmp_path):
    tag = f"FEDUNLEARN_TEST={tmp_path}"
    code, stdout, stderr = interrupt(
        tiny,
        f"seeds={list(range(2000))}".replace(" ", ""),
        FEDUNLEARN_TEST=str(tmp_path),
    )
    assert code == 130
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr
    assert stdout == ""
    assert descendants(tag) == []
    assert not (tmp_path / "out" / "results.json").exists()
    assert cli("run", tiny, *QUICK, "--out", tmp_path / "later").exit_code == 0


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_leaves_no_ray_process_behind(tiny, tmp_path):
    tag = f"FEDUNLEARN_TEST={tmp_path}"
    code, _, stderr = interrupt(
        tiny,
        "engine.workers=2",
        f"seeds={list(range(2000))}".replace(" ", ""),
        FEDUNLEARN_TEST=str(tmp_path),
    )
    assert code == 130
    assert "interrupted" in stderr.splitlines()
    assert "Traceback" not in stderr
    for process in descendants(tag):
        wait_for_end(process)
    assert descendants(tag) == []


def test_a_reader_that_goes_away_causes_no_traceback():
    process = subprocess.Popen(
        [PROGRAM, "methods"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) in (0, 1)
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr
