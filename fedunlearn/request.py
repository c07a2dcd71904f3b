"""Who or what is to be forgotten."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedunlearn.errors import RequestError
from fedunlearn.history import ClientId

Level = Literal["client", "sample", "class"]
"""What a request can name: whole clients, examples of a client, all of a class."""
ALL_LEVELS: tuple[Level, ...] = ("client", "sample", "class")
View = Literal["all", "remaining", "forgotten"]
"""Which part of its data a client is to use, seen from a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningRequest:
    """Who or what is to be forgotten, and why. It may name several levels at once.

    Attributes:
        clients: The leavers.
        samples: Client -> rows of its training data, counted from 0.
        classes: Classes whose examples are to be forgotten at every client.
        reason: Free text for the record, such as "withdrawal" or "poisoning".
    """

    clients: frozenset[ClientId] = frozenset()
    samples: Mapping[ClientId, tuple[int, ...]] = field(default_factory=dict)
    classes: frozenset[int] = frozenset()
    reason: str = "withdrawal"

    @property
    def levels(self) -> tuple[Level, ...]:
        """What it names."""
        named: dict[Level, bool] = {
            "client": bool(self.clients),
            "sample": bool(self.samples),
            "class": bool(self.classes),
        }
        return tuple(level for level, wanted in named.items() if wanted)

    def check(self, known: Collection[ClientId]) -> None:
        """Raise RequestError unless it names something, known and not everybody."""
        if not self.levels:
            raise RequestError("nobody is to be forgotten: name at least one client")
        named = self.clients.union(self.samples)
        if strangers := sorted(named - set(known)):
            raise RequestError(
                f"client {strangers[0]} is not one of the {len(known)} known clients"
            )
        if self.clients >= set(known):
            raise RequestError(
                f"all {len(known)} clients are leaving: there is nothing left to keep, "
                "retire the model instead"
            )
        for client, rows in self.samples.items():
            if client in self.clients:
                raise RequestError(f"client {client} leaves: its samples go with it")
            if not rows or len(set(rows)) < len(rows) or min(rows) < 0:
                raise RequestError(
                    f"samples of client {client} must be distinct rows from 0"
                )
