"""What the Flower tests share: records, replies, ClientApps and a small task.

ClientApps are built from nested functions only, so that cloudpickle sends them to Ray
workers by value: those cannot import a test module.
"""

from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from fedunlearn.client import add_identity, client_app
from fedunlearn.data.federation import ClientData
from fedunlearn.flower_compat import claim_identity
from fedunlearn.history import InMemoryHistory
from fedunlearn.models import Mlp
from fedunlearn.params import Layout
from fedunlearn.task import LocalTask
from fedunlearn.training import Training
from strategies.directory import Directory
from strategies.flower_server import asking_all
from strategies.grids import CohortGrid, NoGrid
from strategies.recording import RecordingStrategy


def record(**named):
    """An ArrayRecord of NumPy arrays."""
    return ArrayRecord({name: Array(np.asarray(a)) for name, a in named.items()})


def values(arrays):
    """Name -> NumPy array."""
    return {name: array.numpy() for name, array in arrays.items()}


def bits(arrays):
    """All there is to named arrays: equal means the same bits."""
    named = values(arrays) if isinstance(arrays, ArrayRecord) else arrays
    return {n: (a.dtype.str, a.shape, a.tobytes()) for n, a in named.items()}


def by_number(grid, nodes):
    """Identify nodes as our own grids number them: node ``i + 1`` is client ``i``."""
    return {node: node - 1 for node in nodes}


def initial_arrays(seed=0):
    """A model of three arrays, one of them a scalar."""
    rng = np.random.default_rng(seed)
    return record(
        w=rng.normal(size=(3, 4)).astype(np.float32),
        b=rng.normal(size=3).astype(np.float32),
        s=np.float32(rng.normal()),
    )


LAYOUT = Layout(("w", "b", "s"), ((3, 4), (3,), ()))


def drift_app(seen=None):
    """A user's own NumPy ClientApp: every client pulls the model its own way.

    It works in float32 and int64 whatever arrives, as a torch module does.

    Args:
        seen: List that gets ``(round, client, before, after)`` of every training.
    """
    app = add_identity(ClientApp())

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        config = message.content["config"]
        rng = np.random.default_rng([client, config["server-round"]])
        before = {
            n: a.numpy().astype(np.int64 if n == "count" else np.float32)
            for n, a in message.content["arrays"].items()
        }
        after = {
            n: np.asarray(
                a + 1
                if n == "count"
                else a * np.float32(0.7) + rng.normal(size=a.shape).astype(np.float32)
            )
            for n, a in before.items()
        }
        if seen is not None:
            seen.append((config["server-round"], client, before, after))
        metrics = {
            "num-examples": 3 * client + 1,
            "num-steps": client + 2,
            "num-samples": 10 * client + 5,
            "train-loss": 0.25 * client,
        }
        content = RecordDict(
            {
                "arrays": ArrayRecord({n: Array(a) for n, a in after.items()}),
                "metrics": MetricRecord(metrics),
            }
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        client = context.node_config["partition-id"]
        metrics = MetricRecord({"num-examples": 1, "who": client})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def blobs(sizes, seed=0, shape=(5,), classes=3, holdout=4):
    """Clients with random examples; client ``k`` holds ``sizes[k]``."""
    rng = np.random.default_rng(seed)

    def draw(n):
        x = rng.normal(size=(n, *shape)).astype(np.float32)
        return x, rng.integers(0, classes, n)

    return tuple(
        ClientData(f"c{k}", *draw(n), *draw(holdout)) for k, n in enumerate(sizes)
    )


def small_task(sizes=(20, 7, 13, 16), **training):
    """An MLP on random data."""
    settings = {"epochs": 1, "batch_size": 6, "lr": 0.1, **training}
    return LocalTask(
        clients=blobs(sizes),
        model=Mlp(hidden=(8,)),
        input_shape=(5,),
        num_classes=3,
        training=Training(**settings),
    )


def small_app(task):
    """The ClientApp of a task."""
    return client_app(task)


@dataclass
class Server:
    """A RecordingStrategy and its history on a grid without a transport.

    Replies are handed to it by the test, so that they can be wrong in any way.
    """

    num_clients: int = 5
    inner: object = None
    settings: dict = field(default_factory=dict)
    layout: Layout = LAYOUT

    def __post_init__(self):
        claim_identity()
        self.history = InMemoryHistory(self.layout)
        if self.inner is None:
            self.inner = asking_all(flower.FedAvg)
        self.grid = CohortGrid(NoGrid(), tuple(range(1, self.num_clients + 1)))
        self.strategy = RecordingStrategy(
            self.inner, self.history, directory=Directory(by_number), **self.settings
        )

    def ask(self, arrays=None, server_round=1, config=None):
        """The round's messages, by client."""
        arrays = initial_arrays() if arrays is None else arrays
        config = ConfigRecord() if config is None else config
        messages = self.strategy.configure_train(
            server_round, arrays, config, self.grid
        )
        return {m.metadata.dst_node_id - 1: m for m in messages}


def answer(message, client, arrays=None, **metrics):
    """A good reply of a client; ``metrics`` overrides or, with None, removes."""
    sent = next(iter(message.content.array_records.values()))
    rng = np.random.default_rng(client)
    if arrays is None:
        arrays = ArrayRecord(
            {
                n: Array(np.asarray((a + rng.normal(size=a.shape)).astype(a.dtype)))
                for n, a in values(sent).items()
            }
        )
    named = {"num-examples": client + 1, "num-steps": 1, "num-samples": 2}
    named |= {k.replace("_", "-"): v for k, v in metrics.items()}
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord()})
    for name, value in named.items():
        if value is not None:
            # Past Flower's own check: a client may run any code.
            content["metrics"].__dict__["_data"][name] = value
    return Message(content, reply_to=message)
