"""A Flower strategy that remembers every client's update."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from typing_extensions import override

from fedunlearn.errors import EmptyRoundError, LeaverContactError
from fedunlearn.history import (
    ClientId,
    DifferencesInMemory,
    RoundRecord,
    ServerState,
    SetAside,
)
from strategies.answers import Answers, read_answers
from strategies.directory import Directory
from strategies.grids import CohortGrid
from strategies.mean import Combine
from strategies.progress import Progress, RecordedHistory
from strategies.replies import WEIGHT_KEY, Broadcast

Cohort = Callable[[int, Collection[ClientId]], tuple[ClientId, ...]]
"""Given the round and who is there, tells whom the inner strategy may sample from."""


@final
class RecordingStrategy(Strategy):
    """Wraps any Flower strategy; training is unchanged, every round is recorded.

    It puts nodes and replies in canonical order (ascending client id), so that results
    do not depend on who answers first; sets bad replies aside; records the round before
    anybody sees the new model; and keeps withdrawn clients out.

    Rounds that the history holds already are not trained again: the same call to
    ``start`` after a crash goes on where the history ends, to the same bits.

    Args:
        inner: The strategy that samples and aggregates.
        history: Where rounds are appended; clients erased from it are never asked.
        withdrawn: Clients that are never asked.
        cohort: Whom ``inner`` may sample from in a round; None means everybody there.
        directory: Which node is which client; None asks the nodes.
        weight_key: Name of the example count in a reply's metrics.
        combine: Makes one reply of all for ``inner``, such as a mean within shards
            (``fedunlearn.shards``); None hands ``inner`` what the clients sent.
        on_round: Called with every round once it is recorded.
    """

    def __init__(  # noqa: PLR0913 - settings, by keyword
        self,
        inner: Strategy,
        history: RecordedHistory,
        *,
        withdrawn: Collection[ClientId] = (),
        cohort: Cohort | None = None,
        directory: Directory | None = None,
        weight_key: str = WEIGHT_KEY,
        combine: Combine | None = None,
        on_round: Callable[[RoundRecord], None] | None = None,
    ) -> None:
        self._inner = inner
        self._history = history
        self._progress = Progress(inner, history, keep_random=cohort is None)
        self._withdrawn = frozenset(withdrawn) | history.withdrawn
        self._cohort = cohort
        self._directory = Directory() if directory is None else directory
        self._weight_key = weight_key
        self._combine = combine
        self._on_round = on_round
        self._sent: Broadcast | None = None
        self._started = 0.0

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let ``inner`` choose among the cohort; note what is sent to whom."""
        if self._progress.is_behind(server_round):
            self._sent = Broadcast.of(arrays, (), self._sent)
            self._progress.check_start(server_round, self._sent)
            return []
        self._started = time.perf_counter()
        self._directory.refresh(grid)  # for a strategy that does not ask the grid
        shown = CohortGrid(grid, lambda: self._cohort_nodes(server_round, grid))
        messages = list(
            self._inner.configure_train(server_round, arrays, config, shown)
        )
        asked = self._asked(messages)
        order = sorted(range(len(asked)), key=asked.__getitem__)
        asked = tuple(asked[at] for at in order)
        self._sent = Broadcast.of(arrays, asked, self._sent)
        return [messages[at] for at in order]

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let ``inner`` aggregate the good replies, then record the round.

        Nobody sees the new model before the round that made it is recorded.

        Raises:
            EmptyRoundError: If there is no good reply.
        """
        if self._progress.is_behind(server_round):
            return self._progress.arrays_after(server_round), None
        if self._sent is None:
            raise EmptyRoundError(f"round {server_round} was never configured")
        answers = read_answers(
            replies,
            self._sent,
            self._directory.client_of,
            self._weight_key,
            self._combine,
        )
        if not answers.updates.clients:
            raise EmptyRoundError(_nobody(server_round, self._sent, answers.aside))
        before = self._progress.state_before(self._sent)
        arrays, metrics = self._inner.aggregate_train(
            server_round, answers.messages(self._inner)
        )
        record = self._record(server_round, answers, before)
        after = self._progress.state_after(arrays or self._sent.arrays)
        self._history.append_round(record, after)
        if self._on_round is not None:
            self._on_round(record)
        return arrays, metrics

    def _record(self, index: int, answers: Answers, before: ServerState) -> RoundRecord:
        assert self._sent is not None  # noqa: S101 - narrows the type
        updates = answers.updates
        return RoundRecord(
            index=index,
            clients=updates.clients,
            num_examples=updates.num_examples,
            num_steps=updates.num_steps,
            num_samples=updates.num_samples,
            asked=self._sent.asked,
            set_aside=tuple(answers.aside),
            loss=answers.loss,
            seconds=time.perf_counter() - self._started,
            arrays=DifferencesInMemory(updates.before, updates.after, before),
        )

    @override
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let ``inner`` choose among all who did not withdraw."""
        if self._progress.is_behind(server_round):
            return []
        self._directory.refresh(grid)
        shown = CohortGrid(grid, lambda: self._staying_nodes(grid))
        messages = list(
            self._inner.configure_evaluate(server_round, arrays, config, shown)
        )
        self._asked(messages)
        return messages

    @override
    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Pass the replies on in canonical order."""
        if self._progress.is_behind(server_round):
            return None
        known = (
            (self._directory.client_of(r.metadata.src_node_id), r) for r in replies
        )
        ordered = {client: reply for client, reply in known if client is not None}
        return self._inner.aggregate_evaluate(
            server_round, [ordered[client] for client in sorted(ordered)]
        )

    @override
    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self._inner.summary()

    def _staying_nodes(self, grid: Grid) -> tuple[int, ...]:
        return tuple(self._staying(self._directory.refresh(grid)).values())

    def _staying(self, there: Mapping[ClientId, int]) -> dict[ClientId, int]:
        return {c: n for c, n in there.items() if c not in self._withdrawn}

    def _cohort_nodes(self, server_round: int, grid: Grid) -> tuple[int, ...]:
        there = self._directory.refresh(grid)
        staying = self._staying(there)
        ids: Collection[ClientId] = tuple(staying)
        if self._cohort is not None:
            ids = self._cohort(server_round, ids)
        # Where no node is connected yet, ``inner`` waits as it does without us.
        if there and not ids:
            raise EmptyRoundError(f"round {server_round} has nobody to ask")
        return tuple(staying[c] for c in ids)

    def _asked(self, messages: list[Message]) -> tuple[ClientId, ...]:
        """Return whom the messages go to; refuse those to withdrawn clients."""
        asked = tuple(self._client(m.metadata.dst_node_id) for m in messages)
        if leavers := self._withdrawn.intersection(asked):
            raise LeaverContactError(
                f"{type(self._inner).__name__} wants to ask client {min(leavers)}, "
                "who withdrew"
            )
        return asked

    def _client(self, node: int) -> ClientId:
        """Return the client behind a node; strangers, whom nobody asked, come first."""
        client = self._directory.client_of(node)
        return -1 if client is None else client


def _nobody(index: int, sent: Broadcast, aside: list[SetAside]) -> str:
    why = "; ".join(f"client {s.client}: {s.reason}" for s in aside[:3])
    return (
        f"nobody gave a usable answer in round {index} "
        f"({len(sent.asked)} asked; {why or 'no reply came'})"
    )
