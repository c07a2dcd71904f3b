"""A Flower ClientApp built from a LocalTask, and the question who a node is.

The messages are Flower's own: ``arrays`` and ``config`` go out, ``arrays`` and
``metrics`` come back. The config may hold ``server-round``, ``seed``, ``epochs``,
``proximal-mu`` and ``view``; the metrics hold ``num-examples``, ``num-steps``,
``num-samples`` and ``train-loss``.
"""

from collections.abc import Callable

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from torch.nn import functional

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.history import ClientId
from fedunlearn.local import decode, installed
from fedunlearn.models.state import load, tensor_view
from fedunlearn.params import Layout, Vector
from fedunlearn.problem import TorchProblem
from fedunlearn.shards import shard_of
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork

NUM_EXAMPLES, NUM_STEPS, NUM_SAMPLES = "num-examples", "num-steps", "num-samples"
TRAIN_LOSS = "train-loss"
"""Metrics of a reply to an order to train."""

VIEW = "view"
"""Setting of an order: which part of its data a client uses."""

IDENTIFY = "fedunlearn_identify"
"""Action of the query that asks a node for its partition id."""
RUN = "fedunlearn_run"
"""Action of the query that runs a method's own procedure."""
RESULT = "result"
"""Name of the array in a reply to it."""


def add_identity(app: ClientApp) -> ClientApp:
    """Let ``app`` tell which client it is: the one line an existing ClientApp needs."""

    @app.query(IDENTIFY)
    def identify(message: Message, context: Context) -> Message:
        answer = ConfigRecord({"partition-id": partition_of(context)})
        return Message(RecordDict({"client": answer}), reply_to=message)

    return app


def add_procedures(
    app: ClientApp, task: LocalTask, trusted: Callable[[str], bool] = installed
) -> ClientApp:
    """Let ``app`` run the procedures of methods that need more than training.

    Args:
        app: The ClientApp.
        task: What its clients train.
        trusted: Tells whether procedures of a module may be run.
    """

    @app.query(RUN)
    def run(message: Message, context: Context) -> Message:
        model, work = read_order(message.content, task.layout)
        procedure = decode(next(iter(message.content.config_records.values())), trusted)
        client = partition_of(context)
        data = task.data_of(client, work.view)
        own = shard_of(client, task.shards)
        problem = TorchProblem(task, data, client, work, own)
        result = np.ascontiguousarray(procedure.run(model, problem), np.float32)
        metrics = MetricRecord(
            {
                NUM_EXAMPLES: len(problem.labels),
                NUM_STEPS: problem.num_steps,
                NUM_SAMPLES: problem.num_samples,
            }
        )
        arrays = ArrayRecord({RESULT: Array(result)})
        return Message(
            RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message
        )

    return app


def client_app(
    task: LocalTask, trusted: Callable[[str], bool] = installed
) -> ClientApp:
    """Return the ClientApp of a task: train, evaluate, identify, run procedures.

    Args:
        task: What clients train.
        trusted: Tells whether procedures of a module may be run.
    """
    app = add_procedures(add_identity(ClientApp()), task, trusted)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, work = read_order(message.content, task.layout)
        result = task.train(partition_of(context), model, work)
        metrics = MetricRecord(
            {
                NUM_EXAMPLES: result.num_examples,
                NUM_STEPS: result.num_steps,
                NUM_SAMPLES: result.num_samples,
                TRAIN_LOSS: result.loss,
            }
        )
        arrays = to_arrays(result.model, task.layout)
        return Message(
            RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model, _ = read_order(message.content, task.layout)
        metrics = evaluate_holdout(task, partition_of(context), model)
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def evaluate_holdout(task: LocalTask, client: ClientId, model: Vector) -> MetricRecord:
    """Return loss and accuracy of ``model`` on the client's held-out data."""
    data, module = task.clients[client], task.module()
    load(module, task.layout, model)
    count = len(data.y_holdout)
    if count == 0:
        return MetricRecord({"num-examples": 0, "loss": 0.0, "accuracy": 0.0})
    with torch.no_grad():
        logits = module(tensor_view(data.x_holdout))
    labels = tensor_view(data.y_holdout)
    return MetricRecord(
        {
            "num-examples": count,
            "loss": float(functional.cross_entropy(logits, labels)),
            "accuracy": float((logits.argmax(1) == labels).double().mean()),
        }
    )


def partition_of(context: Context) -> ClientId:
    """Return the partition id a runtime gave this node."""
    return int(context.node_config["partition-id"])


def read_order(content: RecordDict, layout: Layout) -> tuple[Vector, LocalWork]:
    """Return the model and the work in what a server sent.

    Raises:
        ValueError: If the arrays are not the layout's.
    """
    # Flower's own content.array_records copies every record there is.
    arrays = next(r for r in content.values() if isinstance(r, ArrayRecord))
    return from_arrays(arrays, layout), read_work(content)


def read_work(content: RecordDict) -> LocalWork:
    """Return the work in what a server sent."""
    configs = (r for r in content.values() if isinstance(r, ConfigRecord))
    config = next(configs, ConfigRecord())
    epochs = config.get("epochs")
    return LocalWork(
        seed=int(config.get("seed", 0)),  # type: ignore[arg-type]
        round_index=int(config.get("server-round", 1)),  # type: ignore[arg-type]
        epochs=None if epochs is None else float(epochs),  # type: ignore[arg-type]
        proximal_mu=float(config.get("proximal-mu", 0.0)),  # type: ignore[arg-type]
        view=config.get(VIEW, "all"),  # type: ignore[arg-type]
    )
