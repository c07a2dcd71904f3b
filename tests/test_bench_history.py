"""The sweep over thinned histories: exact where it must be, and it goes on."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedunlearn.errors import ConfigError, DataError, UnknownNameError
from fedunlearn.history import DiskHistory
from simulations import bench_history, compare, load_scenario
from simulations.bench_history import EXACT, sweep, thinned
from simulations.bench_plot import picture, table, write_sweep
from simulations.bench_rows import ANY, Cell, RowFile, SweepRow, cells, points
from simulations.cli import app

SCENARIO = """\
name: thin
seeds: [0]
rounds: 4
clients: 4
forget: [3]
data: {name: digits}
model: {name: softmax}
training: {epochs: 1, batch_size: 64, lr: 0.2}
backdoor: {fraction: 0.5, target: 0, size: 2}
methods: [nothing, retrain, rollback, fed_eraser, fed_eraser@kept, subtract]
fed_eraser@kept: {interval: 1, select: kept}
"""
METHODS = ["rollback", "fed_eraser", "fed_eraser@kept", "subtract"]
CODECS = ["float32", "float16", "int8", "top_k:0.1", "top_k:0.01"]
CELLS = cells(CODECS, ["all", "every:2", "last:1", "sums", "sensitivities", "crab"])
FEW = cells(["float32", "int8"], ["all", "sums"])
ROUNDS, CLIENTS, P, TENSORS = 4, 4, 64 * 10 + 10, 2


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("project") / "scenario" / "thin.yaml"
    path.parent.mkdir()
    path.write_text(SCENARIO)
    return path


@pytest.fixture(scope="module")
def scenario(file):
    return load_scenario(file, EXACT)


@pytest.fixture(scope="module")
def whole(scenario, tmp_path_factory):
    """The results of an uninterrupted sweep."""
    return sweep(scenario, CELLS, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def rows(whole):
    found = [SweepRow(**row) for row in whole["rows"]]
    return {(row.method, row.codec, row.retention): row for row in found}


def untimed(results):
    """Return results without what a clock says."""
    rows = [{**row, "seconds": 0.0} for row in results["rows"]]
    return {**results, "rows": rows, "references": []}


def reference(whole, method):
    return next(row for row in whole["references"] if row["method"] == method)


# --- what the rows say


def test_there_is_a_row_for_every_method_and_cell(rows):
    assert list(rows) == [(m, c.codec, c.retention) for c in CELLS for m in METHODS]


def test_rollback_on_the_exact_history_is_retraining_bit_for_bit(rows, whole):
    row = rows["rollback", "float32", "all"]
    assert row.model_sha256 == reference(whole, "retrain")["model_sha256"]
    assert set(row.gaps.values()) == {0.0}


def test_the_exact_cell_gives_the_models_of_a_comparison(rows, scenario):
    expected = {row.method: row.model_sha256 for row in compare(scenario).rows}
    for method in METHODS:
        assert rows[method, "float32", "all"].model_sha256 == expected[method]


def test_replaying_what_is_kept_of_every_second_round_is_interval_two(rows):
    for codec in ("float32", "int8", "top_k:0.1"):
        kept = rows["fed_eraser@kept", codec, "every:2"]
        assert kept.model_sha256 == rows["fed_eraser", codec, "all"].model_sha256
        assert kept.model_sha256 != rows["fed_eraser@kept", codec, "all"].model_sha256


def test_running_sums_subtract_what_exact_updates_do(rows):
    exact, sums = (rows["subtract", "float32", kept] for kept in ("all", "sums"))
    assert sums.gaps == pytest.approx(exact.gaps, abs=2e-3)


def test_gaps_are_metric_minus_retraining(rows, whole):
    base = reference(whole, "retrain")["metrics"]
    trained = reference(whole, "trained")["metrics"]
    for row in rows.values():
        for name in ("test_accuracy", "forget_accuracy", "backdoor_success"):
            assert row.nothing[name] == trained[name] - base[name]
            if not row.needs:
                assert row.gaps[name] == row.metrics[name] - base[name]


ROW_BYTES = {
    "float32": 4 * P,
    "float16": 2 * P,
    "int8": P + 4 * TENSORS,
    "top_k:0.1": 8 * 65,
    "top_k:0.01": 8 * 7,
}


@pytest.mark.parametrize("codec", ROW_BYTES)
def test_bytes_are_the_closed_forms(rows, codec):
    model, round_ = 4 * P, 4 * P + CLIENTS * ROW_BYTES[codec]
    expected = {
        "all": (ROUNDS * round_, ROUNDS * round_),
        "every:2": (2 * round_, 2 * round_),
        "last:1": (model + round_, model + 2 * round_),
        "sums": (model + CLIENTS * model, model + CLIENTS * model),
        "sensitivities": (ROUNDS * model, ROUNDS * model),
    }
    for retention, nbytes in expected.items():
        row = rows["rollback", codec, retention]
        assert (row.stored_bytes, row.peak_bytes) == nbytes, retention


def test_the_full_history_is_the_yardstick(whole):
    assert whole["full_bytes"] == ROUNDS * (1 + CLIENTS) * 4 * P


def test_what_reads_no_update_runs_once_for_all_codecs(rows):
    for method, retention in (("rollback", "all"), ("subtract", "sums")):
        first = rows[method, "float32", retention]
        assert (first.same_as, first.reads_updates) == ("", False)
        other = rows[method, "int8", retention]
        assert other.same_as == "float32"
        assert other.model_sha256 == first.model_sha256
    assert rows["rollback", "int8", "all"].stored_bytes < P * 4 * CLIENTS * ROUNDS
    assert rows["subtract", "int8", "all"].same_as == ""


def test_what_cannot_be_served_says_what_it_lacks(rows):
    assert rows["subtract", "int8", "every:2"].needs == (
        "updates of rounds 2, 4 (kept: rounds 1, 3)"
    )
    assert rows["fed_eraser", "float32", "sums"].needs == (
        "updates of rounds 1, 3 (kept: none)"
    )
    served = {key for key, row in rows.items() if not row.needs}
    assert ("rollback", "float32", "sensitivities") in served
    assert ("fed_eraser@kept", "float32", "crab") in served
    assert not any(rows[key].gaps for key in rows.keys() - served)


def test_a_stateful_rule_is_rolled_back_to_its_recorded_state(file, tmp_path):
    # Subtraction means nothing under such a rule and is refused.
    able = "methods=[rollback,fed_eraser,fed_eraser@kept]"
    momentum = [able, "server.name=fed_avgm", "server.momentum=0.9"]
    later = ["seeds=[2]", "clients_per_round=2"]  # client 3 first comes in round 2
    scenario = load_scenario(file, [*EXACT, *momentum, *later])
    expected = {row.method: row.model_sha256 for row in compare(scenario).rows}
    found = sweep(scenario, cells(["float32"], ["all"]), tmp_path)

    assert found["rows"][0]["method"] == "rollback"
    for row in found["rows"]:
        assert row["model_sha256"] == expected[row["method"]]
    with DiskHistory.open(tmp_path / "history" / "seed-2") as exact:
        assert exact.rounds_of(3)[0] == 2
        with thinned(exact, Cell("float32", "all")) as copy:
            same_histories(exact, copy)


def same_histories(exact, copy):
    assert copy.rounds == exact.rounds
    same_states(exact.tip.state, copy.tip.state)
    for index in exact.rounds:
        old, new = exact.round(index), copy.round(index)
        assert new.updates.tobytes() == old.updates.tobytes()
        assert new.broadcast.tobytes() == old.broadcast.tobytes()
        assert (new.loss, new.clients) == (old.loss, old.clients)
        same_states(old.arrays.state(), new.arrays.state())
    assert exact.round(2).arrays.state().rule


def same_states(old, new):
    assert old.random == new.random
    for ours, theirs in ((old.arrays, new.arrays), (old.rule, new.rule)):
        assert {k: v.tobytes() for k, v in ours.items()} == {
            k: v.tobytes() for k, v in theirs.items()
        }


# --- stopped and started again


class StoppedError(Exception):
    pass


def stop_after(monkeypatch, count):
    """Make the file of rows fail when it is given one row more than ``count``."""
    add = RowFile.add

    def limited(self, row):
        if len(self.rows) == count:
            raise StoppedError
        add(self, row)

    monkeypatch.setattr(RowFile, "add", limited)


def test_a_stopped_sweep_goes_on_to_the_same_rows(scenario, tmp_path, monkeypatch):
    expected = untimed(sweep(scenario, FEW, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(StoppedError):
            sweep(scenario, FEW, tmp_path / "out")
    lines = tmp_path / "out" / "rows.jsonl"
    content = lines.read_bytes()
    assert content.count(b"\n") == 6
    lines.write_bytes(content[:-40])  # the sixth line is cut short

    ran = []
    run = bench_history.run_unlearning

    def counted(method, model, context):
        ran.append(method)
        return run(method, model, context)

    monkeypatch.setattr(bench_history, "run_unlearning", counted)
    again = untimed(sweep(scenario, FEW, tmp_path / "out"))
    assert again == expected
    assert lines.read_bytes().count(b"\n") == len(expected["rows"]) == 16
    # Of each history the methods it serves, but those that were done before.
    assert len(ran) == 5

    ran.clear()
    assert untimed(sweep(scenario, FEW, tmp_path / "out")) == expected
    assert ran == []


def test_more_codecs_can_be_added_later(scenario, tmp_path):
    sweep(scenario, cells(["int8"], ["all"]), tmp_path)
    found = sweep(scenario, cells(["float32"], ["all"]), tmp_path)
    assert {row["codec"] for row in found["rows"]} == {"float32"}
    assert found["rows"][0]["same_as"] == "int8"
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 2 * len(METHODS)


def test_the_folder_of_another_sweep_is_refused(file, scenario, tmp_path):
    sweep(scenario, cells(["float32"], ["sums"]), tmp_path)
    other = load_scenario(file, [*EXACT, "rounds=2"])
    with pytest.raises(ConfigError, match="was run with rounds: 4, not 2"):
        sweep(other, FEW, tmp_path)


@pytest.mark.parametrize("line", ["{}", "[1]", "not json", '{"seed": 1, "odd": 2}'])
def test_rows_that_are_none_are_refused_with_their_line(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: not (a sweep|JSON)"):
        RowFile(path)


# --- names


def test_cells_have_one_name_each():
    assert cells(["top_k:0.10", "top_k:.1"], ["last:05", "last:5"]) == (
        Cell("top_k:0.1", "last:5"),
    )
    assert len(cells()) == 6 * 7


def test_a_name_nobody_knows_is_refused():
    with pytest.raises(UnknownNameError, match="unknown codec 'float31'; did you mean"):
        cells(["float31"])
    with pytest.raises(UnknownNameError, match="unknown retention 'some'"):
        cells(retentions=["some"])


def test_a_sweep_needs_a_method_that_reads_a_history(file, tmp_path):
    idle = load_scenario(file, [*EXACT, "methods=[nothing,retrain,fine_tune]"])
    with pytest.raises(ConfigError, match="none of the scenario's methods reads a"):
        sweep(idle, FEW, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- table and picture


def test_points_are_one_a_method_and_way_of_keeping(whole):
    found = points(whole)
    assert list(dict.fromkeys(point.method for point in found)) == METHODS
    keys = [(p.method, p.codec, p.retention) for p in found]
    assert len(keys) == len(set(keys))
    assert ("rollback", ANY, "all") in keys
    assert ("subtract", ANY, "sums") in keys
    assert ("subtract", "int8", "all") in keys
    exact = next(p for p in found if p.codec == "float32" and p.retention == "all")
    assert exact.share == 1.0
    least = next(p for p in found if p.method == "rollback" and p.retention == "all")
    assert least.stored == ROUNDS * (4 * P + CLIENTS * ROW_BYTES["top_k:0.01"])


def test_the_table_has_doing_nothing_and_the_reasons(whole):
    heads, lines = table(whole, points(whole))
    assert heads[:4] == ("method", "codec", "kept", "stored kB")
    assert all(len(line) == len(heads) for line in lines)
    assert lines[0][0] == "doing nothing"
    notes = [line[-1] for line in lines]
    assert "not served: needs updates of rounds 2, 4 (kept: rounds 1, 3)" in notes


def test_the_picture_is_a_file_of_its_own_and_the_same_every_time(whole):
    svg = picture(whole)
    assert svg == picture(whole)
    root = ET.fromstring(svg)  # noqa: S314
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [
        "".join(node.itertext()) for node in root.iter() if node.tag[-4:] == "text"
    ]
    assert set(METHODS) <= set(texts)
    assert "doing nothing" in texts
    assert re.findall(r"https?://(?!www\.w3\.org/)", svg) == []


def test_a_sweep_without_a_backdoor_draws_accuracy_only(file, tmp_path):
    plain = load_scenario(file, [*EXACT, "backdoor=null"])
    found = sweep(plain, cells(["float32"], ["all"]), tmp_path)
    assert "backdoor" not in picture(found)
    assert not any("backdoor" in head for head in table(found, points(found))[0])
    write_sweep(tmp_path, found)
    with (tmp_path / "sweep.csv").open() as lines:
        assert {row["gap_backdoor_success"] for row in csv.DictReader(lines)} == {""}


def test_the_docs_tables_hold_what_no_other_history_beats(whole, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    page = import_module("history_sweep")
    found = points(whole)
    best = page.best(found)
    assert list(dict.fromkeys(point.method for point in best)) == METHODS
    for point in best:
        rivals = [p for p in found if p.method == point.method and not p.needs]
        beaten = [
            p
            for p in rivals
            if p.stored <= point.stored and page.miss(p) < page.miss(point)
        ]
        assert not beaten or point.stored == max(p.stored for p in rivals)
    # What is exact whatever is kept needs no more than the smallest history.
    least = min(p.stored for p in found if p.method == "rollback")
    assert [p.stored for p in best if p.method == "rollback"][-1] == least

    lines = page.best_table(whole).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    kept = page.served_table(whole).splitlines()
    assert kept[0] == (
        "| method | all | every:2 | last:1 | sums | sensitivities | crab |"
    )
    assert kept[2] == "| `rollback` | 0.0 | 0.0 | 0.0 | 0.0 | 0.0 | 0.0 |"
    assert [cell.strip() for cell in kept[5].split("|")[3:5]] == ["\N{EN DASH}"] * 2


# --- the command line


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def cli(*arguments):
    return CliRunner().invoke(
        app, ["bench", "history", *map(str, arguments)], prog_name="fedunlearn"
    )


SMALL = ["--codec", "float32", "--codec", "int8", "--retention", "sums"]


def test_the_smoke_sweep_writes_everything_and_goes_on(tmp_path):
    first = cli("--smoke", *SMALL, "--out", "out", "rounds=2")
    assert first.exit_code == 0, first.output
    assert {"rows.jsonl", "sweep.json", "sweep.csv", "sweep.svg"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert "seed 0: int8, sums done" in first.stderr
    assert re.search(r"^rollback +any +sums", first.stdout, re.MULTILINE)
    assert "not served: needs updates of round 1" in first.stdout

    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert len(found["rows"]) == 2 * 5
    with (tmp_path / "out" / "sweep.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 2 * 5

    # Without a scenario the folder's own is gone on with.
    again = cli("--out", "out", *SMALL, "--retention", "all", "--format", "json")
    assert again.exit_code == 0, again.output
    found = json.loads(again.stdout)
    assert found == json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert len(found["rows"]) == 4 * 5


WRONG = {
    "codec": (["--smoke", "--codec", "int9"], "unknown codec 'int9'; did you mean"),
    "number": (["--smoke", "--codec", "top_k"], "codec 'top_k' is not of the form"),
    "share": (["--smoke", "--codec", "top_k:2"], "must lie in (0, 1]"),
    "retention": (["--smoke", "--retention", "every:0"], "at least 1, got 0"),
    "nothing": ([], "a sweep needs a scenario file, or --smoke"),
    "both": (["FILE", "--smoke"], "--smoke has its own scenario"),
    "no file": (["no.yaml"], "there is no file no.yaml"),
    "history": (["FILE", "history.codec=int8"], "plays no part: everything is"),
    "methods": (["FILE", "methods=[nothing]"], "none of the scenario's methods"),
    "key": (["--smoke", "lr=3"], "unknown key 'lr'"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_one_sentence(file, tmp_path, arguments, words):
    result = cli(*(file if a == "FILE" else a for a in arguments), "--out", "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not (tmp_path / "out").exists()


def test_it_explains_itself():
    for arguments in (["bench"], ["bench", "history"]):
        result = CliRunner().invoke(app, [*arguments, "--help"])
        assert result.exit_code == 0
        assert "Usage" in result.stdout
    assert "--retention" in result.stdout
