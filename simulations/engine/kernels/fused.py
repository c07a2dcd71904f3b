"""Plain stacks of layers without autograd, client after client.

One client's weights, a few hundred kilobytes, stay in the processor's cache for all its
steps. Stacking such clients does not pay: their weights would stream from memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from fedunlearn.cohort import Batches, Cohort
from fedunlearn.data import ClientData
from fedunlearn.models.state import tensor_view
from fedunlearn.params import Matrix
from fedunlearn.training import Training
from simulations.engine.kernels.convolution import ConvLayer
from simulations.engine.kernels.layers import Stack
from simulations.engine.kernels.linear import LinearLayer
from simulations.engine.kernels.patches import Memory
from simulations.engine.kernels.sgd import Descent

Layer = ConvLayer | LinearLayer


@dataclass(frozen=True, slots=True)
class FusedKernel:
    """Hand-written forward and backward passes; the step is part of the product.

    Activations have the shape ``(units, N)``: classes before examples.

    Attributes:
        stack: The model.
        training: How it is trained.
        device: Where.
    """

    stack: Stack
    training: Training
    device: torch.device
    name: ClassVar[str] = "fused"
    parallel: ClassVar[bool] = True
    stacks: ClassVar[bool] = False
    independent: ClassVar[bool] = True

    def train(self, cohort: Cohort, out: Matrix) -> npt.NDArray[np.float64]:
        """Train every client; see :class:`Kernel`."""
        losses = np.zeros(len(cohort))
        weights = torch.empty(out.shape[1], device=self.device)
        memories = [Memory(layer, weights) for layer in self.stack.convs]
        eye = torch.eye(self.stack.linears[-1].outputs, device=self.device)
        for k in range(len(cohort)):
            weights.copy_(tensor_view(cohort.start(k)))
            mu = float(cohort.proximal_mu[k])
            descent = Descent.of((weights,), self.training, mu)
            batches = cohort.batches.part(k, k + 1)
            if len(batches.rows):
                model = Model.of(self.stack, memories, descent)
                losses[k] = self._client(model, cohort.data[k], batches, eye)
            out[k] = weights.cpu().numpy()
        return losses

    def _client(
        self, model: "Model", data: ClientData, batches: Batches, eye: torch.Tensor
    ) -> float:
        """Take all steps of a client; return their mean loss."""
        x, y = (tensor_view(part).to(self.device) for part in (data.x, data.y))
        rows = torch.from_numpy(batches.rows).to(self.device)
        targets = eye.index_select(1, y.index_select(0, rows))
        lengths = np.diff(batches.bounds)
        sizes = lengths.tolist()
        scores = [
            model.step(x.index_select(0, batch), wanted)
            for batch, wanted in zip(
                torch.split(rows, sizes), torch.split(targets, sizes, 1), strict=True
            )
        ]
        # At once for all steps: small calls would cost more than they compute.
        logs = torch.log_softmax(torch.cat(scores, 1), 0)
        each = (logs * targets).sum(0).neg_().cpu().numpy()
        sums = np.add.reduceat(each, batches.bounds[:-1], dtype=np.float64)
        return float((sums / lengths).mean())


@dataclass(frozen=True, slots=True)
class Model:
    """A stack on the flat tensors that descend.

    Attributes:
        convs: The convolutions.
        linears: The linear layers; the last gives the scores.
        descent: The flat tensors.
    """

    convs: list[ConvLayer]
    linears: list[LinearLayer]
    descent: Descent

    @classmethod
    def of(cls, stack: Stack, memories: Sequence[Memory], descent: Descent) -> Self:
        """Return the layers on their stretches of the flat tensors.

        Args:
            stack: The model.
            memories: What each convolution computes in.
            descent: The flat tensors.
        """
        convs = [
            ConvLayer.of(layer, memory, descent)
            for layer, memory in zip(stack.convs, memories, strict=True)
        ]
        linears = [LinearLayer.of(layer, descent) for layer in stack.linears]
        return cls(convs, linears, descent)

    def step(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Take one step on N examples; return their scores before it, ``(C, N)``.

        Args:
            x: Examples, shape ``(N, ...)``.
            targets: One-hot classes, shape ``(C, N)``.
        """
        ones, alpha = x.new_ones(x.shape[0]), self.descent.alpha / x.shape[0]
        x = x.movedim(0, -1)
        for conv in self.convs:
            x = conv.forward(x)
        x = x.flatten(0, -2)
        for linear in self.linears:
            x = linear.forward(x)
        slope = torch.softmax(x, 0).sub_(targets)
        layers: list[Layer] = [*self.convs, *self.linears]
        for layer in reversed(layers):
            layer.backward(slope)
            if layer is not layers[0]:
                slope = layer.below()
        # Every slope is known before any weight moves.
        self.descent.begin()
        for layer in layers:
            layer.descend(alpha, ones)
        self.descent.end()
        return x
