"""Makes the section "How much history is needed?" of docs/results.md.

    python benchmarks/history_sweep.py            the whole sweep, about five minutes
    python benchmarks/history_sweep.py --smoke    seconds; prints, writes no page

It is the sweep of `fedunlearn bench history` with SCENARIO; what --out holds of it is
not done again. Its tables go between the page's marks, its picture into docs/images/.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from results import ROOT, write

from simulations import load_scenario
from simulations.bench_history import EXACT, sweep
from simulations.bench_plot import TITLES, picture, table, write_sweep
from simulations.bench_rows import ANY, Point, cells, points

SCENARIO = ROOT / "configs" / "scenario" / "fashion_mnist_history.yaml"
PAGE = ROOT / "docs" / "results.md"
PICTURE = ROOT / "docs" / "images" / "history_sweep.svg"
NOTHING = "doing nothing"
SMOKE = ["seeds=[0]", "rounds=2", "data.name=digits", "training.epochs=1"]
SMOKE_CELLS = cells(["float32", "int8"], ["all", "sums"])


def results(out: Path) -> dict[str, Any]:
    """Return the sweep's results, from its folder if it is finished."""
    file = out / "sweep.json"
    if not file.is_file():
        scenario = load_scenario(SCENARIO, EXACT)
        write_sweep(out, sweep(scenario, cells(), out))
    return json.loads(file.read_text(encoding="utf-8"))


def miss(point: Point) -> float:
    """Return the mean over seeds of all drawn gaps' sizes together."""
    gaps = [point.gaps[metric] for metric in TITLES if metric in point.gaps]
    return statistics.fmean(sum(map(abs, own)) for own in zip(*gaps, strict=True))


def best(found: Sequence[Point]) -> list[Point]:
    """Return each method's largest history and those that no other one beats.

    One beats another if it takes no more bytes, misses by no more, and differs.
    """
    out: list[Point] = []
    for method in dict.fromkeys(point.method for point in found):
        own = [p for p in found if p.method == method and not p.needs]
        own.sort(key=lambda p: (-p.stored, miss(p)))
        at = [(p.stored, miss(p)) for p in own]
        for number, (stored, size) in enumerate(at):
            better = [a for a in at if a[0] <= stored and a[1] <= size]
            if number == 0 or set(better) == {(stored, size)}:
                out.append(own[number])
    return out


def best_table(found: dict[str, Any]) -> str:
    """Return the best ways of keeping a history for each method, as Markdown."""
    shown = best(points(found))
    heads, rows = table(found, shown)
    misses = ["", *(f"{100 * miss(point):.1f}" for point in shown)]
    return markdown(
        [*heads[:-1], "miss pp"],
        [[*row[:-1], size] for row, size in zip(rows, misses, strict=True)],
    )


def served_table(found: dict[str, Any]) -> str:
    """Return by how much each method misses with exact updates, as Markdown."""
    all_points = points(found)
    kept = list(dict.fromkeys(point.retention for point in all_points))
    misses = {
        (point.method, point.retention): (
            "\N{EN DASH}" if point.needs else f"{100 * miss(point):.1f}"
        )
        for point in all_points
        if point.codec in ("float32", ANY)
    }
    methods = dict.fromkeys(point.method for point in all_points)
    lines = [[m, *(misses[m, retention] for retention in kept)] for m in methods]
    return markdown(["method", *kept], lines)


def codecs_table(found: dict[str, Any]) -> str:
    """Return what a codec changes, run by run, against float32, as Markdown."""
    key = itemgetter("seed", "method", "retention")
    ran = [row for row in found["rows"] if row["reads_updates"]]
    exact = {key(row): row for row in ran if row["codec"] == "float32"}
    lines = []
    for codec in dict.fromkeys(row["codec"] for row in ran):
        own = [row for row in ran if row["codec"] == codec]
        whole = next(r["stored_bytes"] for r in own if r["retention"] == "all")
        line = [codec, f"{100 * whole / found['full_bytes']:.1f}"]
        for metric in ("test_accuracy", *TITLES):
            sizes = [
                abs(row["gaps"][metric] - exact[key(row)]["gaps"][metric])
                for row in own
            ]
            line += [f"{100 * statistics.fmean(sizes):.2f}", f"{100 * max(sizes):.1f}"]
        lines.append(line)
    names = [metric.split("_")[0] for metric in ("test_accuracy", *TITLES)]
    heads = [f"{name} {what} pp" for name in names for what in ("mean", "most")]
    return markdown(["codec", "of all %", *heads], lines)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is names in code."""
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)]]
    lines += [[f"`{row[0]}`", *row[1:]] if row[0] != NOTHING else row for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES = {
    "history_best": best_table,
    "history_kept": served_table,
    "history_codecs": codecs_table,
}
"""Mark in the page -> what makes the table."""


def main() -> None:
    """Sweep and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs") / "history_sweep")
    parser.add_argument("--smoke", action="store_true", help="seconds, no page written")
    options = parser.parse_args()
    if options.smoke:
        scenario = load_scenario(SCENARIO, [*SMOKE, *EXACT])
        print(served_table(sweep(scenario, SMOKE_CELLS, options.out)))
        return
    found = results(options.out)
    for name, make in TABLES.items():
        write(PAGE, name, make(found))
        print(f"{name}\n\n{make(found)}\n")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
