"""A client's data and torch model as a local procedure sees them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedunlearn.data import ClientData
from fedunlearn.history import ClientId
from fedunlearn.local import Labels, LogitGradient, Rows
from fedunlearn.models.state import arrays_of, load, tensor_view
from fedunlearn.moments import gradient_moments
from fedunlearn.params import Matrix, Vector
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork, Training, batch_order

_PART = 256
"""Examples that pass through a model together: what a cache still holds."""


@dataclass(slots=True)
class TorchProblem:
    """One party's examples under a task's model; counts what passes through it.

    Attributes:
        task: Model, loss and hyper-parameters.
        data: The party's examples.
        client: Whose; with the work it fixes the batch order.
        work: Round and seed.
        shard: Whose block of the model the party trains; None takes the whole. Scores
            and gradients are those of the block, zero outside.
        num_steps: Gradients taken so far.
        num_samples: Examples passed through the model so far.
    """

    task: LocalTask
    data: ClientData
    client: ClientId
    work: LocalWork
    shard: int | None = None
    num_steps: int = field(default=0, init=False)
    num_samples: int = field(default=0, init=False)

    @property
    def labels(self) -> Labels:
        """The class of each example, shape ``(n,)``."""
        return self.data.y

    @property
    def training(self) -> Training:
        """How the task is trained."""
        return self.task.training

    def batches(
        self, epochs: float | None = None, batch_size: int | None = None
    ) -> Sequence[Rows]:
        """Return the rows of each step."""
        how = self.training
        if batch_size is not None:
            how = replace(how, batch_size=batch_size)
        work = self.work if epochs is None else replace(self.work, epochs=epochs)
        return batch_order(len(self.data.y), how, self.client, work)

    def logits(self, model: Vector, rows: Rows | None = None) -> Matrix:
        """Return the model's scores on some examples, shape ``(b, C)``."""
        module, x, _ = self._ready(model, rows)
        self.num_samples += len(x)
        with torch.no_grad():
            scores: Matrix = module(x).numpy()
        return scores

    def gradient(
        self,
        model: Vector,
        rows: Rows | None = None,
        loss: LogitGradient | None = None,
    ) -> Vector:
        """Return the gradient of a batch's loss, shape ``(P,)``; zero without data."""
        module, x, y = self._ready(model, rows)
        if not len(x):
            return np.zeros_like(model)
        self.num_steps += 1
        self.num_samples += len(x)
        if loss is None:
            return self._flat(module, _mean_gradient(module, x, y))
        scores, weights = module(x), list(module.parameters())
        slope = loss(scores.detach().numpy(), y.numpy())
        found = torch.autograd.grad(scores, weights, torch.from_numpy(slope))
        return self._flat(module, found)

    def gradient_moments(
        self, model: Vector, rows: Rows | None = None
    ) -> tuple[Vector, Vector]:
        """Return the examples' mean gradient and mean squared gradient, ``(P,)``."""
        module, x, y = self._ready(model, rows)
        if not len(x):
            return np.zeros_like(model), np.zeros_like(model)
        self.num_steps += 1
        self.num_samples += len(x)
        sums = gradient_moments(module, x, y)
        first, second = ([pair[k] / len(x) for pair in sums] for k in (0, 1))
        return self._flat(module, first), self._flat(module, second)

    def class_activations(self, model: Vector) -> Matrix:
        """Return each class's mean activation of each convolutional channel."""
        module, x, y = replace(self, shard=None)._ready(model, None)
        self.num_samples += len(x)
        seen: list[torch.Tensor] = []

        def keep(_: nn.Module, __: object, output: torch.Tensor) -> None:
            seen.append(output.relu().mean((2, 3)))

        layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        hooks = [layer.register_forward_hook(keep) for layer in layers]
        try:
            with torch.no_grad():
                module(x)
        finally:
            for hook in hooks:
                hook.remove()
        own = functional.one_hot(y, self.task.num_classes).float()
        count = own.sum(0).clamp(min=1)[:, None]
        activations = torch.cat(seen, 1) if seen else torch.zeros(len(x), 0)
        means: Matrix = (own.T @ activations / count).numpy()
        return means

    def _ready(
        self, model: Vector, rows: Rows | None
    ) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """Return the module with the model in it, examples and classes."""
        task, own = self._own
        module = task.module()
        load(module, task.layout, model[own])
        x, y = tensor_view(self.data.x), tensor_view(self.data.y)
        if rows is None:
            return module, x, y
        chosen = torch.from_numpy(rows)
        return module, x[chosen], y[chosen]

    def _flat(self, module: nn.Module, values: Sequence[torch.Tensor]) -> Vector:
        """Return parameters' values as a vector; zero for what is no parameter."""
        named = {name: np.zeros_like(a) for name, a in arrays_of(module).items()}
        for (name, _), value in zip(module.named_parameters(), values, strict=True):
            named[name] = value.numpy()
        task, own = self._own
        out = np.zeros(self.task.layout.size, np.float32)
        out[own] = task.layout.flatten(named)
        return out

    @property
    def _own(self) -> tuple[LocalTask, slice]:
        """What this party trains and where it lies in the model."""
        if self.shard is None:
            return self.task, slice(None)
        task = self.task.member
        begin = self.shard * task.layout.size
        return task, slice(begin, begin + task.layout.size)


def _mean_gradient(
    module: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> list[torch.Tensor]:
    """Return the gradient of the mean cross-entropy, an array a parameter.

    In parts, unless the module keeps statistics of the batch it sees.
    """
    weights = list(module.parameters())
    size = _PART if next(module.buffers(), None) is None else len(x)
    total: list[torch.Tensor] = []
    for begin in range(0, len(x), size):
        part = slice(begin, begin + size)
        loss = functional.cross_entropy(module(x[part]), y[part], reduction="sum")
        own = torch.autograd.grad(loss / len(x), weights)
        total = [t + g for t, g in zip(total, own, strict=True)] if total else [*own]
    return total
