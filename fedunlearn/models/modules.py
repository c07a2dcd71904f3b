"""The torch modules behind the model specifications."""

from itertools import pairwise
from math import prod

from torch import nn

from fedunlearn.models import GROUPS


def mlp(
    input_shape: tuple[int, ...], hidden: tuple[int, ...], num_classes: int
) -> nn.Module:
    """Return linear layers with ReLU between them, on flattened input."""
    widths = (prod(input_shape), *hidden, num_classes)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet5(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return LeNet-5: two 5x5 convolutions (6, 16) and three linear layers."""
    channels, height, width = input_shape
    spatial = ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * spatial, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def cnn(input_shape: tuple[int, int, int], width: int, num_classes: int) -> nn.Module:
    """Return two blocks of convolution, GroupNorm, ReLU and pooling, and a head."""
    channels, height, across = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.GroupNorm(GROUPS, width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.GroupNorm(GROUPS, 2 * width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (across // 4), num_classes),
    )
