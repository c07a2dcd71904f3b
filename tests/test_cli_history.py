"""``fedunlearn history`` as a person or a script uses it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from fedunlearn.history import DiskHistory, ServerState
from simulations.cli import app
from strategies import METHODS
from tests.history_helpers import LAYOUT, a_record, a_state

GOLDEN = Path(__file__).parent / "golden"


def cli(*arguments, answer=None):
    return CliRunner().invoke(app, [str(a) for a in arguments], input=answer)


def told(*arguments):
    result = cli(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def only_line(result):
    (line,) = result.stderr.splitlines()
    return line


NAMES = {0: "Anna", 1: "../../etc/passwd", 2: "<script>alert(1)</script>", 3: "=1+1"}


def make(folder, rounds=3, **settings):
    """Client 3 takes part from round 2 on."""
    with DiskHistory.create(folder, LAYOUT, names=NAMES, **settings) as history:
        for index in range(1, rounds + 1):
            clients = (0, 1, 2) if index == 1 else (0, 1, 2, 3)
            history.append_round(a_record(index, clients), a_state(index))
    return folder


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "history")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "clean.safetensors"
    save_file(LAYOUT.unflatten(np.arange(8, dtype=np.float32)), path)
    return path


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def first_round(folder):
    return next(iter(sorted((folder / "segments").glob("round-000001-*"))))


# --- stats


def test_stats_tell_sizes_and_what_each_method_can_forget(folder):
    view = json.loads(told("history", "stats", folder, "--format", "json"))
    assert view["rounds"] == 3
    assert view["clients"] == 4
    assert view["codec"] == "float32"
    assert view["retention"] == "all"
    assert view["sealed"] is True
    assert view["goes on after round"] == 3
    assert view["bytes"]["updates"] == (3 + 4 + 4) * LAYOUT.size * 4
    assert view["bytes"]["broadcasts"] == 3 * LAYOUT.size * 4
    assert view["total bytes"] == sum(view["bytes"].values())
    assert [m["method"] for m in view["methods"]] == list(METHODS)
    assert all(m["serves"] == "any client" for m in view["methods"])
    text = told("history", "stats", folder)
    assert "any client" in text
    assert str(view["log head"]) in text


READERS = ("nothing", "retrain", "fine_tune", "subtract", "rollback", "fed_eraser")


@pytest.mark.parametrize(
    ("settings", "able"),
    [
        ({"retention": "sums"}, {"nothing", "retrain", "fine_tune", "subtract"}),
        (
            {"retention": "sensitivities"},
            {"nothing", "retrain", "fine_tune", "rollback"},
        ),
        (
            {"retention": "every:2"},
            {"nothing", "retrain", "fine_tune", "fed_eraser"},
        ),
        ({"codec": "int8"}, set(READERS)),
    ],
)
def test_stats_of_a_thinned_history(tmp_path, settings, able):
    folder = make(tmp_path / "thin", **settings)
    view = json.loads(told("history", "stats", folder, "--format", "json"))
    serves = {m["method"]: m for m in view["methods"]}
    assert {n for n in READERS if serves[n]["serves"] == "any client"} == able


def test_stats_name_the_clients_a_method_can_forget(tmp_path):
    folder = make(tmp_path / "thin", retention="last:2")
    view = json.loads(told("history", "stats", folder, "--format", "json"))
    rollback = next(m for m in view["methods"] if m["method"] == "rollback")
    # Client 3 came in round 2, which is kept; round 1 keeps its broadcast always.
    assert rollback["clients"] == [0, 1, 2, 3]
    subtract = next(m for m in view["methods"] if m["method"] == "subtract")
    assert subtract["clients"] == [3]
    assert subtract["serves"] == "clients 3"
    eraser = next(m for m in view["methods"] if m["method"] == "fed_eraser")
    assert eraser["serves"].startswith("nobody: it needs updates of round 1 ")


def test_an_empty_history_has_stats_too(tmp_path):
    DiskHistory.create(tmp_path / "h", LAYOUT).close()
    view = json.loads(told("history", "stats", tmp_path / "h", "--format", "json"))
    assert view["rounds"] == 0
    assert view["goes on after round"] is None


def test_a_run_instead_of_a_history_is_explained(tmp_path):
    make(tmp_path / "run" / "history" / "seed-0")
    result = cli("history", "stats", tmp_path / "run")
    assert result.exit_code == 2
    assert str(tmp_path / "run" / "history" / "seed-0") in only_line(result)


@pytest.mark.parametrize("command", ["stats", "check", "repair", "log verify"])
def test_no_history_is_said_in_one_sentence(tmp_path, command):
    result = cli("history", *command.split(), tmp_path / "nothing")
    assert result.exit_code != 0
    assert "error: " in only_line(result)


# --- check and repair


def test_a_whole_history_is_whole(folder):
    assert "is whole" in told("history", "check", folder, "--read-data")


def test_damage_is_named_and_answered_with_3(folder):
    path = first_round(folder)
    with DiskHistory.open(folder) as history:
        trace = next(t for t in history.traces_of(1) if t.kind == "update")
    flip(path, trace.offset + 2)
    assert "is whole" in told("history", "check", folder)  # headers only
    result = cli("history", "check", folder, "--read-data")
    assert result.exit_code == 3
    line = result.stdout.strip()
    assert line.startswith("damage: ")
    assert path.name in line
    assert "round 1, client 1, byte " in line
    found = json.loads(
        cli("history", "check", folder, "--read-data", "--format", "json").stdout
    )
    assert [(f["round"], f["client"], f["damage"]) for f in found] == [(1, 1, True)]


def test_a_damaged_index_is_damage_not_an_error(folder):
    flip(folder / "index.db", 5000)
    result = cli("history", "check", folder)
    assert result.exit_code == 3
    assert "index.db" in result.stdout


def test_leftovers_are_no_damage(folder):
    (folder / "segments" / "stray").write_bytes(b"x")
    result = cli("history", "check", folder)
    assert result.exit_code == 0
    assert "leftover: " in result.stdout


def test_repair_says_what_is_lost_before_and_after(folder):
    with DiskHistory.open(folder) as history:
        trace = next(t for t in history.traces_of(1) if t.kind == "update")
    flip(first_round(folder), trace.offset)
    before = sorted(p.name for p in folder.rglob("*"))

    assert "would be lost: " in told("history", "repair", folder, "--dry-run")
    assert sorted(p.name for p in folder.rglob("*")) == before
    assert "lost: " in told("history", "repair", folder)

    assert told("history", "repair", folder) == "nothing is lost\n"
    assert "is whole" in told("history", "check", folder, "--read-data")
    with DiskHistory.open(folder) as history:
        assert history.round(1).kept == (0, 2)
    assert list((folder / "quarantine").iterdir())


# --- map


def test_the_map_names_every_place_of_a_client(folder):
    rows = json.loads(told("history", "map", folder, "=1+1", "--format", "json"))
    kinds = {}
    for row in rows:
        kinds.setdefault((row["kind"], row["erased with"]), []).append(row["round"])
    own = "the client's updates"
    assert kinds["update", own] == [2, 3]
    assert kinds["counts", own] == [2, 3]
    assert len(kinds["log entry", own]) == 2
    assert kinds["name", own] == ["-"]
    # It came in round 2: what round 2 sent out owes it nothing, round 3 does.
    assert kinds["broadcast", "a clean model"] == [3]
    assert kinds["updates of others", "a clean model"] == [3]
    assert "server state" in {kind for kind, _ in kinds}


def test_the_map_shows_the_files_of_a_run(tiny, tmp_path):
    told("run", tiny, "--out", tmp_path / "run")
    folder = tmp_path / "run" / "history" / "seed-0"
    places = told("history", "map", folder, "4")
    for name in ("report.html", "results.json", "seed-0-trained.safetensors"):
        assert name in places


def test_names_do_no_harm_on_a_terminal(tmp_path):
    folder = tmp_path / "h"
    names = {0: "\x1b[2J\x07", 1: "a\nb", 2: "b\u202ec"}
    with DiskHistory.create(folder, LAYOUT, names=names) as history:
        history.append_round(a_record(1, (0, 1, 2)))
    result = cli("history", "map", folder, "nobody")
    assert result.exit_code == 2
    line = only_line(result)
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert r"\x1b[2J" in line
    for name in names.values():
        assert cli("history", "map", folder, name).exit_code == 0


# --- erase


def test_an_erasure_with_the_clean_model(folder, model):
    answer = told("history", "erase", folder, "=1+1", "--model", model, "--yes")
    assert "2 updates" in answer
    assert "destroyed 2 rounds (2 to 3)" in answer
    with DiskHistory.open(folder) as history:
        assert history.rounds == (1,)
        assert history.withdrawn == {3}
        assert history.tip.round == 3
        np.testing.assert_array_equal(
            LAYOUT.flatten(history.tip.state.arrays), np.arange(8)
        )
    again = told("history", "erase", folder, "3", "--updates-only", "--yes")
    assert "nothing to do" in again


def test_an_erasure_of_updates_only(folder):
    answer = told("history", "erase", folder, "0", "Anna", "--updates-only", "--yes")
    assert "3 updates" in answer
    assert "kept 3 rounds" in answer
    with DiskHistory.open(folder) as history:
        assert history.rounds == (1, 2, 3)
        assert 0 not in history.clients


def test_nothing_is_destroyed_without_a_yes(folder, model):
    result = cli("history", "erase", folder, "Anna", "--model", model, answer="n\n")
    assert result.exit_code == 1
    assert "cannot be undone" in result.stdout
    with DiskHistory.open(folder) as history:
        assert history.clients == (0, 1, 2, 3)
    assert cli("history", "erase", folder, "Anna", "--updates-only").exit_code == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give the unlearned model"),
        (["--updates-only", "--model", "x"], "give the unlearned model"),
        (["--model", "nowhere.safetensors"], "is not a model of this history"),
    ],
)
def test_an_unclear_erasure_is_refused(folder, options, message):
    result = cli("history", "erase", folder, "Anna", "--yes", *options)
    assert result.exit_code == 2
    assert message in only_line(result)


def test_an_unknown_client_is_refused_with_the_nearest_name(folder, model):
    result = cli("history", "erase", folder, "Ann", "--model", model, "--yes")
    assert result.exit_code == 2
    assert "did you mean 'Anna'" in only_line(result)


def test_an_unsealed_history_cannot_be_erased(tmp_path):
    folder = make(tmp_path / "open", sealed=False)
    result = cli("history", "erase", folder, "Anna", "--updates-only", "--yes")
    assert result.exit_code == 2
    assert "not sealed" in only_line(result)


# --- export, log, migrate


def test_an_exported_round_is_what_was_recorded(folder, tmp_path):
    out = tmp_path / "round.safetensors"
    told("history", "export", folder, "--round", 2, "--out", out)
    arrays, record = load_file(out), a_record(2, (0, 1, 2, 3))
    np.testing.assert_array_equal(arrays["updates"], record.updates)
    np.testing.assert_array_equal(arrays["broadcast"], record.broadcast)
    np.testing.assert_array_equal(arrays["num_examples"], record.num_examples)
    assert arrays["clients"].tolist() == [0, 1, 2, 3]
    assert cli("history", "export", folder, "--round", 2, "--out", out).exit_code == 2
    assert (
        cli(
            "history", "export", folder, "--round", 9, "--out", tmp_path / "x"
        ).exit_code
        == 1
    )


def test_the_log_is_verified_from_itself_and_against_an_older_head(
    folder, model, tmp_path
):
    head = told("history", "log", "verify", folder).split()[-1]
    told("history", "erase", folder, "3", "--model", model, "--yes")
    assert told("history", "log", "verify", folder, "--head", head)
    saved = tmp_path / "log.jsonl"
    saved.write_text(told("history", "log", "show", folder))
    alone = told("history", "log", "verify", saved, "--head", head)
    assert alone == told("history", "log", "verify", folder)

    lines = saved.read_text().splitlines(keepends=True)
    saved.write_text("".join(lines[:2]))
    result = cli("history", "log", "verify", saved, "--head", head)
    assert result.exit_code == 3
    assert "the log has 2 entries" in result.stdout
    saved.write_text("".join(lines).replace('"round":1', '"round":7', 1))
    result = cli("history", "log", "verify", saved)
    assert result.exit_code == 3
    assert cli("history", "log", "verify", saved, "--head", "nonsense").exit_code == 2


def test_the_log_needs_no_key(folder):
    head = told("history", "log", "verify", folder)
    (folder / "keys.bin").unlink()
    (folder / "outer.key").unlink()
    shutil.rmtree(folder / "segments")
    assert told("history", "log", "verify", folder) == head


def test_an_older_format_is_migrated_and_the_old_one_kept(tmp_path):
    folder = tmp_path / "history"
    shutil.copytree(GOLDEN / "history-format-1", folder)
    result = cli("history", "stats", folder)
    assert result.exit_code == 1
    assert f"fedunlearn history migrate {folder}" in only_line(result)
    assert "history.format-1" in told("history", "migrate", folder)
    assert "is whole" in told("history", "check", folder, "--read-data")
    assert (tmp_path / "history.format-1" / "index.db").exists()
    assert "history.format-1" in told("history", "map", folder, "0")


def test_a_history_in_use_is_refused_with_the_process(folder, model):
    with DiskHistory.open(folder, write=True) as history:
        history.append_round(a_record(4, (0,)), ServerState())
        result = cli("history", "erase", folder, "3", "--model", model, "--yes")
        assert result.exit_code == 1
        assert "is in use by process" in only_line(result)
        assert told("history", "stats", folder)
