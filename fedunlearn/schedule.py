"""How the federation was trained: what a method needs to know to train like it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedunlearn.history import ClientId
from fedunlearn.rng import derive
from fedunlearn.shards import shards_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSchedule:
    """The recorded training run in numbers.

    Attributes:
        seed: The run's seed; every client's batch order derives from it.
        rounds: Rounds that were trained, T.
        epochs: Local epochs a client trains a round, E.
        clients_per_round: Clients asked a round; None asks all.
        joins: Client -> the first round it takes part in, if that is not the first.
        shards: Parts of the federation that train blocks of their own, S; each has the
            same share of the clients asked a round.
    """

    seed: int
    rounds: int
    epochs: float
    clients_per_round: int | None = None
    joins: Mapping[ClientId, int] = field(default_factory=dict)
    shards: int = 1

    def cohort(
        self, round_index: int, candidates: Collection[ClientId]
    ) -> tuple[ClientId, ...]:
        """Return who is asked in a round, ascending.

        Every client draws one number for the round and the smallest numbers of each
        shard are asked. Without one client the others keep their numbers, so only the
        next in line moves up: the cohorts with and without a leaver differ in one
        place, and in no other shard.
        """
        ordered = sorted(c for c in candidates if self.joins.get(c, 1) <= round_index)
        if self.clients_per_round is None:
            return tuple(ordered)
        each = self.clients_per_round // self.shards
        if len(ordered) <= each:
            return tuple(ordered)
        lots = derive(self.seed, "cohort", round_index).random(ordered[-1] + 1)
        ids = np.array(ordered)
        homes = shards_of(ordered, self.shards)
        asked = [
            own[np.argsort(lots[own], kind="stable")[:each]]
            for own in (ids[homes == shard] for shard in range(self.shards))
        ]
        return tuple(np.sort(np.concatenate(asked)).tolist())
