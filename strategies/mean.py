"""The replies of a cohort as one: for strategies that take their weighted mean first.

Flower's ``FedAvg`` and its kin add up replies in their order. Given one reply, the mean
of them all, they come to the same bits; their own sum takes every array of every reply
through a file in memory.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedunlearn.arrays import views_of
from fedunlearn.flower_compat import with_own_records
from fedunlearn.params import Layout, Vector
from fedunlearn.updates import MeanServer, Updates
from strategies.replies import WEIGHT_KEY

Metrics = Mapping[str, npt.NDArray[np.int64 | np.float64]]
"""Name -> one number a client, shape ``(K,)``."""
Combine = Callable[[Updates], Vector]
"""What all replies of a cohort come to as one model, shape ``(P,)``."""
MEAN: Combine = MeanServer().step
"""Their mean, weighted by examples."""

_TAKE_THE_MEAN = (
    flower.FedAvg,
    flower.FedAvgM,
    flower.FedProx,
    flower.FedAdam,
    flower.FedAdagrad,
    flower.FedYogi,
)


def takes_the_mean(strategy: Strategy) -> bool:
    """Tell whether a strategy sees nothing of the replies but their weighted mean.

    A subclass may look at them one by one: it gets them all.
    """
    return (
        type(strategy) in _TAKE_THE_MEAN
        and isinstance(strategy, flower.FedAvg)
        and strategy.weighted_by_key == WEIGHT_KEY
        and strategy.train_metrics_aggr_fn is aggregate_metricrecords
    )


def mean_reply(
    order: Message,
    updates: Updates,
    layout: Layout,
    metrics: Metrics,
    combine: Combine = MEAN,
) -> Message:
    """Return one reply that stands for all.

    Args:
        order: What one of them answers to.
        updates: The cohort's.
        layout: Names and shapes of the model.
        metrics: What they report beside the example count.
        combine: Makes one model of theirs.
    """
    counts = updates.num_examples.tolist()
    total = sum(counts)
    shares = np.array([count / total for count in counts])
    means = {
        # A running sum adds in order, as Flower does; np.sum adds in pairs.
        name: float(np.cumsum(values * shares)[-1])
        for name, values in metrics.items()
    }
    content = RecordDict(
        {
            "arrays": views_of(combine(updates), layout),
            "metrics": MetricRecord({WEIGHT_KEY: total, **means}),
        }
    )
    return Message(content, reply_to=order)


def combined_reply(
    replies: Sequence[Message],
    updates: Updates,
    layout: Layout,
    combine: Combine,
    weight_key: str = WEIGHT_KEY,
) -> Message:
    """Return one reply that stands for all, where clients sent messages of their own.

    Args:
        replies: Theirs, ascending by client; not written to.
        updates: The same, read.
        layout: Names and shapes of the model.
        combine: Makes one model of theirs.
        weight_key: Name of the example count among their metrics.
    """
    one = with_own_records(replies[0])
    ((arrays, record),) = one.content.array_records.items()
    ((metrics, _),) = one.content.metric_records.items()
    contents = [reply.content for reply in replies]
    total = int(updates.num_examples.sum())
    means = aggregate_metricrecords(contents, weight_key)
    one.content[arrays] = ArrayRecord({**record, **views_of(combine(updates), layout)})
    one.content[metrics] = MetricRecord({**means, weight_key: total})
    return one
