"""The heavy part of a round on disk: opened, authenticated and decoded on use."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedunlearn.errors import DamagedError, HistoryError
from fedunlearn.history.codecs import Codec
from fedunlearn.history.key_tree import KeyTree
from fedunlearn.history.record import ClientId, RoundRecord, ServerState, read_only
from fedunlearn.history.round_table import Head
from fedunlearn.history.seal import Keys, Written
from fedunlearn.history.segment import Segment
from fedunlearn.history.state import unpack_state
from fedunlearn.history.store import Store
from fedunlearn.params import Layout, Matrix, Vector


@dataclass(slots=True)
class StoredArrays:
    """The arrays of one round.

    Attributes:
        store: The history.
        head: The round's row.
        clients: Who took part.
        rows_in_file: The row of each client's update in the file, or None.
    """

    store: Store
    head: Head
    clients: tuple[ClientId, ...]
    rows_in_file: tuple[int | None, ...]
    _segment: Segment | None = field(default=None, repr=False)
    _known: tuple[KeyTree, int, bytes] | None = field(default=None, repr=False)

    def broadcast(self) -> Vector:
        """Read the model sent out."""
        if not self.head.broadcast:
            raise HistoryError(f"the broadcast of round {self.head.index} is not kept")
        rows = self._open("broadcast").rows("broadcast", [0], self._keys)
        model: Vector = rows[0].view("<f4").astype("f4", copy=False)
        return read_only(model)

    def updates(self) -> Matrix:
        """Read all updates; a map of the file if they are stored as they are."""
        return read_only(self.rows(range(len(self.rows_in_file))))

    def rows(self, positions: Sequence[int]) -> Matrix:
        """Read some updates."""
        wanted = [self.rows_in_file[at] for at in positions]
        held = [row for row in wanted if row is not None]
        if len(held) < len(wanted):
            missing = list(positions)[wanted.index(None)]
            raise HistoryError(
                f"update {missing + 1} of {len(self.rows_in_file)} in round "
                f"{self.head.index} is not kept"
            )
        if not held:
            return np.empty((0, self._layout.size), np.float32)
        segment = self._open("updates")
        owners = dict(enumerate(segment.parts["updates"].owners))
        if [owners.get(row) for row in held] != [self.clients[at] for at in positions]:
            raise self._damaged_index("the updates are those of others")
        rows = segment.rows("updates", held, self._keys)
        return self._codec.decode(rows, self._layout)

    def state(self) -> ServerState:
        """Read the server's state when the round began."""
        if self.head.written is None or "state" not in self._open().parts:
            return ServerState()
        return unpack_state(self._open("state").rows("state", [0], self._keys))

    @property
    def _keys(self) -> Keys:
        return replace(self.store.keys, round_key=self._round_key)

    def _round_key(self, generation: int, index: int) -> bytes:
        """Return the round's key; derived anew once the tree it is from was replaced.

        Destroying a key replaces its tree: what is remembered says no more than asking
        would.
        """
        tree, known = self.store.ring.generations.get(generation), self._known
        if known is not None and known[0] is tree and known[1] == index:
            return known[2]
        key = self.store.keys.round_key(generation, index)
        self._known = None if tree is None else (tree, index, key)
        return key

    @property
    def _codec(self) -> Codec:
        return self.store.settings.codec

    @property
    def _layout(self) -> Layout:
        return self.store.settings.layout

    def _open(self, part: str = "") -> Segment:
        if self._segment is None:
            if self.head.written is None:
                raise HistoryError(
                    f"the arrays of round {self.head.index} are not kept"
                )
            self._segment = self._open_current(self.head.written)
        if part and part not in self._segment.parts:
            raise self._damaged_index(f"the file holds no {part}")
        return self._segment

    def _open_current(self, written: Written) -> Segment:
        try:
            segment = self.store.open_file(written)
        except DamagedError:
            if self._is_current():
                raise
            raise HistoryError(
                f"less is kept of round {self.head.index} since it was looked up"
            ) from None
        if segment.place.index != self.head.index:
            raise self._damaged_index("the file is that of another round")
        return segment

    def _is_current(self) -> bool:
        """Tell whether the round still refers to this file, as far as is known."""
        try:
            return self.store.table.head(self.head.index) == self.head
        except HistoryError:
            return True

    def _damaged_index(self, what: str) -> DamagedError:
        path = self.store.index.path
        return DamagedError.of(what, path, round_index=self.head.index)


def read_round(store: Store, index: int) -> RoundRecord | None:
    """Return a round, or None if it was never recorded."""
    head = store.table.head(index)
    if head is None:
        return None
    who = store.table.participants(index)
    pairs = zip(who.clients, who.rows, strict=True)
    return RoundRecord(
        index=index,
        clients=who.clients,
        num_examples=who.num_examples,
        num_steps=who.num_steps,
        num_samples=who.num_samples,
        asked=head.asked,
        set_aside=head.set_aside,
        dropped=frozenset(client for client, row in pairs if row is None),
        sensitivities=who.sensitivities,
        loss=head.loss,
        seconds=head.seconds,
        arrays=StoredArrays(store, head, who.clients, who.rows),
    )
