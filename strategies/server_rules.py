"""The server rules a federation can be trained with, each its own configuration."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedunlearn.errors import ConfigError
from fedunlearn.params import Layout
from fedunlearn.shards import mean_within
from fedunlearn.updates import Server
from strategies.flower_server import FlowerServer, asking_all


class ServerRule(Protocol):
    """The configuration of a server rule."""

    @property
    def stateful(self) -> bool:
        """Whether a step depends on the steps before it."""
        ...

    @property
    def is_mean(self) -> bool:
        """Whether the new model is the mean of the clients', weighted by examples."""
        ...

    def strategy(self) -> Strategy:
        """Return a new strategy that asks every node it is shown."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg:
    """Mean weighted by example counts (McMahan et al., AISTATS 2017)."""

    stateful: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True

    def strategy(self) -> Strategy:
        """Return Flower's ``FedAvg``."""
        return asking_all(flower.FedAvg)


@dataclass(frozen=True, slots=True, kw_only=True)
class FedProx:
    """Weighted mean; clients add a proximal term (Li et al., MLSys 2020).

    Attributes:
        proximal_mu: Weight of the term.
    """

    proximal_mu: float = 0.1
    stateful: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        if self.proximal_mu < 0:
            raise ValueError(
                f"proximal_mu must not be negative, got {self.proximal_mu}"
            )

    def strategy(self) -> Strategy:
        """Return Flower's ``FedProx``."""
        return asking_all(flower.FedProx, proximal_mu=self.proximal_mu)


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgM:
    """Weighted mean with server momentum (Hsu et al., 2019).

    Attributes:
        lr: Server learning rate.
        momentum: Server momentum.
    """

    lr: float = 1.0
    momentum: float = 0.9
    stateful: ClassVar[bool] = True
    is_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _check_positive(lr=self.lr)
        _check_decay(momentum=self.momentum)

    def strategy(self) -> Strategy:
        """Return Flower's ``FedAvgM``."""
        return asking_all(
            flower.FedAvgM, server_learning_rate=self.lr, server_momentum=self.momentum
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdam:
    """Adam on the server (Reddi et al., ICLR 2021).

    Attributes:
        lr: Server learning rate, the paper's eta.
        beta_1: Decay of the first moment.
        beta_2: Decay of the second moment.
        tau: Adaptivity.
    """

    lr: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    stateful: ClassVar[bool] = True
    is_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _check_positive(lr=self.lr, tau=self.tau)
        _check_decay(beta_1=self.beta_1, beta_2=self.beta_2)

    def strategy(self) -> Strategy:
        """Return Flower's ``FedAdam``."""
        return asking_all(
            flower.FedAdam,
            eta=self.lr,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            tau=self.tau,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FedMedian:
    """Coordinate-wise median (Yin et al., ICML 2018)."""

    stateful: ClassVar[bool] = False
    is_mean: ClassVar[bool] = False

    def strategy(self) -> Strategy:
        """Return Flower's ``FedMedian``."""
        return asking_all(flower.FedMedian)


@dataclass(frozen=True, slots=True, kw_only=True)
class FedTrimmedAvg:
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018).

    Attributes:
        beta: Fraction cut off at each end, in [0, 0.5).
    """

    beta: float = 0.2
    stateful: ClassVar[bool] = False
    is_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse to cut off half or more at each end."""
        if not 0 <= self.beta < 0.5:  # noqa: PLR2004 - half from each end is all
            raise ValueError(f"beta must lie in [0, 0.5), got {self.beta}")

    def strategy(self) -> Strategy:
        """Return Flower's ``FedTrimmedAvg``."""
        return asking_all(flower.FedTrimmedAvg, beta=self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Krum:
    """The update nearest to its neighbours (Blanchard et al., NeurIPS 2017).

    Attributes:
        malicious: How many clients may be malicious.
    """

    malicious: int = 1
    stateful: ClassVar[bool] = False
    is_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a negative number."""
        if self.malicious < 0:
            raise ValueError(f"malicious must not be negative, got {self.malicious}")

    def strategy(self) -> Strategy:
        """Return Flower's ``Krum``."""
        return asking_all(flower.Krum, num_malicious_nodes=self.malicious)


SERVER_RULES: dict[str, type[ServerRule]] = {
    "fed_avg": FedAvg,
    "fed_prox": FedProx,
    "fed_avgm": FedAvgM,
    "fed_adam": FedAdam,
    "fed_median": FedMedian,
    "fed_trimmed_avg": FedTrimmedAvg,
    "krum": Krum,
}
"""Name in a scenario's ``server.name`` -> class."""


def server_of(rule: ServerRule, layout: Layout, shards: int = 1) -> Server:
    """Return a rule as methods replay it; the same bits as its strategy in training.

    Args:
        rule: The rule.
        layout: Names and shapes of the model.
        shards: Shards of the federation.

    Raises:
        ConfigError: If there are several and the rule is no mean.
    """
    check_shards(rule, shards)
    if rule.is_mean:
        return mean_within(shards)
    return FlowerServer(rule.strategy(), layout, rule.stateful)


def check_shards(rule: ServerRule, shards: int) -> None:
    """Raise ConfigError if a rule cannot serve a federation in shards."""
    if shards > 1 and not rule.is_mean:
        choices = [name for name, cls in SERVER_RULES.items() if cls().is_mean]
        raise ConfigError(
            f"shards={shards} needs a server rule that is a mean, server.name="
            f"{' or '.join(choices)}, not {type(rule).__name__}"
        )


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def _check_decay(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}")
