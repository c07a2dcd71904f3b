"""The extension point: one unlearning method.

A method is a frozen dataclass whose fields are its hyper-parameters and which maps a
trained model to one without the leavers' influence. It never writes to its arguments,
draws only from ``ctx.rng``, reads no clock, file or environment, and reaches clients
only through ``ctx.clients``, and the leavers only through ``ctx.leavers``.
``fedunlearn.cost.run_unlearning`` runs it and meters it.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import ClassVar, Protocol

import numpy as np

from fedunlearn.errors import EmptyRoundError, RequirementError
from fedunlearn.history import ClientId, UpdateHistory
from fedunlearn.local import LocalProblem, LocalProcedure, Results
from fedunlearn.params import Layout, Vector
from fedunlearn.request import ALL_LEVELS, Level, UnlearningRequest
from fedunlearn.requires import About, Requires
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.updates import Server, Updates

__all__ = [
    "ALL_LEVELS",
    "About",
    "Chain",
    "Clients",
    "Level",
    "ListedMethod",
    "Requires",
    "UnlearningContext",
    "UnlearningMethod",
    "UnlearningRequest",
    "check_requirements",
    "continue_training",
    "unmet_requirements",
]


_NOTHING = Requires(levels=ALL_LEVELS)
"""What a chain of no steps needs."""


class Clients(Protocol):
    """Some clients, those that stay or those that leave: where a method computes."""

    @property
    def ids(self) -> frozenset[ClientId]:
        """Who can be asked."""
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
            LeaverContactError: If a leaver is among ``ids`` of the remaining clients.
            EmptyRoundError: If nobody gave a usable answer.
        """
        ...

    def run(
        self,
        procedure: LocalProcedure,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
    ) -> Results:
        """Run a procedure of the method's own on each of ``ids``.

        Args:
            procedure: What they do.
            model: The model they are sent, shape ``(P,)``.
            ids: Whom to ask.
            round_index: Fixes the batch orders, as in :meth:`train`.

        Raises:
            LeaverContactError: If a leaver is among ``ids`` of the remaining clients.
            EmptyRoundError: If nobody gave a usable answer.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningContext:
    """All that a method may look at.

    Attributes:
        history: What was recorded.
        forget: The leavers.
        clients: The remaining clients, metered; they train on what remains.
        leavers: Who answers for what is to be forgotten, metered, with that data only;
            None unless the method requires it.
        schedule: How the model was trained.
        new_server: Makes the server rule that trained the model, with fresh state.
        layout: Names and shapes of the model's arrays.
        rng: The method's only source of randomness.
        request: All that was asked; None stands for ``forget`` alone.
        shrunk: Clients that stay and lose a part of their data.
        departed: Clients that left by an earlier request; the history is without them.
        started_from: The initial model; None takes that of the first recorded round.
        server_data: Examples of the server's own, or None.
    """

    history: UpdateHistory
    forget: frozenset[ClientId]
    clients: Clients
    schedule: TrainingSchedule
    new_server: Callable[[], Server]
    layout: Layout
    rng: np.random.Generator
    leavers: Clients | None = None
    request: UnlearningRequest | None = None
    shrunk: frozenset[ClientId] = frozenset()
    departed: frozenset[ClientId] = frozenset()
    started_from: Vector | None = None
    server_data: LocalProblem | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        """What is to be forgotten."""
        return ("client",) if self.request is None else self.request.levels

    @property
    def touched(self) -> frozenset[ClientId]:
        """The clients whose recorded updates hold something that is to be forgotten."""
        return self.forget | self.shrunk

    @property
    def initial_model(self) -> Vector:
        """The model that training started from, shape ``(P,)``."""
        if self.started_from is not None:
            return self.started_from
        return self.history.round(self.history.rounds[0]).broadcast

    def cohort(self, index: int) -> tuple[ClientId, ...]:
        """Return who is asked in a round of training without the leavers, ascending.

        Raises:
            EmptyRoundError: If there is nobody.
        """
        ids = self.schedule.cohort(index, self.clients.ids)
        if not ids:
            raise EmptyRoundError(f"round {index} has nobody left to train")
        return ids

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


class ListedMethod(UnlearningMethod, Protocol):
    """A method that stands in the table."""

    about: ClassVar[About]


@dataclass(frozen=True, slots=True)
class Chain:
    """Runs methods one after another, each on the model the last one returned."""

    steps: tuple[UnlearningMethod, ...]

    @property
    def requires(self) -> Requires:
        """What all steps together need."""
        return reduce(or_, (step.requires for step in self.steps), _NOTHING)

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
        ids = ctx.cohort(index)
        model = server.step(ctx.clients.train(model, ids, round_index=index))
    return model


def unmet_requirements(
    method: UnlearningMethod, ctx: UnlearningContext
) -> tuple[str, ...]:
    """Return one phrase for each need of the method that the context does not serve."""
    needs = method.requires
    unmet = needs.unmet_by(ctx.history, ctx.touched)
    leavers = frozenset[ClientId]() if ctx.leavers is None else ctx.leavers.ids
    wanting = {
        "at least one remaining client": needs.clients
        and not ctx.clients.ids - ctx.forget - ctx.departed,
        "the leaver to answer": needs.leaver and not ctx.touched <= leavers,
        "data on the server": needs.server_data and ctx.server_data is None,
        "a server rule that is a weighted mean": needs.mean
        and not ctx.new_server().mean,
        "a model in shards (scenario key shards)": needs.shards
        and ctx.schedule.shards == 1,
    }
    others = [level for level in ctx.levels if level not in needs.levels]
    if others:
        served = " or ".join(needs.levels) or "nothing"
        unmet += (f"a request of level {served} (asked: {', '.join(others)})",)
    return unmet + tuple(phrase for phrase, lacks in wanting.items() if lacks)


def check_requirements(method: UnlearningMethod, ctx: UnlearningContext) -> None:
    """Raise RequirementError if the context cannot serve the method."""
    if unmet := unmet_requirements(method, ctx):
        raise RequirementError(f"{type(method).__name__} needs {' and '.join(unmet)}")
