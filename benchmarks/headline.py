"""The headline table: every method, clean and backdoored leaver, two label skews.

    python benchmarks/headline.py             four cells, five seeds
    python benchmarks/headline.py --seeds 1   one seed of each cell
    python benchmarks/headline.py --smoke     seconds, on digits; writes no page

Stop it whenever you like and start it anew: what has run is not run again. Tables are
written into docs/results.md. Fashion-MNIST is Debian's package dataset-fashion-mnist.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from results import ROOT, write

from fedunlearn.report import gap_table
from simulations import compare, load_scenario
from simulations.cores import usable_cores
from simulations.run_folder import read_results
from simulations.scenario import Scenario
from strategies import METHODS

# The leaver is the client with the largest share of any class: what it alone knows can
# be seen to go.
_SKEWED, _MILD = (
    [f"partition.alpha={alpha}", f"forget=[{leaver}]"]
    for alpha, leaver in ((0.1, 11), (0.5, 14))
)
_BACKDOOR = "backdoor={fraction: 0.5, target: 0}"
CELLS = {
    "clean_0.1": _SKEWED,
    "clean_0.5": _MILD,
    "backdoor_0.1": [*_SKEWED, _BACKDOOR],
    "backdoor_0.5": [*_MILD, _BACKDOOR],
}
"""Name of a table -> what it changes in the scenario."""
BUDGETS = ["fine_tune@13", "fine_tune@20", "fine_tune@40"]
"""The control at other budgets than its own: what each method is held against."""
SMOKE = ["data.name=digits", "model.name=mlp", "rounds=2", "clients=6", "seeds=[0]"]
SMOKE += ["clients_per_round=3", "server_examples=20", "training.batch_size=64"]
SMOKE += ["forget=[5]"]


def labels() -> list[str]:
    """Return every method that can forget a client of a plain federation."""
    needs = {name: cls().requires for name, cls in METHODS.items()}
    return [n for n, r in needs.items() if "client" in r.levels and not r.shards]


def scenario(overrides: list[str], seeds: int | None, workers: int) -> Scenario:
    """Return a cell's scenario with all methods; workers change its pace alone."""
    methods = f"methods=[{','.join([*labels(), *BUDGETS])}]"
    some = [] if seeds is None else [f"seeds=[{','.join(map(str, range(seeds)))}]"]
    file = ROOT / "configs" / "scenario" / "headline.yaml"
    return load_scenario(
        file, [methods, *overrides, *some, f"engine.workers={workers}"]
    )


def results(out: Path, cell: Scenario) -> dict[str, Any]:
    """Return a cell's results; what a stopped run left is gone on with."""
    if not (out / "results.json").is_file():
        compare(cell, out=out, resume=(out / "config.yaml").is_file())
    return read_results(out)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", default=CELLS)
    parser.add_argument("--seeds", type=int, help="how many; the page wants five")
    parser.add_argument(
        "--workers", type=int, default=usable_cores(), help="Ray actors"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs") / "headline")
    parser.add_argument("--smoke", action="store_true", help="seconds, no page written")
    options = parser.parse_args()
    if options.smoke:
        print(gap_table(results(options.runs / "smoke", scenario(SMOKE, None, 0))))
        return
    for name in options.cells:
        begin = time.perf_counter()
        cell = scenario(CELLS[name], options.seeds, options.workers)
        count = len(cell.outline.seeds)
        found = results(options.runs / f"{name}_{count}", cell)
        text = gap_table(found)
        minutes = (time.perf_counter() - begin) / 60
        print(f"{name}, {count} seeds, {minutes:.1f} minutes\n{text}", flush=True)
        write(ROOT / "docs" / "results.md", f"headline {name}", text.rstrip("\n"))


if __name__ == "__main__":
    main()
