"""Measures models on the scenario's data sets."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from fedunlearn.data import ClientData
from fedunlearn.models.state import load, tensor_view
from fedunlearn.params import Vector, sha256
from fedunlearn.verify import (
    accuracy,
    cosine_distance,
    disagreement,
    l2_distance,
    mean_loss,
    success_rate,
)
from simulations.cores import usable_cores
from simulations.prepare import Prepared, trigger_value

_BATCH = 512
"""Examples a forward pass: more do not fit the cache and take twice the time."""
_MOST_REFERENCES = 64
"""Retrained models whose scores are remembered: more seeds than advance together."""
Examples = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Evaluator:
    """Knows the data sets a model is measured on.

    ``forget`` is the training data that is to be forgotten, without any planted
    trigger, ``forget_holdout`` what is like it and nobody ever trained on.

    Attributes:
        prepared: The scenario's data.
    """

    prepared: Prepared

    @cached_property
    def sets(self) -> Mapping[str, Examples]:
        """Name -> examples ``(n, ...)`` and labels ``(n,)``."""
        federation, divided = self.prepared.federation, self.prepared.divided
        gone = [divided.forgotten[c] for c in sorted(divided.forgotten)]
        stay = [divided.remaining.get(c, d) for c, d in enumerate(federation.clients)]
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
        task, layout = self.prepared.task, self.prepared.task.layout

        def score(part: torch.Tensor) -> torch.Tensor:
            module = task.module()  # each thread has its own
            load(module, layout, model)
            with torch.no_grad():
                scores: torch.Tensor = module(part)
            return scores

        if not len(x):
            return np.zeros((0, 1), np.float32)
        parts = torch.split(tensor_view(x), _BATCH)
        found = map(score, parts) if len(parts) == 1 else self._pool.map(score, parts)
        return torch.cat(list(found)).numpy()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(
            usable_cores(),
            "fedunlearn-evaluate",
            initializer=torch.set_num_threads,
            initargs=(1,),
        )

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
                    scores, self._reference_scores(reference)
                )
        out["l2_to_retrain"] = l2_distance(model, reference)
        out["cosine_to_retrain"] = cosine_distance(model, reference, origin)
        out["backdoor_success"] = self._backdoor_success(model)
        return out

    def _reference_scores(self, reference: Vector) -> Vector:
        """Return a retrained model's scores on the test set, computed once."""
        key = sha256(reference)
        if key not in self._references:
            if len(self._references) > _MOST_REFERENCES:
                self._references.clear()
            self._references[key] = self.logits(reference, self.sets["test"][0])
        return self._references[key]

    @cached_property
    def _references(self) -> dict[str, Vector]:
        return {}

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
