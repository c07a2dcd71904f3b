"""The report's first paragraph: what happened and what the numbers allow to say.

It never says that a model has lost what it learned. It names the nearest methods, how
near "near" is, and whether doing nothing is just as near.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedunlearn.report.names import clean, listed, plural
from fedunlearn.report.summary import (
    RETRAIN,
    TRAINED,
    Estimate,
    Row,
    format_estimate,
    gap_to_retrain,
    seed_distance,
    summarise,
)

_FORGET = "forget_accuracy"
_NAMED = 3


def story(results: Mapping[str, Any], leavers: Sequence[str]) -> list[str]:
    """Return the sentences, plain text.

    Args:
        results: The content of ``results.json``.
        leavers: Names of those who left.
    """
    rows = results["rows"]
    gaps = {
        m: gap
        for m, gap in gap_to_retrain(rows, _FORGET).items()
        if m != RETRAIN and math.isfinite(gap.mean)
    }
    distance = seed_distance(rows, _FORGET)
    methods = {m: gap for m, gap in gaps.items() if m != TRAINED}
    sentences = [_who_left(results["scenario"], leavers), *_scores(rows)]
    if methods:
        sentences += [_nearest(methods), _yardstick(methods, distance)]
        sentences += _covering(methods)
    sentences += _control(gaps.get(TRAINED), distance)
    sentences.append("A small gap alone does not show that the influence is gone.")
    return [_unbroken(sentence) for sentence in sentences]


def _unbroken(text: str) -> str:
    """Keep numbers, their intervals and units on one line."""
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def _who_left(scenario: Mapping[str, Any], leavers: Sequence[str]) -> str:
    rounds, clients = int(scenario["rounds"]), int(scenario["clients"])
    cohort = int(scenario.get("clients_per_round") or clients)
    each = f", {cohort} of them in each round" if cohort < clients else ""
    return (
        f"{plural(clients, 'client')} trained a model together for "
        f"{plural(rounds, 'round')}{each}; then {_what_went(scenario, leavers)}."
    )


def _what_went(scenario: Mapping[str, Any], leavers: Sequence[str]) -> str:
    """Return who left and what was taken back."""
    shares, classes = scenario.get("forget_samples"), scenario.get("forget_classes")
    named = set(scenario.get("forget") or ()) or not (shares or classes)
    parts = []
    if named:
        parts.append(f"{listed([clean(name) for name in leavers]) or 'nobody'} left")
    for client, share in (shares or {}).items():
        parts.append(
            f"client {clean(client)} took back {100 * share:.3g} % of its data"
        )
    if classes:
        plain = listed([str(k) for k in classes])
        word = "class" if len(classes) == 1 else "classes"
        parts.append(f"all examples of {word} {plain} were taken back")
    return " and ".join(parts)


def _scores(rows: Sequence[Row]) -> list[str]:
    by_method = {s.method: s for s in summarise(rows)}
    found = [
        by_method[m].metrics.get(_FORGET) if m in by_method else None
        for m in (TRAINED, RETRAIN)
    ]
    if None in found:
        return []
    before, after = (format_estimate(e, 1, percent=True) for e in found)
    seeds = len(by_method[RETRAIN].seeds)
    over = f"means over {seeds} seeds ± 95 % t-interval" if seeds > 1 else "one seed"
    return [
        f"On the data that left, the trained model scores {before} % accuracy and a "
        f"model retrained without it {after} % ({over})."
    ]


def _nearest(methods: Mapping[str, Estimate]) -> str:
    order = sorted(methods, key=lambda m: abs(methods[m].mean))[:_NAMED]
    shown = [f"{clean(m)} ({_points(methods[m])} points)" for m in order]
    verb = "comes" if len(order) == 1 else "come"
    return f"Nearest to retraining in forget accuracy {verb} {listed(shown)}."


def _points(gap: Estimate) -> str:
    return format_estimate(gap, 1, percent=True, signed=True)


def _yardstick(methods: Mapping[str, Estimate], distance: float | None) -> str:
    if distance is None:
        return (
            "With a single seed nothing tells how far apart two retrainings are, so "
            "this order may be chance."
        )
    within = sum(abs(gap.mean) <= distance for gap in methods.values())
    order = ", where their order means little" if within > 1 else ""
    return (
        "How near is near? Two retrainings with different seeds are "
        f"{100 * distance:.1f} points apart on average; {_count(within, methods)} "
        f"{'lies' if within == 1 else 'lie'} within that distance{order}."
    )


def _covering(methods: Mapping[str, Estimate]) -> list[str]:
    """Say how many gaps may be zero, where there are intervals at all."""
    known = {m: gap for m, gap in methods.items() if gap.half_width is not None}
    if not known:
        return []
    covering = sum(abs(gap.mean) <= (gap.half_width or 0) for gap in known.values())
    if not covering:
        return ["No interval of a gap includes zero."]
    return [
        f"The interval of {_count(covering, known)} includes zero: no difference from "
        "retraining was seen there, which does not show that there is none."
    ]


def _count(part: int, whole: Mapping[str, Estimate]) -> str:
    return f"{part or 'none'} of {plural(len(whole), 'method')}"


def _control(before: Estimate | None, distance: float | None) -> list[str]:
    """Warn if doing nothing would look as good."""
    if before is None or distance is None:
        return []
    covered = abs(before.mean) <= (before.half_width or 0.0)
    if not covered and abs(before.mean) > distance:
        return []
    return [
        f"Beware: the untouched model itself is only {_points(before)} points away, so "
        "forget accuracy can hardly tell unlearning from doing nothing here."
    ]
