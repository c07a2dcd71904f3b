"""Measures models on the scenario's data sets."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from fedunlearn.data import ClientData
from fedunlearn.models.state import load, tensor_view
from fedunlearn.params import Vector
from fedunlearn.verify import (
    accuracy,
    cosine_distance,
    disagreement,
    l2_distance,
    mean_loss,
    success_rate,
)
from simulations.prepare import Prepared, trigger_value

_BATCH = 2048
Examples = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Evaluator:
    """Knows the data sets a model is measured on.

    ``forget`` is the leavers' own training data without any planted trigger,
    ``forget_holdout`` what the same clients never trained on.

    Attributes:
        prepared: The scenario's data.
    """

    prepared: Prepared

    @cached_property
    def sets(self) -> Mapping[str, Examples]:
        """Name -> examples ``(n, ...)`` and labels ``(n,)``."""
        federation, leavers = self.prepared.federation, self.prepared.forget
        gone = [federation.clients[c] for c in sorted(leavers)]
        stay = [d for c, d in enumerate(federation.clients) if c not in leavers]
        return {
            "test": (federation.x_test, federation.y_test),
            "retain": _joined(stay),
            "forget": _joined(gone),
            "forget_holdout": (
                np.concatenate([d.x_holdout for d in gone]),
                np.concatenate([d.y_holdout for d in gone]),
            ),
        }

    def logits(self, model: Vector, x: npt.NDArray[np.float32]) -> Vector:
        """Return the model's scores on ``x``, shape ``(n, C)``."""
        task = self.prepared.task
        module = task.module()
        load(module, task.layout, model)
        inputs = tensor_view(x)
        with torch.no_grad():
            parts = [module(part) for part in torch.split(inputs, _BATCH)]
        return torch.cat(parts).numpy() if parts else np.zeros((0, 1), np.float32)

    def test_accuracy(self, model: Vector) -> float:
        """Return the accuracy on the test set."""
        x, y = self.sets["test"]
        return accuracy(self.logits(model, x), y) or 0.0

    def measure(self, model: Vector, reference: Vector, origin: Vector) -> Metrics:
        """Return all metrics of one model.

        Args:
            model: Shape ``(P,)``.
            reference: The retrained model of the same seed.
            origin: The initial model of the same seed.
        """
        out: Metrics = {}
        for name, (x, y) in self.sets.items():
            scores = self.logits(model, x)
            out[f"{name}_accuracy"] = accuracy(scores, y)
            out[f"{name}_loss"] = mean_loss(scores, y)
            if name == "test":
                out["disagreement_with_retrain"] = disagreement(
                    scores, self.logits(reference, x)
                )
        out["l2_to_retrain"] = l2_distance(model, reference)
        out["cosine_to_retrain"] = cosine_distance(model, reference, origin)
        out["backdoor_success"] = self._backdoor_success(model)
        return out

    def _backdoor_success(self, model: Vector) -> float | None:
        backdoor = self.prepared.scenario.backdoor
        if backdoor is None:
            return None
        x, y = self.sets["test"]
        stamped = backdoor.stamp(x, trigger_value(self.prepared.federation))
        return success_rate(self.logits(model, stamped), y, backdoor.target)


def _joined(clients: list[ClientData]) -> Examples:
    return np.concatenate([d.x for d in clients]), np.concatenate(
        [d.y for d in clients]
    )
