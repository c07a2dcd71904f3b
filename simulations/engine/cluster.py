"""Which Ray the workers run on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Ray cluster, and how much of it a worker takes.

    Attributes:
        address: Where it is, such as ``auto`` or ``ray://host:10001``; None starts one
            on this machine.
        cpus_per_worker: Less than one lets several workers share a core.
        gpus_per_worker: The same of GPUs.
    """

    address: str | None = None
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
