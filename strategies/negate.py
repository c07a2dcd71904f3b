"""NoT: negate the first layer, then train on.

Y. H. Khalil, L. Brunswic, S. Lamghari, X. Li, M. Beitollahi, X. Chen, "NoT: Federated
Unlearning via Weight Negation", CVPR 2025 (arXiv 2503.05657).

With the layers L_neg, by default the first alone::

    w_l <- -w_l   for l in L_neg

and then ordinary federated training without the leavers. Negation is its own inverse:
nothing is lost by it, and applied twice it gives the same bits back. What forgets is
the training that follows; the negation drives it off the place where it stood.

Departures: the paper trains until it is content, about half the communication of
retraining; here half as many rounds as were trained is the default. ``all`` negates the
layers, not the scales and shifts of norms between them: after a negated convolution the
normalised values are negated too, and a negated scale would undo that exactly. In a
model of several shards these are the layers of every shard's block. No code was
published.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector
from strategies.layers import Layer, layers_by_shard, mask_of
from strategies.recovery import recovered
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class NoT:
    """Negates layers and trains on without the leavers.

    Attributes:
        layers: Which layers' weights and biases are negated, L_neg.
        recovery_rounds: Rounds of training on the remaining clients afterwards; None
            takes half as many as were trained.
    """

    layers: Literal["first", "last", "all"] = "first"
    recovery_rounds: int | None = None
    about: ClassVar[About] = About(
        family="perturbation",
        cost="P at the server, R K E at clients",
        source="Khalil et al., NoT, CVPR 2025",
    )

    def __post_init__(self) -> None:
        """Refuse a choice of layers nobody knows and a negative number of rounds."""
        check_settings(self)

    @property
    def requires(self) -> Requires:
        """Remaining clients, if there are rounds of recovery."""
        recovers = self.recovery_rounds != 0
        return Requires(clients=recovers, levels=("client", "sample"))

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after negation and recovery."""
        chosen = mask_of(ctx.layout, self._layers(ctx))
        return recovered(np.where(chosen, -model, model), ctx, self.recovery_rounds)

    def _layers(self, ctx: UnlearningContext) -> tuple[Layer, ...]:
        part = {"first": slice(1), "last": slice(-1, None), "all": slice(None)}
        members = layers_by_shard(ctx.layout, ctx.schedule.shards)
        return tuple(la for layers in members for la in layers[part[self.layers]])
