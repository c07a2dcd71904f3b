"""Gaussian noise on the model, then training: the plain perturbation to beat.

The idea that NoT's paper compares itself with (Y. H. Khalil et al., CVPR 2025, the
ablation of perturbations) and that SIFU calls "last" (Y. Fraboni, M. Van Waerebeke,
K. Scaman, R. Vidal, L. Kameni, M. Lorenzi, "SIFU: Sequential Informed Federated
Unlearning", AISTATS 2024)::

    w_a <- w_a + s * rms(w_a) * N(0, 1)    for each array a, elementwise

and then ordinary federated training without the leavers.

Departures: SIFU's "last" sets the standard deviation so that the result is
(epsilon, delta)-indistinguishable from never having seen the client; that needs the
recorded sensitivities and noise that leaves little of a neural network. Here it is a
share of each array's own size and nothing is proven. An array of zeros gets no noise.
"""

from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

import numpy as np

from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector, norm
from strategies.recovery import recovered
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Adds noise to every array and trains on without the leavers.

    Attributes:
        relative_std: Standard deviation of the noise in an array over the array's root
            mean square, s.
        recovery_rounds: Rounds of training on the remaining clients afterwards; None
            takes half as many as were trained.
    """

    relative_std: float = 1.0
    recovery_rounds: int | None = None
    about: ClassVar[About] = About(
        family="perturbation",
        cost="P at the server, R K E at clients",
        source="baseline of Khalil et al., NoT, CVPR 2025",
    )

    def __post_init__(self) -> None:
        """Refuse a deviation that is not a number from 0, and negative rounds."""
        if not 0 <= self.relative_std < inf:
            raise ValueError(
                f"relative_std must be finite and not negative, got {self.relative_std}"
            )
        check_settings(self)

    @property
    def requires(self) -> Requires:
        """Remaining clients, if there are rounds of recovery."""
        recovers = self.recovery_rounds != 0
        return Requires(clients=recovers, levels=("client", "sample"))

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after noise and recovery."""
        noisy = with_noise(model, ctx, self.relative_std)
        return recovered(noisy, ctx, self.recovery_rounds)


def with_noise(model: Vector, ctx: UnlearningContext, relative_std: float) -> Vector:
    """Return a copy of ``model`` with noise of a share of each array's own size."""
    noise = ctx.rng.standard_normal(len(model), np.float32)
    noisy = model.copy()
    for part in ctx.layout.slices.values():
        scale = relative_std * root_mean_square(model[part])
        noisy[part] += np.float32(scale) * noise[part]
    return noisy


def root_mean_square(values: Vector) -> float:
    """Return ``sqrt(mean(values**2))``, 0 for no values."""
    return norm(values) / sqrt(max(values.size, 1))
