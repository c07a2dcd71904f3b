"""Answers of clients on disk, so that a method that was killed goes on where it was.

A method depends on nothing but its model, its context and what clients answer. Started
again, it asks the same questions; those the journal holds are answered from it, to the
same bits, and the rest are asked for real. No method has to know.
"""

import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedunlearn.errors import HistoryError
from fedunlearn.history import (
    ArraysInMemory,
    ClientId,
    DiskHistory,
    RoundRecord,
    forget_keys,
)
from fedunlearn.method import RemainingClients
from fedunlearn.params import Layout, Vector
from fedunlearn.updates import Updates


@dataclass(slots=True)
class JournaledClients:
    """Remaining clients whose answers are kept.

    Attributes:
        inner: The clients.
        journal: Call n is its round n; its updates are the clients' models after
            training, not the differences, so that no bit is lost.
        calls: Questions asked so far.
        saved_seconds: What the replayed answers took when they were given.
    """

    inner: RemainingClients
    journal: DiskHistory
    calls: int = 0
    saved_seconds: float = 0.0

    @property
    def ids(self) -> frozenset[ClientId]:
        """Everybody who is there."""
        return self.inner.ids

    def train(
        self,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
        epochs: float | None = None,
    ) -> Updates:
        """Answer from the journal, or train through ``inner`` and write it down."""
        self.calls += 1
        asked = tuple(sorted(ids))
        if self.calls in self.journal.rounds:
            return self._replayed(model, asked)
        start = time.perf_counter()
        updates = self.inner.train(model, ids, round_index=round_index, epochs=epochs)
        record = RoundRecord(
            index=self.calls,
            clients=updates.clients,
            num_examples=updates.num_examples,
            num_steps=updates.num_steps,
            num_samples=updates.num_samples,
            asked=asked,
            seconds=time.perf_counter() - start,
            arrays=ArraysInMemory(updates.before, updates.after),
        )
        self.journal.append_round(record)
        return updates

    def _replayed(self, model: Vector, asked: tuple[ClientId, ...]) -> Updates:
        record = self.journal.round(self.calls)
        before = np.asarray(record.broadcast)
        if asked != record.asked or before.tobytes() != model.tobytes():
            raise HistoryError(
                f"question {self.calls} differs from the one in {self.journal.folder}: "
                "the method or its data changed since"
            )
        self.saved_seconds += record.seconds
        return Updates(
            clients=record.clients,
            before=before,
            after=np.array(record.updates),
            num_examples=record.num_examples,
            num_steps=record.num_steps,
            num_samples=record.num_samples,
        )


@contextmanager
def open_journal(folder: Path, layout: Layout) -> Iterator[DiskHistory]:
    """Open a journal, or begin one."""
    with DiskHistory.create(folder, layout, exist_ok=True) as journal:
        yield journal


def close_journal(folder: Path) -> None:
    """Remove a journal: its keys first, then the rest."""
    if folder.exists():
        forget_keys(folder)
        shutil.rmtree(folder)
    if folder.parent.exists() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
