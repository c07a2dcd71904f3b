"""Clients in shards: each shard trains a block of the model that no other one touches.

Sharding of SISA (Bourtoule et al., "Machine Unlearning", IEEE S&P 2021) with clients in
the place of examples. The federation's model is one vector of S equal blocks, one a
shard; client k trains block ``k mod S``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedunlearn.history import ClientId, ServerState
from fedunlearn.params import Vector, weighted_mean
from fedunlearn.updates import MeanServer, Server, Updates


def shard_of(client: ClientId, shards: int) -> int:
    """Return the shard a client belongs to, from 0; who else is there has no say."""
    return client % shards


def shards_of(clients: Sequence[ClientId], shards: int) -> npt.NDArray[np.int64]:
    """Return the shard of each client, shape ``(K,)``."""
    return np.asarray(clients, np.int64) % shards


def blocks_of(model: Vector, shards: int) -> Vector:
    """Return a view of a model as its blocks, shape ``(S, P / S)``."""
    return model.reshape(shards, -1)


@dataclass(frozen=True, slots=True)
class ShardedMean:
    """Federated averaging within every shard.

    Attributes:
        shards: How many there are, S.
    """

    shards: int
    stateful: ClassVar[bool] = False
    mean: ClassVar[bool] = False

    def step(self, updates: Updates) -> Vector:
        """Return each block's mean weighted by examples over the clients of its shard.

        A block with no client among them stays as it was sent out.
        """
        after = updates.before.copy()
        blocks = blocks_of(after, self.shards)
        homes = shards_of(updates.clients, self.shards)
        models = updates.after.reshape(len(homes), self.shards, -1)
        for shard in np.unique(homes):
            own = homes == shard
            weights = updates.num_examples[own].tolist()
            blocks[shard] = weighted_mean(models[own, shard], weights)
        return after

    def restore(self, state: ServerState, next_round: int) -> None:
        """Do nothing: a mean has no state."""


def mean_within(shards: int) -> Server:
    """Return federated averaging within shards; one shard is the whole federation."""
    return MeanServer() if shards == 1 else ShardedMean(shards)
