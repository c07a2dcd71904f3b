"""Names that break other people's programs pass through a whole run unharmed."""

import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from fedunlearn.history import DiskHistory
from simulations.cli import app
from tests.nasty_names import NASTY

SCENARIO = {
    "name": "nasty",
    "seeds": [0],
    "rounds": 2,
    "data": {"name": "npz"},
    "partition": {"name": "natural"},
    "model": {"name": "softmax"},
    "training": {"epochs": 1, "batch_size": 4, "lr": 0.1},
    "methods": ["rollback"],
    "holdout": 0.0,
}


class Elements(HTMLParser):
    """Notes the elements and event handlers of a page."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.seen |= {tag, *(name for name, _ in attrs if name.startswith("on"))}


def cli(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a federation of such clients; the last one left."""
    folder = tmp_path_factory.mktemp("nasty")
    # NumPy's strings cannot end in NUL and hold no lone surrogate in a file.
    names, rng = np.array(sorted(NASTY)), np.random.default_rng(0)
    each = 6
    x = rng.normal(size=(each * len(names), 3)).astype(np.float32)
    y = np.tile(np.arange(3), 2 * len(names))
    np.savez(
        folder / "data.npz",
        x_train=x,
        y_train=y,
        x_test=x[:12],
        y_test=y[:12],
        client_train=np.repeat(names, each),
    )
    (folder / "scenario").mkdir()
    file = folder / "scenario" / "nasty.yaml"
    scenario = SCENARIO | {"forget": [str(len(names) - 1)]}
    scenario["data"] = {"name": "npz", "path": str(folder / "data.npz")}
    OmegaConf.save(OmegaConf.create(scenario), file)
    result = cli("run", file, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.fixture(scope="module")
def names(run):
    with DiskHistory.open(run / "history" / "seed-0") as history:
        return {c: history.names.get(c, str(c)) for c in history.clients}


def test_the_store_keeps_every_name_as_it_is(names):
    assert sorted(names.values()) == sorted(NASTY)


def test_no_name_becomes_a_path(run):
    inside = {p.name for p in run.rglob("*")}
    assert not inside & {n for n in NASTY if n not in ("", ".", "..")}
    assert not list(run.parent.glob("*passwd*"))


def test_the_report_holds_text_only(run):
    page = (run / "report.html").read_text("utf-8")
    parser = Elements()
    parser.feed(page)
    assert "script" not in parser.seen
    assert not {name for name in parser.seen if name.startswith("on")}
    assert "\x1b" not in page
    assert "\x00" not in page


def test_no_cell_of_the_table_is_a_formula(run):
    with (run / "results.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            for cell in line.values():
                assert not cell.startswith(("=", "@", "\t"))
                if cell.startswith(("-", "+")):
                    float(cell)


def test_events_and_results_are_json(run):
    json.loads((run / "results.json").read_text("utf-8"))
    for line in (run / "events.jsonl").read_text("utf-8").splitlines():
        json.loads(line)


def test_every_client_is_found_by_its_name_and_shown_in_plain_signs(run, names):
    folder = run / "history" / "seed-0"
    for client, name in names.items():
        if name.startswith("-"):
            continue  # a shell user writes ``-- NAME``, as below
        result = cli("history", "map", folder, name, "--format", "json")
        assert result.exit_code == 0, (name[:40], result.output[:300])
        rounds = [
            r["round"] for r in json.loads(result.stdout) if r["kind"] == "update"
        ]
        with DiskHistory.open(folder) as history:
            assert rounds == list(history.rounds_of(client))
        assert result.stdout.isascii()
    assert cli("history", "map", folder, "--", "-2+3").exit_code == 0


def test_such_clients_can_be_erased_one_by_one(run, names):
    folder = run / "history" / "seed-0"
    for name in list(names.values())[::4]:
        result = cli("history", "erase", folder, "--updates-only", "--yes", "--", name)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output
        assert "\x00" not in result.output
    assert cli("history", "check", folder, "--read-data").exit_code == 0
