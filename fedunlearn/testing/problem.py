"""A quadratic loss as a local procedure sees it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from fedunlearn.local import Labels, LogitGradient, Rows
from fedunlearn.params import Matrix, Vector
from fedunlearn.training import Training


@dataclass(slots=True)
class QuadraticProblem:
    """``num_examples`` examples of one loss ``L(w) = 1/2 ||w - centre||^2``.

    Seen as a classifier it has two classes, all examples are of class 0, and its scores
    are ``(-L(w), 0)``: the right class is the likelier the smaller the loss.

    Attributes:
        centre: Where the loss is smallest, shape ``(P,)``.
        num_examples: How many examples there are.
        training: How it is trained.
        num_steps: Gradients taken so far.
        num_samples: Examples passed through the model so far.
    """

    centre: Vector
    num_examples: int
    training: Training
    num_steps: int = field(default=0, init=False)
    num_samples: int = field(default=0, init=False)

    @property
    def labels(self) -> Labels:
        """Class 0 for each example, shape ``(n,)``."""
        return np.zeros(self.num_examples, np.int64)

    def batches(
        self,
        epochs: float | None = None,
        batch_size: int | None = None,  # noqa: ARG002 - all examples are the same
    ) -> Sequence[Rows]:
        """Return all rows once a (begun) epoch."""
        steps = ceil(self.training.epochs if epochs is None else epochs)
        return [np.arange(self.num_examples)] * steps

    def logits(self, model: Vector, rows: Rows | None = None) -> Matrix:
        """Return ``(-L, 0)`` for each example, shape ``(b, 2)``."""
        count = self.num_examples if rows is None else len(rows)
        self.num_samples += count
        apart = model.astype(np.float64) - self.centre
        scores = np.array([-apart @ apart / 2, 0.0], np.float32)
        return np.tile(scores, (count, 1))

    def gradient(
        self,
        model: Vector,
        rows: Rows | None = None,
        loss: LogitGradient | None = None,
    ) -> Vector:
        """Return ``w - centre``, or the chain rule through the scores."""
        if not (self.num_examples if rows is None else len(rows)):
            return np.zeros_like(model)
        self.num_steps += 1
        slope = np.float32(1)
        if loss is None:
            self.num_samples += self.num_examples if rows is None else len(rows)
        else:
            scores = self.logits(model, rows)
            slope = -loss(scores, self.labels[: len(scores)])[:, 0].sum()
        return slope * (model - self.centre)

    def gradient_moments(
        self, model: Vector, rows: Rows | None = None
    ) -> tuple[Vector, Vector]:
        """Return ``w - centre`` and its square: all examples have the same gradient."""
        gradient = self.gradient(model, rows)
        return gradient, np.square(gradient)

    def class_activations(self, model: Vector) -> Matrix:  # noqa: ARG002
        """Return no channel for two classes."""
        return np.zeros((2, 0), np.float32)
