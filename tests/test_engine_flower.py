"""The same training on Flower's own simulation runtime."""

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp import strategy as flower
from flwr.simulation import run_simulation
from flwr.supercore.task_identity import TaskIdentity

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.history import InMemoryHistory
from simulations.engine import SimulationGrid
from strategies.recording import RecordingStrategy
from tests.flower_helpers import small_app, small_task

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Flower's own call of ray.init.
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
]

CLIENTS, ROUNDS = 5, 3


@pytest.fixture
def flower_home(tmp_path, monkeypatch):
    """Flower's files go to a folder of the test, and it does not phone home."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, TaskIdentity.__dict__[name])


def train(task, grid):
    """Train; return the history, the model and the node ids."""
    history = InMemoryHistory(task.layout)
    # Flower starts the ServerApp while its nodes still register: one has to wait for
    # the four that stay, as with a plain strategy.
    inner = flower.FedAvgM(
        fraction_evaluate=0.0,
        min_train_nodes=4,
        min_available_nodes=4,
        server_momentum=0.5,
    )
    strategy = RecordingStrategy(inner, history, withdrawn=[3])
    result = strategy.start(
        grid,
        to_arrays(task.initial_model(0), task.layout),
        num_rounds=ROUNDS,
        train_config=ConfigRecord({"seed": 11}),
    )
    nodes = list(grid.get_node_ids())
    return history, from_arrays(result.arrays, task.layout), nodes


def test_flowers_own_runtime_gives_the_same_history_and_model(flower_home):
    task = small_task(sizes=(20, 7, 13, 9, 16))
    with SimulationGrid(small_app(task), num_clients=CLIENTS) as grid:
        history, model, _ = train(task, grid)

    app, runs = ServerApp(), []

    @app.main()
    def main(grid, context):
        runs.append(train(task, grid))

    run_simulation(
        app,
        small_app(task),
        num_supernodes=CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False},
        },
    )
    ((found, found_model, nodes),) = runs
    assert sorted(nodes) != list(range(1, CLIENTS + 1))
    assert found.rounds == history.rounds
    for index in history.rounds:
        ours, theirs = history.round(index), found.round(index)
        assert theirs.set_aside == ()
        assert theirs.clients == theirs.asked == ours.clients == (0, 1, 2, 4)
        assert theirs.num_examples.tolist() == ours.num_examples.tolist()
        assert theirs.num_steps.tolist() == ours.num_steps.tolist()
        scale = np.abs(ours.broadcast).max()
        np.testing.assert_allclose(
            theirs.broadcast, ours.broadcast, rtol=1e-6, atol=1e-6 * scale
        )
        np.testing.assert_allclose(
            theirs.updates, ours.updates, rtol=1e-5, atol=1e-6 * scale
        )
    assert np.linalg.norm(found_model - model) <= 1e-6 * np.linalg.norm(model)
