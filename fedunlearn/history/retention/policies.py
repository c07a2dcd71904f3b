"""Retention policies that need no look at the updates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedunlearn.errors import ConfigError
from fedunlearn.history.retention.keep import NOTHING, Keep, everything, less, no_less
from fedunlearn.history.update_history import UpdateHistory


@dataclass(frozen=True, slots=True)
class All:
    """Keeps everything."""

    name: ClassVar[str] = "all"
    sums: ClassVar[bool] = False
    sensitivities: ClassVar[bool] = False
    losses: ClassVar[bool] = False
    at_append = everything
    later = no_less


@dataclass(frozen=True, slots=True)
class Every:
    """Keeps rounds first, first + k, first + 2 k, ... whole, nothing of the others."""

    k: int
    sums: ClassVar[bool] = False
    sensitivities: ClassVar[bool] = False
    losses: ClassVar[bool] = False
    later = no_less

    def __post_init__(self) -> None:
        """Refuse an interval below 1."""
        _at_least_one("every:K", self.k)

    @property
    def name(self) -> str:
        """``every:`` and the interval."""
        return f"every:{self.k}"

    def at_append(self, index: int, first: int) -> Keep:
        """Return everything or nothing."""
        return NOTHING if (index - first) % self.k else Keep()


@dataclass(frozen=True, slots=True)
class Last:
    """Keeps the k newest rounds whole, nothing of the older ones."""

    k: int
    sums: ClassVar[bool] = False
    sensitivities: ClassVar[bool] = False
    losses: ClassVar[bool] = False
    at_append = everything

    def __post_init__(self) -> None:
        """Refuse to keep no round."""
        _at_least_one("last:K", self.k)

    @property
    def name(self) -> str:
        """``last:`` and the number of rounds."""
        return f"last:{self.k}"

    def later(self, history: UpdateHistory) -> Mapping[int, Keep]:
        """Return the older rounds that still hold something."""
        return less(history, dict.fromkeys(history.rounds[: -self.k], NOTHING))


@dataclass(frozen=True, slots=True)
class Sums:
    """Keeps no update but one running sum per client, and the first broadcast."""

    name: ClassVar[str] = "sums"
    sums: ClassVar[bool] = True
    sensitivities: ClassVar[bool] = False
    losses: ClassVar[bool] = False
    later = no_less

    def at_append(self, index: int, first: int) -> Keep:
        """Return the broadcast of the first round, else nothing."""
        return Keep(broadcast=index == first, updates=frozenset())


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Keeps all broadcasts, and of each update only how far it moved the model."""

    name: ClassVar[str] = "sensitivities"
    sums: ClassVar[bool] = False
    sensitivities: ClassVar[bool] = True
    losses: ClassVar[bool] = False
    later = no_less

    def at_append(self, index: int, first: int) -> Keep:
        """Return the broadcast."""
        del index, first
        return Keep(updates=frozenset())


def _at_least_one(form: str, k: int) -> None:
    if k < 1:
        raise ConfigError(f"{form} needs a number of at least 1, got {k}")
