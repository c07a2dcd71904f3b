"""FedQUIT: the leaver distils a teacher that does not know its classes.

A. Mora, L. Valerio, P. Bellavista, A. Passarella, "FedQUIT: On-Device Federated
Unlearning via a Quasi-Competent Virtual Teacher", arXiv:2408.07587, 2024. With z_g the
global model's scores of an example of class y, and z_w those of the student w, which
starts as the global model::

    z_t[c] = z_g[c] for c != y,  z_t[y] = v     the virtual teacher
    v      = min_c z_g[c]                       ``min``
           = sum_{c != y} q_c z_g[c]            ``entropy``: q the softmax without y
    w     <- w - lr grad KL(softmax(z_t) || softmax(z_w))     over the leaver's data

for one epoch in batches of 32; then recovery rounds on the remaining clients. The other
classes keep their scores, so the student learns what the global model would say if the
right class were ruled out: that is bounded, where ascent is not.

Departures: the paper's learning rate of 1e-4 belongs to its models and optimisers and
moves none of ours; the default is a fifth of the pace of training, lr / (1 - momentum),
and ``lr`` is the constant. The student takes plain SGD steps. The paper recovers until
the accuracy is back, in under 2.5 % of its 200 rounds; the default here is half of the
recorded rounds, as with other methods, for nobody on the server can tell when it is.
Several leavers distil each by itself; their students are averaged by examples.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedunlearn.local import Labels, LocalProblem, LogitGradient, Rows
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Matrix, Vector
from strategies.forgetting import contributors, descended, leavers_of, mean_of, pace
from strategies.logit_losses import divergence_from, softmax
from strategies.recovery import recovered
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class FedQuit:
    """Distillation of a virtual teacher at the leavers, then recovery.

    It is its own procedure.

    Attributes:
        teacher: What stands in for the right class's score: the ``min`` of the
            example's scores, the value of largest ``entropy``, or ``fixed``.
        value: The score of a fixed teacher.
        lr: Learning rate of the student, the paper's 1e-4; None takes ``lr_scale``.
        lr_scale: Its learning rate over the pace of training, lr / (1 - momentum).
        epochs: Passes over the leaver's data.
        batch_size: Examples a step.
        recovery_rounds: Rounds on the remaining clients; None takes half as many as
            were trained.
    """

    teacher: Literal["min", "entropy", "fixed"] = "min"
    value: float = 0.0
    lr: float | None = None
    lr_scale: float = 0.2
    epochs: float = 1
    batch_size: int = 32
    recovery_rounds: int | None = None
    about: ClassVar[About] = About(
        family="distillation",
        cost="1 epoch at the leavers, R K E at clients",
        source="Mora et al., FedQUIT: On-Device Federated Unlearning via a "
        "Quasi-Competent Virtual Teacher, 2024",
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_settings(self)
        for name in ("lr", "lr_scale", "epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not np.isfinite(self.value):
            raise ValueError(f"value must be finite, got {self.value}")

    @property
    def requires(self) -> Requires:
        """The leaver; the remaining clients for the recovery."""
        recovers = self.recovery_rounds != 0
        return Requires(leaver=True, clients=recovers, levels=("client", "sample"))

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after distillation and recovery."""
        w, index = model.copy(), ctx.schedule.rounds + 1
        if ids := contributors(ctx):
            found = leavers_of(ctx).run(self, w, ids, round_index=index)
            w = mean_of(found, w, ctx.schedule.shards)
        return recovered(w, ctx, self.recovery_rounds)

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return the student that a leaver trains from ``start``, shape ``(P,)``."""

        def from_teacher(rows: Rows) -> LogitGradient:
            scores, labels = problem.logits(start, rows), problem.labels[rows]
            return divergence_from(softmax(self.virtual(scores, labels)))

        return descended(
            start,
            problem,
            problem.batches(self.epochs, self.batch_size),
            from_teacher,
            lr=self.lr or self.lr_scale * pace(problem.training),
        )

    def virtual(self, scores: Matrix, labels: Labels) -> Matrix:
        """Return the virtual teacher's scores, shape ``(b, C)``.

        Args:
            scores: Those of the global model, shape ``(b, C)``.
            labels: The right classes, shape ``(b,)``.
        """
        own, others = labels[:, None], scores.copy()
        if self.teacher == "min":
            v = scores.min(axis=1, keepdims=True)
        elif self.teacher == "entropy":
            np.put_along_axis(others, own, -np.inf, axis=1)
            v = np.sum(softmax(others) * scores, axis=1, keepdims=True)
        else:
            v = np.full(own.shape, self.value, scores.dtype)
        out = scores.copy()
        np.put_along_axis(out, own, v, axis=1)
        return out
