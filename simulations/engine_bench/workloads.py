"""What the engines are measured on: synthetic, label-skewed and learnable.

Three workloads: a model whose time goes to matrix products, one whose time goes to
convolutions, and one of many tiny clients.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from fedunlearn.data import ClientData
from fedunlearn.data.dataset import Features
from fedunlearn.errors import ConfigError
from fedunlearn.models import LeNet5, Mlp, ModelSpec, Softmax
from fedunlearn.rng import derive
from fedunlearn.training import Training
from simulations.cores import usable_cores

if TYPE_CHECKING:
    from fedunlearn.task import LocalTask

CLASSES = 10
SKEW = 0.5
"""Concentration of the Dirichlet distribution of each client's classes."""
SIGNAL = 0.5
"""Standard deviation of the class means; that of the noise around them is 1."""
DATA_SEED = 20261124
"""Seed of all data: the same examples in every process."""
_LARGE = 10_000
"""Numbers of a client from which on making them takes longer than asking for them."""
_PATCH = 4


def flat_means(shape: tuple[int, ...]) -> Features:
    """Return a mean of each class, every number by itself, shape ``(10, *shape)``."""
    rng = derive(DATA_SEED, "engine bench means", prod(shape))
    return np.float32(SIGNAL) * rng.standard_normal((CLASSES, *shape), np.float32)


def smooth_means(shape: tuple[int, ...]) -> Features:
    """Return means made of even patches, which a convolution can see."""
    channels, height, width = shape
    coarse = flat_means((channels, height // _PATCH, width // _PATCH))
    return coarse.repeat(_PATCH, 2).repeat(_PATCH, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A federation to train for some rounds, all clients in every round.

    Attributes:
        name: Its name in ``WORKLOADS``.
        clients: Number of clients.
        samples: Examples each of them holds.
        shape: Shape of one example.
        model: What is trained.
        training: How.
        means: Gives the class means for the shape of an example.
    """

    name: str
    clients: int
    samples: int
    shape: tuple[int, ...]
    model: ModelSpec
    training: Training
    means: Callable[[tuple[int, ...]], Features]

    def scaled(self, scale: float) -> "Workload":
        """Return the same workload with this fraction of its clients, at least one.

        Raises:
            ConfigError: If ``scale`` does not lie in ``(0, 1]``.
        """
        if not 0 < scale <= 1:
            raise ConfigError(f"scale must lie in (0, 1], got {scale}")
        return replace(self, clients=max(1, round(scale * self.clients)))

    def client(self, number: int) -> ClientData:
        """Return one client's data; it depends on the client's number alone."""
        rng = derive(DATA_SEED, f"engine bench data {self.name}", number)
        shares = rng.dirichlet(np.full(CLASSES, SKEW))
        y = rng.choice(CLASSES, self.samples, p=shares).astype(np.int64)
        x = rng.standard_normal((self.samples, *self.shape), np.float32)
        x += _means(self.means, self.shape)[y]
        return ClientData(f"client-{number}", x, y, x[:0], y[:0])

    def _some(self, numbers: Iterable[int]) -> list[ClientData]:
        return [self.client(int(number)) for number in numbers]

    def data(self) -> tuple[ClientData, ...]:
        """Return all clients' data."""
        # Small clients are Python, which threads would only take turns at.
        large = self.samples * prod(self.shape) > _LARGE
        threads = usable_cores() if large else 1
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(self._some, np.array_split(range(self.clients), threads))
            return tuple(chain.from_iterable(parts))

    def task(self, data: tuple[ClientData, ...] | None = None) -> "LocalTask":
        """Return the learning task, all of its data in RAM.

        Args:
            data: What :meth:`data` returned, if it is there already.
        """
        from fedunlearn.task import LocalTask

        return LocalTask(
            clients=self.data() if data is None else data,
            model=self.model,
            input_shape=self.shape,
            num_classes=CLASSES,
            training=self.training,
        )


@lru_cache(maxsize=8)
def _means(
    make: Callable[[tuple[int, ...]], Features], shape: tuple[int, ...]
) -> Features:
    return make(shape)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="W1",
            clients=100,
            samples=600,
            shape=(784,),
            model=Mlp(hidden=(200,)),
            training=Training(epochs=1, batch_size=32, lr=0.05),
            means=flat_means,
        ),
        Workload(
            name="W2",
            clients=50,
            samples=300,
            shape=(1, 28, 28),
            model=LeNet5(),
            # With 0.05 rounding alone, through max pooling and ReLU, parts two
            # trainings by 2 % of their way in eight rounds: nobody could agree.
            training=Training(epochs=1, batch_size=32, lr=0.02),
            means=smooth_means,
        ),
        Workload(
            name="W3",
            clients=1000,
            samples=20,
            shape=(64,),
            model=Softmax(),
            training=Training(epochs=1, batch_size=10, lr=0.05),
            means=flat_means,
        ),
    )
}
"""Name -> workload: ``W1`` an MLP, ``W2`` LeNet-5, ``W3`` many tiny clients."""
