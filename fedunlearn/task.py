"""How one client trains: model, loss, optimiser and local data."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedunlearn.data import ClientData, LazyClients
from fedunlearn.data.divide import Divided
from fedunlearn.history import ClientId, Counts
from fedunlearn.models import ModelSpec
from fedunlearn.models.ensemble import Ensemble
from fedunlearn.models.state import arrays_of, initial_vector, load, tensor_view
from fedunlearn.params import Layout, Vector
from fedunlearn.request import View
from fedunlearn.shards import blocks_of, shard_of
from fedunlearn.training import LocalWork, Training, batch_order, samples_of

_WHOLE = Divided()


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
        clients: Each client's data, by client id; may be made when it is asked for.
        model: What is trained.
        input_shape: Shape of one example.
        num_classes: Number of classes.
        training: How it is trained.
        divided: What a request takes from whom.
    """

    clients: Sequence[ClientData]
    model: ModelSpec
    input_shape: tuple[int, ...]
    num_classes: int
    training: Training
    divided: Divided = _WHOLE

    @property
    def layout(self) -> Layout:
        """Names and shapes of the model's arrays."""
        return _layout_of(self.model, self.input_shape, self.num_classes)

    @property
    def shards(self) -> int:
        """How many blocks the model has that are trained apart, S."""
        return self.model.shards if isinstance(self.model, Ensemble) else 1

    @property
    def member(self) -> "LocalTask":
        """The task as one shard has it: its model is a block, shape ``(P / S,)``."""
        if not isinstance(self.model, Ensemble):
            return self
        return replace(self, model=self.model.member)

    def data_of(self, client: ClientId, view: View = "all") -> ClientData:
        """Return what a client holds, or a part of it."""
        return self.divided.of(client, self.clients[client], view)

    def num_examples(self, client: ClientId, view: View = "all") -> int:
        """Return how many examples a client trains on."""
        if view == "all" and isinstance(self.clients, LazyClients):
            return self.clients.sizes[client]
        return len(self.data_of(client, view).y)

    def samples(self, clients: Sequence[ClientId], work: LocalWork) -> Counts:
        """Return how many examples clients pass through their models, ``(K,)``."""
        sizes = [self.num_examples(client, work.view) for client in clients]
        return samples_of(sizes, self.training, work)

    def module(self) -> nn.Module:
        """Return this process's working copy of the model; its values are scratch."""
        return _SCRATCH.module(self.model, self.input_shape, self.num_classes)

    def new_module(self) -> nn.Module:
        """Return a copy of the model for its own use."""
        return _built(self.model, self.input_shape, self.num_classes)

    def initial_model(self, seed: int) -> Vector:
        """Return the initial parameters for a seed, shape ``(P,)``."""
        module = self.new_module()
        return initial_vector(module, self.layout, seed)

    def train(self, client: ClientId, model: Vector, work: LocalWork) -> LocalResult:
        """Train at one client, in shards its own block alone.

        Args:
            client: Whose data.
            model: Where to start, shape ``(P,)``; not written to.
            work: Round, seed and length.
        """
        data = self.data_of(client, work.view)
        batches = batch_order(len(data.y), self.training, client, work)
        after, own = model.copy(), shard_of(client, self.shards)
        start, trained = (blocks_of(m, self.shards)[own] for m in (model, after))
        trained[:], loss = self.member.descend(data, start, batches, work.proximal_mu)
        samples = sum(map(len, batches))
        return LocalResult(after, len(data.y), len(batches), samples, loss)

    def descend(
        self,
        data: ClientData,
        model: Vector,
        batches: Sequence[npt.NDArray[np.int64]],
        proximal_mu: float = 0.0,
    ) -> tuple[Vector, float]:
        """Take one SGD step a batch.

        Args:
            data: What the batches are rows of.
            model: Where to start, shape ``(P,)``; not written to.
            batches: Row numbers of each step.
            proximal_mu: Weight of FedProx's term.

        Returns:
            The model afterwards, and the mean loss of the steps.
        """
        module, layout = self.module(), self.layout
        load(module, layout, model)
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
        mean = float(torch.stack(losses).mean()) if losses else 0.0
        return layout.flatten(arrays_of(module)), mean


@lru_cache(maxsize=32)
def _layout_of(
    spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int
) -> Layout:
    return Layout.of(arrays_of(_built(spec, input_shape, num_classes)))


_BUILDING = threading.Lock()


def _built(
    spec: ModelSpec, input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    # torch draws every new layer's values from its global state: put that back.
    with _BUILDING, torch.random.fork_rng(devices=[]):
        return spec.build(input_shape, num_classes)


class _Scratch(threading.local):
    """Each thread's modules: two runs may evaluate at the same time."""

    def __init__(self) -> None:
        self.module = lru_cache(maxsize=8)(_built)


_SCRATCH = _Scratch()
