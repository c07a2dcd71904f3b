"""What the README, the docs, the example and the benchmarks show is run here."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedunlearn.history import DiskHistory
from fedunlearn.history.codecs import CODECS, codec
from fedunlearn.history.index import _TABLES
from fedunlearn.history.lineage import PARTS_OF_OTHERS
from fedunlearn.history.retention import RETENTIONS, retention
from fedunlearn.history.settings import Settings, first_meta
from fedunlearn.history.stats import KIND_OF_PART
from strategies import METHODS
from tests.history_helpers import LAYOUT, a_record, a_state

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def test_the_readmes_python_examples_run_one_after_another(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = python_blocks(ROOT / "README.md")
    namespace = {"__name__": "readme"}

    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102

    shown = capsys.readouterr().out
    assert "eraser@1" in shown
    assert "`halfway`" in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    text = page.read_text("utf-8")

    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_scenario_the_docs_name_exists():
    text = "".join(page.read_text("utf-8") for page in PAGES)

    named = set(re.findall(r"configs/scenario/\w+\.yaml", text))
    assert named
    assert all((ROOT / path).is_file() for path in named)


def test_the_flower_example_records_and_forgets(tmp_path):
    done = subprocess.run(
        [sys.executable, "examples/flower_app.py", str(tmp_path / "history")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    with_all, without, rounds = [line.split()[-1] for line in done.stdout.splitlines()]
    assert float(without) < float(with_all)  # the leaver pulled the weights up
    assert int(rounds) == 120


def test_the_results_benchmark_has_a_smoke_version(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/results.py", "--smoke", "--runs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert "`retrain` (reference)" in done.stdout


def test_no_page_names_a_machine_path_or_a_registry():
    for page in PAGES:
        text = page.read_text("utf-8")
        assert not re.search(r"/(home|root|work)/", text), page
        assert "index-url" not in text, page


def test_the_reader_in_the_format_page_reads_a_history(tmp_path):
    """The page is enough to write a reader: this one imports nothing of ours."""
    (block,) = python_blocks(ROOT / "docs" / "history-format.md")
    assert "fedunlearn" not in re.sub(r'b"fedunlearn tree"', "", block)
    namespace = {"__name__": "reader"}
    exec(compile(block, "history-format.md", "exec"), namespace)  # noqa: S102
    folder = tmp_path / "history"
    with DiskHistory.create(folder, LAYOUT) as history:
        history.append_round(a_record(1, (0, 2, 7)), a_state(1))
        history.append_round(a_record(4, (2, 9)), a_state(4))

    for index, clients in ((1, (0, 2, 7)), (4, (2, 9))):
        found = namespace["read_updates"](folder, index)
        record = a_record(index, clients)
        assert tuple(found) == clients
        for client, update in found.items():
            assert np.array_equal(update, record.updates_of((client,))[0])

    with DiskHistory.open(folder, write=True) as history:
        history.erase({7})
    assert tuple(namespace["read_updates"](folder, 1)) == (0, 2)


def test_the_format_page_names_every_table_column_and_tensor():
    """A new kind of data needs a line on the page, and a line in the data map."""
    page = (ROOT / "docs" / "history-format.md").read_text("utf-8")
    for name in re.findall(r"CREATE TABLE (\w+)", _TABLES):
        assert f"| `{name}` |" in page
    columns = set(re.findall(r"\b(\w+) (?:TEXT|INTEGER|REAL)\b", _TABLES))
    for column in columns - {"key", "value"}:  # of the settings, which are named below
        assert f"`{column}`" in page, column
    settings = Settings("", LAYOUT, codec("float32"), retention("all"), True)
    for key in first_meta(settings):
        assert f"`{key}`" in page, key
    assert set(KIND_OF_PART) == set(PARTS_OF_OTHERS)
    for part in KIND_OF_PART:
        assert f"| `{part}` |" in page
    for name in [*CODECS, *RETENTIONS]:
        assert f"`{name}" in page + (ROOT / "docs" / "concepts.md").read_text("utf-8")


def test_every_method_has_a_section_a_settings_file_and_all_that_the_table_says():
    page = (ROOT / "docs" / "methods.md").read_text("utf-8")
    for name, cls in METHODS.items():
        assert f"## `{name}`" in page, name
        assert f"[`{name}`](#{name})" in page, name
        assert (ROOT / "configs" / "method" / f"{name}.yaml").is_file()
        about = cls.about
        assert all((about.family, about.guarantee, about.cost, about.source)), name


def test_a_method_s_module_is_at_most_eighty_lines_of_code():
    for name, cls in METHODS.items():
        module = sys.modules[cls.__module__]
        assert code_lines(Path(module.__file__)) <= 80, name


def code_lines(file: Path) -> int:
    """Lines that are neither blank, comment nor docstring."""
    text = file.read_text("utf-8")
    prose = set()
    for node in ast.walk(ast.parse(text)):
        text_only = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text_only and isinstance(node.value.value, str):
            prose.update(range(node.lineno, node.end_lineno + 1))
    return sum(
        1
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and number not in prose
    )
