"""One experiment as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedunlearn.availability import Availability
from fedunlearn.data import Partitioner, Source
from fedunlearn.data.backdoor import Backdoor
from fedunlearn.history.codecs import codec
from fedunlearn.history.retention import retention
from fedunlearn.method import UnlearningMethod
from fedunlearn.models import ModelSpec
from fedunlearn.models.ensemble import Vote
from fedunlearn.rng import SEED_LIMIT
from fedunlearn.training import Training
from strategies.server_rules import ServerRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Where and how clients are trained.

    Attributes:
        workers: 0 trains them in this process, N on N Ray actors.
        kernel: ``auto`` chooses by model and size; or ``reference``, ``fused``,
            ``batched``, ``vmap``, ``compiled``.
        device: Where the kernel's tensors are: ``cpu``, ``cuda``, ``cuda:N``.
        lockstep: How many seeds advance together, their clients trained in one pass; no
            number depends on it.
        noise_floor: Whether to train the first seed once more from a start that differs
            by one bit, to tell how much of a difference is rounding.
        threads: Threads of a process; None takes all cores in this process, and one on
            each Ray actor.
        address: A Ray cluster to join; None starts Ray on this machine.
        cpus_per_worker: Ray CPUs an actor takes; may be a fraction.
        gpus_per_worker: Ray GPUs an actor takes; may be a fraction.
    """

    workers: int = 0
    kernel: str = "auto"
    device: str = "cpu"
    lockstep: int = 1
    noise_floor: bool = True
    threads: int | None = None
    address: str | None = None
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
        if self.lockstep < 1:
            raise ValueError(f"lockstep must be at least 1, got {self.lockstep}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.cpus_per_worker <= 0:
            raise ValueError(
                f"cpus_per_worker must be positive, got {self.cpus_per_worker}"
            )
        if self.gpus_per_worker < 0:
            raise ValueError(
                f"gpus_per_worker must not be negative, got {self.gpus_per_worker}"
            )
        if self.address is not None and self.workers == 0:
            raise ValueError("address names a Ray cluster: set workers too")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """How the history of a run is kept.

    Attributes:
        codec: How updates are stored: ``float32``, ``float16``, ``bfloat16``, ``int8``
            or ``top_k:FRACTION``.
        retention: What of them stays: ``all``, ``every:K``, ``last:K``, ``sums``,
            ``sensitivities`` or ``crab``.
        sealed: Whether payloads on disk are encrypted, so that they can be erased.
    """

    codec: str = "float32"
    retention: str = "all"
    sealed: bool = True

    def __post_init__(self) -> None:
        """Refuse a codec or retention nobody knows."""
        codec(self.codec)
        retention(self.retention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One of several requests.

    Attributes:
        forget: The leavers, by id or name.
        after_round: The round after which they leave; None after training.
    """

    forget: tuple[str, ...]
    after_round: int | None = None

    def __post_init__(self) -> None:
        """Refuse a request that names nobody, or a round that is none."""
        if not self.forget:
            raise ValueError("forget must name at least one client")
        if self.after_round is not None and self.after_round < 1:
            raise ValueError(f"after_round must be at least 1, got {self.after_round}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """The part of a scenario that is plain numbers and names.

    Attributes:
        name: Name of the scenario.
        seeds: One run each: initial model, batch orders and cohorts.
        rounds: Training rounds, T.
        clients: Number of clients; None takes the data's natural ones.
        clients_per_round: Clients asked a round; None asks all.
        forget: The leavers, by id or name.
        forget_samples: Client, by id or name -> share of its training examples that it
            takes back, in (0, 1]; which ones follows from ``data_seed``.
        forget_classes: Classes whose examples all clients take back.
        returns: Leaver, by id or name -> the round from which somebody new takes part
            with the same data.
        methods: What is compared: names of methods, or ``name@variant``.
        holdout: Share of its data each client keeps out of training.
        data_seed: Seed of the partition and the holdouts, the same for all ``seeds``.
        leavers_online: Whether the leavers answer once more after they asked to leave;
            some methods need it.
        server_examples: Examples of the test set that the server owns, without labels;
            nothing is measured on them.
        shards: Parts of the federation, each with a model of its own: client k is in
            shard ``k mod shards``; 1 is a federation with one model.
        vote: How the shards' models answer together: the ``mean`` of their
            probabilities, or the ``majority`` of their classes.
    """

    name: str = "scenario"
    seeds: tuple[int, ...] = (0,)
    rounds: int = 20
    clients: int | None = None
    clients_per_round: int | None = None
    forget: tuple[str, ...] = ()
    forget_samples: dict[str, float] = field(default_factory=dict)
    forget_classes: tuple[int, ...] = ()
    returns: dict[str, int] = field(default_factory=dict)
    methods: tuple[str, ...] = ("nothing", "retrain")
    holdout: float = 0.2
    data_seed: int = 0
    leavers_online: bool = True
    server_examples: int = 0
    shards: int = 1
    vote: Vote = "mean"

    def __post_init__(self) -> None:  # noqa: C901, PLR0912 - one check a field
        """Refuse values outside their range."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be distinct and at least one: {self.seeds}")
        for seed in (*self.seeds, self.data_seed):
            if not 0 <= seed < SEED_LIMIT:
                raise ValueError(
                    f"seeds and data_seed must lie in [0, 2**63), got {seed}"
                )
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.clients is not None and self.clients < 2:  # noqa: PLR2004
            raise ValueError(f"clients must be at least 2, got {self.clients}")
        if self.clients_per_round is not None and self.clients_per_round < 1:
            raise ValueError(
                f"clients_per_round must be at least 1, got {self.clients_per_round}"
            )
        for client, share in self.forget_samples.items():
            if not 0 < share <= 1:
                raise ValueError(
                    f"forget_samples.{client} must lie in (0, 1], got {share}"
                )
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must be distinct, got {list(self.methods)}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must lie in [0, 1), got {self.holdout}")
        if self.server_examples < 0:
            raise ValueError(
                f"server_examples must not be negative, got {self.server_examples}"
            )
        if self.shards < 1:
            raise ValueError(f"shards must be at least 1, got {self.shards}")
        if (self.clients_per_round or 0) % self.shards:
            raise ValueError(
                f"clients_per_round must be a multiple of shards={self.shards}, got "
                f"{self.clients_per_round}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One experiment, fully resolved.

    Attributes:
        outline: Numbers and names.
        data: Where the data comes from.
        partition: How it is dealt to clients.
        model: What is trained.
        training: How clients train.
        server: How the server aggregates.
        engine: Where clients run.
        history: How the history is kept.
        availability: Who answers in time.
        backdoor: What the leavers plant, or None.
        requests: Several requests, by time; empty if the outline holds the only one.
        methods: Label -> method, in the order of the table.
        resolved: All of it as plain values: what ``config.yaml`` of a run holds.
    """

    outline: Outline
    data: Source
    partition: Partitioner
    model: ModelSpec
    training: Training
    server: ServerRule
    engine: Engine
    history: Recording
    availability: Availability
    backdoor: Backdoor | None
    requests: tuple[Asked, ...]
    methods: Mapping[str, UnlearningMethod]
    resolved: Mapping[str, Any] = field(repr=False)
