"""How the training examples of one data set are dealt to clients."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedunlearn.data.dataset import Dataset
from fedunlearn.errors import ConfigError

Indices = npt.NDArray[np.int64]
"""Rows of the training data that one client gets, ascending, shape ``(n_k,)``."""


class Partitioner(Protocol):
    """A rule of dealing: a frozen dataclass that is its configuration."""

    def split(
        self, dataset: Dataset, clients: int, rng: np.random.Generator
    ) -> tuple[Indices, ...]:
        """Return the rows of each client; every row goes to exactly one.

        Args:
            dataset: Whose training examples are dealt.
            clients: How many clients there are.
            rng: Where all chance comes from.

        Raises:
            ConfigError: If this many clients cannot be served.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Iid:
    """A random deal; sizes differ by at most one."""

    def split(
        self, dataset: Dataset, clients: int, rng: np.random.Generator
    ) -> tuple[Indices, ...]:
        """Return the rows of each client."""
        check_clients(dataset, clients)
        order = rng.permutation(len(dataset.y_train))
        return ascending(np.array_split(order, clients))


@dataclass(frozen=True, slots=True, kw_only=True)
class Natural:
    """Each example stays with the client it came from; clients in order of their key.

    Keys are compared as text, so that ``"10"`` comes before ``"2"``.
    """

    def split(
        self,
        dataset: Dataset,
        clients: int,
        rng: np.random.Generator,  # noqa: ARG002 - part of the protocol
    ) -> tuple[Indices, ...]:
        """Return the rows of each client; there is no chance in it."""
        names = natural_names(dataset)
        if clients != len(names):
            raise ConfigError(
                f"clients is {clients}, data set {dataset.name!r} has {len(names)} "
                f"natural clients: set clients to {len(names)}"
            )
        return tuple(np.flatnonzero(dataset.client_train == name) for name in names)


def natural_names(dataset: Dataset) -> tuple[str, ...]:
    """Return the keys of the natural clients in ascending order.

    Raises:
        ConfigError: If the data set has none.
    """
    if dataset.client_train is None:
        raise ConfigError(
            f"data set {dataset.name!r} has no natural clients; use the partition iid, "
            "dirichlet, shards or quantity"
        )
    return tuple(str(name) for name in np.unique(dataset.client_train))


def clients_of(dataset: Dataset, partitioner: Partitioner) -> int | None:
    """Return how many clients a partition needs, or None if any number will do.

    Raises:
        ConfigError: If the partition is natural and the data set is not.
    """
    if not isinstance(partitioner, Natural):
        return None
    return len(natural_names(dataset))


def check_clients(dataset: Dataset, clients: int) -> None:
    """Refuse fewer clients than one and more than there are training examples.

    Raises:
        ConfigError: In both cases.
    """
    examples = len(dataset.y_train)
    if not 1 <= clients <= examples:
        raise ConfigError(
            f"clients must lie between 1 and {examples}, the training examples of data "
            f"set {dataset.name!r}, got {clients}"
        )


def ascending(parts: list[Indices]) -> tuple[Indices, ...]:
    """Return the rows of each client, sorted."""
    return tuple(np.sort(part).astype(np.int64) for part in parts)
