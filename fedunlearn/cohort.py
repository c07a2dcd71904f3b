"""What a cohort trains on: the orders of many clients as one set of arrays.

A kernel of the engine takes a :class:`Cohort` and gives every client's model after its
local training. Whoever trains the same cohort with another kernel, cut into other
chunks or beside clients of other runs gets the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fedunlearn.data import ClientData
from fedunlearn.params import Matrix, Vector

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """Which examples every step of every client sees.

    Client ``k`` takes steps ``first[k]`` to ``first[k + 1] - 1``; step ``s`` sees the
    rows ``rows[bounds[s] : bounds[s + 1]]`` of its client's data.

    Attributes:
        rows: Row numbers, client after client and step after step, int64.
        bounds: Where each step's rows begin, and the end of the last, shape
            ``(steps + 1,)``, int64.
        first: Each client's first step, and the end of the last's, shape ``(K + 1,)``,
            int64.
    """

    rows: Indices
    bounds: Indices
    first: Indices

    @classmethod
    def of_lengths(
        cls, rows: Sequence[Indices], lengths: Sequence[Indices]
    ) -> "Batches":
        """Return the batches of clients.

        Args:
            rows: Row numbers in pieces, in the order in which they are used.
            lengths: Each client's examples a step.
        """
        empty = np.zeros(0, np.int64)
        return cls(
            np.concatenate([empty, *rows]),
            _running(np.concatenate([empty, *lengths])),
            _running(np.fromiter(map(len, lengths), np.int64)),
        )

    @classmethod
    def joined(cls, parts: "Sequence[Batches]") -> "Batches":
        """Return the batches of several cohorts as those of one."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.rows for part in parts]),
            _running(np.concatenate([np.diff(part.bounds) for part in parts])),
            _running(np.concatenate([part.steps for part in parts])),
        )

    @property
    def steps(self) -> Indices:
        """Steps of every client, shape ``(K,)``."""
        return np.diff(self.first)

    @property
    def samples(self) -> Indices:
        """Examples every client passes through its model, shape ``(K,)``."""
        return np.diff(self.bounds[self.first])

    def of_client(self, k: int) -> list[Indices]:
        """Return one client's steps."""
        ends = self.bounds[self.first[k] : self.first[k + 1] + 1]
        return [self.rows[a:b] for a, b in pairwise(ends)]

    def part(self, begin: int, end: int) -> "Batches":
        """Return the batches of clients ``begin`` to ``end - 1``."""
        first = self.first[begin : end + 1]
        bounds = self.bounds[first[0] : first[-1] + 1]
        rows = self.rows[bounds[0] : bounds[-1]]
        return Batches(rows, bounds - bounds[0], first - first[0])

    def take(self, clients: Indices) -> "Batches":
        """Return the batches of some clients, in the order given."""
        steps = _ranges(self.first[:-1][clients], self.steps[clients])
        lengths = np.diff(self.bounds)[steps]
        rows = self.rows[_ranges(self.bounds[:-1][steps], lengths)]
        return Batches(rows, _running(lengths), _running(self.steps[clients]))

    def place(self) -> tuple[Indices, Indices, Indices]:
        """Return client, step of the client and position in it of every row."""
        lengths = np.diff(self.bounds)
        client = np.repeat(np.arange(len(self.steps)), self.steps)
        step = np.arange(len(lengths)) - self.first[:-1][client]
        position = np.arange(len(self.rows)) - np.repeat(self.bounds[:-1], lengths)
        return np.repeat(client, lengths), np.repeat(step, lengths), position


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cohort:
    """Clients that train at the same time, each by its own order.

    Attributes:
        data: Each client's data, length K.
        starts: The models they start from, shape ``(M, P)``.
        start_of: Which of them each client starts from, shape ``(K,)``, int64.
        batches: What each step sees.
        proximal_mu: Weight of each client's FedProx term, shape ``(K,)``, float64.
    """

    data: Sequence[ClientData]
    starts: Matrix
    start_of: Indices
    batches: Batches
    proximal_mu: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of clients, K."""
        return len(self.data)

    def start(self, k: int) -> Vector:
        """Return the model client ``k`` starts from, shape ``(P,)``."""
        row: Vector = self.starts[self.start_of[k]]
        return row

    def part(self, begin: int, end: int) -> "Cohort":
        """Return clients ``begin`` to ``end - 1``; arrays are shared, not copied."""
        return Cohort(
            data=self.data[begin:end],
            starts=self.starts,
            start_of=self.start_of[begin:end],
            batches=self.batches.part(begin, end),
            proximal_mu=self.proximal_mu[begin:end],
        )

    def take(self, clients: Indices) -> "Cohort":
        """Return some clients, in the order given."""
        return Cohort(
            data=[self.data[k] for k in clients],
            starts=self.starts,
            start_of=self.start_of[clients],
            batches=self.batches.take(clients),
            proximal_mu=self.proximal_mu[clients],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CohortResult:
    """What a cohort's local trainings came to, a client a row.

    Attributes:
        models: The models after training, shape ``(K, P)``.
        num_examples: Training examples each holds, shape ``(K,)``, int64.
        num_steps: Steps each took, shape ``(K,)``, int64.
        num_samples: Examples each passed through its model, shape ``(K,)``, int64.
        losses: Mean loss of each over its steps, shape ``(K,)``.
    """

    models: Matrix
    num_examples: Indices
    num_steps: Indices
    num_samples: Indices
    losses: npt.NDArray[np.float64]

    @property
    def faultless(self) -> bool:
        """Whether every model is finite and every client has examples."""
        # A sum is not finite if one of its terms is not. It may overflow by itself:
        # whoever asks looks at the models one by one then.
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(self.models.sum(1)).all()
        return bool(finite) and bool((self.num_examples > 0).all())


def _running(counts: Indices) -> Indices:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _ranges(begins: Indices, lengths: Indices) -> Indices:
    """Return ``begin, begin + 1, ...`` of each range, one range after another."""
    ends = np.cumsum(lengths)
    shifts: Indices = np.repeat(begins - (ends - lengths), lengths)
    return np.arange(len(shifts)) + shifts
