"""SGD as torch's, with the step folded into the gradient's matrix product.

``W <- beta W + alpha G`` is one call when ``G`` is a product of two matrices: no
gradient is ever stored. With momentum the buffer takes the weight's place.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch

from fedunlearn.training import Training


@dataclass(frozen=True, slots=True)
class Descent:
    """Tensors that descend together.

    Attributes:
        weights: What is trained: one flat tensor, or a layer's weights of many clients.
        start: What FedProx's term pulls towards; empty without one.
        buffers: Momentum's buffers; empty without momentum.
        training: Learning rate, momentum and weight decay.
        mu: Weight of FedProx's term: a number, or one a client in float64.
    """

    weights: tuple[torch.Tensor, ...]
    start: tuple[torch.Tensor, ...]
    buffers: tuple[torch.Tensor, ...]
    training: Training
    mu: float | torch.Tensor

    @classmethod
    def of(
        cls,
        weights: tuple[torch.Tensor, ...],
        training: Training,
        mu: float | torch.Tensor,
    ) -> Self:
        """Return the descent of a training that begins at ``weights``."""
        pulled = bool(mu) if isinstance(mu, float) else bool(mu.any())
        return cls(
            weights,
            tuple(w.clone() for w in weights) if pulled else (),
            tuple(map(torch.zeros_like, weights)) if training.momentum else (),
            training,
            mu,
        )

    @property
    def targets(self) -> tuple[torch.Tensor, ...]:
        """What gradients are added to: the buffers, or the weights themselves."""
        return self.buffers or self.weights

    @property
    def alpha(self) -> float:
        """What a gradient is multiplied by when it is added."""
        return 1.0 if self.buffers else -self.training.lr

    def first(self, count: int) -> Self:
        """Return the descent of the first ``count`` clients, on the same memory."""
        mu = self.mu if isinstance(self.mu, float) else self.mu[:count]
        weights, start, buffers = (
            tuple(tensor[:count] for tensor in tensors)
            for tensors in (self.weights, self.start, self.buffers)
        )
        return replace(self, weights=weights, start=start, buffers=buffers, mu=mu)

    def begin(self) -> None:
        """Apply what depends on the weights alone; gradients are added afterwards."""
        if not self.buffers and not self._pulls:
            return
        training, pull = self.training, self.training.weight_decay + self.mu
        for weight, buffer in zip(self.weights, self.buffers, strict=False):
            buffer.mul_(training.momentum)
            if self._pulls:
                buffer.add_(weight * _beside(pull, weight))
        if self._pulls and not self.buffers:
            for weight in self.weights:
                weight.mul_(_beside(1 - training.lr * pull, weight))
        for target, start in zip(self.targets, self.start, strict=False):
            target.add_(start * _beside(-self.alpha * self.mu, start))

    def end(self) -> None:
        """Move the weights once all gradients are added."""
        for weight, buffer in zip(self.weights, self.buffers, strict=False):
            weight.add_(buffer, alpha=-self.training.lr)

    @property
    def _pulls(self) -> bool:
        return bool(self.training.weight_decay) or bool(self.start)


def _beside(value: float | torch.Tensor, weight: torch.Tensor) -> float | torch.Tensor:
    """Return a number a client in the shape and precision of its weights.

    They come in float64: a client without a pull gets the bits it would get where
    nobody has one, and torch takes the number from a float.
    """
    if isinstance(value, float):
        return value
    return value.to(weight.dtype).view(-1, *(1,) * (weight.dim() - 1))
