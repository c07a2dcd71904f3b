"""The remaining clients, reached through a Flower grid."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedunlearn.arrays import to_arrays
from fedunlearn.errors import EmptyRoundError, RunError
from fedunlearn.flower_compat import claim_identity
from fedunlearn.history import ClientId
from fedunlearn.params import Layout, Vector
from fedunlearn.updates import Updates
from strategies.answers import read_answers
from strategies.directory import Directory
from strategies.replies import Broadcast


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
    config: Mapping[str, float]
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
        claim_identity()
        asked, nodes = tuple(sorted(ids)), self.directory.refresh(self.grid)
        if absent := [c for c in asked if c not in nodes]:
            raise RunError(f"client {absent[0]} is not there to be trained")
        arrays = to_arrays(model, self.layout, self.carried)
        order = RecordDict(
            {"arrays": arrays, "config": self._order(round_index, epochs)}
        )
        messages = [Message(order, nodes[c], "train") for c in asked]
        sent = Broadcast.of(arrays, asked)
        answers = read_answers(
            self.grid.send_and_receive(messages, timeout=self.timeout),
            sent,
            self.directory.client_of,
        )
        if not answers.updates.clients:
            why = answers.aside[0].reason if answers.aside else "no reply came"
            raise EmptyRoundError(
                f"none of {len(asked)} clients gave a usable answer ({why})"
            )
        return answers.updates

    def _order(self, round_index: int, epochs: float | None) -> ConfigRecord:
        order = ConfigRecord({**self.config, "server-round": round_index})
        if epochs is not None:
            order["epochs"] = float(epochs)
        return order
