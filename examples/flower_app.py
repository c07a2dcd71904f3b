"""An ordinary Flower app that records its rounds and then forgets a client.

    python examples/flower_app.py FOLDER

The client and the server are what any Flower user writes: NumPy ridge regression under
stock FedAvg. Lines marked (1) and (2) are all that recording adds.
"""

import sys
from pathlib import Path

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedunlearn.arrays import from_arrays, layout_of
from fedunlearn.client import add_identity
from fedunlearn.cost import run_unlearning
from fedunlearn.history import DiskHistory
from fedunlearn.method import UnlearningContext
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.updates import MeanServer
from simulations.engine import SimulationGrid
from strategies import RecordingStrategy, Subtract
from strategies.grid_clients import GridClients

ROUNDS, CLIENTS, FEATURES, LEAVER = 30, 5, 8, 4


def make_client() -> ClientApp:
    """Return the client app: one gradient step of ridge regression a round."""
    app = add_identity(ClientApp())  # (1) lets a client say which one it is

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Take one gradient step on this client's own data."""
        client = int(context.node_config["partition-id"])
        rng = derive(0, "example data", client)
        x = rng.normal(size=(50, FEATURES)).astype(np.float32)
        y = x @ np.full(FEATURES, 1.0 + client, np.float32)
        w = message.content["arrays"].to_numpy_ndarrays()[0]
        w = w - np.float32(0.1) * (x.T @ (x @ w - y) / np.float32(50) + 0.01 * w)
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(w.astype(np.float32))}),
                "metrics": MetricRecord({"num-examples": 50}),
            }
        )
        return Message(content, reply_to=message)

    return app


def serve(grid: Grid, folder: Path) -> None:
    """Train with recording, then take the leaver's updates out of the model."""
    initial = ArrayRecord({"w": Array(np.zeros(FEATURES, np.float32))})
    layout = layout_of(initial)
    history = DiskHistory.create(folder, layout)
    strategy = RecordingStrategy(FedAvg(fraction_evaluate=0.0), history)  # (2)
    result = strategy.start(grid, initial, num_rounds=ROUNDS)
    model = from_arrays(result.arrays, layout)
    context = UnlearningContext(
        history=history,
        forget=frozenset({LEAVER}),
        clients=GridClients(grid=grid, layout=layout, config={}),
        schedule=TrainingSchedule(seed=0, rounds=ROUNDS, epochs=1),
        new_server=MeanServer,
        layout=layout,
        rng=derive(0, "unlearning"),
    )
    outcome = run_unlearning(Subtract(recovery_rounds=ROUNDS), model, context)
    history.close()
    print("mean weight with everybody   ", round(float(model.mean()), 2))
    print("mean weight without the leaver", round(float(outcome.model.mean()), 2))
    print("client-rounds spent           ", outcome.cost.client_rounds)


if __name__ == "__main__":
    with SimulationGrid(make_client(), num_clients=CLIENTS) as simulated:
        serve(simulated, Path(sys.argv[1]))
