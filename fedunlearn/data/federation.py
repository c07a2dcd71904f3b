"""The data of all clients, and the test data nobody trains on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedunlearn.data.dataset import Dataset, Features, Labels
from fedunlearn.data.partition import Indices, Natural, Partitioner, natural_names
from fedunlearn.data.split import share_of
from fedunlearn.errors import ConfigError, UnknownNameError
from fedunlearn.rng import derive


@dataclass(frozen=True, slots=True, eq=False)
class ClientData:
    """What one client holds.

    Attributes:
        name: Its natural key, or ``client-<id>``.
        x: Examples it trains on, shape ``(n, ...)``.
        y: Their classes, shape ``(n,)``.
        x_holdout: Examples of the same client that it does not train on, shape
            ``(h, ...)``: what a model knows of ``x`` beyond these, it memorised.
        y_holdout: Their classes, shape ``(h,)``.
    """

    name: str
    x: Features
    y: Labels
    x_holdout: Features
    y_holdout: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Federation:
    """A data set dealt to clients.

    Attributes:
        dataset_name: Which data set.
        clients: Each client's data, by client id.
        x_test: Test examples, shape ``(m, ...)``.
        y_test: Their classes, shape ``(m,)``.
        num_classes: Number of classes.
    """

    dataset_name: str
    clients: tuple[ClientData, ...]
    x_test: Features
    y_test: Labels
    num_classes: int

    @property
    def names(self) -> tuple[str, ...]:
        """The clients' names, by client id."""
        return tuple(client.name for client in self.clients)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.x_test.shape[1:]

    def label_counts(self) -> npt.NDArray[np.int64]:
        """Return each client's examples per class, holdout included, ``(K, C)``."""
        rows = [np.concatenate([c.y, c.y_holdout]) for c in self.clients]
        counts = [np.bincount(row, minlength=self.num_classes) for row in rows]
        return np.stack(counts).astype(np.int64)

    def client_id(self, client: str | int) -> int:
        """Return the id of a client.

        Args:
            client: Its name, or its id as an integer or as text; names win over ids.

        Raises:
            UnknownNameError: If there is no such client.
        """
        known = {str(index): index for index in range(len(self.clients))}
        known |= {name: index for index, name in enumerate(self.names)}
        if isinstance(client, int) and 0 <= client < len(self.clients):
            return client
        if isinstance(client, str) and client in known:
            return known[client]
        raise UnknownNameError.of("client", client, self.names)


def federate(
    dataset: Dataset,
    partitioner: Partitioner,
    clients: int,
    *,
    holdout: float,
    seed: int,
) -> Federation:
    """Return the data set dealt to clients, each with a holdout of its own.

    Args:
        dataset: What is dealt.
        partitioner: How.
        clients: To how many.
        holdout: Share of its examples that each client does not train on, in
            ``[0, 1)``. A client of two or more keeps at least one on each side, a
            client of one trains on it.
        seed: The run's seed; each client's holdout depends on it and the client alone.

    Raises:
        ConfigError: If ``holdout`` or ``clients`` is out of range.
    """
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout must lie in [0, 1), got {holdout}")
    parts = partitioner.split(dataset, clients, derive(seed, "partition"))
    names = _names(dataset, partitioner, clients)
    data = [
        _client(dataset, name, rows, _held_out(rows, holdout, seed, client))
        for client, (name, rows) in enumerate(zip(names, parts, strict=True))
    ]
    return Federation(
        dataset.name, tuple(data), dataset.x_test, dataset.y_test, dataset.num_classes
    )


def _names(dataset: Dataset, partitioner: Partitioner, clients: int) -> tuple[str, ...]:
    if isinstance(partitioner, Natural):
        return natural_names(dataset)
    return tuple(f"client-{client}" for client in range(clients))


def _held_out(
    rows: Indices, holdout: float, seed: int, client: int
) -> npt.NDArray[np.bool_]:
    """Return which of a client's rows it does not train on, shape ``(n,)``."""
    mask = np.zeros(len(rows), np.bool_)
    order = derive(seed, "holdout", client).permutation(len(rows))
    mask[order[: share_of(holdout, len(rows))]] = True
    return mask


def _client(
    dataset: Dataset, name: str, rows: Indices, held: npt.NDArray[np.bool_]
) -> ClientData:
    train, rest = rows[~held], rows[held]
    x, y = dataset.x_train, dataset.y_train
    return ClientData(name, x[train], y[train], x[rest], y[rest])
