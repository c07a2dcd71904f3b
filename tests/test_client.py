"""The ClientApp of a task: train, evaluate, identify."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch.nn import functional

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.client import IDENTIFY, evaluate_holdout
from fedunlearn.errors import EmptyRoundError
from fedunlearn.history import InMemoryHistory
from fedunlearn.training import LocalWork
from simulations.engine import SimulationGrid
from strategies.recording import RecordingStrategy
from strategies.server_rules import FedAvg
from tests.flower_helpers import blobs, small_app, small_task


@pytest.fixture
def task():
    return small_task()


@pytest.fixture
def grid(task):
    with SimulationGrid(small_app(task), num_clients=len(task.clients)) as opened:
        yield opened


def send(grid, task, vector, kind, node, **config):
    content = RecordDict({"arrays": to_arrays(vector, task.layout)})
    if config:
        content["config"] = ConfigRecord(config)
    (reply,) = grid.send_and_receive([Message(content, node, kind)])
    return reply


@pytest.mark.parametrize(
    ("config", "work"),
    [
        ({}, LocalWork(seed=0, round_index=1)),
        ({"seed": 9, "server-round": 4}, LocalWork(seed=9, round_index=4)),
        ({"seed": 2**63 - 1}, LocalWork(seed=2**63 - 1, round_index=1)),
        (
            {"epochs": 2.5, "proximal-mu": 0.5},
            LocalWork(seed=0, round_index=1, epochs=2.5, proximal_mu=0.5),
        ),
        ({"lr": "ignored"}, LocalWork(seed=0, round_index=1)),
    ],
    ids=str,
)
def test_a_train_message_is_the_tasks_local_training(grid, task, config, work):
    start = task.initial_model(0)
    reply = send(grid, task, start, "train", 3, **config)
    expected = task.train(2, start, work)
    found = from_arrays(reply.content["arrays"], task.layout)
    assert found.tobytes() == expected.model.tobytes()
    assert dict(reply.content["metrics"]) == {
        "num-examples": 13,
        "num-steps": expected.num_steps,
        "num-samples": expected.num_samples,
        "train-loss": expected.loss,
    }


def small_arrays(task, vector):
    return {n: torch.tensor(a) for n, a in task.layout.unflatten(vector).items()}


def test_an_evaluate_message_gives_loss_and_accuracy_on_the_holdout(grid, task):
    start = task.initial_model(0)
    reply = send(grid, task, start, "evaluate", 2)
    data, arrays = task.clients[1], small_arrays(task, start)
    x = torch.tensor(data.x_holdout)
    hidden = torch.relu(x @ arrays["1.weight"].T + arrays["1.bias"])
    logits = hidden @ arrays["3.weight"].T + arrays["3.bias"]
    labels = torch.tensor(data.y_holdout)
    metrics = reply.content["metrics"]
    assert metrics["num-examples"] == 4
    assert metrics["loss"] == pytest.approx(
        float(functional.cross_entropy(logits, labels)), rel=1e-5
    )
    assert metrics["accuracy"] == float((logits.argmax(1) == labels).double().mean())


def test_a_client_without_a_holdout_says_zero_examples():
    task = small_task()
    bare = type(task)(
        clients=blobs((5,), holdout=0),
        model=task.model,
        input_shape=task.input_shape,
        num_classes=3,
        training=task.training,
    )
    found = evaluate_holdout(bare, 0, bare.initial_model(0))
    assert dict(found) == {"num-examples": 0, "loss": 0.0, "accuracy": 0.0}


def test_an_identify_query_gives_the_partition_id(grid):
    messages = [Message(RecordDict(), n, f"query.{IDENTIFY}") for n in (4, 1)]
    replies = grid.send_and_receive(messages)
    assert [r.content["client"]["partition-id"] for r in replies] == [3, 0]
    assert all(not r.content.metric_records for r in replies)


def test_a_model_of_other_shapes_is_an_error_reply_that_names_the_array(grid, task):
    other = small_task()
    arrays = to_arrays(other.initial_model(0), other.layout)
    del arrays["3.bias"]
    content = RecordDict({"arrays": arrays})
    (reply,) = grid.send_and_receive([Message(content, 1, "train")])
    assert reply.error.code == 2
    assert "'3.bias'" in reply.error.reason


def train(task, rounds=2):
    history = InMemoryHistory(task.layout)
    with SimulationGrid(small_app(task), num_clients=len(task.clients)) as grid:
        result = RecordingStrategy(FedAvg().strategy(), history).start(
            grid,
            to_arrays(task.initial_model(0), task.layout),
            num_rounds=rounds,
            train_config=ConfigRecord({"seed": 1}),
        )
    return from_arrays(result.arrays, task.layout), history


def test_an_empty_client_is_set_aside_and_the_others_go_on():
    _, history = train(small_task(sizes=(8, 0, 5)))
    for index in history.rounds:
        kept = history.round(index)
        assert kept.clients == (0, 2)
        assert kept.asked == (0, 1, 2)
        assert [(s.client, s.reason) for s in kept.set_aside] == [
            (1, "num-examples is 0, not a positive whole number")
        ]


def test_only_empty_clients_are_an_empty_round():
    with pytest.raises(EmptyRoundError, match=r"client 0: num-examples is 0"):
        train(small_task(sizes=(0, 0)))


def test_leaving_a_client_out_shifts_nobody_elses_training():
    """The first round's updates of the others are the same bits without client 1."""
    task = small_task()
    _, history = train(task, rounds=1)
    other = InMemoryHistory(task.layout)
    strategy = RecordingStrategy(FedAvg().strategy(), other, withdrawn=[1])
    with SimulationGrid(small_app(task), num_clients=4) as grid:
        strategy.start(
            grid,
            to_arrays(task.initial_model(0), task.layout),
            num_rounds=1,
            train_config=ConfigRecord({"seed": 1}),
        )
    both = (0, 2, 3)
    kept, less = history.round(1), other.round(1)
    assert less.clients == both
    assert less.updates.tobytes() == kept.updates_of(both).tobytes()


def test_training_lowers_the_loss_of_learnable_data():
    task = small_task()
    for data in task.clients:
        data.y[:] = (data.x[:, 0] > 0).astype(np.int64)
    model, _ = train(task, rounds=20)
    start = task.initial_model(0)

    def loss(vector):
        work = LocalWork(seed=0, round_index=1)
        return np.mean([task.train(c, vector, work).loss for c in range(4)])

    assert loss(model) < 0.6 * loss(start)
