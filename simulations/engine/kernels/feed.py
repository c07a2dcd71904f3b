"""The padded batches of a group of clients that take their steps together."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from fedunlearn.cohort import Batches, Cohort, Indices

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Examples ``(A, width, inputs)``, targets ``(A, width, C)``, shares ``(A, width)``.

A share is one over the batch's size, and 0 for padding; a target is the share in the
place of the example's class.
"""

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
        Positions in the cohort, and the width to which their batches are padded. The
        first stands there twice where it would train alone for a while: torch rounds
        the product of one client in another way than those of several.
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
            group = members[at : at + most]
            alone = len(group) == 1 or steps[group[1]] < steps[group[0]]
            yield (np.insert(group, 0, group[0]) if alone else group), width


def phases(steps: Indices) -> Iterator[tuple[int, int, int]]:
    """Yield stretches of steps in which the same clients are active.

    Args:
        steps: Each client's number of steps, descending.

    Yields:
        First step, the step after the last, and how many clients are active.
    """
    begin = 0
    for end in np.unique(steps).tolist():
        if end > begin:
            yield begin, end, int(np.count_nonzero(steps >= end))
            begin = end


@dataclass(frozen=True, slots=True)
class Feed:
    """The padded batches of a group of A clients.

    Attributes:
        x: Examples of all, shape ``(n + 1, inputs)``; the last row, of padding, is 0.
        rows: Rows of it, shape ``(steps, A, width)``.
        targets: Shape ``(steps, A, width, C)``; see :data:`Batch`.
        shares: Shape ``(steps, A, width)``.
    """

    x: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    shares: torch.Tensor

    @classmethod
    def of(
        cls,
        group: Cohort,
        width: int,
        classes: int,
        device: torch.device,
        lanes: int = 1,
    ) -> "Feed":
        """Gather a group's data.

        Args:
            group: Whose.
            width: To which batches are padded.
            classes: How many there are.
            device: Where it goes.
            lanes: Inputs and classes are padded to a multiple of it, with zeros.
        """
        data, batches = group.data, group.batches
        inputs = prod(data[0].x.shape[1:])
        x = np.zeros((sum(len(d.x) for d in data) + 1, _up(inputs, lanes)), np.float32)
        examples = [d.x.reshape(len(d.x), inputs) for d in data]
        np.concatenate(examples, out=x[:-1, :inputs])
        y = np.concatenate([d.y for d in data])
        begin = np.cumsum([0, *(len(d.y) for d in data)])
        client, step, position = batches.place()
        shape = (int(batches.steps.max(initial=0)), len(data), width)
        rows = np.full(shape, len(y))
        rows[step, client, position] = seen = batches.rows + begin[client]
        lengths = np.diff(batches.bounds)
        share = np.repeat(1 / lengths, lengths)
        shares = np.zeros(shape, np.float32)
        shares[step, client, position] = share
        targets = np.zeros((*shape, _up(classes, lanes)), np.float32)
        targets[step, client, position, y[seen]] = share
        parts = (torch.from_numpy(a).to(device) for a in (x, rows, targets, shares))
        return cls(*parts)

    def batch(self, step: int, active: int) -> Batch:
        """Return a step's batch of the first clients."""
        rows = self.rows[step, :active]
        x = self.x.index_select(0, rows.reshape(-1)).view(*rows.shape, -1)
        return x, self.targets[step, :active], self.shares[step, :active]


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
