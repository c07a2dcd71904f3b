"""The history after a removal: what the next request starts from.

A method that trains again steps a server rule round after round. Those steps are
watched, and become the history: where they begin at round s, what was recorded from s
on is dropped. What stays of the old history is without the leavers. So a method knows
nothing of sequences, and a second removal finds a history in which the first leaver
never took part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import HistoryError
from fedunlearn.history import (
    ArraysInMemory,
    ClientId,
    Holdings,
    RoundArrays,
    RoundRecord,
    ServerState,
    Tip,
    UpdateHistory,
    first_round_of,
)
from fedunlearn.history.record import without
from fedunlearn.history.shares import sensitivities
from fedunlearn.params import Layout, Matrix, Vector
from fedunlearn.updates import Server, Updates

Felt = npt.NDArray[np.float64]
"""How far a round's model would lie from itself without each client, ``(K,)``."""


@dataclass(slots=True)
class Steps:
    """The steps that server rules took while a method ran.

    Attributes:
        rounds: Index -> what went into the step.
        server: The rule that took the last one, with its state.
    """

    rounds: dict[int, RoundRecord] = field(default_factory=dict)
    server: Server | None = None

    def watch(self, new_server: Callable[[], Server]) -> Callable[[], Server]:
        """Return a maker of server rules whose steps are noted."""
        return lambda: WatchedServer(new_server(), self)

    def note(self, updates: Updates, server: Server) -> None:
        """Note a step; one of no round, such as a replay to rebuild a state, is not."""
        self.server = server
        if updates.round_index is None:
            return
        self.rounds[updates.round_index] = RoundRecord(
            index=updates.round_index,
            clients=updates.clients,
            num_examples=updates.num_examples,
            num_steps=updates.num_steps,
            num_samples=updates.num_samples,
            asked=updates.clients if updates.asked is None else updates.asked,
            arrays=ArraysInMemory(updates.before, updates.deltas),
        )


@dataclass(frozen=True, slots=True)
class WatchedServer:
    """A server rule whose steps are noted."""

    inner: Server
    steps: Steps

    @property
    def stateful(self) -> bool:
        """Whether a step depends on the steps before it."""
        return self.inner.stateful

    @property
    def mean(self) -> bool:
        """Whether a step is the weighted mean of the clients' models."""
        return self.inner.mean

    def step(self, updates: Updates) -> Vector:
        """Step and note it."""
        self.steps.note(updates, self)
        return self.inner.step(updates)

    def restore(self, state: ServerState, next_round: int) -> None:
        """Go on from a recorded state."""
        self.inner.restore(state, next_round)


@dataclass(frozen=True, slots=True)
class SomeRows:
    """The heavy part of a round without some rows."""

    inner: RoundArrays
    rows_left: tuple[int, ...]

    def broadcast(self) -> Vector:
        """Return the model sent out."""
        return self.inner.broadcast()

    def updates(self) -> Matrix:
        """Return the updates that are left."""
        return self.inner.rows(self.rows_left)

    def rows(self, positions: Sequence[int]) -> Matrix:
        """Return some of them."""
        return self.inner.rows([self.rows_left[p] for p in positions])

    def state(self) -> ServerState:
        """Return nothing: the rule's state holds the leavers' updates."""
        return ServerState()


@dataclass(frozen=True)
class RewrittenHistory:
    """What was recorded before, without the leavers, and a method's own steps.

    Attributes:
        old: The history the method was given.
        gone: Whose updates are not in it any more.
        steps: Index -> round of the method's.
        until: The last old round that is in it; None for all.
    """

    old: UpdateHistory
    gone: frozenset[ClientId]
    steps: dict[int, RoundRecord]
    until: int | None = None

    @property
    def layout(self) -> Layout:
        """Names and shapes of the recorded model's arrays."""
        return self.old.layout

    @property
    def rounds(self) -> tuple[int, ...]:
        """Indices of the rounds, ascending."""
        return (*self._kept, *sorted(self.steps))

    @property
    def holds(self) -> Holdings:
        """What there is to read."""
        old, kept, own = self.old.holds, set(self._kept), frozenset(self.steps)
        whole = kept == set(self.old.rounds)
        return replace(
            old,
            updates=(old.updates & kept) | own,
            some_updates=(old.some_updates & kept) | own,
            broadcasts=(old.broadcasts & kept) | own,
            sensitivities=old.sensitivities & kept,
            sums_from=old.sums_from if whole and not own else None,
        )

    @property
    def tip(self) -> Tip | None:
        """Nobody says where the federation stands."""
        return None

    def round(self, index: int) -> RoundRecord:
        """Return one round."""
        if index in self.steps:
            return self._stripped(self.steps[index])
        if index not in self._kept:
            raise HistoryError(f"round {index} is not in the rewritten history")
        record = self.old.round(index)
        if self._first is None or index < self._first:
            return record
        return self._stripped(replace(record, sensitivities=self._felt(record)))

    def _stripped(self, record: RoundRecord) -> RoundRecord:
        """Return a round without those who are gone."""
        left = [at for at, c in enumerate(record.clients) if c not in self.gone]
        arrays = SomeRows(record.arrays, tuple(left))
        return replace(without(record, self.gone), arrays=arrays)

    def rounds_of(self, client: ClientId) -> tuple[int, ...]:
        """Return the rounds in which the client's update was aggregated."""
        if client in self.gone:
            return ()
        before = (i for i in self.old.rounds_of(client) if i in self._kept)
        return (
            *before,
            *sorted(i for i, r in self.steps.items() if client in r.clients),
        )

    def sum_of(self, client: ClientId) -> Vector:
        """Return a client's running sum."""
        if self.holds.sums_from is None:
            raise HistoryError("a rewritten history keeps no running sums")
        return self.old.sum_of(client)

    def _felt(self, record: RoundRecord) -> Felt | None:
        """Return how each client moved this round's model, which those gone shared."""
        if record.sensitivities is not None or record.index not in self.holds.updates:
            return record.sensitivities
        if record.index not in self._known:
            felt = sensitivities(record.updates, record.num_examples)
            self._known[record.index] = felt
        return self._known[record.index]

    @cached_property
    def _known(self) -> dict[int, Felt]:
        return {}

    @cached_property
    def _first(self) -> int | None:
        """The first round that one of those who are gone took part in."""
        return first_round_of(self.old, self.gone)

    @cached_property
    def _kept(self) -> tuple[int, ...]:
        """The old rounds before the first step in which somebody else took part."""
        end = inf if self.until is None else self.until
        begin = min(self.steps, default=inf)
        rounds = (i for i in self.old.rounds if i <= end and i < begin)
        return tuple(
            i for i in rounds if not self.gone.issuperset(self.old.round(i).clients)
        )
