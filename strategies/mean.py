"""The replies of a cohort as one: for strategies that take their weighted mean first.

Flower's ``FedAvg`` and its kin add up replies in their order. Given one reply, the mean
of them all, they come to the same bits; their own sum takes every array of every reply
through a file in memory.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedunlearn.arrays import views_of
from fedunlearn.params import Layout, weighted_mean
from fedunlearn.updates import Updates
from strategies.replies import WEIGHT_KEY

Metrics = Mapping[str, npt.NDArray[np.int64 | np.float64]]
"""Name -> one number a client, shape ``(K,)``."""

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
    order: Message, updates: Updates, layout: Layout, metrics: Metrics
) -> Message:
    """Return one reply that stands for all.

    Args:
        order: What one of them answers to.
        updates: The cohort's.
        layout: Names and shapes of the model.
        metrics: What they report beside the example count.
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
            "arrays": views_of(weighted_mean(updates.after, counts), layout),
            "metrics": MetricRecord({WEIGHT_KEY: total, **means}),
        }
    )
    return Message(content, reply_to=order)
