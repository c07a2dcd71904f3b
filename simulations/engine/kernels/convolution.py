"""Convolutions as matrix products, with the examples of a batch innermost.

Activations have the shape ``(channels, height, width, N)``. So the windows of an image
are copied in runs of N numbers, and pooling is a maximum of four strided views; torch's
own convolutions and poolings of small images took twice as long.
"""

from dataclasses import dataclass
from typing import Self

import torch

from simulations.engine.kernels.layers import Conv
from simulations.engine.kernels.sgd import Descent


@dataclass(frozen=True, slots=True)
class Pass:
    """What a forward pass leaves for the backward pass.

    Attributes:
        windows: All windows, shape ``(inputs * kernel * kernel, oh * ow * N)``.
        sums: Before pooling and ReLU, shape ``(outputs, oh, ow, N)``.
        out: What is passed on.
        padded: Shape of the padded input.
    """

    windows: torch.Tensor
    sums: torch.Tensor
    out: torch.Tensor
    padded: torch.Size


@dataclass(frozen=True, slots=True)
class ConvLayer:
    """One convolution's weights, and what their gradients are added to.

    Attributes:
        layer: Its shape.
        weight: Shape ``(outputs, inputs * kernel * kernel)``.
        bias: Shape ``(outputs, 1)``.
        to_weight: As ``weight``.
        to_bias: As ``bias``.
    """

    layer: Conv
    weight: torch.Tensor
    bias: torch.Tensor
    to_weight: torch.Tensor
    to_bias: torch.Tensor

    @classmethod
    def of(cls, layer: Conv, descent: Descent) -> Self:
        """Return a layer's stretches of the flat tensors."""
        (weights,), (targets,) = descent.weights, descent.targets
        return cls(
            layer,
            weights[layer.weight].view(layer.outputs, -1),
            weights[layer.bias, None],
            targets[layer.weight].view(layer.outputs, -1),
            targets[layer.bias, None],
        )

    def forward(self, x: torch.Tensor) -> Pass:
        """Return what becomes of ``x``, shape ``(inputs, height, width, N)``."""
        layer = self.layer
        padded = _padded(x, layer.padding)
        taps = _taps(padded, layer.kernel)
        outputs = (layer.outputs, *taps.shape[3:])
        windows = taps.reshape(self.weight.shape[1], -1)
        sums = torch.addmm(self.bias, self.weight, windows).view(outputs)
        out = _largest(sums) if layer.pool else sums
        if layer.relu:
            out = out.relu()
        return Pass(windows, sums, out, padded.shape)

    def backward(self, kept: Pass, slope: torch.Tensor) -> torch.Tensor:
        """Return the loss's slope at the sums, given that at the output."""
        if self.layer.relu:
            slope = torch.ops.aten.threshold_backward(slope, kept.out, 0)
        return _to_largest(slope, kept) if self.layer.pool else slope

    def below(self, kept: Pass, slope: torch.Tensor) -> torch.Tensor:
        """Return the loss's slope at the input, given that at the sums."""
        size, p = self.layer.kernel, self.layer.padding
        taps = (self.weight.t() @ slope.flatten(1)).view(
            -1, size, size, *slope.shape[1:]
        )
        channels, _, wide, examples = kept.padded
        # First the windows' columns, then their rows: ten sums instead of 25.
        rows = slope.new_zeros(channels, size, slope.shape[1], wide, examples)
        for j in range(size):
            rows[:, :, :, j : j + slope.shape[2]] += taps[:, :, j]
        total = slope.new_zeros(kept.padded)
        for i in range(size):
            total[:, i : i + slope.shape[1]] += rows[:, i]
        inner = slice(p, -p) if p else slice(None)
        return total[:, inner, inner]

    def add_gradients(self, kept: Pass, slope: torch.Tensor, alpha: float) -> None:
        """Add ``alpha`` times the gradients, given the slope at the sums."""
        flat = slope.flatten(1)
        self.to_weight.addmm_(flat, kept.windows.t(), alpha=alpha)
        self.to_bias.add_(flat.sum(1, keepdim=True), alpha=alpha)


def _padded(x: torch.Tensor, padding: int) -> torch.Tensor:
    if not padding:
        return x.contiguous()
    channels, height, width, examples = x.shape
    out = x.new_zeros(channels, height + 2 * padding, width + 2 * padding, examples)
    out[:, padding:-padding, padding:-padding] = x
    return out


def _taps(x: torch.Tensor, kernel: int) -> torch.Tensor:
    """Return a view of shape ``(channels, kernel, kernel, oh, ow, N)``."""
    channels, height, width, examples = x.shape
    out = (height - kernel + 1, width - kernel + 1)
    a, b, c, d = x.stride()
    shape = (channels, kernel, kernel, *out, examples)
    return x.as_strided(shape, (a, b, c, b, c, d))


def _corners(x: torch.Tensor) -> list[torch.Tensor]:
    """Return the four members of every 2x2 window; an odd last row or column is out."""
    high, wide = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return [x[:, i:high:2, j:wide:2] for i in (0, 1) for j in (0, 1)]


def _largest(x: torch.Tensor) -> torch.Tensor:
    a, b, c, d = _corners(x)
    return torch.maximum(torch.maximum(a, b), torch.maximum(c, d))


def _to_largest(slope: torch.Tensor, kept: Pass) -> torch.Tensor:
    """Give each window's slope to its first largest member, as torch does."""
    out = torch.zeros_like(kept.sums)
    rest, hit = slope.clone(), torch.empty_like(slope)
    for member, to in zip(_corners(kept.sums), _corners(out), strict=True):
        # Where ReLU cut a window nothing is hit, and there is no slope to give.
        torch.eq(member, kept.out, out=hit)
        torch.mul(rest, hit, out=to)
        rest -= to
    return out
