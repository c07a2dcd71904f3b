"""What the engine's tests share: tasks that training moves, cohorts, custom models."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from fedunlearn.cohort import Batches, Cohort
from fedunlearn.data.federation import ClientData
from fedunlearn.models import LeNet5, Mlp, Softmax
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork, Training, plan
from simulations.engine.kernels import make_kernel
from simulations.engine.kernels.native import usable


@dataclass(frozen=True)
class Layers:
    """A user's own model: its layers are made by a function of shape and classes."""

    make: object

    def build(self, input_shape, num_classes):
        return self.make(input_shape, num_classes)


def no_relu(shape, classes):
    inputs = int(np.prod(shape))
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, 6),
        nn.Linear(6, 7),
        nn.ReLU(),
        nn.Linear(7, classes),
    )


def bare_convs(shape, classes):
    """Convolutions with neither ReLU nor pooling, with one of them, and padding."""
    channels, high, wide = shape
    return nn.Sequential(
        nn.Conv2d(channels, 2, 1),
        nn.Conv2d(2, 3, 2, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * ((high + 1) // 2 + 2) * ((wide + 1) // 2 + 2), classes),
    )


def smooth(shape, classes):
    """No plain stack, but one that can be vectorised."""
    inputs = int(np.prod(shape))
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, 6, bias=False),
        nn.LayerNorm(6),
        nn.Tanh(),
        nn.Linear(6, classes),
    )


MODELS = {
    "softmax": (Softmax(), (5,), 3),
    "softmax of images": (Softmax(), (3, 7, 9), 10),
    "mlp": (Mlp(hidden=(8,)), (5,), 3),
    "mlp of one unit": (Mlp(hidden=(1,)), (1,), 2),
    "deep mlp": (Mlp(hidden=(9, 4, 17)), (2, 4), 5),
    "wide mlp": (Mlp(hidden=(130,)), (2, 4, 5), 4),
    "linear layers": (Layers(no_relu), (5,), 3),
    "lenet5": (LeNet5(), (1, 16, 16), 3),
    "lenet5, odd": (LeNet5(), (1, 17, 23), 4),
    "lenet5, colour": (LeNet5(), (3, 21, 18), 3),
    "convolutions": (Layers(bare_convs), (2, 7, 6), 3),
    "smooth": (Layers(smooth), (4,), 3),
}
"""Name -> model, shape of an example, number of classes."""
LINEAR = [
    "softmax",
    "softmax of images",
    "mlp",
    "mlp of one unit",
    "deep mlp",
    "wide mlp",
    "linear layers",
]
CONVS = ["lenet5", "lenet5, odd", "lenet5, colour", "convolutions"]

SERVES = {
    "fused": [*LINEAR, *CONVS],
    "batched": LINEAR,
    "vmap": [*LINEAR, "smooth"],
    **({"compiled": [*LINEAR, *CONVS]} if usable() else {}),
}
"""Kernel -> the models it is tested with: one line for one more kernel."""
PAIRS = [(kernel, model) for kernel, models in SERVES.items() for model in models]
INDEPENDENT = [(kernel, model) for kernel, model in PAIRS if kernel != "vmap"]
"""A product of stacked clients may round by where a client is in it."""
SOME = [
    ("fused", "mlp"),
    ("fused", "lenet5, odd"),
    ("batched", "softmax"),
    ("batched", "deep mlp"),
    ("vmap", "mlp"),
    ("vmap", "smooth"),
    *([("compiled", "deep mlp"), ("compiled", "lenet5, odd")] if usable() else []),
]
"""Pairs for what needs not be looked at with every model."""


def learnable(sizes, shape, classes, seed=0):
    """Clients whose classes follow from their examples: training moves the model.

    Random labels would do for one step; five epochs on them wander among gradients
    that cancel, and rounding would be compared with next to nothing.
    """
    rng = np.random.default_rng(seed)
    inputs = int(np.prod(shape))
    centres = rng.normal(size=(classes, inputs)) * 2

    def draw(n):
        y = rng.integers(0, classes, n)
        x = centres[y] + rng.normal(size=(n, inputs))
        x /= np.sqrt(1 + 4 * (inputs > 50))
        return x.astype(np.float32).reshape(n, *shape), y

    return tuple(ClientData(f"c{k}", *draw(n), *draw(2)) for k, n in enumerate(sizes))


def task_of(name, sizes=(13, 4, 20), seed=0, **training):
    """A task with a model of the table."""
    model, shape, classes = MODELS[name]
    settings = {"epochs": 1, "batch_size": 6, "lr": 0.05, **training}
    return LocalTask(
        clients=learnable(sizes, shape, classes, seed),
        model=model,
        input_shape=shape,
        num_classes=classes,
        training=Training(**settings),
    )


def cohort_of_all(task, *, seed=3, round_index=2, epochs=None, mu=0.0, starts=1):
    """All clients of a task, starting from ``starts`` models in turn."""
    work = LocalWork(seed=seed, round_index=round_index, epochs=epochs)
    clients = range(len(task.clients))
    sizes = [len(data.y) for data in task.clients]
    return Cohort(
        data=list(task.clients),
        starts=np.stack([task.initial_model(seed + m) for m in range(starts)]),
        start_of=np.arange(len(sizes)) % starts,
        batches=plan(clients, sizes, task.training, work),
        proximal_mu=np.broadcast_to(np.asarray(mu, np.float64), len(sizes)).copy(),
    )


def trained(kernel, task, cohort):
    """Models and losses by the kernel of that name."""
    return by(make_kernel(kernel, task), cohort)


def by(kernel, cohort):
    """Models and losses by a kernel."""
    out = np.full((len(cohort), cohort.starts.shape[1]), 7, np.float32)
    losses = kernel.train(cohort, out)
    assert losses.shape == (len(cohort),)
    assert losses.dtype == np.float64
    return out, losses


def same_bits(one, other):
    """Whether models and losses are equal to the bit."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def lengths(rows):
    """L2 norm of every row."""
    return np.linalg.norm(np.asarray(rows, np.float64), axis=-1)


def batches_of(steps):
    """Batches given as a list of lists of lists."""
    return Batches.of_lengths(
        [np.asarray(step, np.int64) for client in steps for step in client],
        [np.asarray([len(step) for step in client], np.int64) for client in steps],
    )
