"""Makes the tables of README.md and docs/results.md.

    python benchmarks/results.py                    all scenarios, about three minutes
    python benchmarks/results.py quickstart heart   some
    python benchmarks/results.py --smoke            seconds; prints, writes no page

A scenario that has already run into --runs is not run again: stop it whenever you like
and start it anew. Each table is written between the lines ``<!-- table: NAME -->`` and
``<!-- end -->`` of both pages.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from fedunlearn.report import BRIEF, markdown_table
from fedunlearn.report.columns import COLUMNS
from simulations import compare, load_scenario
from simulations.run_folder import read_results

ROOT = Path(__file__).parent.parent
PAGES = {ROOT / "README.md": BRIEF, ROOT / "docs" / "results.md": COLUMNS}
"""Page -> the columns its tables have room for."""
SCENARIOS = ("quickstart", "heart", "watch", "fashion_mnist")
SMOKE = ["rounds=1", "seeds=[0]", "methods=[nothing]"]


def results(name: str, runs: Path, overrides: list[str]) -> dict[str, Any]:
    """Return a scenario's results, from its run if there is a finished one."""
    out = runs / name
    if not (out / "results.json").is_file():
        scenario = load_scenario(
            ROOT / "configs" / "scenario" / f"{name}.yaml", overrides
        )
        compare(scenario, out=out)
    return read_results(out)


def write(page: Path, name: str, text: str) -> None:
    """Put the table between the page's marks for it, if it has any."""
    marks = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    old = page.read_text(encoding="utf-8")
    new = marks.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", old)
    page.write_text(new, encoding="utf-8")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "results")
    parser.add_argument("--smoke", action="store_true", help="seconds, no page written")
    options = parser.parse_args()
    if options.smoke:
        print(markdown_table(results("quickstart", options.runs, SMOKE)))
        return
    for name in options.scenarios:
        found = results(name, options.runs, [])
        for page, columns in PAGES.items():
            write(page, name, markdown_table(found, columns).rstrip("\n"))
        print(f"{name}\n{markdown_table(found)}")


if __name__ == "__main__":
    main()
