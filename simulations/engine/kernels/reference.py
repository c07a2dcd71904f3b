"""Eager torch, client after client, any model: the definition of right."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedunlearn.cohort import Cohort
from fedunlearn.params import Matrix
from fedunlearn.task import LocalTask


@dataclass(frozen=True, slots=True)
class ReferenceKernel:
    """What every client of a Flower federation runs itself.

    Attributes:
        task: What is trained.
    """

    task: LocalTask
    name: ClassVar[str] = "reference"
    parallel: ClassVar[bool] = False  # one module a process; autograd's calls are short
    stacks: ClassVar[bool] = False
    independent: ClassVar[bool] = True

    def train(self, cohort: Cohort, out: Matrix) -> npt.NDArray[np.float64]:
        """Train every client; see :class:`Kernel`."""
        losses = np.zeros(len(cohort))
        for k, data in enumerate(cohort.data):
            out[k], losses[k] = self.task.descend(
                data,
                cohort.start(k),
                cohort.batches.of_client(k),
                float(cohort.proximal_mu[k]),
            )
        return losses
