"""Clients of a federation, reached through a Flower grid."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedunlearn.arrays import to_arrays, views_of
from fedunlearn.client import RUN
from fedunlearn.errors import EmptyRoundError, RunError
from fedunlearn.flower_compat import claim_identity
from fedunlearn.history import ClientId, SetAside
from fedunlearn.local import LocalProcedure, Results, encode
from fedunlearn.params import Layout, Vector
from fedunlearn.updates import Updates
from strategies.answers import read_answers
from strategies.directory import Directory
from strategies.replies import Broadcast
from strategies.results import read_results


@dataclass(frozen=True, slots=True, kw_only=True)
class GridClients:
    """Trains clients by Flower messages, with the orders they had in training.

    Attributes:
        grid: Any Flower grid: ours, Flower's simulation or a live federation.
        layout: Names and shapes of the model.
        config: What every order carries, such as the seed and FedProx's mu.
        directory: Which node is which client.
        carried: Integer arrays that travel beside the model.
        timeout: Seconds to wait for a round's replies; None waits for ever.
    """

    grid: Grid
    layout: Layout
    config: Mapping[str, float | str]
    directory: Directory = field(default_factory=Directory)
    carried: Mapping[str, Array] = field(default_factory=dict)
    timeout: float | None = None

    @property
    def ids(self) -> frozenset[ClientId]:
        """Everybody who is there now; the meter of a method's run takes leavers out."""
        return frozenset(self.directory.refresh(self.grid))

    def train(
        self,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
        epochs: float | None = None,
    ) -> Updates:
        """Send ``model`` to ``ids`` and return their updates."""
        asked = tuple(sorted(ids))
        arrays = views_of(model, self.layout, self.carried)
        extra = {} if epochs is None else {"epochs": float(epochs)}
        answers = read_answers(
            self._ask("train", asked, arrays, round_index, extra),
            Broadcast.of(arrays, asked),
            self.directory.client_of,
        )
        _check_answered(len(asked), answers.updates.clients, answers.aside)
        return answers.updates

    def run(
        self,
        procedure: LocalProcedure,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
    ) -> Results:
        """Send ``model`` to ``ids`` and return what the procedure made of it."""
        asked = tuple(sorted(ids))
        arrays = to_arrays(model, self.layout)
        replies = self._ask(
            f"query.{RUN}", asked, arrays, round_index, encode(procedure)
        )
        results, aside = read_results(replies, asked, self.directory.client_of)
        _check_answered(len(asked), results.clients, aside)
        return results

    def _ask(
        self,
        message_type: str,
        asked: tuple[ClientId, ...],
        arrays: ArrayRecord,
        round_index: int,
        extra: Mapping[str, Any],
    ) -> Iterable[Message]:
        """Send one order to everybody asked and return the replies."""
        claim_identity()
        nodes = self.directory.refresh(self.grid)
        if absent := [c for c in asked if c not in nodes]:
            raise RunError(f"client {absent[0]} is not there to be trained")
        config = ConfigRecord({**self.config, "server-round": round_index, **extra})
        order = RecordDict({"arrays": arrays, "config": config})
        messages = [Message(order, nodes[c], message_type) for c in asked]
        return self.grid.send_and_receive(messages, timeout=self.timeout)


def _check_answered(
    asked: int, answered: Sequence[ClientId], aside: Sequence[SetAside]
) -> None:
    if not answered:
        why = aside[0].reason if aside else "no reply came"
        raise EmptyRoundError(f"none of {asked} clients gave a usable answer ({why})")
