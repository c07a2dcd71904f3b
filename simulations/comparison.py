"""The table of one comparison."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from fedunlearn.cost import UnlearningCost
from fedunlearn.report import MethodSummary, markdown_table, summarise

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SCHEMA = "fedunlearn-results/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method under one seed.

    Attributes:
        method: Its label.
        seed: The seed.
        metrics: Metric name -> value, or None where it has no meaning.
        cost: What it used, as metered.
        ratio_to_retrain: Each quantity of the cost over retraining's.
        model_sha256: Digest of the model's float32 bytes.
    """

    method: str
    seed: int
    metrics: Mapping[str, float | None]
    cost: UnlearningCost
    ratio_to_retrain: Mapping[str, float | None]
    model_sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Return the row as ``results.json`` holds it."""
        return {
            "method": self.method,
            "seed": self.seed,
            "metrics": dict(self.metrics),
            "cost": asdict(self.cost)
            | {"ratio_to_retrain": dict(self.ratio_to_retrain)},
            "model_sha256": self.model_sha256,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Row":
        """Return the row that :meth:`as_dict` describes."""
        cost = dict(fields["cost"])
        ratio = cost.pop("ratio_to_retrain")
        return cls(
            method=fields["method"],
            seed=fields["seed"],
            metrics=fields["metrics"],
            cost=UnlearningCost(**cost),
            ratio_to_retrain=ratio,
            model_sha256=fields["model_sha256"],
        )

    def flat(self) -> dict[str, Any]:
        """Return the row as one line of ``results.csv``."""
        return {
            "method": self.method,
            "seed": self.seed,
            **self.metrics,
            **asdict(self.cost),
            **{f"{k}_to_retrain": v for k, v in self.ratio_to_retrain.items()},
            "model_sha256": self.model_sha256,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryStats:
    """Size of one seed's recorded history: the same for every seed.

    Attributes:
        rounds: Rounds recorded.
        clients: Clients that ever contributed.
        bytes: Bytes of models and updates.
    """

    rounds: int
    clients: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows of one scenario.

    Attributes:
        scenario: The resolved scenario, as plain values.
        rows: By seed, then method, ``trained`` and ``retrain`` first.
        history: Size of the recorded history.
        noise_floor: What rounding alone makes of a training: a share of the way it
            went; None if it was not measured.
        accuracy_by_round: Seed -> test accuracy after round 0, 1, ... of training.
        client_names: Names of the clients, by id.
        label_counts: Examples per client and class, shape ``(K, C)``.
        forget: Ids of the leavers.
    """

    scenario: Mapping[str, Any]
    rows: tuple[Row, ...]
    history: HistoryStats
    noise_floor: float | None = None
    accuracy_by_round: Mapping[int, tuple[float, ...]]
    client_names: tuple[str, ...]
    label_counts: "npt.NDArray[np.int64]" = field(repr=False)
    forget: tuple[int, ...]

    def results(self) -> dict[str, Any]:
        """Return the content of ``results.json``."""
        return {
            "schema": SCHEMA,
            "scenario": dict(self.scenario),
            "rows": [row.as_dict() for row in self.rows],
            "history": asdict(self.history),
            "noise_floor": self.noise_floor,
        }

    def summary(self) -> tuple[MethodSummary, ...]:
        """Return mean and 95 % interval over seeds for each method."""
        return summarise(self.results()["rows"])

    def to_markdown(self) -> str:
        """Return the table for a page."""
        return markdown_table(self.results())

    def to_pandas(self) -> "pd.DataFrame":
        """Return one line a row, one column a metric and cost."""
        import pandas as pd

        return pd.DataFrame([row.flat() for row in self.rows])
