"""What a request takes from clients' data, and what it leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedunlearn.data.federation import ClientData
from fedunlearn.errors import RequestError
from fedunlearn.request import UnlearningRequest, View


@dataclass(frozen=True, slots=True, eq=False)
class Divided:
    """The clients that a request takes data from; a leaver loses all of it.

    Attributes:
        remaining: Client -> what it keeps, maybe nothing.
        forgotten: Client -> what is to be forgotten; of its holdout the same kind.
    """

    remaining: Mapping[int, ClientData] = field(default_factory=dict)
    forgotten: Mapping[int, ClientData] = field(default_factory=dict)

    @property
    def gone(self) -> frozenset[int]:
        """The clients that are left with nothing."""
        return frozenset(c for c, data in self.remaining.items() if not len(data.y))

    @property
    def shrunk(self) -> frozenset[int]:
        """The clients that stay and lose a part of their data."""
        return frozenset(self.remaining) - self.gone

    def of(self, client: int, data: ClientData, view: View) -> ClientData:
        """Return a part of a client's data."""
        if view == "all":
            return data
        if view == "remaining":
            return self.remaining.get(client, data)
        return self.forgotten.get(client) or taken(data, np.zeros(len(data.y), bool))


def divide(clients: Sequence[ClientData], request: UnlearningRequest) -> Divided:
    """Return what a request takes from whom.

    Raises:
        RequestError: If it names a sample that is not there.
    """
    named = request.clients.union(request.samples)
    candidates = range(len(clients)) if request.classes else sorted(named)
    masks = {
        client: _taken_of(clients[client], client, request) for client in candidates
    }
    touched = {client: mask for client, mask in masks.items() if mask.any()}
    return Divided(
        {client: taken(clients[client], ~mask) for client, mask in touched.items()},
        {
            client: _holdout_too(taken(clients[client], mask), client, request)
            for client, mask in touched.items()
        },
    )


def taken(data: ClientData, mask: npt.NDArray[np.bool_]) -> ClientData:
    """Return a client with the training examples of a mask, shape ``(n,)``."""
    return replace(data, x=data.x[mask], y=data.y[mask])


def _taken_of(
    data: ClientData, client: int, request: UnlearningRequest
) -> npt.NDArray[np.bool_]:
    if client in request.clients:
        return np.ones(len(data.y), np.bool_)
    mask = np.isin(data.y, sorted(request.classes))
    rows = request.samples.get(client, ())
    if rows and max(rows) >= len(data.y):
        raise RequestError(
            f"client {client} trains on {len(data.y)} examples: "
            f"it has no row {max(rows)}"
        )
    mask[list(rows)] = True
    return mask


def _holdout_too(
    data: ClientData, client: int, request: UnlearningRequest
) -> ClientData:
    """Keep of the holdout what is like the forgotten examples."""
    if client in request.clients.union(request.samples):
        return data
    like = np.isin(data.y_holdout, sorted(request.classes))
    return replace(data, x_holdout=data.x_holdout[like], y_holdout=data.y_holdout[like])
