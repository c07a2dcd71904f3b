"""Curvature of clients' losses from their gradients, and the systems it solves."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedunlearn.local import LocalProblem, Results
from fedunlearn.method import Clients
from fedunlearn.params import Vector, norm

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossGradient:
    """Takes the gradient of a client's mean cross-entropy."""

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return the gradient at ``start``, shape ``(P,)``."""
        return problem.gradient(start)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsLoss:
    """The mean loss of some clients over all their examples, known by its gradient.

    Attributes:
        clients: Whose; all of them are asked.
        round_index: Named in every call.
    """

    clients: Clients
    round_index: int

    def gradient(self, model: Vector) -> tuple[Float64, float]:
        """Return the gradient at ``model`` and the examples it is the mean of."""
        found = self._ask(model)
        return _mean(found, frozenset(found.clients)), float(found.num_examples.sum())

    def hessian_product(self, model: Vector, v: Float64, probe: float) -> Float64:
        """Return the Hessian at ``model`` times ``v``, by a central difference.

        It is over those who answered both times.

        Args:
            model: Where, shape ``(P,)``.
            v: Shape ``(P,)``, not zero.
            probe: Length of the difference, as a share of the model's own.
        """
        size = probe * (norm(model) or 1.0) / float(np.sqrt(v @ v))
        ahead = self._ask((model + size * v).astype(np.float32))
        behind = self._ask((model - size * v).astype(np.float32))
        both = frozenset(ahead.clients).intersection(behind.clients)
        return (_mean(ahead, both) - _mean(behind, both)) / (2 * size)

    def _ask(self, model: Vector) -> Results:
        asked = self.clients.ids
        return self.clients.run(
            LossGradient(), model, asked, round_index=self.round_index
        )


def _mean(found: Results, of: frozenset[int]) -> Float64:
    """Return the mean of some clients' vectors, weighted by examples; 0 of nobody."""
    rows = [row for row, client in enumerate(found.clients) if client in of]
    n = found.num_examples[rows].astype(np.float64)
    mean: Float64 = n @ found.values[rows] / max(n.sum(), 1.0)
    return mean


def conjugate_gradients(
    product: Callable[[Float64], Float64],
    b: Float64,
    iterations: int,
    tolerance: float = 0.0,
    damping: float = 0.0,
) -> Float64:
    """Return ``s`` with ``(H + L I) s = b``, where ``L = damping |b.Hb| / b.b``.

    If H is not positive there may be directions along which the curvature of
    ``H + L I`` is below ``L / 2``: the first of them ends the iteration, so that no
    step divides by less. If b itself is one, the step is along b, as long as for the
    same curvature upwards.

    Args:
        product: Returns H times a vector; called ``iterations`` times at most.
        b: Shape ``(P,)``; zeros give zeros.
        iterations: Most steps.
        tolerance: Norm of the residual over that of b at which to stop.
        damping: How much curvature to add.
    """
    s, r, p = np.zeros_like(b), b.copy(), b.copy()
    rr = first = float(r @ r)
    added = None
    for _ in range(iterations):
        if rr <= tolerance**2 * first:
            break
        hp = product(p)
        if added is None:
            added = damping * abs(float(p @ hp)) / rr
        hp = hp + added * p
        curvature = float(p @ hp)
        if curvature <= 0.5 * added * float(p @ p):
            if s.any():
                return s
            upwards = added * rr - (curvature - added * rr)
            return b * (rr / upwards) if upwards > 0 else s
        s += (rr / curvature) * p
        r -= (rr / curvature) * hp
        rr, before = float(r @ r), rr
        p = r + (rr / before) * p
    return s
