"""Rapid retraining: from scratch on what remains, in steps scaled by the Fisher matrix.

Y. Liu, L. Xu, X. Yuan, C. Wang, B. Li, "The Right to be Forgotten in Federated
Learning: An Efficient Realization with Rapid Retraining", INFOCOM 2022.

Everybody who stays trains from the initial model on what remains. In step i of a round,
with the gradient ``g_i`` of the batch that remains and ``F_i``, the diagonal of its
empirical Fisher matrix (the mean over examples of squared gradients)::

    m_i = beta1 m_{i-1} + (1 - beta1) g_i
    v_i = beta2 v_{i-1} + (1 - beta2) F_i^2
    Gamma_i = sqrt(v_i / (1 - beta2^i))
    w <- w - lr m_i / (1 - beta1^i) / (Gamma_i + damping mean(Gamma_i))^power

The paper's step is ``power=1, damping=0, lr=1e-3``; ``beta1 = 0.9, beta2 = 0.999``.
With ``power=0`` it is SGD with momentum, and with ``beta1=0`` as well plain SGD; weight
decay and a proximal term of training are left out.

Departures: the paper's step diverges on clients with few classes. Where examples are
fitted, or a class is absent, ``F`` vanishes faster than ``g`` and ``g / F`` has no
bound; its experiments have equal shares of all classes and batches of 128 and more. The
square root, whose steps are at most about ``lr`` a coordinate, and damping by the mean
curvature keep the same settings usable from model to model. How momentum enters Gamma
is read as in AdaHessian, by which Plato's example realises the method; no blocks of
diagonal entries are averaged. Moments start from zero in every round, as clients keep
no state. ``g`` and ``F`` come from one pass over the batch, counted as one gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedunlearn.local import LocalProblem
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class FisherTraining:
    """A round of local training; returns the model, shape ``(P,)``.

    Attributes:
        lr: Step size.
        beta1: Decay of the gradient's moving mean.
        beta2: Decay of the curvature's moving mean.
        power: Exponent of the curvature.
        damping: Share of the mean curvature added to every coordinate's.
        shards: Blocks of the model; outside its own a client has no curvature.
    """

    lr: float
    beta1: float
    beta2: float
    power: float
    damping: float
    shards: int = 1

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Train in the batches of an ordinary round."""
        w, m, v = start.copy(), np.zeros(start.size), np.zeros(start.size)
        for i, rows in enumerate(problem.batches(), 1):
            gradient, fisher = problem.gradient_moments(w, rows)
            # Whoever receives a model that diverged refuses it, so no warning here.
            with np.errstate(over="ignore", invalid="ignore"):
                m = self.beta1 * m + (1 - self.beta1) * gradient
                v = self.beta2 * v + (1 - self.beta2) * np.float64(fisher) ** 2
                gamma = np.sqrt(v / (1 - self.beta2**i))
                mean = gamma.mean() * self.shards
                scale = (gamma + self.damping * mean) ** self.power
                # Without curvature there never was a gradient.
                step = np.divide(m, scale, out=np.zeros_like(m), where=scale > 0)
                w = (w - self.lr / (1 - self.beta1**i) * step).astype(np.float32)
        return w


@dataclass(frozen=True, slots=True, kw_only=True)
class RapidRetrain:
    """Retrains from the initial model in steps scaled by the Fisher diagonal.

    Attributes:
        rounds: How many; None takes as many as were trained.
        lr: Step size, the paper's eta.
        beta1: Decay of the gradient's moving mean, in [0, 1).
        beta2: Decay of the curvature's moving mean, in [0, 1).
        power: Exponent of the curvature, in [0, 1]; 1 is the paper's.
        damping: Share of the mean curvature added to each coordinate's.
    """

    rounds: int | None = None
    lr: float = 0.03
    beta1: float = 0.9
    beta2: float = 0.999
    power: float = 0.5
    damping: float = 1.0
    about: ClassVar[About] = About(
        family="calibrated retraining",
        guarantee="exact: nothing of what is to be forgotten is used",
        cost="R K E at clients",
        source="Liu et al., Right to be Forgotten in FL, INFOCOM 2022",
    )
    requires: ClassVar[Requires] = Requires(
        broadcasts="initial", clients=True, levels=("client", "sample")
    )

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.rounds is not None and self.rounds < 0:
            raise ValueError(f"rounds must not be negative, got {self.rounds}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        for name, beta in {"beta1": self.beta1, "beta2": self.beta2}.items():
            if not 0 <= beta < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {beta}")
        if not 0 <= self.power <= 1:
            raise ValueError(f"power must lie in [0, 1], got {self.power}")
        if not self.damping >= 0:
            raise ValueError(f"damping must not be negative, got {self.damping}")

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the retrained model."""
        del model
        w, server = ctx.initial_model.copy(), ctx.new_server()
        training = FisherTraining(
            lr=self.lr,
            beta1=self.beta1,
            beta2=self.beta2,
            power=self.power,
            damping=self.damping,
            shards=ctx.schedule.shards,
        )
        last = ctx.schedule.rounds if self.rounds is None else self.rounds
        for t in range(1, last + 1):
            ids = ctx.cohort(t)
            found = ctx.clients.run(training, w, ids, round_index=t)
            w = server.step(found.as_updates(w, t, ids))
        return w
