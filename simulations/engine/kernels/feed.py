"""The padded batches of a group of clients that take their steps together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fedunlearn.cohort import Batches, Cohort, Indices

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Examples ``(A, width, inputs)``, one-hot ``(A, width, C)``, shares ``(A, width)``."""

_ROUND = 8
"""Batches smaller than the task's are padded to a multiple of it."""
_GROUP_BYTES = 64 << 20
"""Examples of a group's step at most: bounds the memory of a large cohort."""


def groups(
    batches: Batches, batch_size: int, row_bytes: int
) -> Iterator[tuple[Indices, int]]:
    """Yield clients with batches of about one size, longest trainings first.

    A client is padded to a width that follows from its own data, whoever is beside it.

    Args:
        batches: Of the whole cohort.
        batch_size: The task's.
        row_bytes: Bytes of an example.

    Yields:
        Positions in the cohort, and the width to which their batches are padded.
    """
    steps = batches.steps
    largest = np.zeros(len(steps), np.int64)
    busy = steps > 0
    largest[busy] = np.diff(batches.bounds)[batches.first[:-1][busy]]
    widths = np.minimum(-(-largest // _ROUND) * _ROUND, batch_size)
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)
        members = members[np.argsort(-steps[members], kind="stable")]
        most = max(1, _GROUP_BYTES // (row_bytes * max(1, width)))
        for at in range(0, len(members), most):
            yield members[at : at + most], width


@dataclass(frozen=True, slots=True)
class Feed:
    """The padded batches of a group of A clients.

    Attributes:
        x: Examples of all, shape ``(n + 1, inputs)``; the last row, of padding, is 0.
        targets: One-hot classes, shape ``(n + 1, C)``; the last row is 0.
        rows: Rows of both, shape ``(steps, A, width)``.
        shares: One over the batch's size, 0 for padding, shape ``(steps, A, width)``.
    """

    x: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    shares: torch.Tensor

    @classmethod
    def of(
        cls, group: Cohort, width: int, classes: int, device: torch.device
    ) -> "Feed":
        """Gather a group's data."""
        data, batches = group.data, group.batches
        examples = [d.x.reshape(len(d.x), -1) for d in data]
        padding = np.zeros((1, examples[0].shape[1]), np.float32)
        x = np.concatenate([*examples, padding])
        y = np.concatenate([d.y for d in data])
        begin = np.cumsum([0, *(len(d.y) for d in data)])
        client, step, position = batches.place()
        shape = (int(batches.steps.max(initial=0)), len(data), width)
        rows = np.full(shape, len(y))
        rows[step, client, position] = batches.rows + begin[client]
        lengths = np.diff(batches.bounds)
        shares = np.zeros(shape, np.float32)
        shares[step, client, position] = np.repeat(1 / lengths, lengths)
        targets = np.zeros((len(x), classes), np.float32)
        targets[np.arange(len(y)), y] = 1
        parts = (torch.from_numpy(a).to(device) for a in (x, targets, rows, shares))
        return cls(*parts)

    def batch(self, step: int, active: int) -> Batch:
        """Return a step's examples, targets and shares of the first clients."""
        rows, shares = self.rows[step, :active], self.shares[step, :active]
        flat = rows.reshape(-1)
        x = self.x.index_select(0, flat)
        targets = self.targets.index_select(0, flat)
        return x.view(*rows.shape, -1), targets.view(*rows.shape, -1), shares
