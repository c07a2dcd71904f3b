"""Small torch models, chosen by name; each is its own configuration.

None uses BatchNorm: its running statistics are not what a client trains, and Flower's
averaging turns its counters into floats.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fedunlearn.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


GROUPS = 4
"""Groups of every GroupNorm."""
IMAGE_AXES = ("channels", "height", "width")


class ModelSpec(Hashable, Protocol):
    """The configuration of a model: a frozen dataclass."""

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> "nn.Module":
        """Return the module; its initial values are ``fedunlearn.models.init``'s."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax:
    """Softmax regression: one linear layer."""

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> "nn.Module":
        """Return the module."""
        from fedunlearn.models.modules import mlp

        return mlp(input_shape, (), num_classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """Fully connected layers with ReLU between them.

    Attributes:
        hidden: Width of each hidden layer.
    """

    hidden: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        """Refuse layers without units."""
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden widths must be positive, got {self.hidden}")

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> "nn.Module":
        """Return the module."""
        from fedunlearn.models.modules import mlp

        return mlp(input_shape, self.hidden, num_classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeNet5:
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998), for images of 16 up."""

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> "nn.Module":
        """Return the module."""
        from fedunlearn.models.modules import lenet5

        return lenet5(_image(input_shape, 16, "lenet5"), num_classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cnn:
    """Two 3x3 convolutions with GroupNorm, ReLU and pooling, then one linear layer.

    Attributes:
        channels: Width of the first convolution, a multiple of 4; the second has twice
            as many.
    """

    channels: int = 16

    def __post_init__(self) -> None:
        """Refuse widths that do not split into four groups."""
        if self.channels < GROUPS or self.channels % GROUPS:
            raise ValueError(
                f"channels must be a positive multiple of {GROUPS}, got {self.channels}"
            )

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> "nn.Module":
        """Return the module."""
        from fedunlearn.models.modules import cnn

        return cnn(_image(input_shape, 4, "cnn"), self.channels, num_classes)


MODELS: dict[str, type[ModelSpec]] = {
    "softmax": Softmax,
    "mlp": Mlp,
    "lenet5": LeNet5,
    "cnn": Cnn,
}
"""Name in ``configs/model/`` -> class."""


def _image(
    input_shape: tuple[int, ...], smallest: int, name: str
) -> tuple[int, int, int]:
    if len(input_shape) != len(IMAGE_AXES) or min(input_shape[1:]) < smallest:
        raise ConfigError(
            f"model.name={name} needs images (channels, height, width) of at least "
            f"{smallest}x{smallest}, the data has examples of shape {input_shape}"
        )
    channels, height, width = input_shape
    return channels, height, width


__all__ = ["MODELS", "Cnn", "LeNet5", "Mlp", "ModelSpec", "Softmax"]
