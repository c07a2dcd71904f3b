"""The lean Flower ClientApp of the contestant ``flower``.

An actor makes the workload's data and model once and keeps them: no message carries
data. The steps are those of every other contestant, ``LocalTask.descend``.
"""

import time
from functools import lru_cache

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedunlearn.arrays import to_arrays
from fedunlearn.client import NUM_EXAMPLES, partition_of, read_order
from fedunlearn.models.state import single_thread
from fedunlearn.task import LocalTask
from simulations.engine_bench.serve import Entry

ENTRY = "entry"
"""Key of the configuration that says what is trained."""
KERNEL = "kernel-seconds"
"""Metric: seconds of local training alone."""

app = ClientApp()


@lru_cache(maxsize=1)
def task_of(text: str) -> LocalTask:
    """Return the task of an entry, made once in a process."""
    single_thread()
    return Entry.of_json(text).task()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client for one round."""
    task = task_of(str(message.content["config"][ENTRY]))
    model, work = read_order(message.content, task.layout)
    begin = time.perf_counter()
    result = task.train(partition_of(context), model, work)
    seconds = time.perf_counter() - begin
    content = RecordDict(
        {
            "arrays": to_arrays(result.model, task.layout),
            "metrics": MetricRecord(
                {NUM_EXAMPLES: result.num_examples, KERNEL: seconds}
            ),
        }
    )
    return Message(content, reply_to=message)
