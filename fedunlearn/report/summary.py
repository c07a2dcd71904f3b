"""From rows, one per method and seed, to one estimate per method.

The unit of replication is the federation run: an interval here runs over seeds, never
over examples.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedunlearn.errors import DataError

TRAINED = "trained"
"""The method name of the model before anybody left."""

RETRAIN = "retrain"
"""The method name of the model trained again without the leavers."""

Row = Mapping[str, Any]
"""One entry of ``rows`` in ``results.json``."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean; NaN if a value was not finite.
        half_width: Half the width of the t-interval; None for one value.
        n: How many values there were.
    """

    mean: float
    half_width: float | None
    n: int

    def times(self, factor: float) -> "Estimate":
        """Return the estimate in another unit; ``factor`` is positive."""
        half = None if self.half_width is None else self.half_width * factor
        return Estimate(self.mean * factor, half, self.n)


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


def estimate(
    values: Iterable[float | None], confidence: float = 0.95
) -> Estimate | None:
    """Return mean and t-interval of ``values``; None if nothing is left of them.

    Args:
        values: One value a seed; None is dropped.
        confidence: Of the interval, in (0, 1).
    """
    kept = [float(v) for v in values if v is not None]
    if not kept:
        return None
    if not all(map(math.isfinite, kept)):
        return Estimate(math.nan, None, len(kept))
    mean = statistics.fmean(kept)
    if len(kept) == 1:
        return Estimate(mean, None, 1)
    from scipy.stats import t

    quantile = float(t.ppf((1 + confidence) / 2, len(kept) - 1))
    error = statistics.stdev(kept) / math.sqrt(len(kept))
    return Estimate(mean, quantile * error, len(kept))


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


def format_estimate(
    e: Estimate | None, digits: int, percent: bool = False, *, signed: bool = False
) -> str:
    """Return ``"93.1 ± 0.4"``, ``"93.1"`` for one value, an en dash for none.

    Args:
        e: The estimate.
        digits: Decimals of both numbers.
        percent: Multiply by 100; no percent sign is written.
        signed: Write a plus before a positive mean.
    """
    if e is None:
        return "–"  # noqa: RUF001
    scaled = e.times(100.0) if percent else e
    if not math.isfinite(scaled.mean):
        return "not finite"
    mean = _number(scaled.mean, digits, "+" if signed else "")
    if scaled.half_width is None:
        return mean
    return f"{mean} ± {_number(scaled.half_width, digits)}"


def _number(value: float, digits: int, sign: str = "") -> str:
    """Return the number with a true minus sign and no signed zero."""
    text = f"{value:{sign}.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")  # noqa: RUF001


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
