"""Linear layers with the examples of a batch innermost: ``(units, N)``."""

from dataclasses import dataclass, field
from typing import Self

import torch

from simulations.engine.kernels.layers import Linear
from simulations.engine.kernels.sgd import Descent

relu_slope = torch.ops.aten.threshold_backward.grad_input
"""``(slope, out, 0, grad_input=to)``: ``slope`` where ``out`` is positive, else 0."""


@dataclass(slots=True, kw_only=True)
class LinearLayer:
    """One linear layer's weights, and the step it is in.

    Attributes:
        weight: Shape ``(outputs, inputs)``.
        turned: The same memory, shape ``(inputs, outputs)``.
        bias: Shape ``(outputs, 1)``.
        to_weight: What its gradient is added to, as ``weight``.
        to_bias: The same, shape ``(outputs,)``.
        relu: Whether a ReLU follows.
        x: What was given last, shape ``(inputs, N)``.
        out: What was passed on, shape ``(outputs, N)``.
        slope: The loss's slope at the sums, shape ``(outputs, N)``.
    """

    weight: torch.Tensor
    turned: torch.Tensor
    bias: torch.Tensor
    to_weight: torch.Tensor
    to_bias: torch.Tensor
    relu: bool
    x: torch.Tensor = field(init=False)
    out: torch.Tensor = field(init=False)
    slope: torch.Tensor = field(init=False)

    @classmethod
    def of(cls, layer: Linear, descent: Descent) -> Self:
        """Return a layer on its stretches of the flat tensors."""
        shape = (layer.outputs, layer.inputs)
        (weights,), (targets,) = descent.weights, descent.targets
        weight = weights[layer.weight].view(shape)
        return cls(
            weight=weight,
            turned=weight.t(),
            bias=weights[layer.bias, None],
            to_weight=targets[layer.weight].view(shape),
            to_bias=targets[layer.bias],
            relu=layer.relu,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of ``x``, shape ``(inputs, N)``."""
        self.x, self.out = x, torch.addmm(self.bias, self.weight, x)
        return self.out.relu_() if self.relu else self.out

    def backward(self, slope: torch.Tensor) -> None:
        """Take the loss's slope at the output, as memory to write in."""
        self.slope = slope
        if self.relu:
            relu_slope(slope, self.out, 0, grad_input=slope)

    def below(self) -> torch.Tensor:
        """Return the loss's slope at the input, shape ``(inputs, N)``."""
        return self.turned @ self.slope

    def descend(self, alpha: float, ones: torch.Tensor) -> None:
        """Add ``alpha`` times the gradients; ``ones`` has the shape ``(N,)``."""
        self.to_weight.addmm_(self.slope, self.x.t(), alpha=alpha)
        self.to_bias.addmv_(self.slope, ones, alpha=alpha)
