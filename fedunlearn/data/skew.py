"""Partitions of Dirichlet proportions: in the classes of clients or in their sizes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedunlearn.data.dataset import Dataset
from fedunlearn.data.partition import Indices, ascending, check_clients
from fedunlearn.errors import ConfigError

REDRAWS = 20
"""How often a draw that leaves a client short is repeated before it is repaired."""
LARGEST_ALPHA = 1e12
"""Proportions are equal long before, and NumPy's draw overflows long after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirichlet:
    """Skewed classes: each class is dealt in proportions drawn from a Dirichlet.

    As in Hsu et al. 2019 and Li et al. 2022. A draw that leaves a client with fewer
    than ``min_size`` examples is repeated up to ``REDRAWS`` times; then the largest
    clients give examples to those that are short, so that every ``alpha`` works.

    Attributes:
        alpha: Concentration: near 0 a class has one client, at 100 all clients are
            alike.
        min_size: The fewest examples a client may have.
    """

    alpha: float = 0.5
    min_size: int = 10

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _check(self.alpha, self.min_size)

    def split(
        self, dataset: Dataset, clients: int, rng: np.random.Generator
    ) -> tuple[Indices, ...]:
        """Return the rows of each client."""
        y = dataset.y_train

        def draw() -> list[Indices]:
            of_class = [rng.permutation(np.flatnonzero(y == c)) for c in np.unique(y)]
            cut = [_cut(rows, self.alpha, clients, rng) for rows in of_class]
            return [np.concatenate(pieces) for pieces in zip(*cut, strict=True)]

        return _at_least(self.min_size, dataset, clients, draw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """Skewed sizes, drawn from a Dirichlet; the classes are alike everywhere.

    Attributes:
        alpha: Concentration: near 0 one client has all, at 100 all have as much.
        min_size: The fewest examples a client may have; reached as in ``Dirichlet``.
    """

    alpha: float = 1.0
    min_size: int = 10

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _check(self.alpha, self.min_size)

    def split(
        self, dataset: Dataset, clients: int, rng: np.random.Generator
    ) -> tuple[Indices, ...]:
        """Return the rows of each client."""

        def draw() -> list[Indices]:
            order = rng.permutation(len(dataset.y_train))
            return _cut(order, self.alpha, clients, rng)

        return _at_least(self.min_size, dataset, clients, draw)


def _check(alpha: float, min_size: int) -> None:
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if alpha > LARGEST_ALPHA:
        raise ValueError(f"alpha must be at most {LARGEST_ALPHA:g}, got {alpha}")
    if min_size < 0:
        raise ValueError(f"min_size must not be negative, got {min_size}")


def _cut(
    rows: Indices, alpha: float, clients: int, rng: np.random.Generator
) -> list[Indices]:
    """Return ``rows`` cut into one stretch a client, of Dirichlet proportions."""
    shares = rng.dirichlet(np.full(clients, alpha))
    return np.split(rows, (np.cumsum(shares)[:-1] * len(rows)).astype(np.int64))


def _at_least(
    min_size: int, dataset: Dataset, clients: int, draw: Callable[[], list[Indices]]
) -> tuple[Indices, ...]:
    """Return the first draw that gives all ``min_size`` rows, or the last, repaired."""
    check_clients(dataset, clients)
    examples = len(dataset.y_train)
    if clients * min_size > examples:
        raise ConfigError(
            f"{clients} clients with min_size={min_size} need {clients * min_size} "
            f"examples, {dataset.name!r} has {examples}: set min_size to at most "
            f"{examples // clients}"
        )
    parts = draw()
    for _ in range(REDRAWS):
        if min(map(len, parts)) >= min_size:
            break
        parts = draw()
    return ascending(_repaired(parts, min_size))


def _repaired(parts: list[Indices], min_size: int) -> list[Indices]:
    """Return the parts after the largest gave rows to those that are short."""
    out = list(parts)
    sizes: npt.NDArray[np.int64] = np.array([len(part) for part in out])
    for short in np.flatnonzero(sizes < min_size):
        while sizes[short] < min_size:
            giver = int(sizes.argmax())
            moved = min(min_size - sizes[short], sizes[giver] - min_size)
            out[short] = np.concatenate([out[short], out[giver][-moved:]])
            out[giver] = out[giver][:-moved]
            sizes[short] += moved
            sizes[giver] -= moved
    return out
