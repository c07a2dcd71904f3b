"""How the federation was trained: what a method needs to know to train like it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedunlearn.history import ClientId
from fedunlearn.rng import derive


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSchedule:
    """The recorded training run in numbers.

    Attributes:
        seed: The run's seed; every client's batch order derives from it.
        rounds: Rounds that were trained, T.
        epochs: Local epochs a client trains a round, E.
        clients_per_round: Clients asked a round; None asks all.
        joins: Client -> the first round it takes part in, if that is not the first.
    """

    seed: int
    rounds: int
    epochs: float
    clients_per_round: int | None = None
    joins: Mapping[ClientId, int] = field(default_factory=dict)

    def cohort(
        self, round_index: int, candidates: Collection[ClientId]
    ) -> tuple[ClientId, ...]:
        """Return who is asked in a round, ascending.

        Every client draws one number for the round and the smallest numbers are asked.
        Without one client the others keep their numbers, so only the next in line moves
        up: the cohorts with and without a leaver differ in one place.
        """
        ordered = sorted(c for c in candidates if self.joins.get(c, 1) <= round_index)
        if self.clients_per_round is None or len(ordered) <= self.clients_per_round:
            return tuple(ordered)
        lots = derive(self.seed, "cohort", round_index).random(ordered[-1] + 1)
        ids = np.array(ordered)
        smallest = np.argsort(lots[ids], kind="stable")[: self.clients_per_round]
        return tuple(np.sort(ids[smallest]).tolist())
