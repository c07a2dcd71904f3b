"""GridClients: the remaining clients, reached by Flower messages."""

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.client import add_identity
from fedunlearn.errors import EmptyRoundError, RunError
from fedunlearn.history import InMemoryHistory
from fedunlearn.training import LocalWork
from simulations.engine import SimulationGrid
from strategies.directory import Directory
from strategies.flower_server import asking_all
from strategies.grid_clients import GridClients
from strategies.recording import RecordingStrategy
from tests.flower_helpers import LAYOUT, initial_arrays, small_app, small_task


def noting_app(seen, failing=(), carried=()):
    """Adds one to every float array; fails at some clients."""
    app = add_identity(ClientApp())

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        seen.append((client, dict(message.content["config"])))
        if client in failing:
            raise ValueError(f"client {client} is tired")
        arrays = message.content["arrays"]
        for name in LAYOUT.names:
            arrays[name] = Array(np.asarray(arrays[name].numpy() + np.float32(1)))
        metrics = MetricRecord({"num-examples": client + 1, "num-steps": 3})
        records = {"arrays": arrays, "metrics": metrics}
        return Message(RecordDict(records), reply_to=message)

    return app


def clients(grid, **others):
    settings = {"config": {"seed": 7, "proximal-mu": 0.25}, **others}
    return GridClients(grid=grid, layout=LAYOUT, **settings)


def model():
    return from_arrays(initial_arrays(), LAYOUT)


def test_the_order_carries_config_round_and_epochs_to_each_client_asked():
    seen = []
    with SimulationGrid(noting_app(seen), num_clients=5) as grid:
        updates = clients(grid).train(model(), [3, 1], round_index=9, epochs=2)
    order = {"seed": 7, "proximal-mu": 0.25, "server-round": 9, "epochs": 2.0}
    assert seen == [(1, order), (3, order)]
    assert isinstance(seen[0][1]["epochs"], float)
    assert updates.clients == (1, 3)
    assert updates.num_examples.tolist() == [2, 4]
    assert updates.num_steps.tolist() == [3, 3]
    assert updates.num_samples.tolist() == [0, 0]
    assert np.array_equal(updates.before, model())
    assert np.array_equal(updates.after, np.stack([model() + np.float32(1)] * 2))


def test_without_epochs_the_clients_take_their_own():
    seen = []
    with SimulationGrid(noting_app(seen), num_clients=2) as grid:
        clients(grid).train(model(), [0], round_index=1)
    assert "epochs" not in seen[0][1]


def test_everybody_who_is_there_can_be_named():
    with SimulationGrid(noting_app([]), num_clients=4) as grid:
        assert clients(grid).ids == frozenset({0, 1, 2, 3})


def test_a_client_that_is_not_there_is_refused_before_anybody_trains():
    seen = []
    with (
        SimulationGrid(noting_app(seen), num_clients=3) as grid,
        pytest.raises(RunError, match="client 7 is not there"),
    ):
        clients(grid).train(model(), [0, 7], round_index=1)
    assert seen == []


def test_clients_that_fail_are_left_out_of_the_updates():
    with SimulationGrid(noting_app([], failing={1}), num_clients=3) as grid:
        updates = clients(grid).train(model(), [0, 1, 2], round_index=1)
    assert updates.clients == (0, 2)
    assert updates.after.shape == (2, LAYOUT.size)


def test_a_round_in_which_all_fail_is_an_error_with_the_reason():
    with (
        SimulationGrid(noting_app([], failing={0, 1}), num_clients=3) as grid,
        pytest.raises(EmptyRoundError, match=r"none of 2 clients .*client 0 is tired"),
    ):
        clients(grid).train(model(), [0, 1], round_index=1)


def test_nobody_to_train_is_an_error():
    with (
        SimulationGrid(noting_app([]), num_clients=3) as grid,
        pytest.raises(EmptyRoundError, match="none of 0 clients"),
    ):
        clients(grid).train(model(), [], round_index=1)


def test_the_model_and_the_config_are_not_written_to():
    vector, config = model(), {"seed": 7}
    vector.setflags(write=False)
    with SimulationGrid(noting_app([]), num_clients=2) as grid:
        clients(grid, config=config).train(vector, [0, 1], round_index=1, epochs=1)
    assert config == {"seed": 7}


def test_carried_arrays_travel_with_the_model():
    with SimulationGrid(noting_app([]), num_clients=2) as grid:
        carried = {"count": Array(np.asarray(5))}
        updates = clients(grid, carried=carried).train(model(), [0], round_index=1)
    assert updates.after.shape == (1, LAYOUT.size)


def test_a_round_asked_again_gives_the_recorded_updates_bit_for_bit():
    """Retraining without a client is a paired comparison because of this."""
    task = small_task()
    history = InMemoryHistory(task.layout)
    directory = Directory()
    strategy = RecordingStrategy(
        asking_all(flower.FedAvg), history, directory=directory
    )
    initial = task.initial_model(3)
    with SimulationGrid(small_app(task), num_clients=4) as grid:
        strategy.start(
            grid,
            to_arrays(initial, task.layout),
            num_rounds=2,
            train_config=ConfigRecord({"seed": 5}),
        )
        again = GridClients(
            grid=grid, layout=task.layout, config={"seed": 5}, directory=directory
        )
        kept = history.round(2)
        fresh = again.train(kept.broadcast, [0, 2, 3], round_index=2)
        shorter = again.train(kept.broadcast, [2], round_index=2, epochs=0.5)
    assert fresh.deltas.tobytes() == kept.updates_of([0, 2, 3]).tobytes()
    assert fresh.num_steps.tolist() == kept.num_steps[[0, 2, 3]].tolist()
    alone = task.train(2, kept.broadcast, LocalWork(seed=5, round_index=2, epochs=0.5))
    assert shorter.after[0].tobytes() == alone.model.tobytes()
