"""How a client trains, in numbers: hyper-parameters, one order, the batch order."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import get_args

import numpy as np
import numpy.typing as npt

from fedunlearn.cohort import Batches
from fedunlearn.history import ClientId
from fedunlearn.request import View
from fedunlearn.rng import Streams, check_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Local training: mini-batch SGD on cross-entropy.

    Attributes:
        epochs: Passes over the local data a round; may be a fraction.
        batch_size: Examples a step; the last batch of an epoch may be smaller.
        lr: Learning rate.
        momentum: SGD momentum; its buffer starts at zero in every round.
        weight_decay: L2 penalty.
    """

    epochs: float = 1
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.epochs <= 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if self.weight_decay < 0:
            raise ValueError(
                f"weight_decay must not be negative, got {self.weight_decay}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalWork:
    """One order to train.

    Attributes:
        seed: The run's seed.
        round_index: The round, from 1; with the seed and the client it fixes the batch
            order.
        epochs: Local epochs; None takes the task's own.
        proximal_mu: Weight of FedProx's term, ``mu/2 ||w - w_global||^2``.
        view: Which part of its data a client uses.

    Raises:
        ValueError: If a number lies outside its range.
    """

    seed: int
    round_index: int
    epochs: float | None = None
    proximal_mu: float = 0.0
    view: View = "all"

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_stream(self.seed, (self.round_index,))
        if self.view not in get_args(View):
            raise ValueError(f"view must be one of {get_args(View)}, got {self.view!r}")
        for name, value in (("epochs", self.epochs), ("proximal_mu", self.proximal_mu)):
            if value is not None and not 0 <= value < inf:
                raise ValueError(f"{name} must be finite and not negative, got {value}")


def batch_order(
    num_examples: int, training: Training, client: ClientId, work: LocalWork
) -> list[npt.NDArray[np.int64]]:
    """Return the row indices of each step: a fresh permutation an epoch.

    A fraction of an epoch takes that fraction of its batches, rounded up.
    """
    return plan([client], [num_examples], training, work).of_client(0)


def plan(
    clients: Sequence[ClientId],
    sizes: Sequence[int],
    training: Training,
    work: LocalWork,
) -> Batches:
    """Return the batches of a cohort.

    Args:
        clients: Who.
        sizes: How many examples each holds.
        training: How they train.
        work: The order they all get.
    """
    streams = Streams(work.seed, "batch order", work.round_index)
    epochs = training.epochs if work.epochs is None else work.epochs
    rows: list[npt.NDArray[np.int64]] = []
    lengths: list[npt.NDArray[np.int64]] = []
    for client, size in zip(clients, sizes, strict=True):
        steps, passes = _steps(size, training.batch_size, epochs)
        permutation = streams.of(client).permutation
        rows += [permutation(size)[:used] for used in passes]
        lengths.append(steps)
    return Batches.of_lengths(rows, lengths)


def samples_of(
    sizes: Sequence[int], training: Training, work: LocalWork
) -> npt.NDArray[np.int64]:
    """Return how many examples clients of given sizes pass through their models."""
    epochs = training.epochs if work.epochs is None else work.epochs
    counts = (sum(_steps(size, training.batch_size, epochs)[1]) for size in sizes)
    return np.fromiter(counts, np.int64)


@lru_cache(maxsize=4096)
def _steps(
    size: int, batch_size: int, epochs: float
) -> tuple[npt.NDArray[np.int64], tuple[int, ...]]:
    """Return the examples of each step, and those of each pass over the data."""
    if size == 0:
        return np.zeros(0, np.int64), ()
    per_epoch = np.full(-(-size // batch_size), batch_size, np.int64)
    per_epoch[-1] = size - batch_size * (len(per_epoch) - 1)
    # 1e-9 keeps 1.1 * 50 batches from rounding up to 56 by a float's last bit.
    steps = int(np.ceil(epochs * len(per_epoch) - 1e-9))
    whole, rest = divmod(steps, len(per_epoch))
    begun = int(per_epoch[:rest].sum())
    passes = (size,) * whole + ((begun,) if rest else ())
    return np.resize(per_epoch, steps), passes
