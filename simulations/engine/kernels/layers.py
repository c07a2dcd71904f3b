"""What a torch module is made of, for kernels that train it without autograd."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fedunlearn.models.modules import Halving
from fedunlearn.params import Layout

Layers = deque[tuple[str, nn.Module]]
"""What is left of a module's layers, with their names."""


@dataclass(frozen=True, slots=True)
class Linear:
    """``z = x W^T + b``; ``relu`` if a ReLU follows.

    Attributes:
        weight: Where ``W``, shape ``(outputs, inputs)``, lies in the model's vector.
        bias: Where ``b``, shape ``(outputs,)``, lies.
        inputs: Width of ``x``.
        outputs: Width of ``z``.
        relu: Whether ``max(z, 0)`` is passed on.
    """

    weight: slice
    bias: slice
    inputs: int
    outputs: int
    relu: bool


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution of stride 1, then ``relu`` and 2x2 max ``pool`` if they follow.

    Attributes:
        weight: Where the weight, shape ``(outputs, inputs, kernel, kernel)``, lies.
        bias: Where the bias, shape ``(outputs,)``, lies.
        inputs: Channels in.
        outputs: Channels out.
        kernel: Height and width of the window.
        padding: Zeros on every side.
        relu: Whether a ReLU follows.
        pool: Whether a 2x2 max pooling follows.
    """

    weight: slice
    bias: slice
    inputs: int
    outputs: int
    kernel: int
    padding: int
    relu: bool
    pool: bool

    @property
    def step(self) -> int:
        """How far patches lie apart: the sums of a pooling window share one."""
        return 2 if self.pool else 1

    @property
    def size(self) -> int:
        """Height and width of a patch."""
        return self.kernel + self.step - 1


@dataclass(frozen=True, slots=True)
class Stack:
    """Convolutions, then linear layers; the last gives the scores of the classes.

    Attributes:
        convs: The convolutions.
        linears: The linear layers, one at least.
    """

    convs: tuple[Conv, ...]
    linears: tuple[Linear, ...]


def stack_of(module: nn.Module, layout: Layout) -> Stack | None:
    """Return the layers of a plain stack, or None for any other module.

    A subclass of one of torch's layers may do anything: it is no plain layer.
    """
    if type(module) is not nn.Sequential:
        return None
    # Not named_children: it passes over a layer that is used a second time.
    layers: Layers = deque(zip(module._modules, module, strict=True))
    if _shared(layers):
        return None
    convs, linears = list[Conv](), list[Linear]()
    while layers and type(layer := layers[0][1]) is nn.Conv2d and _plain(layer):
        convs.append(_conv(layers.popleft()[0], layer, layers, layout))
    if not _taken(layers, _is_flatten):
        return None
    while layers and type(layer := layers[0][1]) is nn.Linear and _biased(layer):
        linears.append(_linear(layers.popleft()[0], layer, layers, layout))
    if layers or not linears or linears[-1].relu:
        return None
    return Stack(tuple(convs), tuple(linears))


def _conv(name: str, layer: nn.Conv2d, following: Layers, layout: Layout) -> Conv:
    return Conv(
        weight=layout.slices[f"{name}.weight"],
        bias=layout.slices[f"{name}.bias"],
        inputs=layer.in_channels,
        outputs=layer.out_channels,
        kernel=layer.kernel_size[0],
        padding=int(layer.padding[0]),
        relu=_taken(following, _is_relu),
        pool=_taken(following, _halves),
    )


def _linear(name: str, layer: nn.Linear, following: Layers, layout: Layout) -> Linear:
    return Linear(
        weight=layout.slices[f"{name}.weight"],
        bias=layout.slices[f"{name}.bias"],
        inputs=layer.in_features,
        outputs=layer.out_features,
        relu=_taken(following, _is_relu),
    )


def _taken(layers: Layers, wanted: Callable[[nn.Module], bool]) -> bool:
    """Tell whether the next layer is what is wanted, and take it then."""
    found = bool(layers) and wanted(layers[0][1])
    if found:
        layers.popleft()
    return found


def _is_relu(layer: nn.Module) -> bool:
    return type(layer) is nn.ReLU


def _is_flatten(layer: nn.Module) -> bool:
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)


def _halves(layer: nn.Module) -> bool:
    if type(layer) is Halving:
        return True
    if type(layer) is not nn.MaxPool2d:
        return False
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return window == (2, 2, 0, 1) and not layer.ceil_mode


def _shared(layers: Layers) -> bool:
    """Tell whether a layer with weights is used twice."""
    weighty = [
        id(layer) for _, layer in layers if next(layer.parameters(), None) is not None
    ]
    return len(set(weighty)) < len(weighty)


def _biased(layer: nn.Linear) -> bool:
    return layer.bias is not None


def _plain(layer: nn.Conv2d) -> bool:
    kernel, padding = layer.kernel_size, layer.padding
    return (
        layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.bias is not None
        and layer.padding_mode == "zeros"
        and kernel == (kernel[0],) * 2
        and padding == (padding[0],) * 2
    )
