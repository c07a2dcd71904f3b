"""Convolutions as matrix products, with the examples of a batch innermost.

Activations have the shape ``(channels, height, width, N)``, so patches of an image are
copied in runs of N numbers. Where 2x2 max pooling follows, one patch serves the four
sums of a pooling window: it is a row and a column larger than the filter, which stands
in it at four places, and pooling is a maximum of four blocks. That copies a third of
the numbers and multiplies larger matrices; torch's own convolutions and poolings of
small images take twice as long.
"""

from dataclasses import dataclass, field
from typing import Self

import torch

from simulations.engine.kernels.layers import Conv
from simulations.engine.kernels.linear import relu_slope
from simulations.engine.kernels.patches import Fold, Memory, Views
from simulations.engine.kernels.sgd import Descent


@dataclass(slots=True, kw_only=True)
class ConvLayer:
    """One convolution's weights, and the step it is in.

    Attributes:
        layer: Its shape.
        memory: What it computes in.
        weight: Shape ``(outputs, inputs, kernel, kernel)``.
        bias: Shape ``(outputs, 1, 1, 1)``.
        to_weight: What its gradient is added to, as ``weight``.
        to_bias: The same, shape ``(outputs,)``.
        views: The memory for the batch given last.
        slope: The loss's slope at the output before ReLU.
    """

    layer: Conv
    memory: Memory
    weight: torch.Tensor
    bias: torch.Tensor
    to_weight: torch.Tensor
    to_bias: torch.Tensor
    views: Views = field(init=False)
    slope: torch.Tensor = field(init=False)

    @classmethod
    def of(cls, layer: Conv, memory: Memory, descent: Descent) -> Self:
        """Return a layer on its stretches of the flat tensors."""
        (weights,), (targets,) = descent.weights, descent.targets
        shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
        return cls(
            layer=layer,
            memory=memory,
            weight=weights[layer.weight].view(shape),
            bias=weights[layer.bias].view(-1, 1, 1, 1),
            to_weight=targets[layer.weight].view(shape),
            to_bias=targets[layer.bias],
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what becomes of ``x``, shape ``(inputs, height, width, N)``."""
        self.views = views = self.memory.views(x.shape)
        views.padded.zero_()
        views.inner.copy_(x)
        views.patches.copy_(views.windows)
        for place in self.memory.weight.places:
            place.copy_(self.weight)
        torch.mm(self.memory.weight.rows, views.patch_rows, out=views.sum_rows)
        if self.layer.pool:
            torch.maximum(*views.sum_sides, out=views.pairs)
            torch.maximum(*views.pairs, out=views.out)
        out = views.out.add_(self.bias)
        return out.relu_() if self.layer.relu else out

    def backward(self, slope: torch.Tensor) -> None:
        """Take the loss's slope at the output, as memory to write in."""
        views, self.slope = self.views, slope.view(self.views.out.shape)
        if self.layer.relu:
            relu_slope(self.slope, views.out, 0, grad_input=self.slope)
        if self.layer.pool:
            left, right = views.slope_sides
            _split(self.slope, *views.pairs, *right)
            _split(right, *views.sum_sides, left, right)
        else:
            views.slopes[0] = self.slope

    def below(self) -> torch.Tensor:
        """Return the loss's slope at the input, in its shape."""
        views, filters = self.views, self.memory.weight.rows
        torch.mm(filters.t(), views.slope_rows, out=views.tap_rows)
        _fold(views.columns)
        _fold(views.rows)
        return views.below

    def descend(self, alpha: float, ones: torch.Tensor) -> None:
        """Add ``alpha`` times the gradients; ``ones`` has the shape ``(N,)``."""
        views, gradient = self.views, self.memory.gradient
        torch.mm(views.slope_rows, views.patch_rows.t(), out=gradient.rows)
        for place in gradient.places:
            self.to_weight.add_(place, alpha=alpha)
        self.to_bias.addmv_(self.slope.sum((1, 2)), ones, alpha=alpha)


def _split(
    slope: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    to_first: torch.Tensor,
    to_second: torch.Tensor,
) -> None:
    """Give a slope to the larger one, or the first; ``to_second`` may be ``slope``."""
    torch.ge(first, second, out=to_first)
    to_first.mul_(slope)
    torch.sub(slope, to_first, out=to_second)


def _fold(fold: Fold) -> None:
    """Add up what overlaps."""
    total, parts = fold
    total.zero_()
    for place, part in parts:
        place.add_(part)
