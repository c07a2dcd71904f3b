"""How large a history is, and what can be read from it."""

from dataclasses import dataclass, field

from fedunlearn.history.merkle import Head, head_of
from fedunlearn.history.round_table import KEPT_ALL, KEPT_NONE
from fedunlearn.history.store import Store
from fedunlearn.history.update_history import Holdings


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryStats:
    """A history in numbers.

    Attributes:
        rounds: Recorded rounds.
        clients: Clients whose updates were recorded and not erased.
        parameters: Size P of the model.
        codec: How updates are stored.
        retention: What of them stays.
        sealed: Whether payloads are encrypted and can be erased.
        generation: Unlearnings with a new model, plus one.
        withdrawn: Clients that were erased.
        nbytes: Kind -> bytes: ``updates``, ``broadcasts``, ``state``, ``sums``,
            ``overhead`` (headers, tags, index, keys).
        peak_bytes: Most bytes its updates, broadcasts and sums ever took at once.
        head: Head of the log, to be kept elsewhere; None in memory.
    """

    rounds: int
    clients: int
    parameters: int
    codec: str
    retention: str
    sealed: bool
    generation: int = 1
    withdrawn: int = 0
    nbytes: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = 0
    head: Head | None = None

    @property
    def total_bytes(self) -> int:
        """Bytes of all kinds."""
        return sum(self.nbytes.values())


KIND_OF_PART = {
    "updates": "updates",
    "broadcast": "broadcasts",
    "state": "state",
    "sums": "sums",
}
"""Every part a file may hold, and the kind of bytes it counts as."""


def stats(store: Store) -> HistoryStats:
    """Return a history on disk in numbers."""
    settings, heads = store.settings, store.table.heads()
    written = [head.written for head in heads if head.written]
    tip = store.tip_file
    if tip is not None and tip.written:
        written.append(tip.written)
    nbytes = dict.fromkeys((*KIND_OF_PART.values(), "overhead"), 0)
    for file in written:
        for name, part in store.open_file(file).parts.items():
            nbytes[KIND_OF_PART[name]] += part.width * len(part.owners)
    everything = sum(p.stat().st_size for p in store.folder.rglob("*") if p.is_file())
    nbytes["overhead"] = everything - sum(nbytes.values())
    return HistoryStats(
        rounds=len(heads),
        clients=len(store.table.clients()),
        parameters=settings.layout.size,
        codec=settings.codec.name,
        retention=settings.retention.name,
        sealed=settings.sealed,
        generation=store.generation,
        withdrawn=len(store.withdrawn),
        nbytes=nbytes,
        peak_bytes=int(store.index.meta("peak_bytes")),
        head=head_of([entry.body for entry in store.index.log()]),
    )


def holdings(store: Store) -> Holdings:
    """Return what can be read from a history on disk."""
    rows = store.index.select(
        "SELECT round, kept, broadcast, (SELECT min(sensitivity IS NOT NULL)"
        " FROM updates WHERE updates.round = rounds.round) FROM rounds"
    )
    sums_from, layout = store.index.meta("sums_from"), store.settings.layout
    return Holdings(
        updates=frozenset(r for r, kept, _, _ in rows if kept == KEPT_ALL),
        some_updates=frozenset(r for r, kept, _, _ in rows if kept != KEPT_NONE),
        broadcasts=frozenset(r for r, _, broadcast, _ in rows if broadcast),
        sums_from=int(sums_from) if sums_from else None,
        sensitivities=frozenset(r for r, _, _, felt in rows if felt),
        update_bytes=store.settings.codec.row_bytes(layout),
        broadcast_bytes=4 * layout.size,
        nbytes=int(store.index.meta("nbytes")),
        peak_bytes=int(store.index.meta("peak_bytes")),
    )
