"""From rows, one per method and seed, to one estimate per method."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedunlearn.errors import DataError
from fedunlearn.report.estimate import Estimate, estimate, format_estimate

__all__ = [
    "RETRAIN",
    "TRAINED",
    "Estimate",
    "MethodSummary",
    "Row",
    "estimate",
    "format_estimate",
    "gap_to_retrain",
    "seed_distance",
    "summarise",
]

TRAINED = "trained"
"""The method name of the model before anybody left."""

RETRAIN = "retrain"
"""The method name of the model trained again without the leavers."""

Row = Mapping[str, Any]
"""One entry of ``rows`` in ``results.json``."""


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method over its seeds; a value is None where no seed has one.

    Attributes:
        method: Its name.
        seeds: The seeds it ran with, in the order of the rows.
        metrics: Metric name to estimate.
        cost: Quantity to estimate; ``bytes_moved`` is up plus down of the same seed.
        ratio: Quantity to estimate of its ratio to retraining with the same seed.
    """

    method: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, Estimate | None]
    cost: Mapping[str, Estimate | None]
    ratio: Mapping[str, Estimate | None]


def summarise(rows: Sequence[Row]) -> tuple[MethodSummary, ...]:
    """Return one summary per method, in the order of first appearance.

    Raises:
        DataError: If a method has two rows for the same seed.
    """
    return tuple(_summary(m, by_seed) for m, by_seed in _grouped(rows).items())


def gap_to_retrain(rows: Sequence[Row], metric: str) -> dict[str, Estimate]:
    """Return method -> mean of (method minus retrain of the same seed).

    A method without a seed where both have the metric is left out.

    Raises:
        DataError: If nobody retrained, or a method has two rows for the same seed.
    """
    grouped = _grouped(rows)
    if RETRAIN not in grouped:
        raise DataError(f"no row of method {RETRAIN!r}: there is nothing to compare to")
    base = _values(grouped[RETRAIN], metric)
    found = {m: _paired(_values(by, metric), base) for m, by in grouped.items()}
    return {m: e for m, e in found.items() if e is not None}


def seed_distance(rows: Sequence[Row], metric: str) -> float | None:
    """Return how far two retrainings of different seeds are apart, on average.

    The mean absolute difference over all pairs of seeds; None for less than two.
    """
    by_seed = _grouped(rows).get(RETRAIN, {})
    values = _values(by_seed, metric).values()
    gaps = [abs(a - b) for a, b in itertools.combinations(values, 2)]
    return statistics.fmean(gaps) if gaps else None


def _grouped(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    grouped: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_seed = grouped.setdefault(row["method"], {})
        if row["seed"] in by_seed:
            raise DataError(f"{row['method']!r} has two rows for seed {row['seed']}")
        by_seed[row["seed"]] = row
    return grouped


def _values(by_seed: Mapping[int, Row], metric: str) -> dict[int, float]:
    found = {s: row["metrics"].get(metric) for s, row in by_seed.items()}
    return {s: value for s, value in found.items() if value is not None}


def _paired(own: Mapping[int, float], base: Mapping[int, float]) -> Estimate | None:
    return estimate(own[s] - base[s] for s in own if s in base)


def _summary(method: str, by_seed: Mapping[int, Row]) -> MethodSummary:
    rows = list(by_seed.values())
    costs = [_cost(row["cost"]) for row in rows]
    return MethodSummary(
        method=method,
        seeds=tuple(by_seed),
        metrics=_estimates([row["metrics"] for row in rows]),
        cost=_estimates(costs),
        ratio=_estimates([row["cost"]["ratio_to_retrain"] for row in rows]),
    )


def _cost(cost: Mapping[str, Any]) -> dict[str, float]:
    own = {k: v for k, v in cost.items() if k != "ratio_to_retrain"}
    return {**own, "bytes_moved": cost["bytes_up"] + cost["bytes_down"]}


def _estimates(
    dicts: Sequence[Mapping[str, float | None]],
) -> dict[str, Estimate | None]:
    names = dict.fromkeys(itertools.chain.from_iterable(dicts))
    return {name: estimate(d.get(name) for d in dicts) for name in names}
