"""Small linear models and MLPs: many clients in one batched program.

A model of a few thousand weights costs nothing but calls, so all clients of a group
take their steps together. Clients are padded to the task's batch size whoever is beside
them, and products of a batch do not mix its members: a client's numbers are its own.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from fedunlearn.cohort import Cohort
from fedunlearn.params import Matrix
from fedunlearn.training import Training
from simulations.engine.kernels.feed import Batch, Feed, groups, phases
from simulations.engine.kernels.layers import Stack
from simulations.engine.kernels.sgd import Descent

_LANES = 16
"""Numbers of a cache line: units are padded to a multiple."""
_NO_CHANCE = -1e30
"""Bias of a class that is padding: finite, so that 0 times its score is 0."""


@dataclass(frozen=True, slots=True)
class BatchedKernel:
    """The fused kernel with one more axis: the clients of a group.

    Attributes:
        stack: The model; it has no convolution.
        training: How it is trained.
        device: Where.
    """

    stack: Stack
    training: Training
    device: torch.device
    name: ClassVar[str] = "batched"
    parallel: ClassVar[bool] = True
    stacks: ClassVar[bool] = True
    independent: ClassVar[bool] = True

    def train(self, cohort: Cohort, out: Matrix) -> npt.NDArray[np.float64]:
        """Train every client; see :class:`Kernel`."""
        losses = np.zeros(len(cohort))
        row_bytes, size = 4 * self.stack.linears[0].inputs, self.training.batch_size
        for members, width in groups(cohort.batches, size, row_bytes):
            out[members], losses[members] = self._group(cohort.take(members), width)
        return losses

    def _group(
        self, group: Cohort, width: int
    ) -> tuple[Matrix, npt.NDArray[np.float64]]:
        """Train a group, its longest trainings first; return models and losses."""
        steps = group.batches.steps
        starts = torch.from_numpy(group.starts[group.start_of]).to(self.device)
        weights = self._split(starts)
        mu = torch.from_numpy(group.proximal_mu).to(self.device)
        descent = Descent.of(weights, self.training, mu)
        feed = Feed.of(
            group, width, self.stack.linears[-1].outputs, self.device, _LANES
        )
        losses = torch.zeros(len(group), dtype=torch.float64, device=self.device)
        relus = [layer.relu for layer in self.stack.linears]
        for begin, end, active in phases(steps):
            net = Net.of(descent.first(active), relus)
            for step in range(begin, end):
                losses[:active] += net.step(feed.batch(step, active))
        models = self._joined(weights).cpu().numpy()
        return models, losses.cpu().numpy() / np.maximum(steps, 1)

    def _split(self, models: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return weights ``(A, outputs, inputs)`` and biases ``(A, outputs, 1)``.

        Units are padded to whole cache lines: a product may round in another way where
        its factors begin elsewhere in one, so where a client is in the batch. Padding
        has weights of 0 and gets no gradient; a class that is none has no chance.
        """
        parts = list[torch.Tensor]()
        for layer in self.stack.linears:
            outputs, inputs = lanes(layer.outputs), lanes(layer.inputs)
            weight = models.new_zeros(len(models), outputs, inputs)
            bias = models.new_zeros(len(models), outputs, 1)
            shape = (-1, layer.outputs, layer.inputs)
            weight[:, : shape[1], : shape[2]] = models[:, layer.weight].view(shape)
            bias[:, : shape[1], 0] = models[:, layer.bias]
            parts += [weight, bias]
        parts[-1][:, self.stack.linears[-1].outputs :] = _NO_CHANCE
        return tuple(parts)

    def _joined(self, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the models that :meth:`_split` split, shape ``(A, P)``."""
        parts = list[torch.Tensor]()
        pairs = zip(weights[::2], weights[1::2], strict=True)
        for layer, (weight, bias) in zip(self.stack.linears, pairs, strict=True):
            parts.append(weight[:, : layer.outputs, : layer.inputs].flatten(1))
            parts.append(bias[:, : layer.outputs, 0])
        return torch.cat(parts, 1)


def lanes(units: int) -> int:
    """Return the number of units with padding."""
    return -(-units // _LANES) * _LANES


@dataclass(frozen=True, slots=True)
class Net:
    """The layers of A clients.

    Activations have the shape ``(A, units, width)``: with classes before examples the
    softmax is several times faster.

    Attributes:
        weights: Shape ``(A, outputs, inputs)`` each.
        biases: Shape ``(A, outputs, 1)`` each.
        relus: Whether a ReLU follows.
        descent: What moves them.
    """

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]
    relus: list[bool]
    descent: Descent

    @classmethod
    def of(cls, descent: Descent, relus: list[bool]) -> Self:
        """Return the layers on the tensors that descend: weight, bias, weight, ..."""
        return cls(descent.weights[::2], descent.weights[1::2], relus, descent)

    def step(self, batch: Batch) -> torch.Tensor:
        """Take one step; return every client's loss, shape ``(A,)``."""
        x, targets, shares = batch
        inputs = [x.transpose(1, 2)]
        for weight, bias, relu in zip(
            self.weights, self.biases, self.relus, strict=True
        ):
            z = torch.baddbmm(bias, weight, inputs[-1])
            inputs.append(z.relu_() if relu else z)
        scores = torch.log_softmax(inputs.pop(), 1)
        wanted = targets.transpose(1, 2)  # its columns sum to the shares
        loss = (scores * wanted).sum((1, 2)).neg_()
        top = scores.exp_().mul_(shares.unsqueeze(1)).sub_(wanted)
        self._move(self._slopes(top, inputs), inputs)
        return loss

    def _slopes(
        self, slope: torch.Tensor, inputs: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return the loss's slope at every layer's sums, from that at the scores."""
        slopes = [slope]
        for at in range(len(self.weights) - 1, 0, -1):
            slope = self.weights[at].transpose(1, 2) @ slope
            if self.relus[at - 1]:
                slope = torch.ops.aten.threshold_backward(slope, inputs[at], 0)
            slopes.append(slope)
        return slopes[::-1]

    def _move(self, slopes: list[torch.Tensor], inputs: list[torch.Tensor]) -> None:
        """Add the gradients, now that every slope is known."""
        descent, alpha = self.descent, self.descent.alpha
        descent.begin()
        targets = iter(descent.targets)
        for slope, given in zip(slopes, inputs, strict=True):
            next(targets).baddbmm_(slope, given.transpose(1, 2), alpha=alpha)
            next(targets).add_(slope.sum(2, keepdim=True), alpha=alpha)
        descent.end()
