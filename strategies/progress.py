"""How far a recorded training is, and what it needs to go on to the same bits."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedunlearn.arrays import decode, numpy_arrays, to_arrays
from fedunlearn.errors import HistoryError
from fedunlearn.history import (
    ClientId,
    RoundRecord,
    ServerState,
    Tip,
    UpdateHistory,
)
from fedunlearn.params import Array as NumpyArray
from strategies.replies import Broadcast
from strategies.server_state import numbers_of, restore_state, state_of


class RecordedHistory(UpdateHistory, Protocol):
    """A history that can be appended to."""

    @property
    def withdrawn(self) -> frozenset[ClientId]:
        """Clients that were erased."""
        ...

    def append_round(
        self, record: RoundRecord, state: ServerState | None = None
    ) -> None:
        """Commit one round, and where the server stands after it."""
        ...


@dataclass(slots=True)
class Progress:
    """Where a training stands.

    Attributes:
        inner: The strategy whose state is recorded.
        history: What is recorded already.
        keep_random: Whether ``inner`` draws from Python's generator, as Flower's own
            sampling does.
    """

    inner: Strategy
    history: RecordedHistory
    keep_random: bool
    _tip: Tip | None = field(init=False)
    _numbers: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        """Read the tip once: rounds recorded from now on are not behind."""
        self._tip = self.history.tip
        self._numbers = numbers_of(self.inner)

    def is_behind(self, index: int) -> bool:
        """Tell whether a round was recorded before this training began."""
        return self._tip is not None and index <= self._tip.round

    def check_start(self, index: int, sent: Broadcast) -> None:
        """Raise HistoryError if the history began with another model."""
        first = self.history.rounds[:1]
        if index != 1 or first != (1,) or 1 not in self.history.holds.broadcasts:
            return
        if not np.array_equal(self.history.round(1).broadcast, sent.model):
            raise HistoryError(
                "this history began with another initial model: it belongs to another "
                "run"
            )

    def arrays_after(self, index: int) -> ArrayRecord | None:
        """Return the model after a round behind, or None if it is not kept.

        After the last one ``inner`` has the state it had then.
        """
        if self._tip is None or index < self._tip.round:
            return self._broadcast(index + 1)
        state = self._tip.state
        if not state.arrays:
            raise HistoryError(
                f"the history ends with round {index} and does not say where its "
                "server stood: training cannot go on"
            )
        restore_state(self.inner, state.rule)
        if state.random and self.keep_random:
            version, internal, gauss = json.loads(state.random)
            random.setstate((version, tuple(internal), gauss))
        return _as_record(state.arrays)

    def state_before(self, sent: Broadcast) -> ServerState:
        """Return what a round begins with beyond its broadcast."""
        extra = {
            name: decode(array)
            for name, array in sent.arrays.items()
            if name not in sent.layout.names or array.dtype != "float32"
        }
        return ServerState(extra, state_of(self.inner, self._numbers))

    def state_after(self, arrays: ArrayRecord) -> ServerState:
        """Return all that the next round begins with."""
        drawn = json.dumps(random.getstate()) if self.keep_random else ""
        rule = state_of(self.inner, self._numbers)
        return ServerState(numpy_arrays(arrays), rule, drawn)

    def _broadcast(self, index: int) -> ArrayRecord | None:
        if index not in self.history.holds.broadcasts:
            return None
        return to_arrays(self.history.round(index).broadcast, self.history.layout)


def _as_record(arrays: Mapping[str, NumpyArray]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})
