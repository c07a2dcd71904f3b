"""Crab's selection of rounds and clients."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import ConfigError, HistoryError
from fedunlearn.history.record import RoundRecord
from fedunlearn.history.retention.keep import NOTHING, Keep, everything, less
from fedunlearn.history.spec import part_of
from fedunlearn.history.update_history import UpdateHistory, records
from fedunlearn.params import Layout, Matrix, Vector, norm

_Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Crab:
    """Keeps the rounds that moved the model most and the clients that went along.

    Jiang et al., "Towards Efficient and Certified Recovery from Poisoning Attacks in
    Federated Learning", 2024, arXiv 2401.08216. A round whose training loss lies below
    that of its window's first round by more than the share ``alpha`` closes the window
    and opens the next. Of n rounds in a closed window the ``ceil(rounds n)`` with the
    largest ``divergence`` stay, and of the K updates of such a round the
    ``ceil(clients K)`` of highest ``similarities``. The open window stays whole.

    Departures from the released code (the paper's text was not at hand), which takes
    floors, scores a round by the step of the next one, never keeps a window's last
    round, averages cosines over axis 1 of the tensors that have one, and closes the
    last window when training ends. Here a round is scored by its own step, from its
    broadcast to the next one, whatever the server rule; the cosine is that of whole
    tensors, all of them; the loss is the one clients report of their training, not the
    broadcast's. Ties go to the lower round index and client id.

    Attributes:
        alpha: Share of the loss by which it drops in a window, in ``(0, 1)``.
        rounds: Share of a window's rounds that stay, in ``(0, 1]``.
        clients: Share of the updates of such a round that stay, in ``(0, 1]``.
    """

    alpha: float = 0.1
    rounds: float = 0.6
    clients: float = 0.7
    sums: ClassVar[bool] = False
    sensitivities: ClassVar[bool] = False
    losses: ClassVar[bool] = True
    at_append = everything

    def __post_init__(self) -> None:
        """Refuse shares outside their range."""
        if not (0 < self.alpha < 1 and 0 < self.rounds <= 1 and 0 < self.clients <= 1):
            raise ConfigError(
                "crab:ALPHA,ROUNDS,CLIENTS must lie in (0, 1), (0, 1] and (0, 1], "
                f"got {self.alpha}, {self.rounds}, {self.clients}"
            )

    @property
    def name(self) -> str:
        """``crab``, followed by the shares unless they are the defaults."""
        shares = (self.alpha, self.rounds, self.clients)
        numbers = ",".join(repr(float(share)) for share in shares)
        return "crab" if self == Crab() else f"crab:{numbers}"

    def later(self, history: UpdateHistory) -> Mapping[int, Keep]:
        """Return the rounds of closed windows that hold too much.

        Raises:
            HistoryError: If a round has no training loss.
        """
        plan: dict[int, Keep] = {}
        held = history.holds.broadcasts
        for window in self._closed(history):
            plan |= self._thinned(window, held, history)
        return less(history, plan)

    def _closed(self, history: UpdateHistory) -> Iterator[list[RoundRecord]]:
        """Yield each closed window, followed by the round that closed it."""
        window: list[RoundRecord] = []
        for record in records(history):
            window.append(record)
            start = loss_of(window[0])
            if start - loss_of(record) > self.alpha * abs(start):
                yield window
                window = [record]

    def _thinned(
        self, window: list[RoundRecord], held: Set[int], history: UpdateHistory
    ) -> dict[int, Keep]:
        """Return what stays of a window, in an order that survives a stop halfway.

        Updates go while all broadcasts are there, then whole rounds, oldest first: what
        is older than the newest round that went is settled, and the rounds after it can
        still be scored.
        """
        first, layout = history.rounds[0], history.layout
        steps = {now.index: (now, after) for now, after in pairwise(window)}
        bare = {first} if first in steps and not steps[first][0].kept else set()
        gone = steps.keys() - held | bare
        chosen = [t for t in steps if t < max(gone, default=0) and t not in gone]
        rest = [t for t in steps if t > max(gone, default=0)]
        room = max(0, part_of(len(steps), self.rounds) - len(chosen))
        if len(rest) > room and window[-1].index in held:
            moved = {t: _moved(*steps[t], layout) for t in rest}
            chosen += sorted(rest, key=lambda t: (-moved[t], t))[:room]
        else:
            chosen += rest
        some = {t: self._going_along(*steps[t], held, layout) for t in chosen}
        return some | dict.fromkeys((t for t in rest if t not in some), NOTHING)

    def _going_along(
        self, now: RoundRecord, after: RoundRecord, held: Set[int], layout: Layout
    ) -> Keep:
        ids, quota = now.kept, part_of(len(now.clients), self.clients)
        if len(ids) > quota and after.index in held:
            models = now.broadcast + now.updates_of(ids)
            alike = similarities(models, after.broadcast, layout)
            ranked = sorted(zip(-alike, ids, strict=True))
            ids = tuple(client for _, client in ranked[:quota])
        return Keep(updates=frozenset(ids))


def divergence(before: Vector, after: Vector, layout: Layout) -> float:
    """Return ``sum KL(softmax(before) || softmax(after))`` of two models, in nats.

    The softmax runs over the last axis of each tensor, as in the released code of Crab;
    the sum over all tensors and their other axes. Both models have shape ``(P,)``.
    """
    total = 0.0
    for part, shape in zip(layout.slices.values(), layout.shapes, strict=True):
        if before[part].size:
            log_p = _log_softmax(before[part].reshape(shape))
            log_q = _log_softmax(after[part].reshape(shape))
            total += float(np.sum(np.exp(log_p) * (log_p - log_q)))
    return total


def similarities(models: Matrix, target: Vector, layout: Layout) -> _Scores:
    """Return the cosines of models, ``(K, P)``, with ``target``, ``(P,)``, as ``(K,)``.

    The mean over the tensors that have entries; with a tensor of zeros it counts as 0.
    """
    total, tensors = np.zeros(len(models)), 0
    for part in layout.slices.values():
        some, goal = models[:, part], target[part]
        if goal.size:
            dots = np.einsum("kp,p->k", some, goal, dtype=np.float64)
            squares = np.einsum("kp,kp->k", some, some, dtype=np.float64)
            lengths = np.sqrt(squares) * norm(goal)
            total += dots / np.where(lengths > 0, lengths, 1)
            tensors += 1
    return total / max(tensors, 1)


def _log_softmax(tensor: Vector) -> _Scores:
    rows = np.atleast_1d(tensor).astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    rows -= np.log(np.sum(np.exp(rows), axis=-1, keepdims=True))
    return rows


def _moved(now: RoundRecord, after: RoundRecord, layout: Layout) -> float:
    return divergence(now.broadcast, after.broadcast, layout)


def loss_of(record: RoundRecord) -> float:
    """Return a round's training loss, or raise HistoryError if it has none."""
    if record.loss is None or not isfinite(record.loss):
        raise HistoryError(
            f"crab needs the training loss of round {record.index}, got {record.loss}: "
            "every client must report the metric 'train-loss', a finite number"
        )
    return record.loss
