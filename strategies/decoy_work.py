"""What the decoys do at the leavers: count labels, blur scores."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from fedunlearn.history import ClientId
from fedunlearn.local import Labels, LocalProblem, LocalProcedure, Results
from fedunlearn.method import UnlearningContext
from fedunlearn.params import Matrix, Vector
from strategies.forgetting import leavers_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCounts:
    """Counts a client's examples of each class.

    Attributes:
        classes: How many classes there are.
    """

    classes: int

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return the counts, shape ``(classes,)``."""
        del start
        return np.bincount(problem.labels, minlength=self.classes).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blur:
    """Trains one stretch of the model until all classes seem equally likely.

    Attributes:
        begin: First parameter of the stretch.
        end: The one after its last.
        epochs: Passes over the client's examples.
    """

    begin: int
    end: int
    epochs: float

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return the stretch after training, shape ``(end - begin,)``."""
        own, model = slice(self.begin, self.end), start.copy()
        for rows in problem.batches(self.epochs):
            slope = problem.gradient(model, rows, to_uniform)
            model[own] -= np.float32(problem.training.lr) * slope[own]
        return model[own]


def to_uniform(scores: Matrix, labels: Labels) -> Matrix:
    """Return the derivative of the mean cross-entropy to equal probabilities.

    Args:
        scores: Shape ``(b, C)``.
        labels: Not looked at.
    """
    del labels
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    slope: Matrix = (shares - np.float32(1 / scores.shape[1])) / np.float32(len(scores))
    return slope


def at_leavers(
    procedure: LocalProcedure,
    model: Vector,
    ctx: UnlearningContext,
    ids: Collection[ClientId] | None = None,
) -> Results:
    """Run a procedure at all leavers or some.

    Raises:
        RequirementError: If they do not answer.
    """
    leavers, index = leavers_of(ctx), ctx.schedule.rounds + 1
    asked = leavers.ids if ids is None else ids
    return leavers.run(procedure, model, asked, round_index=index)
