"""The simulation grid in this process: any ClientApp for any Flower strategy."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from flwr.supercore.run import Run

from fedunlearn.arrays import to_arrays
from fedunlearn.errors import ConfigError, RunError
from fedunlearn.params import Layout
from simulations.engine import SimulationGrid
from simulations.engine.orders import shared_order
from tests.flower_helpers import bits, drift_app, initial_arrays, record


def app_of(function):
    app = ClientApp()
    app.train()(function)
    return app


def requests(nodes, content=None, kind="train"):
    content = RecordDict() if content is None else content
    return [Message(content, node, kind) for node in nodes]


def counting(message, context):
    """Counts its messages in the client's state."""
    record = context.state.setdefault("memory", MetricRecord({"calls": 0}))
    record["calls"] += 1
    found = MetricRecord({"calls": record["calls"], "node": context.node_id})
    return Message(RecordDict({"found": found}), reply_to=message)


def calls(replies):
    return [r.content["found"]["calls"] for r in replies]


def test_a_client_keeps_its_state_and_nobody_elses():
    with SimulationGrid(app_of(counting), num_clients=3) as grid:
        assert calls(grid.send_and_receive(requests([1, 2]))) == [1, 1]
        assert calls(grid.send_and_receive(requests([3, 2]))) == [1, 2]
        assert calls(grid.send_and_receive(requests([2, 1]))) == [3, 2]


def test_a_state_that_is_replaced_is_kept_too():
    def replacing(message, context):
        before = len(context.state)
        context.state = RecordDict({**context.state, f"m{before}": MetricRecord()})
        found = MetricRecord({"calls": before})
        return Message(RecordDict({"found": found}), reply_to=message)

    with SimulationGrid(app_of(replacing), num_clients=2) as grid:
        for expected in range(3):
            assert calls(grid.send_and_receive(requests([2]))) == [expected]


def test_two_messages_for_one_client_in_a_batch_see_each_others_state():
    with SimulationGrid(app_of(counting), num_clients=3) as grid:
        found = grid.send_and_receive(requests([2, 1, 2, 2, 3, 1]))
    assert calls(found) == [1, 1, 2, 3, 1, 2]
    assert [r.metadata.src_node_id for r in found] == [2, 1, 2, 2, 3, 1]


def test_a_client_is_told_who_and_where_it_is():
    seen = []

    def note(message, context):
        seen.append((context.node_id, dict(context.node_config), message.metadata))
        return Message(RecordDict(), reply_to=message)

    with SimulationGrid(app_of(note), num_clients=4) as grid:
        sent = grid.create_message(RecordDict(), "train", 3, "round-1")
        (reply,) = grid.send_and_receive([sent])
    node, config, metadata = seen[0]
    assert (node, config) == (3, {"partition-id": 2, "num-partitions": 4})
    assert metadata.message_type == "train"
    assert metadata.group_id == reply.metadata.group_id == "round-1"
    assert (metadata.dst_node_id, reply.metadata.src_node_id) == (3, 3)
    assert metadata.message_id == reply.metadata.reply_to_message_id != ""


def test_actions_reach_their_own_functions():
    app = ClientApp()

    @app.train("calibrate")
    def calibrate(message, context):
        found = MetricRecord({"calls": 77})
        return Message(RecordDict({"found": found}), reply_to=message)

    with SimulationGrid(app, num_clients=1) as grid:
        good, bad = grid.send_and_receive(
            requests([1], kind="train.calibrate") + requests([1], kind="train.other")
        )
    assert calls([good]) == [77]
    assert (bad.error.code, "other" in bad.error.reason) == (2, True)


def raising(message, context):
    if context.node_config["partition-id"] == 1:
        raise KeyError("no such file")
    return counting(message, context)


def leaving(message, context):
    if context.node_config["partition-id"] == 1:
        sys.exit("out of disk")
    return counting(message, context)


def returning_nothing(message, context):
    if context.node_config["partition-id"] == 1:
        return None
    return counting(message, context)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (raising, "KeyError: 'no such file'"),
        (leaving, "SystemExit: out of disk"),
        (returning_nothing, "returned None, not a Message"),
    ],
)
def test_a_client_that_fails_is_an_error_reply_and_the_others_go_on(function, reason):
    with SimulationGrid(app_of(function), num_clients=3) as grid:
        for expected in (1, 2):
            first, failed, last = grid.send_and_receive(requests([1, 2, 3]))
            assert (failed.error.code, failed.error.reason) == (2, reason)
            assert failed.metadata.src_node_id == 2
            assert calls([first, last]) == [expected, expected]


def test_an_error_reply_of_the_app_itself_is_passed_on():
    def refusing(message, context):
        return Message(Error(42, "not today"), reply_to=message)

    with SimulationGrid(app_of(refusing), num_clients=1) as grid:
        (reply,) = grid.send_and_receive(requests([1]))
    assert (reply.error.code, reply.error.reason) == (42, "not today")


@pytest.mark.parametrize("node", [0, 4, -1, 2**62])
def test_an_unknown_node_is_an_error_reply(node):
    with SimulationGrid(app_of(counting), num_clients=3) as grid:
        first, none, last = grid.send_and_receive(requests([1, node, 3]))
    assert none.error.code == 5
    assert str(node) in none.error.reason
    assert calls([first, last]) == [1, 1]


def test_pushed_messages_are_pulled_once_by_id_in_any_order():
    with SimulationGrid(app_of(counting), num_clients=3) as grid:
        ids = list(grid.push_messages(requests([2, 3, 1])))
        assert len(set(ids)) == 3
        pulled = list(grid.pull_messages([ids[2], "unknown", ids[0]]))
        assert [r.metadata.src_node_id for r in pulled] == [1, 2]
        assert list(grid.pull_messages(ids[:1])) == []
        (rest,) = grid.pull_messages(ids)
        assert rest.metadata.reply_to_message_id == ids[1]
        again = list(grid.push_messages(requests([1])))
        assert not set(again) & set(ids)


def test_replies_come_in_the_order_of_the_messages_and_generators_are_fine():
    with SimulationGrid(app_of(counting), num_clients=4) as grid:
        replies = grid.send_and_receive(m for m in requests([3, 1, 4]))
        assert [r.content["found"]["node"] for r in replies] == [3, 1, 4]
        assert list(grid.send_and_receive([])) == []
        assert list(grid.get_node_ids()) == [1, 2, 3, 4]


def shared_content():
    config = ConfigRecord({"lr": 0.5, "layers": [1, 2]})
    return RecordDict({"arrays": initial_arrays(), "config": config})


def spoiling(message, context):
    """Client 0 writes into its message in every way; all report what they got."""
    arrays, config = message.content["arrays"], message.content["config"]
    same = bits(arrays) == bits(initial_arrays()) and config["layers"] == [1, 2]
    reply = RecordDict({"found": MetricRecord({"calls": int(same)})})
    if context.node_config["partition-id"] == 0:
        arrays["b"].data = Array(np.zeros(3, np.float32)).data
        arrays["w"] = Array(np.zeros(1))
        arrays.pop("s")
        config["layers"].append(9)
        config["lr"] = 0.0
        message.content["more"] = MetricRecord()
    return Message(reply, reply_to=message)


def test_clients_cannot_change_each_others_messages_or_the_servers():
    content = shared_content()
    with SimulationGrid(app_of(spoiling), num_clients=3) as grid:
        assert calls(grid.send_and_receive(requests([1, 2, 3], content))) == [1, 1, 1]
    assert content == shared_content()
    assert bits(content["arrays"]) == bits(initial_arrays())


def test_the_server_cannot_empty_what_a_client_remembers():
    """FedMedian pops arrays off replies; a state may hold the same record."""

    def remembering(message, context):
        if "mine" not in context.state:
            context.state["mine"] = record(w=np.ones(2, np.float32))
        found = MetricRecord({"calls": len(context.state["mine"])})
        records = {"arrays": context.state["mine"], "found": found}
        return Message(RecordDict(records), reply_to=message)

    with SimulationGrid(app_of(remembering), num_clients=1) as grid:
        (reply,) = grid.send_and_receive(requests([1]))
        reply.content["arrays"].pop("w")
        assert calls(grid.send_and_receive(requests([1]))) == [1]


def test_a_stock_flower_strategy_runs_a_stock_client_app():
    strategy = flower.FedAvg(min_train_nodes=4, min_available_nodes=4)
    with SimulationGrid(drift_app(), num_clients=4) as grid:
        result = strategy.start(grid, initial_arrays(), num_rounds=2)
    assert set(result.train_metrics_clientapp) == {1, 2}
    assert set(result.evaluate_metrics_clientapp) == {1, 2}
    assert isinstance(result.arrays, ArrayRecord)


@pytest.mark.parametrize("use", ["send_and_receive", "push_messages"])
def test_outside_its_with_statement_a_grid_says_so(use):
    grid = SimulationGrid(app_of(counting), num_clients=1)
    message = "inside its with statement only"
    with pytest.raises(RunError, match=message):
        getattr(grid, use)(requests([1]))
    with grid:
        list(getattr(grid, use)(requests([1])))
    with pytest.raises(RunError, match=message):
        getattr(grid, use)(requests([1]))


def test_a_grid_can_be_entered_again_but_not_twice_at_once():
    grid = SimulationGrid(app_of(counting), num_clients=1)
    for expected in (1, 2):
        with grid:
            with pytest.raises(RunError, match="inside a with statement already"):
                grid.__enter__()
            assert calls(grid.send_and_receive(requests([1]))) == [expected]


@pytest.mark.parametrize("fails", [False, True])
def test_torch_has_one_thread_inside_and_its_own_number_after(fails):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with (
            pytest.raises(ZeroDivisionError) if fails else nullcontext(),
            SimulationGrid(app_of(counting), num_clients=1),
        ):
            assert torch.get_num_threads() == 1
            if fails:
                raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_clients": 0}, "at least one client, got 0"),
        ({"num_clients": 2, "workers": -1}, "workers must not be negative, got -1"),
    ],
)
def test_impossible_sizes_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        SimulationGrid(app_of(counting), **settings)


def test_a_run_is_kept_if_one_is_set():
    grid = SimulationGrid(app_of(counting), num_clients=1)
    with pytest.raises(RunError, match="set_run"):
        _ = grid.run
    run = Run.create_empty(run_id=5)
    grid.set_run(run)
    assert grid.run is run


# What is read as one order to all.

ORDERED = Layout(("a", "b"), ((2, 2), (2,)))


@pytest.mark.parametrize(
    ("extra", "one"),
    [
        ({}, True),
        ({"config": ConfigRecord({"server-round": 2})}, True),
        ({"metrics": MetricRecord({"a": 1})}, False),
        ({"config": ConfigRecord(), "metrics": MetricRecord()}, False),
        ({"config": ConfigRecord(), "config 2": ConfigRecord()}, False),
        ({"arrays 2": to_arrays(np.zeros(6, np.float32), ORDERED)}, False),
    ],
)
def test_an_order_is_one_model_and_at_most_one_config(extra, one):
    arrays = to_arrays(np.arange(6, dtype=np.float32), ORDERED)
    content = RecordDict({"arrays": arrays, **extra})
    with SimulationGrid(ClientApp(), num_clients=3):  # claims an identity
        messages = [Message(content, node, MessageType.TRAIN) for node in (2, 3)]
    order = shared_order(messages, ORDERED, 3)
    assert (order is not None) == one
    if order is not None:
        assert order.clients == (1, 2)
        assert order.model.tolist() == [0, 1, 2, 3, 4, 5]
        assert order.work.round_index == (2 if extra else 1)
    content["other"] = ConfigRecord() if one and extra else MetricRecord()
    assert shared_order(messages, ORDERED, 3) is None
