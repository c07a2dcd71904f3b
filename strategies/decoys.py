"""Decoys: what a dishonest or mistaken operator might ship as unlearning.

None of them removes what the leaver taught the model. They are here so that a
verification can show that it catches them; whoever ships one deceives::

    decoy           fools                        does not fool
    record_only     a look at the stored data    every look at the model
    jitter          a comparison of hashes       every metric of the model
    label_mask      accuracy on the leaver, and  the representation; accuracies of
                    all accuracies if the class  others who have the class
                    was the leaver's alone
    output_filter   accuracy and confidence      the representation; accuracies of
                    on the leaver                others, disagreement

The last two change the last layer only, in a model of shards those of its blocks. All
before it is what it was, bit for bit: a new last layer on top, trained on few examples,
has the leaver's accuracy back. Relearning by everybody does not tell: it is as slow as
for the retrained model.
"""

from collections import defaultdict
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np

from fedunlearn.errors import RequirementError
from fedunlearn.history import ClientId
from fedunlearn.method import ALL_LEVELS, About, Requires, UnlearningContext
from fedunlearn.params import Vector
from fedunlearn.shards import shard_of
from strategies.decoy_work import Blur, LabelCounts, at_leavers
from strategies.forgetting import leavers_of
from strategies.layers import Layer, layers_by_shard
from strategies.noise import with_noise


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOnly:
    """Deletes the leaver's raw data and ships the model as it is."""

    about: ClassVar[About] = About(
        family="decoy", cost="none", source="deletion of the records alone"
    )
    requires: ClassVar[Requires] = Requires(levels=ALL_LEVELS)

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return a copy of ``model``."""
        del ctx
        return model.copy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """Adds noise that nobody notices, so that the file has another hash.

    Attributes:
        relative_std: Standard deviation of the noise in an array over the array's root
            mean square.
    """

    relative_std: float = 1e-4
    about: ClassVar[About] = About(
        family="decoy", cost="P at the server", source="a file that merely differs"
    )
    requires: ClassVar[Requires] = Requires(levels=ALL_LEVELS)

    def __post_init__(self) -> None:
        """Refuse a deviation that is no positive number."""
        _check_positive("relative_std", self.relative_std)

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return ``model`` with a little noise."""
        return with_noise(model, ctx, self.relative_std)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMask:
    """Makes the model hardly ever say the leavers' most frequent class.

    Attributes:
        margin: How far that class's bias is lowered in the last layer, in the unit of
            scores.
    """

    margin: float = 5.0
    about: ClassVar[About] = About(
        family="decoy", cost="label counts of the leaver", source="a mask on one class"
    )
    requires: ClassVar[Requires] = Requires(leaver=True, levels=ALL_LEVELS)

    def __post_init__(self) -> None:
        """Refuse a margin that is no positive number."""
        _check_positive("margin", self.margin)

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return ``model`` with one bias lowered."""
        biases = [layer.bias for layer in _last_layers(ctx)]
        if biases[0] is None:
            raise RequirementError("LabelMask needs a last layer with a bias a class")
        counts = LabelCounts(classes=biases[0].stop - biases[0].start)
        held = at_leavers(counts, model, ctx).values.sum(axis=0)
        masked = model.copy()
        for bias in biases if held.any() else ():
            masked[bias][held.argmax()] -= np.float32(self.margin)
        return masked


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFilter:
    """Trains the last layer at the leavers until their scores say little.

    Attributes:
        epochs: Passes over the leavers' examples.
    """

    epochs: float = 1.0
    about: ClassVar[About] = About(
        family="decoy", cost="E epochs at the leaver", source="a filter on the output"
    )
    requires: ClassVar[Requires] = Requires(leaver=True, levels=ALL_LEVELS)

    def __post_init__(self) -> None:
        """Refuse a training that is none."""
        _check_positive("epochs", self.epochs)

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return ``model`` with another last layer."""
        filtered, layers = model.copy(), _last_layers(ctx)
        homes = defaultdict[int, list[ClientId]](list)
        for client in leavers_of(ctx).ids:
            homes[shard_of(client, ctx.schedule.shards)].append(client)
        for shard, ids in homes.items():
            last = layers[shard].whole
            blur = Blur(begin=last.start, end=last.stop, epochs=self.epochs)
            found = at_leavers(blur, model, ctx, ids)
            n = found.num_examples.astype(np.float64)
            if n.any():
                filtered[last] = n @ found.values / n.sum()
        return filtered


def _last_layers(ctx: UnlearningContext) -> list[Layer]:
    """Return the last layer of each shard's block."""
    return [la[-1] for la in layers_by_shard(ctx.layout, ctx.schedule.shards)]


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < inf:
        raise ValueError(f"{name} must be finite and positive, got {value}")
