"""Subtraction of the leavers' updates, then distillation from the original model.

C. Wu, S. Zhu, P. Mitra, "Federated Unlearning with Knowledge Distillation", 2022.

Subtraction leaves a model with a skew; the original model teaches it back what it knew,
on examples that the server owns and that nobody labels::

    w'  = w_T - sum_t sum_u p_u^t Delta_u^t
    L   = - tau mean_x sum_c softmax(z_T(x) / tau)_c log softmax(z(x) / tau)_c
    w'  <- w' - lr grad L          over the server's examples, for some epochs

z_T are the original model's scores, the teacher's, z the student's. What the server's
examples do not show, such as a trigger, the teacher does not teach.

Departures: the paper's temperature and epochs were not at hand: 3 and 3 are ours, as
are the clients' batches and learning rate. The more epochs, the more of the teacher
comes back, the leavers' classes too. The factor tau keeps the gradient by the scores as
bounded as that of plain cross-entropy, so that the clients' step fits; tau^2, which is
usual (Hinton et al., 2015), throws a small convolutional network off. Its small
hard-label term is left out: the server has no labels. Plain SGD, no momentum.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from fedunlearn.errors import RequirementError
from fedunlearn.local import Labels
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Matrix, Vector
from strategies.subtraction import Subtract


@dataclass(frozen=True, slots=True, kw_only=True)
class SubtractDistill:
    """Subtracts lazily and learns from the original model on the server's examples.

    Attributes:
        temperature: By which scores are divided before the softmax, tau.
        epochs: Passes over the server's examples; may be a fraction.
        lr: Step size; None takes the clients'.
        batch_size: Examples a step; None takes the clients'.
    """

    temperature: float = 3.0
    epochs: float = 3.0
    lr: float | None = None
    batch_size: int | None = None
    about: ClassVar[About] = About(
        family="subtraction",
        cost="T P and E n P at the server, n its examples",
        source="Wu et al., Federated Unlearning with Knowledge Distillation, 2022",
    )
    requires: ClassVar[Requires] = Requires(
        updates="leavers", sums=True, server_data=True, mean=True
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        named = {"temperature": self.temperature, "lr": self.lr}
        for name, value in named.items():
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= self.epochs < np.inf:
            raise ValueError(f"epochs must not be negative, got {self.epochs}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the student."""
        problem = ctx.server_data
        if problem is None:
            raise RequirementError("SubtractDistill needs data on the server")
        student = Subtract().unlearn(model, ctx)
        if not any(ctx.history.rounds_of(client) for client in ctx.forget):
            return student
        lr = np.float32(problem.training.lr if self.lr is None else self.lr)
        for rows in problem.batches(self.epochs, self.batch_size):
            taught = problem.logits(model, rows)
            loss = partial(soft_slope, teacher=taught, temperature=self.temperature)
            student = student - lr * problem.gradient(student, rows, loss)
        return student


def soft_slope(
    scores: Matrix, labels: Labels, *, teacher: Matrix, temperature: float
) -> Matrix:
    """Return the derivative of tau times the soft cross-entropy by the scores.

    Args:
        scores: The student's, shape ``(b, C)``.
        labels: Not looked at.
        teacher: The teacher's scores, shape ``(b, C)``.
        temperature: tau.

    Returns:
        ``(softmax(scores / tau) - softmax(teacher / tau)) / b``, float32.
    """
    del labels
    apart = _softmax(scores / temperature) - _softmax(teacher / temperature)
    return (apart / len(scores)).astype(np.float32)


def _softmax(scores: Matrix) -> Matrix:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Matrix = raised / raised.sum(axis=1, keepdims=True)
    return shares
