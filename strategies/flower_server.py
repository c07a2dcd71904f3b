"""A stock Flower strategy used as a server rule: what methods replay.

Training runs the strategy itself; methods run it through ``FlowerServer``, so that both
add up the same numbers in the same order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg, FedProx, Strategy

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.errors import RunError
from fedunlearn.flower_compat import claim_identity
from fedunlearn.history import ServerState
from fedunlearn.params import Layout, Vector
from fedunlearn.updates import Updates
from strategies.grids import CohortGrid, NoGrid
from strategies.mean import mean_reply, takes_the_mean
from strategies.replies import WEIGHT_KEY
from strategies.server_state import restore_state


@dataclass(slots=True)
class FlowerServer:
    """A Flower strategy used as a server rule for given updates.

    Attributes:
        strategy: Asks every node it is shown; holds the rule's state.
        layout: Names and shapes of the model.
        stateful: Whether a step depends on the steps before it.
        carried: Integer arrays that travel beside the model.
    """

    strategy: Strategy
    layout: Layout
    stateful: bool
    carried: Mapping[str, Array] = field(default_factory=dict)
    _steps: int = 0
    _last: ArrayRecord | None = None
    _exact: Mapping[str, Array] = field(default_factory=dict)

    @property
    def mean(self) -> bool:
        """Whether a step is the weighted mean of the clients' models."""
        return type(self.strategy) in (FedAvg, FedProx)

    def step(self, updates: Updates) -> Vector:
        """Return the strategy's aggregate of the updates, shape ``(P,)``."""
        claim_identity()
        self._steps += 1
        before = self._before(updates.before)
        # Node ids start at 1, a client's is its own id plus one.
        grid = CohortGrid(NoGrid(), tuple(c + 1 for c in updates.clients))
        orders = self.strategy.configure_train(
            self._steps, before, ConfigRecord(), grid
        )
        by_node = {order.metadata.dst_node_id: order for order in orders}
        if takes_the_mean(self.strategy) and not self.carried:
            first = by_node[updates.clients[0] + 1]
            replies = [mean_reply(first, updates, self.layout, {})]
        else:
            replies = [self._reply(by_node[c + 1], updates, c) for c in updates.clients]
        arrays, _ = self.strategy.aggregate_train(self._steps, replies)
        if arrays is None:
            raise RunError(f"{type(self.strategy).__name__} gave no model")
        self._last = arrays
        return from_arrays(arrays, self.layout)

    def restore(self, state: ServerState, next_round: int) -> None:
        """Go on from the state in which a recorded round began."""
        self._steps = next_round - 1  # FedAdam's bias correction counts rounds
        restore_state(self.strategy, state.rule)
        self._exact = {name: Array(array) for name, array in state.arrays.items()}

    def _before(self, model: Vector) -> ArrayRecord:
        """Return ``model`` as the strategy sent it: ``FedAdam`` does so in float64."""
        plain = to_arrays(model, self.layout, self.carried)
        exact, self._exact = ArrayRecord({**plain, **self._exact}), {}
        for sent in (self._last, exact):
            if sent is not None and np.array_equal(
                from_arrays(sent, self.layout), model
            ):
                return sent
        return plain

    def _reply(self, order: Message, updates: Updates, client: int) -> Message:
        row = updates.clients.index(client)
        content = RecordDict(
            {
                "arrays": to_arrays(updates.after[row], self.layout, self.carried),
                "metrics": MetricRecord({WEIGHT_KEY: int(updates.num_examples[row])}),
            }
        )
        return Message(content, reply_to=order)


def client_config(
    strategy: Strategy, model: Vector, layout: Layout
) -> dict[str, float]:
    """Return what the strategy adds to a client's order, such as FedProx's mu.

    Args:
        strategy: A new one that asks every node it is shown; it is used up.
        model: Any model, shape ``(P,)``.
        layout: Its names and shapes.
    """
    claim_identity()
    config = ConfigRecord()
    grid = CohortGrid(NoGrid(), (1,))
    list(strategy.configure_train(1, to_arrays(model, layout), config, grid))
    return {
        name: value
        for name, value in config.items()
        if name != "server-round" and isinstance(value, int | float)
    }


def asking_all(make: Callable[..., Strategy], **settings: float) -> Strategy:
    """Return a stock strategy that asks every node it is shown, for training only."""
    return make(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_evaluate_nodes=0,
        min_available_nodes=1,
        **settings,
    )
