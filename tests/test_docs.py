"""What the README, the docs, the example and the benchmarks show is run here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
