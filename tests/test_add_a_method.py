"""The page that adds a method is followed to the letter, in a package of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedunlearn.errors import ConfigError
from strategies import METHODS
from strategies.registry import MethodTable

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "add-a-method.md").read_text("utf-8")
METHOD, LAWS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the page's package, as pip would install it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "halfway").mkdir()
    (folder / "halfway" / "__init__.py").write_text(METHOD, "utf-8")
    info = folder / "halfway-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: halfway\nVersion: 1.0\n"
    )
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    group, target = re.fullmatch(
        r'\[project.entry-points."(.*)"\]\nhalfway = "(.*)"\n', toml
    ).groups()
    (info / "entry_points.txt").write_text(f"[{group}]\nhalfway = {target}\n")
    return folder


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_page_s_method_obeys_the_laws(installed):
    done = run(installed, "-c", LAWS)
    assert done.returncode == 0, done.stderr


def test_it_is_listed_with_its_family_and_needs(installed):
    done = run(installed, "-m", "simulations", "methods", "--format", "json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["halfway"]["family"] == "perturbation"
    assert rows["halfway"]["levels"] == ["client", "sample", "class"]
    assert rows["halfway"]["requires"]["broadcasts"] == "initial"


def test_it_runs_by_name_with_settings_from_the_command_line(installed, tmp_path):
    command = (
        "run configs/scenario/quickstart.yaml seeds=[0] rounds=2 training.epochs=1"
    )
    out = tmp_path / "run"
    done = run(
        installed,
        *f"-m simulations {command} --format json --out {out}".split(),
        "methods=[fine_tune,halfway]",
        "halfway.share=0.7",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["scenario"]["halfway"] == {"share": 0.7, "rounds": 3}
    assert "halfway" in {row["method"] for row in results["rows"]}


def test_a_wrong_setting_of_it_is_named(installed):
    command = "-m simulations run configs/scenario/quickstart.yaml methods=[halfway]"
    done = run(installed, *command.split(), "halfway.share=2")
    assert done.returncode == 2
    assert "halfway.share must lie in [0, 1]" in done.stderr


def test_a_client_runs_the_procedures_of_an_installed_package_only(installed):
    ask = "from fedunlearn.local import installed; print(installed('halfway.work'))"
    assert run(installed, "-c", ask).stdout == "True\n"
    assert run(ROOT, "-c", ask).stdout == "False\n"


class Entry:
    """An entry point."""

    def __init__(self, name, value="nowhere:Nobody"):
        self.name, self.value = name, value

    def load(self):
        raise ImportError("No module named 'nowhere'")


@pytest.fixture
def entries(monkeypatch):
    found = []
    monkeypatch.setattr("strategies.registry._entries", lambda: tuple(found))
    return found


def test_a_package_whose_method_cannot_be_imported_is_named(entries):
    entries.append(Entry("broken"))
    assert "broken" in METHODS
    assert len(METHODS) == len(list(METHODS))
    with pytest.raises(
        ConfigError, match=r"method 'broken' of nowhere:Nobody cannot be"
    ):
        METHODS["broken"]


def test_a_method_cannot_take_the_name_of_another(entries):
    entries.append(Entry("retrain"))
    with pytest.raises(ConfigError, match="'retrain' of nowhere:Nobody has the name"):
        list(METHODS)
    entries[:] = [Entry("twice"), Entry("twice")]
    with pytest.raises(ConfigError, match="'twice'"):
        list(METHODS)
    assert METHODS["retrain"]


def test_a_name_nobody_has_is_no_key(entries):
    table = MethodTable({})
    assert "x" not in table
    assert list(table) == []
