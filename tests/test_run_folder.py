"""The folder of a run: everything needed to understand and repeat it."""

import csv
import errno
import getpass
import json
import math
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from fedunlearn.cost import COST_NAMES
from fedunlearn.errors import ConfigError, HistoryError
from fedunlearn.history import DiskHistory
from fedunlearn.params import Layout, sha256
from simulations import compare, load_scenario
from simulations.run_folder import RunFolder, environment

SETTINGS = [
    "seeds=[0,7]",
    "clients_per_round=3",
    "backdoor.target=2",
    "methods=[nothing,fed_eraser,subtract@recover]",
    "subtract@recover.recovery_rounds=1",
]
LABELS = ["trained", "retrain", "nothing", "fed_eraser", "subtract@recover"]
SETS = ["test", "retain", "forget", "forget_holdout"]
METRICS = {
    *(f"{s}_accuracy" for s in SETS),
    *(f"{s}_loss" for s in SETS),
    "l2_to_retrain",
    "cosine_to_retrain",
    "disagreement_with_retrain",
    "backdoor_success",
}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """Return a finished run: its folder and its comparison."""
    out = tmp_path_factory.mktemp("runs") / "new" / "run"
    return out, compare(load_scenario(tiny, SETTINGS), out=out)


@pytest.fixture(scope="module")
def results(run):
    return json.loads((run[0] / "results.json").read_text())


def test_the_folder_holds_the_files_of_a_run_and_no_others(run):
    out, _ = run
    assert {p.name for p in out.iterdir()} == {
        "config.yaml",
        "results.json",
        "results.csv",
        "environment.json",
        "events.jsonl",
        "report.html",
        "models",
        "history",
        "parts",
        "LOCK",
    }


# --- results


def test_results_have_the_schema_of_the_issue(results):
    parts = ["schema", "scenario", "rows", "history", "noise_floor"]
    assert list(results) == parts
    assert 0 <= results["noise_floor"] < 1
    assert results["schema"] == "fedunlearn-results/v1"
    assert set(results["history"]) == {"rounds", "clients", "bytes"}
    for row in results["rows"]:
        assert list(row) == ["method", "seed", "metrics", "cost", "model_sha256"]
        assert set(row["metrics"]) == METRICS
        assert set(row["cost"]) == {*COST_NAMES, "ratio_to_retrain"}
        assert set(row["cost"]["ratio_to_retrain"]) == set(COST_NAMES)
        assert re.fullmatch("[0-9a-f]{64}", row["model_sha256"])


def test_costs_have_the_names_of_the_issue():
    assert set(COST_NAMES) == {
        "client_rounds",
        "local_steps",
        "examples",
        "bytes_up",
        "bytes_down",
        "server_seconds",
        "wall_seconds",
        "history_bytes",
        "history_peak_bytes",
        "simulated_seconds",
    }


def test_there_is_a_row_for_every_method_and_seed(results):
    found = [(row["seed"], row["method"]) for row in results["rows"]]
    assert found == [(seed, label) for seed in (0, 7) for label in LABELS]


def test_no_number_of_the_results_is_nan_or_infinite(run):
    def refuse(word):
        raise AssertionError(word)

    json.loads((run[0] / "results.json").read_text(), parse_constant=refuse)


def test_accuracies_lie_between_0_and_1_and_losses_above_0(results):
    for row in results["rows"]:
        for name, value in row["metrics"].items():
            assert value >= 0, name
            if not name.endswith("_loss") and "l2" not in name and "cosine" not in name:
                assert value <= 1, name


def test_the_file_holds_what_the_comparison_holds(run, results):
    assert json.loads(json.dumps(run[1].results())) == results


def test_the_table_holds_the_same_numbers(run, results):
    with (run[0] / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(results["rows"])
    for line, row in zip(lines, results["rows"], strict=True):
        assert line["method"] == row["method"]
        assert int(line["seed"]) == row["seed"]
        assert line["model_sha256"] == row["model_sha256"]
        for name, value in row["metrics"].items():
            assert float(line[name]) == value
        for name in COST_NAMES:
            cost = row["cost"][name]
            assert line[name] == ("" if cost is None else str(cost))
            ratio = row["cost"]["ratio_to_retrain"][name]
            assert line[f"{name}_to_retrain"] == ("" if ratio is None else str(ratio))


# --- what is needed to repeat it


def test_the_resolved_configuration_gives_the_same_run(run, results, tmp_path):
    scenario = load_scenario(run[0] / "config.yaml")
    assert scenario.resolved == yaml.safe_load((run[0] / "config.yaml").read_text())
    again = compare(scenario, out=tmp_path / "again")
    assert [r.model_sha256 for r in again.rows] == [
        row["model_sha256"] for row in results["rows"]
    ]
    assert (tmp_path / "again" / "config.yaml").read_text() == (
        run[0] / "config.yaml"
    ).read_text()


def test_the_scenario_in_the_results_is_the_configuration(run, results):
    found = yaml.safe_load((run[0] / "config.yaml").read_text())
    assert results["scenario"] == found
    assert found["subtract@recover"] == {"weighting": "lazy", "recovery_rounds": 1}


def test_the_environment_names_versions_but_no_path_and_no_person(run):
    text = (run[0] / "environment.json").read_text()
    found = json.loads(text)
    assert set(found) >= {"python", "system", "cores", "flwr", "ray", "torch", "numpy"}
    assert all(isinstance(value, str) and value for value in found.values())
    assert found == environment()
    assert "/" not in text
    assert str(Path.home()) not in text
    import platform

    for private in (getpass.getuser(), platform.node()):
        assert private not in found.values()


# --- what happened


def test_every_line_of_the_event_log_is_one_event_in_order(run):
    text = (run[0] / "events.jsonl").read_text()
    assert text.endswith("\n")
    events = [json.loads(line) for line in text.splitlines()]
    times = [datetime.fromisoformat(event["time"]) for event in events]
    assert times == sorted(times)
    assert all(time.tzinfo is not None for time in times)
    kinds = [event["event"] for event in events]
    a_seed = ["train", *["round"] * 3, "done", *["method", "done"] * 4]
    assert kinds == ["run", *a_seed * 2]
    rounds = [e for e in events if e["event"] == "round"]
    assert [(e["seed"], e["round"]) for e in rounds] == [
        (seed, index) for seed in (0, 7) for index in (1, 2, 3)
    ]
    assert all(e["asked"] == e["answered"] == 3 for e in rounds)


# --- models and history


def test_there_is_one_model_a_row_and_its_digest_is_the_rows(run, results):
    files = {p.name for p in (run[0] / "models").iterdir()}
    assert files == {
        f"seed-{row['seed']}-{row['method']}.safetensors" for row in results["rows"]
    }
    for row in results["rows"]:
        name = f"seed-{row['seed']}-{row['method']}.safetensors"
        arrays = load_file(run[0] / "models" / name)
        layout = Layout(("1.weight", "1.bias"), ((10, 64), (10,)))
        assert {n: a.shape for n, a in arrays.items()} == dict(
            zip(layout.names, layout.shapes, strict=True)
        )
        assert sha256(layout.flatten(arrays)) == row["model_sha256"]


def test_the_histories_reopen_with_their_rounds(run, results):
    assert {p.name for p in (run[0] / "history").iterdir()} == {"seed-0", "seed-7"}
    for seed in (0, 7):
        history = DiskHistory.open(run[0] / "history" / f"seed-{seed}")
        try:
            assert history.rounds == (1, 2, 3)
            assert history.layout.size == 650
            for index in history.rounds:
                record = history.round(index)
                assert len(record.clients) == 3
                assert record.updates.shape == (3, 650)
                assert np.isfinite(record.updates).all()
        finally:
            history.close()


def test_the_history_leads_to_the_trained_model(run):
    """The last broadcast plus the last round's weighted mean is the final model."""
    history = DiskHistory.open(run[0] / "history" / "seed-7")
    try:
        last = history.round(3)
        weights = last.num_examples / last.num_examples.sum()
        end = last.broadcast + weights @ last.updates
    finally:
        history.close()
    saved = load_file(run[0] / "models" / "seed-7-trained.safetensors")
    np.testing.assert_allclose(history.layout.flatten(saved), end, atol=1e-6)


def test_the_history_summary_counts_what_is_recorded(run, results):
    found = results["history"]
    assert found["rounds"] == 3
    assert 3 <= found["clients"] <= 5
    assert found["bytes"] == (3 * 3 + 3) * 650 * 4


# --- the report


def test_the_report_is_one_page_that_asks_nothing_of_the_network(run):
    page = (run[0] / "report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert page.count("<svg") >= 3
    links = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"'#][^"']*)""", page)
    assert [link for link in links if not link.startswith("data:")] == []
    assert not re.search(r"@import|url\((?!#)", page)
    assert "<script src" not in page
    for label in LABELS:
        assert label in page


def test_the_report_shows_no_path_of_this_machine(run):
    page = (run[0] / "report.html").read_text(encoding="utf-8")
    assert str(run[0]) not in page
    assert str(Path.home()) + "/" not in page


# --- folders that do not work


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(run, tiny):
    before = {p: p.stat().st_mtime_ns for p in run[0].rglob("*")}
    with pytest.raises(ConfigError, match="already holds a run"):
        compare(load_scenario(tiny), out=run[0])
    assert {p: p.stat().st_mtime_ns for p in run[0].rglob("*")} == before


def test_an_empty_folder_may_be_filled(tiny, tmp_path):
    compare(load_scenario(tiny, ["methods=[]", "rounds=1"]), out=tmp_path)
    assert (tmp_path / "report.html").is_file()


def test_a_wrong_request_makes_no_folder(tiny, tmp_path):
    with pytest.raises(ConfigError):
        compare(load_scenario(tiny, ["backdoor.size=9"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_is_a_config_error(where, tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write to"):
        compare(load_scenario(tiny), out=tmp_path / where)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_during_recording_fails_the_run_and_says_so(
    tiny, tmp_path, monkeypatch
):
    from fedunlearn.history import append

    write = append.write_segment

    def full(files, path, place, *args):
        if place.index == 2 and path.name.startswith("round"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(files, path, place, *args)

    monkeypatch.setattr(append, "write_segment", full)
    with pytest.raises(HistoryError, match=r"recording round 2 failed: .*No space"):
        compare(load_scenario(tiny), out=tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    history = DiskHistory.open(tmp_path / "run" / "history" / "seed-0")
    assert history.rounds == (1,)
    history.close()


def test_results_without_value_are_null_and_empty(tiny, tmp_path):
    scenario = load_scenario(tiny, ["holdout=0", "methods=[nothing]", "rounds=1"])
    compare(scenario, out=tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert rows[0]["metrics"]["forget_holdout_accuracy"] is None
    assert rows[0]["metrics"]["backdoor_success"] is None
    with (tmp_path / "results.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["backdoor_success"] == ""


def test_a_folder_is_made_for_one_run_only(tiny, tmp_path):
    scenario = load_scenario(tiny)
    RunFolder.create(tmp_path / "a", scenario)
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder.create(tmp_path / "a", scenario)


def test_seconds_are_plausible(results):
    for row in results["rows"]:
        cost = row["cost"]
        assert 0 <= cost["server_seconds"] <= cost["wall_seconds"] < 60
        assert math.isfinite(cost["wall_seconds"])
