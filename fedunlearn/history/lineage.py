"""Where a client's influence lies: every byte of a history that was derived from it."""

from collections.abc import Iterator
from dataclasses import dataclass

from fedunlearn.history.record import ClientId
from fedunlearn.history.round_table import Head
from fedunlearn.history.seal import Written
from fedunlearn.history.segment import StoredPart
from fedunlearn.history.store import Store
from fedunlearn.history.witness import pseudonym

OWN, LATER = "own", "later"


@dataclass(frozen=True, slots=True)
class Trace:
    """One place where something of a client is.

    Attributes:
        kind: ``update``, ``running sum``, ``counts``, ``name`` and ``log entry`` are
            the client's own; ``broadcast``, ``updates of others``, ``running sums of
            others`` and ``server state`` were computed from models it had contributed
            to.
        place: File name.
        round: Of which round, or None.
        offset: First byte in the file, or None where it is a row of the index.
        nbytes: How many bytes.
        own: Whether ``erase`` without a model destroys it; with one, it all goes.
    """

    kind: str
    place: str
    round: int | None
    offset: int | None
    nbytes: int
    own: bool


PARTS_OF_OTHERS = {
    "broadcast": "broadcast",
    "state": "server state",
    "updates": "updates of others",
    "sums": "running sums of others",
}
"""Every part a file may hold, and what of it a departed client has touched."""
_OWN_PARTS = {"updates": "update", "sums": "running sum"}


def traces_of(store: Store, client: ClientId) -> tuple[Trace, ...]:
    """Return every trace of a client, its own first, then what came after it."""
    rounds = store.table.rounds_of(client)
    found = list(_in_index(store, client, rounds))
    heads = store.table.heads()
    for head in heads:
        if head.written is not None:
            found += _in_file(store, head.written, client, rounds, head)
    tip = store.tip_file
    if tip is not None and tip.written is not None:
        found += _in_file(store, tip.written, client, rounds, None)
    return tuple(sorted(found, key=lambda t: (not t.own, t.round or 0, t.offset or 0)))


def _in_index(
    store: Store, client: ClientId, rounds: tuple[int, ...]
) -> Iterator[Trace]:
    place = store.index.path.name
    name = store.index.names().get(client)
    if name is not None:
        yield Trace("name", place, None, None, len(name.encode()), True)
    for index in rounds:
        yield Trace("counts", place, index, None, 5 * 8, True)
    if client in store.withdrawn:
        return
    alias = pseudonym(store.keys, client)
    for entry in store.index.log():
        if alias in entry.body:
            yield Trace("log entry", place, None, None, len(entry.body), True)


def _in_file(
    store: Store,
    written: Written,
    client: ClientId,
    rounds: tuple[int, ...],
    head: Head | None,
) -> Iterator[Trace]:
    segment = store.open_file(written)
    index = segment.place.index
    # What a round sends out and what comes back owes nothing to what it will lead to.
    touched = bool(rounds) and index > rounds[0]
    for part in segment.parts.values():
        for row, size in _runs(part, client):
            own = part.owners[row] == client
            kind = _OWN_PARTS[part.name] if own else PARTS_OF_OTHERS[part.name]
            if own or touched:
                yield Trace(
                    kind,
                    written.name,
                    index if head is not None else None,
                    part.offset + row * part.width,
                    size * part.width,
                    own,
                )


def _runs(part: StoredPart, client: ClientId) -> Iterator[tuple[int, int]]:
    """Yield ``(first row, rows)``: the client's row alone, others' rows together."""
    start = 0
    if client in part.owners:
        own = part.owners.index(client)
        if own:
            yield 0, own
        yield own, 1
        start = own + 1
    if start < len(part.owners):
        yield start, len(part.owners) - start
