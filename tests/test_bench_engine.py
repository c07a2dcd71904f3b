"""``fedunlearn bench engine`` on a few clients; figures are in docs/performance.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulations.bench_engine import measure, table
from simulations.cli import app
from simulations.engine.kernels.compiled import available


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", "engine", "--smoke", *arguments])


pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def w3():
    result = bench("--workload", "W3", "--against", "eager,floor", "--format", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_results_have_the_form_of_the_docs(w3):
    assert w3["workload"] == "W3"
    ours = {"ours", "ours_torch", "ours_torch_ray"}
    assert set(w3["contestants"]) == {*ours, "eager", "floor"}
    for found in w3["contestants"].values():
        assert found["runs"] == 1
        assert 0 < found["median_s"] < found["first_round_s"]
        assert 50 < found["peak_mb"] < 2000
    medians = {name: c["median_s"] for name, c in w3["contestants"].items()}
    assert w3["ratios"] == {"eager": medians["eager"] / medians["ours"]}
    torch = min(medians["ours_torch"], medians["ours_torch_ray"])
    assert w3["torch_ratios"] == {"eager": medians["eager"] / torch}
    assert w3["floor_fraction"] == medians["floor"] / medians["ours"]


def test_a_kernel_takes_less_than_its_round(w3):
    for name in ("ours", "ours_torch", "eager"):
        found = w3["contestants"][name]
        assert 0 < found["kernel_s"] <= found["median_s"]


def test_all_have_computed_the_same(w3):
    assert 0 < w3["agreement"] < 1e-4


def test_a_person_gets_a_line_a_contestant(w3):
    heads, rows = table(w3)
    assert [row[0] for row in rows] == list(w3["contestants"])
    assert all(len(row) == len(heads) for row in rows)
    assert rows[0][3] == "1"


def test_who_is_not_installed_is_named():
    results = measure("W3", ["pfl"], rounds=1, scale=0.004)
    assert "pip install" in results["missing"].get("pfl", "pip install")
    assert ("pfl" in results["missing"]) != ("pfl" in results["contestants"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--workload", "W9"), "W1, W2, W3, W4"),
        (("--workload", "W1", "--against", "flowers"), "flower"),
    ],
)
def test_what_nobody_knows_is_refused_with_what_there_is(arguments, word):
    result = bench(*arguments)
    assert result.exit_code == 2
    assert word in result.stderr


@pytest.mark.skipif(available() is None, reason="no compiler was there")
def test_it_is_many_times_faster_than_flower_on_tiny_clients():
    """A coarse guard: at full size it is hundreds of times (docs/performance.md)."""
    results = measure("W3", ["flower"], rounds=2, scale=0.05)
    assert results["ratios"]["flower"] > 10
    assert results["agreement"] < 1e-4


def test_the_benchmark_of_the_docs_runs_and_goes_on_where_it_stopped(tmp_path):
    script = Path(__file__).parent.parent / "benchmarks" / "engine.py"
    parts = [word for name in ("busy", "scale") for word in ("--part", name)]
    command = [sys.executable, script, "--smoke", "--out", tmp_path, *parts]
    subprocess.run(command, check=True, capture_output=True)
    found = {path.stem: path for path in (tmp_path / "smoke").glob("*.json")}
    assert set(found) == {"busy", "scale"}
    busy = json.loads(found["busy"].read_text())
    assert busy["quiet_s"] > 0
    assert busy["busy_s"] > 0
    lines = json.loads(found["scale"].read_text())
    assert [line["clients"] for line in lines] == [100, 100, 1000, 1000]
    found["busy"].write_text("{}")
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(again.stdout) == {"busy": {}, "scale": lines}


def test_the_kernels_race_on_every_device_there_is():
    script = Path(__file__).parent.parent / "benchmarks" / "kernels.py"
    command = [sys.executable, script, "--smoke"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [line.split("|") for line in done.stdout.splitlines() if "| `" in line]
    kernels = [row[3].strip(" `") for row in rows if row[1].strip() == "cpu"]
    assert kernels.count("reference") == 3
    assert kernels.count("batched") == 2, "none for convolutions"
    assert all(float(row[8]) < 0.05 for row in rows)


def test_the_kernels_race_on_as_many_threads_as_wanted():
    script = Path(__file__).parent.parent / "benchmarks" / "kernels.py"
    command = [sys.executable, script, "--smoke", "--workload", "W3", "--threads"]
    done = subprocess.run(
        [*command, "1", "3"], check=True, capture_output=True, text=True
    )
    rows = [line.split("|") for line in done.stdout.splitlines() if "| `" in line]
    found = [(row[3].strip(), int(row[2])) for row in rows if "cpu" in row[1]]
    assert ("`batched`", 1) in found
    assert ("`batched`", 3) in found
    assert len(set(found)) == len(found)
