"""The replies of a cohort that an engine trained as one."""

from collections.abc import Sequence
from typing import final, overload

from flwr.app import Message, MetricRecord, RecordDict
from typing_extensions import override

from fedunlearn.arrays import views_of
from fedunlearn.client import NUM_EXAMPLES, NUM_SAMPLES, NUM_STEPS, TRAIN_LOSS
from fedunlearn.cohort import CohortResult
from fedunlearn.params import Layout


@final
class CohortReplies(Sequence[Message]):
    """Behaves as a list of replies; each is made when somebody looks at it.

    Args:
        orders: The messages they answer to, in the order of the rows.
        layout: Names and shapes of the model.
        result: What the clients came to.
    """

    def __init__(
        self, orders: Sequence[Message], layout: Layout, result: CohortResult
    ) -> None:
        self.orders = orders
        self.layout = layout
        self.result = result

    @property
    def nodes(self) -> list[int]:
        """The nodes that answer, in the order of the rows."""
        return [order.metadata.dst_node_id for order in self.orders]

    @override
    def __len__(self) -> int:
        return len(self.orders)

    @overload
    def __getitem__(self, index: int) -> Message: ...

    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...

    @override
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            return [self._reply(k) for k in range(len(self))[index]]
        return self._reply(range(len(self))[index])

    def _reply(self, k: int) -> Message:
        result = self.result
        arrays = views_of(result.models[k], self.layout)
        metrics = MetricRecord(
            {
                NUM_EXAMPLES: int(result.num_examples[k]),
                NUM_STEPS: int(result.num_steps[k]),
                NUM_SAMPLES: int(result.num_samples[k]),
                TRAIN_LOSS: float(result.losses[k]),
            }
        )
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=self.orders[k])
