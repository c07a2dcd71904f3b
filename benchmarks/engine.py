"""How fast the engine is: what docs/performance.md shows.

    python benchmarks/engine.py                      all parts, about twenty minutes
    python benchmarks/engine.py --part W1 --part scale
    python benchmarks/engine.py --write              puts the tables into docs
    python benchmarks/engine.py --smoke              seconds, small

A part that is done lies in --out and is not measured again; remove the folder to start
over. The workloads are `fedunlearn bench engine`'s; busy is W1 beside a process that
takes a core; scale is FedAvg over 10^2 to 10^5 tiny clients that are made when asked.
"""

import argparse
import json
import multiprocessing
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from simulations.bench_engine import measure, ours
from simulations.cores import usable_cores
from simulations.engine_bench.child import Child
from simulations.engine_bench.contestant import race
from simulations.engine_bench.serve import Entry

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
AGAINST = ("flower", "pfl", "eager", "floor")
SIZES = (
    (100, 100),
    (1_000, 1_000),
    (10_000, 10_000),
    (1_000, 10),
    (10_000, 100),
    (100_000, 1_000),
)
"""Clients, and how many of them train in a round."""


def workload(name: str, smoke: bool) -> dict[str, Any]:
    """Race on one workload."""
    return measure(
        name,
        AGAINST[2:] if smoke else AGAINST,
        rounds=1 if smoke else 7,
        scale=0.04 if smoke else 1.0,
        tell=print,
    )


def busy(smoke: bool) -> dict[str, float]:
    """Return what a process that takes a core does to a round of W1."""
    entry = Entry(workload="W1", scale=0.04 if smoke else 1.0, cpus=usable_cores())
    rounds = 2 if smoke else 9
    with ExitStack() as stack:
        child = stack.enter_context(Child(ours(entry, "auto")))
        children = {"ours": child}
        quiet = race(children, rounds=rounds)["ours"].seconds
    with ExitStack() as stack, burner():
        child = stack.enter_context(Child(ours(entry, "auto")))
        children = {"ours": child}
        loud = race(children, rounds=rounds)["ours"].seconds
    return {"quiet_s": median(quiet), "busy_s": median(loud)}


@contextmanager
def burner() -> Iterator[None]:
    """Keep a process busy meanwhile."""
    process = multiprocessing.get_context("spawn").Process(target=burn, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def burn() -> None:
    """Compute for ever."""
    number = 1.0
    while True:
        number = number * 1.0000001 % 7


def scale(smoke: bool) -> list[dict[str, float]]:
    """Measure every size in a process of its own."""
    script = Path(__file__).with_name("engine_scale.py")
    lines = []
    for clients, cohort in SIZES[:2] if smoke else SIZES:
        for kernel in ("auto", "batched"):
            child = subprocess.run(
                [sys.executable, str(script), str(clients), str(cohort), kernel],
                capture_output=True,
                text=True,
                check=True,
            )
            lines.append(json.loads(child.stdout))
            print(lines[-1])
    return lines


PARTS: Mapping[str, Callable[[bool], Any]] = {
    **{name: partial(workload, name) for name in ("W1", "W2", "W3", "W4")},
    "busy": busy,
    "scale": scale,
}


# --- the page


def race_table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of the races."""
    lines = [
        "| workload | contestant | round | kernel alone | over ours | first round | "
        "memory |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    for name in ("W1", "W2", "W3"):
        if name not in found:
            continue
        base = found[name]["contestants"]["ours"]["median_s"]
        for who, c in found[name]["contestants"].items():
            kernel = "" if c["kernel_s"] is None else f"{c['kernel_s'] * 1e3:,.1f} ms"
            lines.append(
                f"| {name} | {who} | {c['median_s'] * 1e3:,.1f} ms | {kernel} | "
                f"{c['median_s'] / base:.3g} | {c['first_round_s']:.1f} s | "
                f"{c['peak_mb']:,.0f} MB |"
            )
    return lines


def ratio_table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return how much faster we are, beside what was wanted."""
    goals = {
        ("W1", "flower"): (7, 5),
        ("W1", "pfl"): (3, None),
        ("W2", "flower"): (7, 2.2),
        ("W2", "pfl"): (4, None),
        ("W3", "flower"): (300, None),
        ("W3", "pfl"): (15, None),
    }
    lines = [
        "| workload | against | compiled | wanted | torch alone | wanted |",
        "| :-- | :-- | --: | --: | --: | --: |",
    ]
    for (name, rival), (compiled, torch) in goals.items():
        ratios = found.get(name, {})
        if rival in ratios.get("ratios", {}):
            lines.append(
                f"| {name} | {rival} | {ratios['ratios'][rival]:.3g} x | {compiled} x |"
                f" {ratios['torch_ratios'][rival]:.3g} x | "
                f"{'' if torch is None else f'{torch} x'} |"
            )
    for name in ("W1", "W2"):
        if found.get(name, {}).get("floor_fraction"):
            wanted = "0.55" if name == "W1" else ""
            lines.append(
                f"| {name} | share of the floor | {found[name]['floor_fraction']:.2f} |"
                f" {wanted} | {found[name]['torch_floor_fraction']:.2f} | |"
            )
    return lines


def other_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of W4 and busy."""
    lines = ["| what | measured | wanted |", "| :-- | --: | --: |"]
    if "W4" in found:
        medians = {n: c["median_s"] for n, c in found["W4"]["contestants"].items()}
        many, one = medians["lockstep"], medians["one_seed"]
        lines.append(
            f"| W4: the quickstart's command with {found['W4']['seeds']} seeds in "
            f"lockstep over one seed ({many:.1f} s over {one:.1f} s) | "
            f"{many / one:.2f} x | ≤ 3 x |"
        )
    if "busy" in found:
        ratio = found["busy"]["busy_s"] / found["busy"]["quiet_s"]
        lines.append(
            f"| W1 beside a process that takes a core | {ratio:.2f} x | ≤ 2 x |"
        )
    return lines


def scale_table(lines: list[dict[str, Any]]) -> list[str]:
    """Return the table of sizes."""
    out = [
        "| clients | train a round | kernel | round | a client | peak memory |",
        "| --: | --: | :-- | --: | --: | --: |",
    ]
    for line in lines:
        each = line["seconds"] / line["cohort"] * 1e6
        out.append(
            f"| {line['clients']:,} | {line['cohort']:,} | {line['kernel']} | "
            f"{line['seconds'] * 1e3:,.1f} ms | {each:.0f} µs | "
            f"{line['peak_mb']:,.0f} MB |"
        )
    return out


def write(found: Mapping[str, Any]) -> None:
    """Put all tables into the page."""
    machine = (
        f"{date.today():%Y-%m-%d}, {usable_cores()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}"
    )
    tables = {
        "engine ratios": ratio_table(found),
        "engine": [*race_table(found), "", machine],
        "engine others": other_lines(found),
        "engine scale": scale_table(found.get("scale", [])),
    }
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in tables.items():
        marks = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = "\n".join(lines)
        page = marks.sub(lambda m, text=text: f"{m[1]}\n{text}\n\n{m[2]}", page)
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Measure the parts that are asked for and not yet there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=list(PARTS), action="append")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-engine"))
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    folder = options.out / "smoke" if options.smoke else options.out
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in options.part or PARTS:
        file = folder / f"{name}.json"
        if not file.exists():
            text = json.dumps(PARTS[name](options.smoke), indent=2)
            file.with_suffix(".tmp").write_text(text + "\n", encoding="utf-8")
            file.with_suffix(".tmp").replace(file)
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    if options.write:
        write(found)
    else:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
