"""The extension point: one unlearning method.

A method is a frozen dataclass whose fields are its hyper-parameters and which maps a
trained model to one without the leavers' influence. It never writes to its arguments,
draws only from ``ctx.rng``, reads no clock, file or environment, and reaches clients
only through ``ctx.clients``. ``fedunlearn.cost.run_unlearning`` runs it and meters it.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from math import gcd
from typing import Protocol, get_args

import numpy as np
from typing_extensions import override

from fedunlearn.errors import EmptyRoundError, RequestError, RequirementError
from fedunlearn.history import (
    Broadcasts,
    ClientId,
    Kept,
    UpdateHistory,
    first_round_of,
)
from fedunlearn.params import Layout, Vector
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.updates import Server, Updates


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningRequest:
    """Who is to be forgotten, and why.

    Attributes:
        clients: The leavers.
        reason: Free text for the record, such as "withdrawal" or "poisoning".
    """

    clients: frozenset[ClientId]
    reason: str = "withdrawal"

    def check(self, known: Collection[ClientId]) -> None:
        """Raise RequestError unless some, known and not all clients leave."""
        if not self.clients:
            raise RequestError("nobody is to be forgotten: name at least one client")
        if strangers := sorted(self.clients - set(known)):
            raise RequestError(
                f"client {strangers[0]} is not one of the {len(known)} known clients"
            )
        if self.clients >= set(known):
            raise RequestError(
                f"all {len(known)} clients are leaving: there is nothing left to keep, "
                "retire the model instead"
            )


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
        leaver: Whether the leaver must answer.
    """

    updates: Kept = "none"
    interval: int = 1
    sums: bool = False
    broadcasts: Broadcasts = "none"
    sensitivities: bool = False
    clients: bool = False
    leaver: bool = False

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


class RemainingClients(Protocol):
    """The clients that stay: the only way a method can spend compute."""

    @property
    def ids(self) -> frozenset[ClientId]:
        """The ids of the clients that stay."""
        ...

    def train(
        self,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
        epochs: float | None = None,
    ) -> Updates:
        """Train ``model`` locally on each of ``ids``.

        Args:
            model: The model to start from, shape ``(P,)``.
            ids: Whom to ask.
            round_index: The round, from 1, whose batch order the clients use. The same
                round gives the same order as in the recorded training.
            epochs: Local epochs, may be a fraction; None takes the recorded number.

        Raises:
            LeaverContactError: If a leaver is among ``ids``.
            EmptyRoundError: If nobody gave a usable answer.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningContext:
    """All that a method may look at.

    Attributes:
        history: What was recorded.
        forget: The leavers.
        clients: The remaining clients, metered.
        schedule: How the model was trained.
        new_server: Makes the server rule that trained the model, with fresh state.
        layout: Names and shapes of the model's arrays.
        rng: The method's only source of randomness.
    """

    history: UpdateHistory
    forget: frozenset[ClientId]
    clients: RemainingClients
    schedule: TrainingSchedule
    new_server: Callable[[], Server]
    layout: Layout
    rng: np.random.Generator

    @property
    def initial_model(self) -> Vector:
        """The model sent out in the first recorded round, shape ``(P,)``."""
        return self.history.round(self.history.rounds[0]).broadcast

    def staying(self, clients: Iterable[ClientId]) -> tuple[ClientId, ...]:
        """Return those of ``clients`` who are not to be forgotten, in their order."""
        return tuple(c for c in clients if c not in self.forget)


class UnlearningMethod(Protocol):
    """Maps a trained model to one without the leavers' influence."""

    @property
    def requires(self) -> Requires:
        """What must be there before the method can start."""
        ...

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return a new model, shape ``(P,)``; ``model`` is the final global one."""
        ...


@dataclass(frozen=True, slots=True)
class Chain:
    """Runs methods one after another, each on the model the last one returned."""

    steps: tuple[UnlearningMethod, ...]

    @property
    def requires(self) -> Requires:
        """What all steps together need."""
        needs = Requires()
        for step in self.steps:
            needs = needs | step.requires
        return needs

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Thread ``model`` through every step."""
        for step in self.steps:
            model = step.unlearn(model, ctx)
        return model


def continue_training(
    model: Vector,
    ctx: UnlearningContext,
    rounds: Iterable[int],
    server: Server | None = None,
) -> Vector:
    """Return ``model`` after federated training on the remaining clients.

    Args:
        model: Where to start, shape ``(P,)``.
        ctx: Whose clients, schedule and server rule are used.
        rounds: Indices of the rounds to train; they fix cohorts and batch orders.
        server: The server rule with its state so far; None starts a fresh one.
    """
    server = ctx.new_server() if server is None else server
    for index in rounds:
        ids = ctx.schedule.cohort(index, ctx.clients.ids)
        if not ids:
            raise EmptyRoundError(f"round {index} has nobody left to train")
        model = server.step(ctx.clients.train(model, ids, round_index=index))
    return model


def unmet_requirements(
    method: UnlearningMethod, ctx: UnlearningContext
) -> tuple[str, ...]:
    """Return one phrase for each need of the method that the context does not serve."""
    unmet = method.requires.unmet_by(ctx.history, ctx.forget)
    if method.requires.clients and not ctx.clients.ids - ctx.forget:
        unmet += ("at least one remaining client",)
    if method.requires.leaver:
        unmet += ("the leaver to answer (only remaining clients can be reached)",)
    return unmet


def check_requirements(method: UnlearningMethod, ctx: UnlearningContext) -> None:
    """Raise RequirementError if the context cannot serve the method."""
    if unmet := unmet_requirements(method, ctx):
        raise RequirementError(f"{type(method).__name__} needs {' and '.join(unmet)}")
