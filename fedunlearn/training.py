"""How a client trains, in numbers: hyper-parameters, one order, the batch order."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedunlearn.history import ClientId
from fedunlearn.rng import derive


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
    """

    seed: int
    round_index: int
    epochs: float | None = None
    proximal_mu: float = 0.0


def batch_order(
    num_examples: int, training: Training, client: ClientId, work: LocalWork
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the row indices of each step: a fresh permutation an epoch.

    A fraction of an epoch takes that fraction of its batches, rounded up.
    """
    if num_examples == 0:
        return
    epochs = training.epochs if work.epochs is None else work.epochs
    size = training.batch_size
    per_epoch = -(-num_examples // size)
    # 1e-9 keeps 1.1 * 50 batches from rounding up to 56 by a float's last bit.
    steps = int(np.ceil(epochs * per_epoch - 1e-9))
    rng = derive(work.seed, "batches", work.round_index, client)
    for first in range(0, steps, per_epoch):
        order = rng.permutation(num_examples)
        for step in range(min(per_epoch, steps - first)):
            yield order[step * size : (step + 1) * size]
