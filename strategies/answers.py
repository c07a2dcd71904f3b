"""What a cohort answered, in canonical order: read from replies of any kind."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from fedunlearn.client import NUM_SAMPLES, NUM_STEPS, TRAIN_LOSS
from fedunlearn.flower_compat import with_own_records
from fedunlearn.history import ClientId, SetAside
from fedunlearn.updates import Updates
from strategies.cohort_replies import CohortReplies
from strategies.mean import (
    MEAN,
    Combine,
    Metrics,
    combined_reply,
    mean_reply,
    takes_the_mean,
)
from strategies.replies import (
    WEIGHT_KEY,
    Broadcast,
    as_updates,
    mean_loss,
    sort_replies,
    weighted_loss,
)


@dataclass(frozen=True, slots=True)
class Answers:
    """The good answers of a cohort.

    Attributes:
        updates: What they amount to; with no client if there is none.
        aside: Replies that are not used.
        loss: Mean training loss, weighted by examples, or None if somebody is silent.
        messages: Given a strategy, tells what it is to aggregate; records of its own.
    """

    updates: Updates
    aside: list[SetAside]
    loss: float | None
    messages: Callable[[Strategy], list[Message]]


def read_answers(
    replies: Iterable[Message],
    sent: Broadcast,
    client_of: Callable[[int], ClientId | None],
    weight_key: str = WEIGHT_KEY,
    combine: Combine | None = None,
) -> Answers:
    """Return the good answers, ascending by client.

    Args:
        replies: As they came, in any order.
        sent: What they answer to.
        client_of: Node id -> client id.
        weight_key: Name of the example count among the metrics.
        combine: Makes one reply of all for the strategy, whatever strategy it is; None
            leaves that to the strategy.
    """
    if isinstance(replies, CohortReplies) and weight_key == WEIGHT_KEY:
        # Nobody asked a stranger: -1 is no client.
        clients = tuple(-1 if (c := client_of(n)) is None else c for n in replies.nodes)
        plain = _plain(sent) and replies.layout == sent.layout
        if plain and _in_order(clients, sent.asked) and replies.result.faultless:
            return _of_cohort(replies, sent, clients, combine)
    good, aside = sort_replies(replies, sent, client_of, weight_key)
    updates, own = as_updates(good, sent), [reply.message for reply in good]

    def messages(_: Strategy) -> list[Message]:
        if combine is not None:
            return [combined_reply(own, updates, sent.layout, combine, weight_key)]
        # Copies: FedMedian and FedTrimmedAvg empty the replies they aggregate.
        return [with_own_records(message) for message in own]

    return Answers(updates, aside, mean_loss(good), messages)


def _plain(sent: Broadcast) -> bool:
    """Tell whether the float32 arrays of the layout are all that may come back."""
    return sent.arrays.keys() == set(sent.layout.names) and all(
        "float32" in (array.dtype, sent.dtypes.get(name))
        for name, array in sent.arrays.items()
    )


def _in_order(clients: Sequence[ClientId], asked: Sequence[ClientId]) -> bool:
    """Tell whether clients are among those asked, each once, in the same order."""
    rest = iter(asked)
    return all(client in rest for client in clients)


def _of_cohort(
    replies: CohortReplies,
    sent: Broadcast,
    clients: tuple[ClientId, ...],
    combine: Combine | None,
) -> Answers:
    result = replies.result
    updates = Updates(
        clients=clients,
        before=sent.model,
        after=result.models,
        num_examples=result.num_examples,
        num_steps=result.num_steps,
        num_samples=result.num_samples,
    )

    def messages(strategy: Strategy) -> list[Message]:
        if combine is None and not takes_the_mean(strategy):
            return list(replies)
        reported: Metrics = {
            NUM_STEPS: result.num_steps,
            NUM_SAMPLES: result.num_samples,
            TRAIN_LOSS: result.losses,
        }
        order, layout = replies.orders[0], replies.layout
        return [mean_reply(order, updates, layout, reported, combine or MEAN)]

    loss = weighted_loss(result.num_examples.tolist(), result.losses.tolist())
    return Answers(updates, [], loss, messages)
