"""Small linear models and MLPs: many clients in one batched program.

A model of a few thousand weights costs nothing but calls, so all clients of a group
take their steps together. Clients are padded to the task's batch size whoever is beside
them, and products of a batch do not mix its members: a client's numbers are its own.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedunlearn.cohort import Cohort
from fedunlearn.params import Matrix
from fedunlearn.training import Training
from simulations.engine.kernels.feed import Batch, Feed, groups
from simulations.engine.kernels.layers import Stack
from simulations.engine.kernels.sgd import Descent


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
    name: str = "batched"

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
        mu = torch.from_numpy(group.proximal_mu.astype(np.float32)).to(self.device)
        descent = Descent.of(weights, self.training, mu)
        feed = Feed.of(group, width, self.stack.linears[-1].outputs, self.device)
        losses = torch.zeros(len(group), dtype=torch.float64, device=self.device)
        relus = [layer.relu for layer in self.stack.linears]
        for step in range(int(steps[0])):
            active = int(np.searchsorted(-steps, -step))  # those with a step left
            losses[:active] += _step(
                descent.first(active), relus, feed.batch(step, active)
            )
        models = torch.cat([w.flatten(1) for w in weights], 1).cpu().numpy()
        return models, losses.cpu().numpy() / np.maximum(steps, 1)

    def _split(self, models: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return weights ``(A, outputs, inputs)`` and biases ``(A, outputs, 1)``."""
        parts = list[torch.Tensor]()
        for layer in self.stack.linears:
            weight = models[:, layer.weight].view(-1, layer.outputs, layer.inputs)
            parts += [weight.contiguous(), models[:, layer.bias, None].contiguous()]
        return tuple(parts)


def _step(descent: Descent, relus: list[bool], batch: Batch) -> torch.Tensor:
    """Take one step; return every client's loss, shape ``(A,)``.

    Activations have the shape ``(A, units, width)``: with classes before examples the
    softmax is several times faster.
    """
    x, targets, shares = batch
    targets, shares = targets.transpose(1, 2), shares.unsqueeze(1)
    weights, biases = descent.weights[::2], descent.weights[1::2]
    inputs = [x.transpose(1, 2)]
    for weight, bias, relu in zip(weights, biases, relus, strict=True):
        z = torch.baddbmm(bias, weight, inputs[-1])
        inputs.append(z.relu_() if relu else z)
    scores = torch.log_softmax(inputs.pop(), 1)
    loss = -(scores * targets).sum(1, keepdim=True).mul_(shares).sum((1, 2))
    slopes = [scores.exp_().sub_(targets).mul_(shares)]
    for weight, under, relu in zip(
        weights[:0:-1], inputs[:0:-1], relus[-2::-1], strict=True
    ):
        slope = weight.transpose(1, 2) @ slopes[-1]
        if relu:
            slope = torch.ops.aten.threshold_backward(slope, under, 0)
        slopes.append(slope)
    descent.begin()
    to_weights, to_biases = descent.targets[::2], descent.targets[1::2]
    for weight, bias, slope, given in zip(
        to_weights, to_biases, slopes[::-1], inputs, strict=True
    ):
        weight.baddbmm_(slope, given.transpose(1, 2), alpha=descent.alpha)
        bias.add_(slope.sum(2, keepdim=True), alpha=descent.alpha)
    descent.end()
    return loss
