"""Claims of papers, each a scenario, a table and the figures it stands on.

    python benchmarks/claims.py              all, about half an hour on two cores
    python benchmarks/claims.py pgd not      some
    python benchmarks/claims.py --smoke      seconds, on digits; writes no page

A scenario that has already run into --runs is not run again, one that was stopped is
gone on with. Tables go into docs/results.md. Fashion-MNIST is Debian's package
dataset-fashion-mnist.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headline import results
from results import ROOT, write

from fedunlearn.report import average_gap, gap_table, retrain_to_retrain
from simulations import load_scenario

Results = Mapping[str, Any]
SMOKE = ["data.name=digits", "model.name=softmax", "rounds=4", "seeds=[0]"]


def mean(found: Results, method: str, metric: str) -> float:
    """Return a metric's mean over seeds."""
    rows = [row for row in found["rows"] if row["method"] == method]
    return statistics.fmean(row["metrics"][metric] for row in rows)


def cost(found: Results, method: str, quantity: str) -> float:
    """Return a quantity's mean over seeds."""
    rows = [row for row in found["rows"] if row["method"] == method]
    return statistics.fmean(row["cost"][quantity] for row in rows)


def of_fed_eraser(found: Results) -> list[str]:
    """A quarter of the examples; accuracy within two points; FedAccum clearly worse."""
    speed = cost(found, "retrain", "examples") / cost(found, "fed_eraser", "examples")
    methods = ("retrain", "fed_eraser", "fed_eraser@interval", "subtract@accum")
    test = {m: 100 * mean(found, m, "test_accuracy") for m in methods}
    return [
        f"examples trained on, retrain over FedEraser: {speed:.2f}",
        f"test accuracy: retrain {test['retrain']:.1f} %, FedEraser "
        f"{test['fed_eraser']:.1f} %, with `norm_scale: interval` "
        f"{test['fed_eraser@interval']:.1f} %, without calibration "
        f"{test['subtract@accum']:.1f} %",
    ]


def of_pgd(found: Results) -> list[str]:
    """The attack before, retrained, after the ascent, after recovery."""
    steps = ("trained", "retrain", "pgd@0", "pgd@1", "pgd@10")
    shown = [
        f"{m} {100 * mean(found, m, 'test_accuracy'):.1f} / "
        f"{100 * mean(found, m, 'backdoor_success'):.1f}"
        for m in steps
    ]
    return [f"test accuracy / backdoor success, %: {', '.join(shown)}"]


def of_fast_fedul(found: Results) -> list[str]:
    """The attack by family."""
    methods = dict.fromkeys(row["method"] for row in found["rows"])
    shown = [f"{m} {100 * mean(found, m, 'backdoor_success'):.1f}" for m in methods]
    return [f"backdoor success, %: {', '.join(shown)}"]


def of_fed_recover(found: Results) -> list[str]:
    """The exact cost and the attack."""
    rounds, stay = found["scenario"]["rounds"], 60
    tw, tf, tc = 20, 5, 10
    expected = stay * (tw + tf + (rounds - tw - tf) // tc)
    paid = cost(found, "fed_recover@paper", "client_rounds")
    saved = 100 * (1 - paid / cost(found, "retrain", "client_rounds"))
    methods = ("trained", "retrain", "fed_recover@paper", "fed_recover")
    attack = [f"{m} {100 * mean(found, m, 'backdoor_success'):.1f}" for m in methods]
    return [
        f"client-rounds with the paper's settings: {paid:.0f}, by the formula "
        f"{expected}; {saved:.0f} % less than retraining",
        f"backdoor success, %: {', '.join(attack)}",
    ]


def of_sifu(found: Results) -> list[str]:
    """Rounds against those from scratch, which is what ``rollback`` comes to here."""
    whole = cost(found, "retrain", "client_rounds")
    names = [
        m
        for m in dict.fromkeys(r["method"] for r in found["rows"])
        if m.startswith(("sifu", "rollback"))
    ]
    shown = [
        f"{m} {100 * cost(found, m, 'client_rounds') / whole:.0f} % of the rounds, "
        f"test {100 * mean(found, m, 'test_accuracy'):.1f} %"
        for m in names
    ]
    test = 100 * mean(found, "retrain", "test_accuracy")
    return [f"retrain: test {test:.1f} %; {'; '.join(shown)}"]


def of_not(found: Results) -> list[str]:
    """The gap beside that of two retrainings."""
    gaps, between = average_gap(found["rows"]), retrain_to_retrain(found["rows"])
    shown = [f"{m} {100 * gaps[m].mean:.2f}" for m in gaps if m != "retrain"]
    text = "unknown" if between is None else f"{100 * between:.2f}"
    return [f"average gap, points: {', '.join(shown)}; two retrainings {text}"]


def of_bad_fu(found: Results) -> list[str]:
    """The attack before and after an honest removal."""
    methods = ("trained", "retrain", "fed_eraser", "fine_tune")
    shown = [f"{m} {100 * mean(found, m, 'backdoor_success'):.1f}" for m in methods]
    return [f"backdoor success, %: {', '.join(shown)}"]


CLAIMS: dict[str, Callable[[Results], list[str]]] = {
    "fed_eraser_iid": of_fed_eraser,
    "fed_eraser": of_fed_eraser,
    "pgd": of_pgd,
    "fast_fedul": of_fast_fedul,
    "fed_recover": of_fed_recover,
    "sifu": of_sifu,
    "not": of_not,
    "bad_fu": of_bad_fu,
}
"""Name, of ``configs/scenario/claim_NAME.yaml`` -> the figures a claim stands on."""


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("claims", nargs="*", default=CLAIMS)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "claims")
    parser.add_argument("--smoke", action="store_true", help="seconds, no page written")
    options = parser.parse_args()
    for name in ["sifu"] if options.smoke else options.claims:
        file = ROOT / "configs" / "scenario" / f"claim_{name}.yaml"
        claim = load_scenario(file, SMOKE if options.smoke else [])
        found = results(options.runs / name, claim)
        figures = "".join(f"- {line}\n" for line in CLAIMS[name](found))
        text = f"{gap_table(found)}\n{figures}"
        print(f"{name}\n{text}", flush=True)
        if not options.smoke:
            write(ROOT / "docs" / "results.md", f"claim {name}", text.rstrip("\n"))


if __name__ == "__main__":
    main()
