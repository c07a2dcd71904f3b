"""The torch modules behind the model specifications."""

from collections.abc import Iterable
from itertools import pairwise
from math import log, prod
from typing import final

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import override

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
        Halving(),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        Halving(),
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
        Halving(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.GroupNorm(GROUPS, 2 * width),
        nn.ReLU(),
        Halving(),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (across // 4), num_classes),
    )


@final
class Halving(nn.MaxPool2d):
    """2x2 max pooling, the same numbers sooner when nobody asks for a gradient."""

    def __init__(self) -> None:
        super().__init__(2)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the largest of each 2x2 window, shape ``(n, c, h // 2, w // 2)``."""
        if torch.is_grad_enabled():
            return functional.max_pool2d(x, 2)
        height, width = (size // 2 * 2 for size in x.shape[-2:])
        x = torch.maximum(x[..., 0:height:2, :], x[..., 1:height:2, :])
        return torch.maximum(x[..., 0:width:2], x[..., 1:width:2])


@final
class Ensemble(nn.Module):
    """Scores of several classifiers together: logarithms of probabilities.

    Args:
        members: The classifiers.
        majority: Whether each gives one vote, or its probabilities are averaged.
    """

    def __init__(self, members: Iterable[nn.Module], *, majority: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.majority = majority

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores of shape ``(b, C)``."""
        scores = torch.stack([member(x) for member in self.members])
        if self.majority:
            return _log_share_of_votes(scores)
        return scores.log_softmax(-1).logsumexp(0) - log(len(scores))


def _log_share_of_votes(scores: torch.Tensor) -> torch.Tensor:
    """Return ``log (votes + 1/C) / (S + 1)``: one vote more, split among all classes.

    A vote has no slope: backwards it is the member's probability.
    """
    soft, chosen = scores.softmax(-1), scores.argmax(-1, keepdim=True)
    hard = torch.zeros_like(scores).scatter(-1, chosen, 1.0)
    votes = (hard + soft - soft.detach()).sum(0)
    return ((votes + 1 / scores.shape[-1]) / (len(scores) + 1)).log()
