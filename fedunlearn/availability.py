"""Who answers in time, and how long a round takes on a simulated clock."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedunlearn.history import ClientId, Counts
from fedunlearn.rng import Streams

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Clients that drop out, and clients that are slow.

    Client ``k`` needs ``samples / (speed * exp(spread * z_k))`` seconds, ``z_k`` drawn
    once a run from a standard normal distribution. The server waits for the slowest,
    or until the deadline; who is later does not count as having answered. A round in
    which nobody would answer has one who does, the likeliest: the server waits for it.

    Attributes:
        answers: Chance that an asked client answers at all, in (0, 1]; drawn anew in
            every round, the same whoever else is asked.
        speed: Examples a median client passes through its model in a second; None
            simulates no clock.
        spread: Standard deviation of the logarithm of the speeds.
        deadline: Simulated seconds after which the server goes on; None waits.
    """

    answers: float = 1.0
    speed: float | None = None
    spread: float = 0.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if not 0 < self.answers <= 1:
            raise ValueError(f"answers must lie in (0, 1], got {self.answers}")
        if self.speed is not None and self.speed <= 0:
            raise ValueError(f"speed must be positive, got {self.speed}")
        if self.spread < 0:
            raise ValueError(f"spread must not be negative, got {self.spread}")
        if self.deadline is not None and self.deadline <= 0:
            raise ValueError(f"deadline must be positive, got {self.deadline}")
        if self.speed is None and (self.spread or self.deadline):
            raise ValueError("spread and deadline need a speed: there is no clock")

    @property
    def limited(self) -> bool:
        """Whether some clients may not answer."""
        return self.answers < 1 or self.deadline is not None

    def answering(
        self,
        seed: int,
        round_index: int,
        clients: Sequence[ClientId],
        samples: Counts,
    ) -> npt.NDArray[np.bool_]:
        """Return which of the asked clients answer in time, shape ``(K,)``.

        Args:
            seed: The run's.
            round_index: The round.
            clients: Who is asked.
            samples: Examples each would pass through its model, shape ``(K,)``.
        """
        lots = Streams(seed, "availability", round_index)
        drawn = np.array([lots.of(c).random() for c in clients])
        there = drawn < self.answers
        if self.deadline is not None:
            there &= self.seconds(seed, clients, samples) <= self.deadline
        if not there.any():
            there[drawn.argmin()] = True
        return there

    def seconds(
        self, seed: int, clients: Sequence[ClientId], samples: Counts
    ) -> Seconds:
        """Return how long each client takes, shape ``(K,)``; 0 without a clock."""
        if self.speed is None:
            return np.zeros(len(clients))
        speeds = Streams(seed, "speed")
        normal = np.array([speeds.of(c).standard_normal() for c in clients])
        return samples / (self.speed * np.exp(self.spread * normal))

    def round_seconds(
        self, seed: int, answered: Sequence[ClientId], samples: Counts, asked: int
    ) -> float:
        """Return how long the server waits in a round.

        Args:
            seed: The run's.
            answered: Who answered.
            samples: Examples each passed through its model, shape ``(K,)``.
            asked: How many were asked.
        """
        if self.deadline is not None and len(answered) < asked:
            return self.deadline
        return float(self.seconds(seed, answered, samples).max(initial=0.0))
