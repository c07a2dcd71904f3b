"""The gradients of single examples: their sum and the sum of their squares."""

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fedunlearn.models.modules import Halving

_CHUNK = 32
"""Examples whose own gradients are held at the same time."""
Moments = tuple[torch.Tensor, torch.Tensor]
"""A parameter's gradients summed over examples, and their squares summed."""


def gradient_moments(
    module: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> list[Moments]:
    """Return sums over examples of the gradient and of its square, by parameter.

    Args:
        module: Gives scores ``(n, C)``; the loss is cross-entropy.
        x: Examples, shape ``(n, ...)``.
        y: Their classes, shape ``(n,)``.
    """
    total = [(torch.zeros_like(w), torch.zeros_like(w)) for w in module.parameters()]
    for begin in range(0, len(x), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        if _plain(module):
            own = _by_layers(module, x[part], y[part])
        else:
            own = _by_examples(module, x[part], y[part])
        total = [(s + m, t + n) for (s, t), (m, n) in zip(total, own, strict=True)]
    return total


def _by_examples(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[Moments]:
    """Any module: autograd, example by example."""

    def own_loss(
        values: dict[str, torch.Tensor], one: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        scores = functional_call(module, values, (one[None],))
        return functional.cross_entropy(scores, label[None])

    fixed = {name: w.detach() for name, w in module.named_parameters()}
    each = vmap(grad(own_loss), in_dims=(None, 0, 0))(fixed, x, y)
    return [(own.sum(0), own.square().sum(0)) for own in each.values()]


def _by_layers(
    module: nn.Sequential, x: torch.Tensor, y: torch.Tensor
) -> list[Moments]:
    """A sequence of plain layers: from what goes in and the slopes at what comes out.

    An example's gradient is their product, so that one backward pass serves them all;
    that is several times faster.
    """
    passed = list[tuple[nn.Module, torch.Tensor, torch.Tensor]]()
    for layer in module:
        given, x = x, layer(x)
        if type(layer) in _MOMENTS:
            passed.append((layer, given.detach(), x))
    loss = functional.cross_entropy(x, y, reduction="sum")
    slopes = torch.autograd.grad(loss, [out for *_, out in passed])
    found = list[Moments]()
    for (layer, given, _), slope in zip(passed, slopes, strict=True):
        weight_and_bias = _MOMENTS[type(layer)](layer, given, slope)
        found += weight_and_bias[: len(list(layer.parameters()))]
    return found


def _of_linear(
    _: nn.Linear, given: torch.Tensor, slope: torch.Tensor
) -> tuple[Moments, Moments]:
    if given[0].ndim > 1:
        # Applied at places of an example, whose gradients add up before the square.
        given, slope = given.flatten(1, -2), slope.flatten(1, -2)
        own, bias = slope.transpose(1, 2) @ given, slope.sum(1)
        return (own.sum(0), own.square().sum(0)), (bias.sum(0), bias.square().sum(0))
    square = slope.square()
    weight = slope.t() @ given, square.t() @ given.square()
    return weight, (slope.sum(0), square.sum(0))


def _of_conv(
    layer: nn.Conv2d, given: torch.Tensor, slope: torch.Tensor
) -> tuple[Moments, Moments]:
    own = slope.flatten(2) @ _windows(layer, given).transpose(1, 2)
    weight, bias = own.view(-1, *layer.weight.shape), slope.sum((2, 3))
    return (weight.sum(0), weight.square().sum(0)), (bias.sum(0), bias.square().sum(0))


def _windows(layer: nn.Conv2d, given: torch.Tensor) -> torch.Tensor:
    """Return what each output sees, shape ``(n, channels * kernel, positions)``.

    As ``functional.unfold``, which takes three times as long.
    """
    down, across = map(int, layer.padding)
    padded = functional.pad(given, (across, across, down, down))
    for axis in (0, 1):
        size, gap = layer.kernel_size[axis], layer.dilation[axis]
        reach = gap * (size - 1) + 1
        padded = padded.unfold(2 + axis, reach, layer.stride[axis])[..., ::gap]
    return padded.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


_MOMENTS: dict[type[nn.Module], Callable[..., tuple[Moments, Moments]]] = {
    nn.Linear: _of_linear,
    nn.Conv2d: _of_conv,
}
_STEADY = (
    *(nn.Flatten, nn.ReLU, nn.Tanh, nn.Identity),
    *(nn.MaxPool2d, nn.AvgPool2d, Halving),
)


def _plain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a module is a sequence of layers whose gradients are known products."""
    if type(module) is not nn.Sequential or next(module.buffers(), None) is not None:
        return False
    tied = sum(len(list(layer.parameters())) for layer in module) != len(
        list(module.parameters())
    )
    return not tied and all(map(_known, module))


def _known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return type(layer) is nn.Conv2d and plain and not isinstance(layer.padding, str)
    if getattr(layer, "inplace", False):
        return False
    return type(layer) is nn.Linear or type(layer) in _STEADY
