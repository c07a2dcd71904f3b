"""The layers of a model, read off the names and shapes of its arrays.

A layer begins with an array of two or more dimensions, its weights, whose first axis
are its outputs. The smaller arrays that follow under the same name (``conv1.weight``,
``conv1.bias``) belong to it. Scales and shifts of a norm are no layer. A layout without
any such array, such as that of a closed-form federation, is one layer of one output.

Layers come in the order of the layout, for a torch module that in which it defines
them; the first one of a module that defines its parts in another order than it uses
them is not the one next to the input.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from fedunlearn.params import Layout

Mask = npt.NDArray[np.bool_]
"""Which parameters, shape ``(P,)``."""

_MATRIX, _KERNEL = 2, 4
"""Dimensions of the weights of a linear layer and of a convolution of images."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer.

    Attributes:
        home: What the names of its arrays have in common, such as ``"conv1"``.
        shape: Shape of its weights, outputs first.
        weight: Where its weights lie in the vector.
        others: Where its smaller arrays lie, in their order.
    """

    home: str
    shape: tuple[int, ...]
    weight: slice
    others: tuple[slice, ...] = ()

    @property
    def outputs(self) -> int:
        """How many units or channels it has."""
        return self.shape[0]

    @property
    def bias(self) -> slice | None:
        """Where its first array with one number an output lies, or None."""
        fits = (s for s in self.others if s.stop - s.start == self.outputs)
        return next(fits, None)

    @property
    def whole(self) -> slice:
        """Where all its arrays lie: they are neighbours."""
        return slice(
            self.weight.start, max(s.stop for s in (self.weight, *self.others))
        )

    def row(self, output: int) -> slice:
        """Return where the weights of one output lie."""
        size = prod(self.shape[1:])
        start = self.weight.start + output * size
        return slice(start, start + size)


def layers_of(layout: Layout) -> tuple[Layer, ...]:
    """Return the layers of a model, first to last; at least one."""
    found: list[Layer] = []
    owner = None
    for (name, part), shape in zip(layout.slices.items(), layout.shapes, strict=True):
        home = name.rpartition(".")[0]
        if len(shape) >= _MATRIX:
            found.append(Layer(home, shape, part))
            owner = home
        elif found and home == owner:
            last = found[-1]
            found[-1] = Layer(home, last.shape, last.weight, (*last.others, part))
        else:
            owner = None
    return tuple(found) or (_all_of(layout),)


def layers_by_shard(layout: Layout, shards: int) -> tuple[tuple[Layer, ...], ...]:
    """Return the layers of each shard's block; of one shard, those of the model."""
    layers = layers_of(layout)
    each = len(layers) // shards
    return tuple(layers[i * each : (i + 1) * each] for i in range(shards))


def _all_of(layout: Layout) -> Layer:
    """Return all arrays as one layer with one output."""
    first, *others = layout.slices.values()
    return Layer("", (1, first.stop), first, tuple(others))


def convolutions(layout: Layout) -> tuple[Layer, ...]:
    """Return the layers with weights of four dimensions, first to last; maybe none."""
    return tuple(la for la in layers_of(layout) if len(la.shape) == _KERNEL)


def norm_after(layout: Layout, layer: Layer) -> tuple[slice, ...]:
    """Return where scale and shift of the norm that follows a layer lie.

    A norm has a name of its own and a ``weight`` and a ``bias`` with one number an
    output of the layer. Empty if none follows.
    """
    homes = [name.rpartition(".")[0] for name in layout.names]
    starts = [part.start for part in layout.slices.values()]
    after = [h for h, s in zip(homes, starts, strict=True) if s >= layer.whole.stop]
    if not after or after[0] == layer.home:
        return ()
    parts = [
        (part, shape)
        for (name, part), shape in zip(
            layout.slices.items(), layout.shapes, strict=True
        )
        if name in (f"{after[0]}.weight", f"{after[0]}.bias")
    ]
    fits = all(shape == (layer.outputs,) for _, shape in parts)
    return tuple(part for part, _ in parts) if fits else ()


def mask_of(layout: Layout, layers: tuple[Layer, ...]) -> Mask:
    """Return which parameters belong to ``layers``, shape ``(P,)``."""
    mask = np.zeros(layout.size, np.bool_)
    for layer in layers:
        mask[layer.whole] = True
    return mask
