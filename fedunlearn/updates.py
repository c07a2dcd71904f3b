"""Fresh updates of a cohort, and the server rule that turns them into a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from fedunlearn.history import ClientId, Counts, ServerState
from fedunlearn.params import Matrix, Vector, weighted_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """What a cohort sent back.

    Attributes:
        clients: Who, ascending.
        before: The model they started from, shape ``(P,)``.
        after: Their models after local training, shape ``(K, P)``. These, not the
            differences, are what a Flower server aggregates: keeping them makes
            retraining equal to training bit for bit.
        num_examples: Training examples each holds, the aggregation weight, ``(K,)``.
        num_steps: Local optimiser steps each took, ``(K,)``.
        num_samples: Examples each passed through its model, ``(K,)``.
        round_index: The round they belong to; None if to none.
        asked: Who was asked, ascending; None if nobody knows.
    """

    clients: tuple[ClientId, ...]
    before: Vector
    after: Matrix
    num_examples: Counts
    num_steps: Counts
    num_samples: Counts
    round_index: int | None = None
    asked: tuple[ClientId, ...] | None = None

    @classmethod
    def of_deltas(
        cls,
        before: Vector,
        deltas: Matrix,
        clients: Sequence[ClientId],
        num_examples: Counts,
        round_index: int | None = None,
    ) -> "Updates":
        """Return updates known by their differences, such as stored or rescaled ones.

        Args:
            before: The model they apply to, shape ``(P,)``.
            deltas: After minus before, shape ``(K, P)``.
            clients: Whose they are, ascending.
            num_examples: Aggregation weights, shape ``(K,)``.
            round_index: The round that a step with them stands for; None if for none.
        """
        nothing = np.zeros(len(clients), np.int64)
        return cls(
            clients=tuple(clients),
            before=before,
            after=before + deltas,
            num_examples=num_examples,
            num_steps=nothing,
            num_samples=nothing,
            round_index=round_index,
        )

    @property
    def deltas(self) -> Matrix:
        """After minus before, shape ``(K, P)``."""
        return self.after - self.before


class Server(Protocol):
    """A server rule with its state (momentum, moments, ...)."""

    @property
    def stateful(self) -> bool:
        """Whether a step depends on the steps before it."""
        ...

    @property
    def mean(self) -> bool:
        """Whether a step is the mean of the clients' models, weighted by examples."""
        ...

    def step(self, updates: Updates) -> Vector:
        """Return the next global model, shape ``(P,)``."""
        ...

    def restore(self, state: ServerState, next_round: int) -> None:
        """Go on from the recorded state in which round ``next_round`` began."""
        ...


@dataclass(frozen=True, slots=True)
class MeanServer:
    """Federated averaging: the mean weighted by example counts (McMahan et al. 2017).

    The stateless reference; bit-equal to Flower's ``FedAvg`` in the same order.
    """

    stateful: ClassVar[bool] = False
    mean: ClassVar[bool] = True

    def step(self, updates: Updates) -> Vector:
        """Return ``sum_k n_k w_k / sum_k n_k``."""
        return weighted_mean(updates.after, updates.num_examples.tolist())

    def restore(self, state: ServerState, next_round: int) -> None:
        """Do nothing: a mean has no state."""
