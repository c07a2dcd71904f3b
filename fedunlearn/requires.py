"""What a method needs before it can start, and what is said about it in tables."""

from collections.abc import Collection
from dataclasses import dataclass
from math import gcd
from typing import Literal, get_args

from typing_extensions import override

from fedunlearn.history import (
    Broadcasts,
    ClientId,
    Kept,
    UpdateHistory,
    first_round_of,
)
from fedunlearn.request import Level

Family = Literal[
    "control",
    "exact",
    "rollback",
    "calibrated retraining",
    "subtraction",
    "ascent",
    "perturbation",
    "distillation",
    "influence",
    "decoy",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the table of methods says about one.

    Attributes:
        family: How it goes about it.
        guarantee: What is proven, and under which condition, or "none".
        cost: Work at the clients and the server in big-O. T rounds, K clients a round,
            E local epochs, P parameters.
        source: Authors, title, venue and year.
    """

    family: Family
    guarantee: str = "none"
    cost: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Requires:
    """What a method needs before it can start.

    Attributes:
        updates: Whose recorded updates.
        interval: Of which rounds: the first, and every ``interval``-th from there.
        sums: Whether running sums do as well as updates.
        broadcasts: Which of the models that were sent out.
        sensitivities: Whether the sensitivities of every round.
        clients: Whether remaining clients must answer.
        leaver: Whether the leavers must answer.
        server_data: Whether the server must have examples of its own.
        mean: Whether the server rule must be a weighted mean of the updates.
        shards: Whether the model must be one of several shards.
        levels: What it can forget.
    """

    updates: Kept = "none"
    interval: int = 1
    sums: bool = False
    broadcasts: Broadcasts = "none"
    sensitivities: bool = False
    clients: bool = False
    leaver: bool = False
    server_data: bool = False
    mean: bool = False
    shards: bool = False
    levels: tuple[Level, ...] = ("client",)

    @override
    def __str__(self) -> str:
        """Return the needs in words."""
        of = "" if self.interval == 1 else f" of one round in {self.interval}"
        needs = {
            "everybody's updates" + of: self.updates == "all",
            "any updates": self.updates == "some",
            "the leavers' updates" + of: self.updates == "leavers" and not self.sums,
            "the leavers' updates or running sums": self.updates == "leavers"
            and self.sums,
            "the initial model": self.broadcasts == "initial",
            "the model of the leavers' first round": self.broadcasts == "first",
            "all broadcasts": self.broadcasts == "all",
            "sensitivities": self.sensitivities,
            "remaining clients": self.clients,
            "the leaver": self.leaver,
            "data on the server": self.server_data,
            "a mean as server rule": self.mean,
            "a model in shards": self.shards,
        }
        return ", ".join(need for need, wanted in needs.items() if wanted) or "nothing"

    def __or__(self, other: "Requires") -> "Requires":
        """Return what both together need."""
        readers = [r for r in (self, other) if r.updates != "none"]
        return Requires(
            updates=max(self.updates, other.updates, key=get_args(Kept).index),
            interval=gcd(*(r.interval for r in readers)) or 1,
            sums=bool(readers) and all(r.sums for r in readers),
            broadcasts=max(
                self.broadcasts, other.broadcasts, key=get_args(Broadcasts).index
            ),
            sensitivities=self.sensitivities or other.sensitivities,
            clients=self.clients or other.clients,
            leaver=self.leaver or other.leaver,
            server_data=self.server_data or other.server_data,
            mean=self.mean or other.mean,
            shards=self.shards or other.shards,
            levels=tuple(level for level in self.levels if level in other.levels),
        )

    def unmet_by(
        self, history: UpdateHistory, forget: Collection[ClientId]
    ) -> tuple[str, ...]:
        """Return one phrase for each need that the history does not serve."""
        if self.updates == self.broadcasts == "none" and not self.sensitivities:
            return ()
        rounds, holds = history.rounds, history.holds
        if not rounds:
            return ("at least one recorded round",)
        first = first_round_of(history, forget)
        needed = {
            "updates": self._rounds_with_updates(rounds, history, forget),
            "broadcasts": self._rounds_with_broadcasts(rounds, first),
            "sensitivities": frozenset(rounds if self.sensitivities else ()),
        }
        if (
            self.sums
            and holds.sums_from is not None
            and holds.sums_from <= (first or 0)
        ):
            needed["updates"] = frozenset()
        kept = {
            "updates": holds.updates,
            "broadcasts": holds.broadcasts,
            "sensitivities": holds.sensitivities,
        }
        if self.updates == "some" and not holds.some_updates:
            return ("updates of at least one round (kept: none)",)
        return tuple(
            f"{what} of {_some(needed[what] - kept[what])} (kept: {_some(kept[what])})"
            for what in needed
            if not needed[what] <= kept[what]
        )

    def _rounds_with_updates(
        self,
        rounds: tuple[int, ...],
        history: UpdateHistory,
        forget: Collection[ClientId],
    ) -> frozenset[int]:
        """Return the rounds whose updates are needed."""
        if self.updates in ("none", "some"):
            return frozenset()
        if self.updates == "leavers":
            rounds = tuple({r for c in forget for r in history.rounds_of(c)})
        start = history.rounds[0]
        return frozenset(r for r in rounds if (r - start) % self.interval == 0)

    def _rounds_with_broadcasts(
        self, rounds: tuple[int, ...], first: int | None
    ) -> frozenset[int]:
        """Return the rounds whose broadcast is needed."""
        if self.broadcasts == "all":
            return frozenset(rounds)
        wanted = {
            "none": (),
            "initial": rounds[:1],
            "first": () if first is None else (first,),
        }
        return frozenset(wanted[self.broadcasts])


def _some(rounds: Collection[int]) -> str:
    """Return a few rounds in words."""
    if not rounds:
        return "none"
    shown = sorted(rounds)[:3]
    more = f" and {len(rounds) - len(shown)} more" if len(rounds) > len(shown) else ""
    plural = "s" if len(rounds) > 1 else ""
    return f"round{plural} {', '.join(map(str, shown))}{more}"
