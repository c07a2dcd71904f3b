"""A backdoor that a client plants: a patch on some of its images, with one label.

The pixel trigger of Gu et al., "BadNets", 2017, as most of the unlearning literature
plants it. Forgetting the client should make the trigger stop working; whether it does
is measured against retraining, not against zero.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedunlearn.data.dataset import Features
from fedunlearn.data.federation import ClientData
from fedunlearn.errors import ConfigError
from fedunlearn.rng import derive

_IMAGE_AXES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Backdoor:
    """What somebody plants.

    Attributes:
        fraction: Share of a planter's training images that get the trigger, in (0, 1].
        target: The class they are given.
        size: Side of the square patch in the lower right corner, in pixels.
        planted_by: Who plants it, by id or name; empty for the leavers.
        camouflage: Share of the leavers' images that get the trigger and keep their
            class, in [0, 1]. They hide a backdoor that others plant, and take that
            cover with them when they leave (BadFU).
    """

    fraction: float = 0.5
    target: int = 0
    size: int = 3
    planted_by: tuple[str, ...] = ()
    camouflage: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {self.fraction}")
        if not 0 <= self.camouflage <= 1:
            raise ValueError(f"camouflage must lie in [0, 1], got {self.camouflage}")
        if self.camouflage and not self.planted_by:
            raise ValueError("camouflage hides what others plant: name planted_by")
        if self.target < 0:
            raise ValueError(f"target must not be negative, got {self.target}")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    def check(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        """Raise ConfigError unless the data can carry this trigger."""
        if len(input_shape) != _IMAGE_AXES or self.size > min(input_shape[1:]):
            raise ConfigError(
                f"backdoor.size={self.size} does not fit on examples of shape "
                f"{input_shape}: a trigger needs images"
            )
        if self.target >= num_classes:
            raise ConfigError(
                f"backdoor.target={self.target} is not one of {num_classes} classes"
            )

    def stamp(self, images: Features, value: float) -> Features:
        """Return copies of ``images``, shape ``(n, c, h, w)``, with the patch on."""
        out = images.copy()
        out[..., -self.size :, -self.size :] = value
        return out

    def plant(
        self, data: ClientData, value: float, *, seed: int, client: int
    ) -> ClientData:
        """Return the client's data with the trigger on some training images.

        Args:
            data: What the client holds; its holdout stays clean.
            value: Pixel value of the patch.
            seed: Fixes which images.
            client: The client's id; fixes them too.
        """
        chosen, stamped = self._stamped(data, self.fraction, value, seed, client)
        y = data.y.copy()
        y[chosen] = self.target
        return replace(stamped, y=y)

    def hide(
        self, data: ClientData, value: float, *, seed: int, client: int
    ) -> ClientData:
        """Return the client's data with the trigger on images that keep their class."""
        return self._stamped(data, self.camouflage, value, seed, client)[1]

    def _stamped(
        self, data: ClientData, share: float, value: float, seed: int, client: int
    ) -> tuple[npt.NDArray[np.int64], ClientData]:
        count = int(np.ceil(share * len(data.y)))
        chosen = derive(seed, "backdoor", client).permutation(len(data.y))[:count]
        x = data.x.copy()
        x[chosen] = self.stamp(x[chosen], value)
        return chosen, replace(data, x=x)
