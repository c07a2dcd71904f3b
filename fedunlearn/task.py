"""How one client trains: model, loss, optimiser and local data."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedunlearn.data import ClientData
from fedunlearn.history import ClientId
from fedunlearn.models import ModelSpec
from fedunlearn.models.state import arrays_of, initial_vector, load, tensor_view
from fedunlearn.params import Layout, Vector
from fedunlearn.rng import derive


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Local training: mini-batch SGD on cross-entropy.

    Attributes:
        epochs: Passes over the local data a round; may be a fraction.
        batch_size: Examples a step; the last batch of an epoch may be smaller.
        lr: Learning rate.
        momentum: SGD momentum; its buffer starts at zero in every round.
        weight_decay: L2 penalty.
    """

    epochs: float = 1
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.epochs <= 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if self.weight_decay < 0:
            raise ValueError(
                f"weight_decay must not be negative, got {self.weight_decay}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalWork:
    """One order to train.

    Attributes:
        seed: The run's seed.
        round_index: The round, from 1; with the seed and the client it fixes the batch
            order.
        epochs: Local epochs; None takes the task's own.
        proximal_mu: Weight of FedProx's term, ``mu/2 ||w - w_global||^2``.
    """

    seed: int
    round_index: int
    epochs: float | None = None
    proximal_mu: float = 0.0


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What a local training gives: the model after it and what it took."""

    model: Vector
    num_examples: int
    num_steps: int
    num_samples: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTask:
    """The same learning task at every client.

    Attributes:
        clients: Each client's data, by client id.
        model: What is trained.
        input_shape: Shape of one example.
        num_classes: Number of classes.
        training: How it is trained.
    """

    clients: tuple[ClientData, ...]
    model: ModelSpec
    input_shape: tuple[int, ...]
    num_classes: int
    training: Training

    @property
    def layout(self) -> Layout:
        """Names and shapes of the model's arrays."""
        return Layout.of(arrays_of(self.module()))

    def module(self) -> nn.Module:
        """Return this process's working copy of the model; its values are scratch."""
        return _module(self.model, self.input_shape, self.num_classes)

    def initial_model(self, seed: int) -> Vector:
        """Return the initial parameters for a seed, shape ``(P,)``."""
        return initial_vector(
            self.model.build(self.input_shape, self.num_classes), self.layout, seed
        )

    def train(self, client: ClientId, model: Vector, work: LocalWork) -> LocalResult:
        """Train at one client.

        Args:
            client: Whose data.
            model: Where to start, shape ``(P,)``; not written to.
            work: Round, seed and length.
        """
        data = self.clients[client]
        module, layout = self.module(), self.layout
        load(module, layout, model)
        batches = list(batch_order(len(data.y), self.training, client, work))
        loss = self._descend(module, data, batches, work.proximal_mu)
        return LocalResult(
            layout.flatten(arrays_of(module)),
            len(data.y),
            len(batches),
            sum(map(len, batches)),
            loss,
        )

    def _descend(
        self,
        module: nn.Module,
        data: ClientData,
        batches: list[npt.NDArray[np.int64]],
        proximal_mu: float,
    ) -> float:
        """Take one SGD step a batch; return the mean loss of the steps."""
        x, y = tensor_view(data.x), tensor_view(data.y)
        weights = list(module.parameters())
        start = [w.detach().clone() for w in weights] if proximal_mu else []
        t = self.training
        sgd = torch.optim.SGD(
            weights, lr=t.lr, momentum=t.momentum, weight_decay=t.weight_decay
        )
        losses = []
        for batch in batches:
            rows = torch.from_numpy(batch)
            loss = functional.cross_entropy(module(x[rows]), y[rows])
            gradients = torch.autograd.grad(loss, weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            for weight, origin in zip(weights, start, strict=False):
                weight.grad.add_(weight.detach() - origin, alpha=proximal_mu)  # type: ignore[union-attr]
            sgd.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean()) if losses else 0.0


def batch_order(
    num_examples: int, training: Training, client: ClientId, work: LocalWork
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the row indices of each step: a fresh permutation an epoch.

    A fraction of an epoch takes that fraction of its batches, rounded up.
    """
    if num_examples == 0:
        return
    epochs = training.epochs if work.epochs is None else work.epochs
    size = training.batch_size
    per_epoch = -(-num_examples // size)
    # 1e-9 keeps 0.1 * 30 batches from rounding up to 4 by a float's last bit.
    steps = int(np.ceil(epochs * per_epoch - 1e-9))
    rng = derive(work.seed, "batches", work.round_index, client)
    for first in range(0, steps, per_epoch):
        order = rng.permutation(num_examples)
        for step in range(min(per_epoch, steps - first)):
            yield order[step * size : (step + 1) * size]


@lru_cache(maxsize=8)
def _module(
    spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    return spec.build(input_shape, num_classes)
