"""The contract of all kernels."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedunlearn.cohort import Cohort
from fedunlearn.params import Matrix


class Kernel(Protocol):
    """Trains cohorts of one task.

    Every kernel takes the same batches in the same order and equals ``reference`` up to
    the rounding of float32. A client's numbers depend on nothing but its own order: not
    on who else is in the cohort, on its place in it or on the thread that calls; one
    that is not ``independent`` is always given the cohort of one server, whole.
    """

    @property
    def name(self) -> str:
        """What is logged and written into a run, such as ``fused``."""
        ...

    @property
    def parallel(self) -> bool:
        """Whether several threads may train at once, and gain by it."""
        ...

    @property
    def stacks(self) -> bool:
        """Whether clients share calls, so that few large parts are better than many."""
        ...

    @property
    def independent(self) -> bool:
        """Whether a client gets the same bits whoever is beside it."""
        ...

    def train(self, cohort: Cohort, out: Matrix) -> npt.NDArray[np.float64]:
        """Train every client.

        Args:
            cohort: Who, on what, in which order; not written to.
            out: Filled with the models after training, shape ``(K, P)``; a client
                without steps keeps the model it starts from, bit for bit.

        Returns:
            Every client's mean loss over its steps, shape ``(K,)``; 0 without steps.
        """
        ...
