"""Linear layers with the examples of a batch innermost: ``(units, N)``."""

from dataclasses import dataclass
from typing import Self

import torch

from simulations.engine.kernels.layers import Linear
from simulations.engine.kernels.sgd import Descent


@dataclass(frozen=True, slots=True)
class Pass:
    """What a forward pass leaves for the backward pass.

    Attributes:
        x: Flat input, shape ``(inputs, N)``.
        out: What is passed on, shape ``(outputs, N)``.
        shape: Shape the input had.
    """

    x: torch.Tensor
    out: torch.Tensor
    shape: torch.Size


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """One linear layer's weights, and what their gradients are added to.

    Attributes:
        layer: Its shape.
        weight: Shape ``(outputs, inputs)``.
        bias: Shape ``(outputs, 1)``.
        to_weight: As ``weight``; the buffer of momentum if there is one.
        to_bias: As ``bias``.
    """

    layer: Linear
    weight: torch.Tensor
    bias: torch.Tensor
    to_weight: torch.Tensor
    to_bias: torch.Tensor

    @classmethod
    def of(cls, layer: Linear, descent: Descent) -> Self:
        """Return a layer's stretches of the flat tensors."""
        shape = (layer.outputs, layer.inputs)
        (weights,), (targets,) = descent.weights, descent.targets
        return cls(
            layer,
            weights[layer.weight].view(shape),
            weights[layer.bias, None],
            targets[layer.weight].view(shape),
            targets[layer.bias, None],
        )

    def forward(self, x: torch.Tensor) -> Pass:
        """Return what the layer makes of ``x``, whose last axis is the examples."""
        flat = x.flatten(0, -2)
        out = torch.addmm(self.bias, self.weight, flat)
        return Pass(flat, out.relu_() if self.layer.relu else out, x.shape)

    def backward(self, kept: Pass, slope: torch.Tensor) -> torch.Tensor:
        """Return the loss's slope at the sums, given that at the output."""
        if self.layer.relu:
            slope = torch.ops.aten.threshold_backward(slope, kept.out, 0)
        return slope

    def below(self, kept: Pass, slope: torch.Tensor) -> torch.Tensor:
        """Return the loss's slope at the input, given that at the sums."""
        return (self.weight.t() @ slope).view(kept.shape)

    def add_gradients(self, kept: Pass, slope: torch.Tensor, alpha: float) -> None:
        """Add ``alpha`` times the gradients, given the slope at the sums."""
        self.to_weight.addmm_(slope, kept.x.t(), alpha=alpha)
        self.to_bias.add_(slope.sum(1, keepdim=True), alpha=alpha)
