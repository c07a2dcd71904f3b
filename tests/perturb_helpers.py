"""A federation of real torch clients without a grid: training and procedures."""

from dataclasses import dataclass, field, replace

import numpy as np

from fedunlearn.data import ClientData
from fedunlearn.errors import LeaverContactError
from fedunlearn.history import ArraysInMemory, InMemoryHistory, RoundRecord
from fedunlearn.local import Results
from fedunlearn.method import UnlearningContext
from fedunlearn.problem import TorchProblem
from fedunlearn.request import UnlearningRequest
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.shards import shard_of
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork, Training
from fedunlearn.updates import MeanServer, Updates
from simulations.engine.threads import one_thread

SEED = 3


@dataclass
class TorchClients:
    """Those of a task's clients that are in ``ids``."""

    task: LocalTask
    ids: frozenset
    calls: list = field(default_factory=list)

    def train(self, model, ids, *, round_index, epochs=None):
        asked = self._asked(ids, "train", round_index)
        work = LocalWork(seed=SEED, round_index=round_index, epochs=epochs)
        with one_thread():
            done = [self.task.train(client, model, work) for client in asked]
        return Updates(
            clients=asked,
            before=model,
            after=np.stack([one.model for one in done]),
            num_examples=np.array([one.num_examples for one in done]),
            num_steps=np.array([one.num_steps for one in done]),
            num_samples=np.array([one.num_samples for one in done]),
        )

    def run(self, procedure, model, ids, *, round_index):
        asked = self._asked(ids, procedure, round_index)
        problems = [self.problem(client, round_index) for client in asked]
        with one_thread():
            values = [procedure.run(model, problem) for problem in problems]
        return Results(
            clients=asked,
            values=np.stack(values).astype(np.float32),
            num_examples=np.array([len(p.labels) for p in problems]),
            num_steps=np.array([p.num_steps for p in problems]),
            num_samples=np.array([p.num_samples for p in problems]),
        )

    def problem(self, client, round_index=1):
        work = LocalWork(seed=SEED, round_index=round_index)
        own = shard_of(client, self.task.shards)
        return TorchProblem(self.task, self.task.clients[client], client, work, own)

    def _asked(self, ids, what, round_index):
        self.calls.append((what, tuple(sorted(ids)), round_index))
        if gone := sorted(set(ids) - self.ids):
            raise LeaverContactError(f"client {gone[0]} is not here")
        return tuple(sorted(ids))


def separable(sizes, shape, classes, seed=0, spread=0.5):
    """Clients of ``sizes[k]`` examples whose classes lie apart."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, *shape)).astype(np.float32)

    def draw(n):
        y = rng.integers(0, classes, n)
        noise = rng.normal(size=(n, *shape)).astype(np.float32)
        return centres[y] + np.float32(spread) * noise, y

    return tuple(ClientData(f"c{k}", *draw(n), *draw(4)) for k, n in enumerate(sizes))


def torch_federation(model, shape, classes, sizes=(30, 20, 40), rounds=3, **training):
    """Train clients of ``sizes[k]`` examples as :func:`torch_federation_of`."""
    data = separable(sizes, shape, classes)
    return torch_federation_of(data, model, shape, classes, rounds, **training)


def torch_federation_of(data, model, shape, classes, rounds=3, **training):
    """Train and return the task, the final model and its history."""
    settings = {"epochs": 1, "batch_size": 10, "lr": 0.1, **training}
    task = LocalTask(
        clients=data,
        model=model,
        input_shape=shape,
        num_classes=classes,
        training=Training(**settings),
    )
    history = InMemoryHistory(task.layout)
    clients = TorchClients(task, frozenset(range(len(data))))
    weights = task.initial_model(SEED)
    for index in range(1, rounds + 1):
        updates = clients.train(weights, clients.ids, round_index=index)
        history.append_round(_record(index, updates))
        weights = MeanServer().step(updates)
    return task, weights, history


def _record(index, updates):
    return RoundRecord(
        index=index,
        clients=updates.clients,
        num_examples=updates.num_examples,
        num_steps=updates.num_steps,
        num_samples=updates.num_samples,
        asked=updates.clients,
        arrays=ArraysInMemory(updates.before, updates.deltas),
    )


def client_context(task, history, forget):
    """The context in which ``forget`` leave."""
    everybody = frozenset(range(len(task.clients)))
    return UnlearningContext(
        history=history,
        forget=frozenset(forget),
        clients=TorchClients(task, everybody - frozenset(forget)),
        leavers=TorchClients(task, frozenset(forget)),
        schedule=TrainingSchedule(
            seed=SEED, rounds=len(history.rounds), epochs=task.training.epochs
        ),
        new_server=MeanServer,
        layout=task.layout,
        rng=derive(0, "method"),
    )


def class_context(task, history, classes):
    """The context in which everybody forgets ``classes``."""
    touched = frozenset(
        k for k, d in enumerate(task.clients) if np.isin(d.y, list(classes)).any()
    )
    ctx = client_context(task, history, ())
    return replace(
        ctx,
        clients=TorchClients(part_of(task, classes, keep=False), ctx.clients.ids),
        leavers=TorchClients(part_of(task, classes, keep=True), touched),
        shrunk=touched,
        request=UnlearningRequest(classes=frozenset(classes)),
    )


def part_of(task, classes, *, keep):
    """A task with the examples of ``classes`` alone, or without them."""
    parts = []
    for data in task.clients:
        rows = np.isin(data.y, list(classes)) == keep
        parts.append(replace(data, x=data.x[rows], y=data.y[rows]))
    return replace(task, clients=tuple(parts))


def accuracy(task, client, model):
    """Share of a client's training examples that a model gets right."""
    problem = TorchClients(task, frozenset([client])).problem(client)
    return (problem.logits(model).argmax(1) == problem.labels).mean()
