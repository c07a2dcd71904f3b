"""The drivers of the claims and of the headline table, in their smoke versions."""

import subprocess
import sys
from pathlib import Path

import pytest

from simulations import load_scenario

ROOT = Path(__file__).parent.parent
CLAIMS = sorted((ROOT / "configs" / "scenario").glob("claim_*.yaml"))


@pytest.mark.parametrize(
    ("script", "shows"),
    [
        ("claims.py", ["`sifu@cap_25`", "of the rounds"]),
        ("headline.py", ["`fed_recover`", "`pgd`", "`output_filter`"]),
    ],
)
def test_a_driver_runs_and_goes_on_where_it_was(script, shows, tmp_path):
    command = [sys.executable, f"benchmarks/{script}", "--smoke", "--runs"]
    for _ in range(2):
        done = subprocess.run(
            [*command, str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        assert all(text in done.stdout for text in shows)


@pytest.mark.parametrize("file", CLAIMS, ids=lambda f: f.stem)
def test_a_claim_s_scenario_is_readable_and_has_a_check(file, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import claims

    scenario = load_scenario(file)
    name = file.stem.removeprefix("claim_")
    assert scenario.outline.name == file.stem
    assert name in claims.CLAIMS
    assert len(scenario.outline.seeds) >= 3
