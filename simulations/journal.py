"""Answers of clients on disk, so that a method that was killed goes on where it was.

A method depends on nothing but its model, its context and what clients answer. Started
again, it asks the same questions; those the journal holds are answered from it, to the
same bits, and the rest are asked for real. No method has to know.
"""

import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from fedunlearn.errors import HistoryError
from fedunlearn.history import (
    ArraysInMemory,
    ClientId,
    DiskHistory,
    RoundRecord,
    forget_keys,
)
from fedunlearn.local import LocalProcedure, Results
from fedunlearn.method import Clients
from fedunlearn.params import Layout, Vector
from fedunlearn.updates import Updates

PATIENCE = 5.0
"""Seconds of training that a method may lose when it is killed."""
_MOST_HELD = 64 << 20
"""Bytes of answers in memory from which they are written all the same."""


@dataclass(slots=True)
class JournaledClients:
    """Remaining clients whose answers are kept.

    What took little time to answer is only written down once it has added up: a method
    that is done in a second leaves nothing on disk.

    Attributes:
        inner: The clients.
        folder: Where the answers are kept. Call n is round n of a history; its updates
            are the clients' models after training, not the differences, so that no bit
            is lost.
        layout: Names and shapes of the model.
        patience: Seconds of training after which answers are written.
        calls: Questions asked so far.
        saved_seconds: What the replayed answers took when they were given.
    """

    inner: Clients
    folder: Path
    layout: Layout
    patience: float = field(default_factory=lambda: PATIENCE)
    calls: int = 0
    saved_seconds: float = 0.0
    _journal: DiskHistory | None = None
    _held: list[RoundRecord] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Open what an earlier run has left."""
        if self.folder.exists():
            self._journal = self._opened()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()

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
        """Answer from the journal, or train through ``inner`` and keep the answer."""
        self.calls += 1
        asked = tuple(sorted(ids))
        if self._journal is not None and self.calls in self._journal.rounds:
            return self._replayed(self._journal.round(self.calls), model, asked)
        start = time.perf_counter()
        updates = self.inner.train(model, ids, round_index=round_index, epochs=epochs)
        self._keep(updates, asked, time.perf_counter() - start)
        return updates

    def run(
        self,
        procedure: LocalProcedure,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
    ) -> Results:
        """Run a procedure through ``inner``: these are short, and run again."""
        return self.inner.run(procedure, model, ids, round_index=round_index)

    def _keep(
        self, updates: Updates, asked: tuple[ClientId, ...], seconds: float
    ) -> None:
        record = RoundRecord(
            index=self.calls,
            clients=updates.clients,
            num_examples=updates.num_examples,
            num_steps=updates.num_steps,
            num_samples=updates.num_samples,
            asked=asked,
            seconds=seconds,
            arrays=ArraysInMemory(updates.before, updates.after),
        )
        self._held.append(record)
        held = sum(r.updates.nbytes for r in self._held)
        if sum(r.seconds for r in self._held) >= self.patience or held >= _MOST_HELD:
            self._journal = self._journal or self._opened()
            for record in self._held:
                self._journal.append_round(record)
            self._held.clear()

    def _opened(self) -> DiskHistory:
        return DiskHistory.create(self.folder, self.layout, exist_ok=True)

    def _replayed(
        self, record: RoundRecord, model: Vector, asked: tuple[ClientId, ...]
    ) -> Updates:
        before = np.asarray(record.broadcast)
        if asked != record.asked or before.tobytes() != model.tobytes():
            raise HistoryError(
                f"question {self.calls} differs from the one in {self.folder}: "
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


def close_journal(folder: Path) -> None:
    """Remove a journal: its keys first, then the rest."""
    if folder.exists():
        forget_keys(folder)
        shutil.rmtree(folder)
    if folder.parent.exists() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
