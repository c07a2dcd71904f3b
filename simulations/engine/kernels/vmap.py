"""Any small module by ``torch.func``: the clients of a group in one batched program."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from fedunlearn.cohort import Cohort
from fedunlearn.params import Layout, Matrix
from fedunlearn.task import LocalTask
from simulations.engine.kernels.feed import Feed, groups, phases
from simulations.engine.kernels.sgd import Descent


@dataclass(frozen=True, slots=True)
class VmapKernel:
    """Autograd vectorised over clients.

    Attributes:
        task: What is trained; its module has no buffers and draws no random numbers.
        device: Where.
    """

    task: LocalTask
    device: torch.device
    name: ClassVar[str] = "vmap"
    parallel: ClassVar[bool] = True
    stacks: ClassVar[bool] = True
    independent: ClassVar[bool] = False

    def train(self, cohort: Cohort, out: Matrix) -> npt.NDArray[np.float64]:
        """Train every client; see :class:`Kernel`."""
        losses = np.zeros(len(cohort))
        row_bytes = 4 * int(np.prod(self.task.input_shape))
        size = self.task.training.batch_size
        # A module of its own: threads may train at the same time.
        module = self.task.new_module().to(self.device)
        for members, width in groups(cohort.batches, size, row_bytes):
            out[members], losses[members] = self._group(
                module, cohort.take(members), width
            )
        return losses

    def _group(
        self, module: nn.Module, group: Cohort, width: int
    ) -> tuple[Matrix, npt.NDArray[np.float64]]:
        """Train a group, its longest trainings first; return models and losses."""
        steps, task = group.batches.steps, self.task
        starts = torch.from_numpy(group.starts[group.start_of]).to(self.device)
        weights = _split(starts, task.layout)
        mu = torch.from_numpy(group.proximal_mu).to(self.device)
        descent = Descent.of(tuple(weights.values()), task.training, mu)
        feed = Feed.of(group, width, task.num_classes, self.device)
        losses = torch.zeros(len(group), dtype=torch.float64, device=self.device)
        slopes = vmap(grad_and_value(partial(_loss, module, task.input_shape)))
        for begin, end, active in phases(steps):
            part = descent.first(active)
            named = dict(zip(weights, part.weights, strict=True))
            for step in range(begin, end):
                x, targets, _ = feed.batch(step, active)
                gradients, loss = slopes(named, x, targets)
                part.begin()
                for target, name in zip(part.targets, named, strict=True):
                    target.add_(gradients[name], alpha=part.alpha)
                part.end()
                losses[:active] += loss
        models = torch.cat([w.flatten(1) for w in descent.weights], 1).cpu().numpy()
        return models, losses.cpu().numpy() / np.maximum(steps, 1)


def _split(models: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
    """Return name -> the array of all models, shape ``(A, ...)``."""
    return {
        name: models[:, part].reshape(-1, *shape).contiguous()
        for (name, part), shape in zip(
            layout.slices.items(), layout.shapes, strict=True
        )
    }


def _loss(
    module: nn.Module,
    input_shape: tuple[int, ...],
    weights: dict[str, torch.Tensor],
    x: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Return one client's loss; padding has no share in it."""
    scores = functional_call(module, weights, (x.view(-1, *input_shape),))
    return -(functional.log_softmax(scores, 1) * targets).sum()
