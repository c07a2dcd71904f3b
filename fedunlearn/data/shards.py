"""A partition in which each client holds few classes."""

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedunlearn.data.dataset import Dataset
from fedunlearn.data.partition import Indices, ascending, check_clients
from fedunlearn.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Few classes a client: shards of one class each, dealt at random.

    As in McMahan et al. 2017, except that no shard reaches over two classes, so that
    ``classes_per_client`` is kept whatever the sizes of the classes. A client that is
    dealt two shards of a class has fewer classes.

    Attributes:
        classes_per_client: Shards of each client, the most classes it can have.
    """

    classes_per_client: int = 2

    def __post_init__(self) -> None:
        """Refuse clients without a class."""
        if self.classes_per_client < 1:
            raise ValueError(
                f"classes_per_client must be at least 1, got {self.classes_per_client}"
            )

    def split(
        self, dataset: Dataset, clients: int, rng: np.random.Generator
    ) -> tuple[Indices, ...]:
        """Return the rows of each client."""
        check_clients(dataset, clients)
        classes, sizes = np.unique(dataset.y_train, return_counts=True)
        total = clients * self.classes_per_client
        if not len(classes) <= total <= len(dataset.y_train):
            raise ConfigError(
                f"{clients} clients with classes_per_client={self.classes_per_client} "
                f"make {total} shards; {dataset.name!r} needs at least {len(classes)}, "
                f"one a class, and at most {len(dataset.y_train)}, one an example"
            )
        shards: list[Indices] = []
        for label, count in zip(classes, _apportion(sizes, total), strict=True):
            rows = rng.permutation(np.flatnonzero(dataset.y_train == label))
            shards += np.array_split(rows, count)
        hands = rng.permutation(total).reshape(clients, self.classes_per_client)
        return ascending([np.concatenate([shards[s] for s in h]) for h in hands])


def _apportion(sizes: npt.NDArray[np.int64], total: int) -> list[int]:
    """Return how many of ``total`` shards each class is cut into, by D'Hondt's rule.

    Each gets at least one and at most as many as it has examples.
    """
    counts = [1] * len(sizes)
    queue = [(-float(size), index) for index, size in enumerate(sizes)]
    heapq.heapify(queue)
    for _ in range(total - len(sizes)):
        _, index = queue[0]
        counts[index] += 1
        heapq.heapreplace(queue, (-float(sizes[index]) / counts[index], index))
    return counts
