"""Clients whose work moves a progress bar."""

from collections.abc import Collection
from dataclasses import dataclass

from fedunlearn.history import ClientId
from fedunlearn.local import LocalProcedure, Results
from fedunlearn.method import Clients
from fedunlearn.params import Vector
from fedunlearn.updates import Updates
from simulations.events import Listener, tell


@dataclass(frozen=True, slots=True)
class WatchedClients:
    """Remaining clients whose trainings move a progress bar.

    Attributes:
        inner: The clients.
        listeners: Told of every training.
        rounds: Trainings a phase takes at most, for the size of a step.
    """

    inner: Clients
    listeners: tuple[Listener, ...]
    rounds: int

    @property
    def ids(self) -> frozenset[ClientId]:
        """Everybody who is there."""
        return self.inner.ids

    def train(
        self,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
        epochs: float | None = None,
    ) -> Updates:
        """Train through ``inner``."""
        updates = self.inner.train(model, ids, round_index=round_index, epochs=epochs)
        tell(self.listeners, "tick", rounds=self.rounds)
        return updates

    def run(
        self,
        procedure: LocalProcedure,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
    ) -> Results:
        """Run a procedure through ``inner``."""
        results = self.inner.run(procedure, model, ids, round_index=round_index)
        tell(self.listeners, "tick", rounds=self.rounds)
        return results
