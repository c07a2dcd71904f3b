"""Plain stacks of layers without autograd, client after client.

One client's weights, a few hundred kilobytes, stay in the processor's cache for all its
steps. Stacking such clients does not pay: their weights would stream from memory.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from fedunlearn.cohort import Cohort
from fedunlearn.models.state import tensor_view
from fedunlearn.params import Matrix
from fedunlearn.training import Training
from simulations.engine.kernels.convolution import ConvLayer
from simulations.engine.kernels.layers import Stack
from simulations.engine.kernels.linear import LinearLayer
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
        eye = torch.eye(self.stack.linears[-1].outputs, device=self.device)
        rows = torch.from_numpy(cohort.batches.rows).to(self.device)
        weights = torch.empty(out.shape[1], device=self.device)
        for k in range(len(cohort)):
            weights.copy_(tensor_view(cohort.start(k)))
            losses[k] = self._client(weights, cohort, k, rows, eye)
            out[k] = weights.cpu().numpy()
        return losses

    def _client(
        self,
        weights: torch.Tensor,
        cohort: Cohort,
        k: int,
        rows: torch.Tensor,
        eye: torch.Tensor,
    ) -> float:
        """Move ``weights`` by all steps of a client; return their mean loss."""
        batches, data = cohort.batches, cohort.data[k]
        x = tensor_view(data.x).to(self.device)
        targets = eye[tensor_view(data.y).to(self.device)]
        mu = float(cohort.proximal_mu[k])
        model = Model.of(self.stack, Descent.of((weights,), self.training, mu))
        bounds = batches.bounds[batches.first[k] : batches.first[k + 1] + 1].tolist()
        losses = []
        for begin, end in pairwise(bounds):
            batch = rows[begin:end]
            given, wanted = x.index_select(0, batch), targets.index_select(0, batch)
            losses.append(model.step(given, wanted))
        return float(torch.stack(losses).mean()) if losses else 0.0


@dataclass(frozen=True, slots=True)
class Model:
    """A stack on the flat tensors that descend.

    Attributes:
        layers: From the input to the scores.
        descent: The flat tensors.
    """

    layers: list[Layer]
    descent: Descent

    @classmethod
    def of(cls, stack: Stack, descent: Descent) -> Self:
        """Return the layers on their stretches of the flat tensors."""
        convs = [ConvLayer.of(layer, descent) for layer in stack.convs]
        linears = [LinearLayer.of(layer, descent) for layer in stack.linears]
        return cls([*convs, *linears], descent)

    def step(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Take one step on N examples; return their mean loss.

        Args:
            x: Examples, shape ``(N, ...)``.
            targets: One-hot classes, shape ``(N, C)``.
        """
        examples, kept = len(targets), list[Any]()
        x = x.movedim(0, -1)
        for layer in self.layers:
            kept.append(layer.forward(x))
            x = kept[-1].out
        scores = torch.log_softmax(x, 0)
        loss = (scores * targets.t()).sum() / -examples
        slopes = self._slopes(scores.exp_().sub_(targets.t()), kept)
        # Every slope is known before any weight moves.
        self.descent.begin()
        for layer, passed, slope in zip(self.layers, kept, slopes, strict=True):
            layer.add_gradients(passed, slope, self.descent.alpha / examples)
        self.descent.end()
        return loss

    def _slopes(self, slope: torch.Tensor, kept: list[Any]) -> list[torch.Tensor]:
        """Return the loss's slope at every layer's sums, from that at the scores."""
        slopes = []
        for at in range(len(self.layers) - 1, -1, -1):
            slope = self.layers[at].backward(kept[at], slope)
            slopes.append(slope)
            if at:
                slope = self.layers[at].below(kept[at], slope)
        return slopes[::-1]
