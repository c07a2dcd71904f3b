"""The compiled kernel trains as plain torch does, whoever else is in the call."""

import ctypes
import threading
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedunlearn.cohort import Cohort
from fedunlearn.errors import ConfigError, DataError
from fedunlearn.models import Cnn, LeNet5, Mlp, Softmax
from fedunlearn.models.state import single_thread
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork, Training, plan
from simulations.engine.kernels.compiled import CompiledKernel, available, supports
from simulations.engine.kernels.native import library, usable
from simulations.engine.kernels.native.call import train_cohort
from simulations.engine.kernels.reference import ReferenceKernel
from tests.flower_helpers import blobs

pytestmark = pytest.mark.skipif(
    available() is None,
    reason="the compiled kernel was not built: there was no C++ compiler",
)
EVERY_SET = usable() or ("none",)
ROUNDING = 2.0**-24
"""Half a unit in the last place: what storing a weight costs."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    single_thread()
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Stacked:
    """Convolutions (channels, kernel, padding, relu, pool), then linear layers."""

    convs: tuple[tuple[int, int, int, bool, bool], ...] = ()
    hidden: tuple[int, ...] = ()

    def build(self, input_shape, num_classes):
        layers, channels = [], input_shape[0]
        for out, kernel, padding, relu, pool in self.convs:
            layers.append(nn.Conv2d(channels, out, kernel, padding=padding))
            layers += [nn.ReLU()] * relu + [nn.MaxPool2d(2)] * pool
            channels = out
        layers.append(nn.Flatten())
        with torch.no_grad():
            width = nn.Sequential(*layers)(torch.zeros(1, *input_shape)).shape[1]
        for out in self.hidden:
            layers += [nn.Linear(width, out), nn.ReLU()]
            width = out
        return nn.Sequential(*layers, nn.Linear(width, num_classes))


def task_of(model, shape, sizes=(20, 7, 13), classes=3, seed=0, **training):
    return LocalTask(
        clients=blobs(sizes, seed=seed, shape=shape, classes=classes),
        model=model,
        input_shape=shape,
        num_classes=classes,
        training=Training(**{"batch_size": 6, "lr": 0.2, **training}),
    )


def cohort_of(task, mu=0.0, epochs=None):
    """All clients of a task, from two models in turn."""
    count = len(task.clients)
    work = LocalWork(seed=3, round_index=2, epochs=epochs)
    sizes = [len(c.y) for c in task.clients]
    return Cohort(
        data=task.clients,
        starts=np.stack([task.initial_model(s) for s in (0, 1)]),
        start_of=np.arange(count) % 2,
        batches=plan(range(count), sizes, task.training, work),
        proximal_mu=np.full(count, mu),
    )


def trained(kernel, cohort):
    out = np.full((len(cohort), cohort.starts.shape[1]), np.nan, np.float32)
    losses = kernel.train(cohort, out)
    return out, losses


def check_against_reference(task, cohort, instructions, relative):
    """Compare every client's update, in relative L2."""
    found, losses = trained(CompiledKernel.of(task, instructions), cohort)
    expected, known = trained(ReferenceKernel(task), cohort)
    np.testing.assert_allclose(losses, known, rtol=max(relative, 1e-6))
    for k in range(len(cohort)):
        start = cohort.start(k)
        size = np.linalg.norm(expected[k] - start)
        # Both results were rounded when they were stored beside the weights.
        allowed = relative * size + ROUNDING * np.linalg.norm(start)
        assert np.linalg.norm(found[k] - expected[k]) <= allowed
        assert size > 0.01 or not cohort.batches.steps[k]


TASKS = {
    "softmax": (Softmax(), (64,), 10),
    "mlp": (Mlp(hidden=(50,)), (7, 13), 10),
    "deep": (Mlp(hidden=(33, 7, 64, 1, 5)), (9,), 2),
    "wide": (Mlp(hidden=(200,)), (784,), 10),
    "many classes": (Softmax(), (3,), 131),
    "lenet5": (LeNet5(), (1, 16, 16), 10),
    "lenet5 in colour": (LeNet5(), (3, 17, 19), 4),
    "one convolution": (Stacked(convs=((5, 3, 1, True, False),)), (2, 6, 5), 3),
    "large kernel": (Stacked(((9, 7, 2, True, True),), (8,)), (2, 9, 8), 3),
    "no relu": (Stacked(convs=((3, 2, 0, False, True), (4, 1, 0, False, False))),
                (1, 7, 7), 3),
    "padding between": (
        Stacked(convs=((4, 3, 2, True, True), (17, 3, 1, True, True))), (1, 8, 9), 5),
}  # fmt: skip


@pytest.mark.parametrize("instructions", EVERY_SET)
@pytest.mark.parametrize("name", TASKS)
def test_one_step_equals_torch(name, instructions):
    model, shape, classes = TASKS[name]
    task = task_of(model, shape, (23, 5, 32), classes, batch_size=64)
    check_against_reference(task, cohort_of(task), instructions, 1e-6)


@pytest.mark.parametrize("instructions", EVERY_SET)
@pytest.mark.parametrize("name", TASKS)
def test_five_epochs_equal_torch(name, instructions):
    model, shape, classes = TASKS[name]
    task = task_of(model, shape, (23, 5, 32), classes, batch_size=10, lr=0.05)
    check_against_reference(task, cohort_of(task, epochs=5), instructions, 1e-3)


@pytest.mark.parametrize("instructions", EVERY_SET)
@pytest.mark.parametrize("mu", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_every_term_of_the_step_is_torchs(name, decay, momentum, mu, instructions):
    model, shape, classes = TASKS[name]
    task = task_of(
        model, shape, classes=classes, lr=0.05, momentum=momentum, weight_decay=decay
    )
    check_against_reference(task, cohort_of(task, mu, 2.5), instructions, 1e-4)


@pytest.mark.parametrize("instructions", EVERY_SET)
@pytest.mark.parametrize("batch_size", [1, 3, 16, 17, 33, 70, 512])
@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_any_batch_size(name, batch_size, instructions):
    model, shape, classes = TASKS[name]
    task = task_of(
        model,
        shape,
        (70, 1, 0),
        classes,
        batch_size=batch_size,
        lr=0.02 * batch_size**0.5,
    )
    check_against_reference(task, cohort_of(task, epochs=0.5), instructions, 1e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    instructions=st.sampled_from(EVERY_SET),
    inputs=st.integers(1, 70),
    hidden=st.lists(st.integers(1, 70), max_size=3),
    classes=st.integers(2, 20),
    batch_size=st.integers(1, 40),
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=3),
)
def test_any_mlp(instructions, inputs, hidden, classes, batch_size, sizes):
    task = task_of(
        Mlp(hidden=tuple(hidden)), (inputs,), sizes, classes, batch_size=batch_size
    )
    cohort = cohort_of(task, epochs=0.3)
    found, losses = trained(CompiledKernel.of(task, instructions), cohort)
    expected, known = trained(ReferenceKernel(task), cohort)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, known, rtol=1e-4)


def in_double(task, cohort):
    """Torch's own optimiser in double precision."""
    models = []
    for k, data in enumerate(cohort.data):
        module = deepcopy(task.module()).double()
        start = torch.from_numpy(cohort.start(k))
        nn.utils.vector_to_parameters(start.clone(), module.parameters())
        t = task.training
        sgd = torch.optim.SGD(
            module.parameters(), t.lr, momentum=t.momentum, weight_decay=t.weight_decay
        )
        x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
        for rows in cohort.batches.of_client(k):
            sgd.zero_grad()
            loss = functional.cross_entropy(module(x[rows]), y[rows])
            vector = nn.utils.parameters_to_vector(module.parameters())
            mu = float(cohort.proximal_mu[k])
            (loss + mu / 2 * ((vector - start) ** 2).sum()).backward()
            sgd.step()
        models.append(nn.utils.parameters_to_vector(module.parameters()).detach())
    return torch.stack(models).numpy()


conv = st.tuples(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    convs=st.lists(conv, max_size=2),
    hidden=st.lists(st.integers(1, 30), max_size=2),
    shape=st.tuples(st.integers(1, 4), st.integers(14, 17), st.integers(14, 17)),
    batch_size=st.integers(1, 12),
    momentum=st.sampled_from([0.0, 0.9]),
    decay=st.sampled_from([0.0, 0.1]),
    mu=st.sampled_from([0.0, 0.5]),
)
def test_any_stack_in_double_precision(
    convs, hidden, shape, batch_size, momentum, decay, mu
):
    """The same source in double shows that the formulas are right, not just near."""
    task = task_of(
        Stacked(tuple(convs), tuple(hidden)),
        shape,
        (9, 4),
        batch_size=batch_size,
        momentum=momentum,
        weight_decay=decay,
        lr=0.05,
    )
    single = cohort_of(task, mu, epochs=2)
    data = [replace(d, x=d.x.astype(np.float64)) for d in single.data]
    cohort = replace(single, data=data, starts=single.starts.astype(np.float64))
    kernel = CompiledKernel.of(task, "generic")
    out = np.empty((len(data), task.layout.size))
    train_cohort("generic", kernel.shape, task.training, cohort, out)
    expected = in_double(task, cohort)
    updates = np.linalg.norm(expected - cohort.starts[cohort.start_of])
    assert np.linalg.norm(out - expected) <= 1e-10 * updates


@pytest.mark.parametrize("instructions", EVERY_SET)
@pytest.mark.parametrize("name", ["mlp", "lenet5"])
class TestBits:
    """A client's bits depend on nothing but its own order."""

    @pytest.fixture
    def task(self, name):
        model, shape, classes = TASKS[name]
        sizes = (20, 0, 33, 7, 13)
        return task_of(model, shape, sizes, classes, momentum=0.5, batch_size=7)

    def test_in_any_part(self, task, instructions):
        kernel, cohort = CompiledKernel.of(task, instructions), cohort_of(task, 0.1)
        whole, losses = trained(kernel, cohort)
        for begin, end in ((0, 1), (1, 2), (1, 5), (2, 4), (4, 5)):
            out, own = trained(kernel, cohort.part(begin, end))
            assert out.tobytes() == whole[begin:end].tobytes()
            assert own.tobytes() == losses[begin:end].tobytes()

    def test_beside_any_client(self, task, instructions):
        kernel, cohort = CompiledKernel.of(task, instructions), cohort_of(task)
        whole, _ = trained(kernel, cohort)
        order = np.array([4, 2, 0, 3, 1, 2])
        assert (
            trained(kernel, cohort.take(order))[0].tobytes() == whole[order].tobytes()
        )

    def test_beside_a_client_that_diverged(self, task, instructions):
        kernel, cohort = CompiledKernel.of(task, instructions), cohort_of(task)
        whole, _ = trained(kernel, cohort)
        broken = replace(cohort.data[0], x=np.full_like(cohort.data[0].x, np.nan))
        out, losses = trained(kernel, replace(cohort, data=[broken, *cohort.data[1:]]))
        assert np.isnan(losses[0])
        assert out[1:].tobytes() == whole[1:].tobytes()

    def test_in_two_threads(self, task, instructions):
        kernel, cohort = CompiledKernel.of(task, instructions), cohort_of(task)
        whole, _ = trained(kernel, cohort)
        out = np.empty((20, *whole.shape), np.float32)

        def train(begin):
            for k in range(begin, 20, 2):
                kernel.train(cohort, out[k])

        threads = [threading.Thread(target=train, args=(b,)) for b in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(o.tobytes() == whole.tobytes() for o in out)

    @pytest.mark.parametrize("offset", [1, 4, 20])
    def test_at_any_place_in_memory(self, task, instructions, offset):
        kernel, cohort = CompiledKernel.of(task, instructions), cohort_of(task)
        whole, _ = trained(kernel, cohort)
        data = [
            replace(d, x=shifted(d.x, offset), y=shifted(d.y, offset))
            for d in cohort.data
        ]
        moved = replace(cohort, data=data, starts=shifted(cohort.starts, offset))
        out = shifted(np.empty_like(whole), offset)
        kernel.train(moved, out)
        assert out.tobytes() == whole.tobytes()

    def test_in_any_layout_of_memory(self, task, instructions):
        kernel, cohort = CompiledKernel.of(task, instructions), cohort_of(task)
        whole, _ = trained(kernel, cohort)
        data = [
            replace(
                d, x=np.asfortranarray(d.x), y=np.repeat(d.y, 2)[::2].astype(np.int32)
            )
            for d in cohort.data
        ]
        starts = np.asfortranarray(cohort.starts)
        apart = np.empty((len(whole), 2, whole.shape[1]), np.float32)[:, 1]
        for out in (np.empty_like(whole, order="F"), apart):
            kernel.train(replace(cohort, data=data, starts=starts), out)
            assert np.array_equal(out, whole)

    def test_nothing_passed_in_is_written_to(self, task, instructions):
        cohort = cohort_of(task, 0.1)
        before = deepcopy(cohort)
        trained(CompiledKernel.of(task, instructions), cohort)
        assert cohort.starts.tobytes() == before.starts.tobytes()
        assert cohort.batches.rows.tobytes() == before.batches.rows.tobytes()
        for found, known in zip(cohort.data, before.data, strict=True):
            assert found.x.tobytes() == known.x.tobytes()
            assert found.y.tobytes() == known.y.tobytes()


def shifted(array, offset):
    """Return a copy that begins ``offset`` bytes after a multiple of 64."""
    memory = np.zeros(array.nbytes + 128 + offset, np.uint8)
    begin = -memory.ctypes.data % 64 + offset
    out = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


@pytest.mark.parametrize("instructions", EVERY_SET)
@pytest.mark.parametrize("name", ["softmax", "mlp", "lenet5"])
def test_a_client_without_steps_keeps_its_start(name, instructions):
    model, shape, classes = TASKS[name]
    task = task_of(model, shape, (0, 4), classes, weight_decay=0.1, momentum=0.9)
    cohort = cohort_of(task, mu=0.5)
    cohort.starts[0, ::7] = [-0.0, np.nan, 1e-40, np.inf][len(name) % 4]
    out, losses = trained(CompiledKernel.of(task, instructions), cohort)
    assert out[0].tobytes() == cohort.starts[0].tobytes()
    assert losses[0] == 0


@pytest.mark.parametrize("instructions", EVERY_SET)
@pytest.mark.parametrize("name", ["softmax", "mlp", "lenet5", "no relu"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_stays_so(name, value, instructions):
    """One bad pixel spoils the same weights as in torch."""
    model, shape, classes = TASKS[name]
    task = task_of(model, shape, (5,), classes, batch_size=5)
    task.clients[0].x[2].flat[3] = value
    cohort = cohort_of(task)
    found, losses = trained(CompiledKernel.of(task, instructions), cohort)
    expected, known = trained(ReferenceKernel(task), cohort)
    assert np.array_equal(np.isnan(losses), np.isnan(known))
    spoilt = ~np.isfinite(expected)
    assert spoilt.any()
    assert not np.isfinite(found[spoilt]).any()


def test_images_with_blank_parts_give_every_tie_to_the_first():
    task = task_of(LeNet5(), (1, 20, 20), (16,), batch_size=8)
    task.clients[0].x[np.abs(task.clients[0].x) < 1] = 0
    task.clients[0].x[:, :, :8] = 0
    check_against_reference(task, cohort_of(task), None, 1e-5)


def test_no_client_is_no_work():
    task = task_of(Softmax(), (5,))
    out, losses = trained(CompiledKernel.of(task), cohort_of(task).part(1, 1))
    assert out.shape == (0, task.layout.size)
    assert losses.shape == (0,)


def test_its_name_says_the_instruction_set():
    task = task_of(Softmax(), (5,))
    assert CompiledKernel.of(task).name == f"compiled({available()})"
    for name in EVERY_SET:
        assert CompiledKernel.of(task, name).name == f"compiled({name})"
    assert available() == EVERY_SET[0]


@dataclass(frozen=True, slots=True)
class Odd:
    """A model with one layer that is not served."""

    layer: str

    def build(self, input_shape, num_classes):
        layers = {
            "stride": [nn.Conv2d(1, 2, 3, stride=2), nn.Flatten(), nn.LazyLinear(3)],
            "groups": [nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.LazyLinear(3)],
            "tanh": [nn.Flatten(), nn.LazyLinear(3), nn.Tanh(), nn.Linear(3, 3)],
            "pool": [
                nn.Conv2d(1, 2, 3),
                nn.MaxPool2d(3),
                nn.Flatten(),
                nn.LazyLinear(3),
            ],
            "deep": [nn.Flatten(), *(nn.LazyLinear(3) for _ in range(40))],
        }
        model = nn.Sequential(*layers[self.layer])
        with torch.no_grad():
            model(torch.zeros(1, *input_shape))
        return model


@pytest.mark.parametrize("layer", ["stride", "groups", "tanh", "pool", "deep"])
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_models_that_are_not_served_are_refused(layer):
    task = task_of(Odd(layer), (2 if layer == "groups" else 1, 9, 9))
    assert supports(task)
    with pytest.raises(ConfigError, match="compiled cannot train this"):
        CompiledKernel.of(task)


def test_group_norm_is_not_served():
    task = task_of(Cnn(channels=4), (1, 8, 8))
    assert "Cnn is none" in supports(task)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ConfigError, match="no avx1024 here, only"):
        CompiledKernel.of(task_of(Softmax(), (5,)), "avx1024")


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_labels_that_are_no_class_are_refused(label):
    task = task_of(Softmax(), (5,))
    task.clients[1].y[0] = label
    with pytest.raises(DataError, match="client 1 of the cohort has a label"):
        trained(CompiledKernel.of(task), cohort_of(task))


def test_orders_for_examples_that_are_not_there_are_refused():
    task = task_of(Softmax(), (5,))
    cohort = cohort_of(task)
    cohort.batches.rows[-1] = 13
    with pytest.raises(DataError, match="client 2 of the cohort has"):
        trained(CompiledKernel.of(task), cohort)


def test_examples_of_another_shape_are_refused():
    task = task_of(Softmax(), (5,))
    wrong = replace(task.clients[1], x=task.clients[1].x[:, :4])
    cohort = replace(cohort_of(task), data=[task.clients[0], wrong, task.clients[2]])
    with pytest.raises(DataError, match="the model reads 5 numbers"):
        trained(CompiledKernel.of(task), cohort)


def test_a_library_that_was_not_built_is_none():
    assert library("avx1024") is None
    assert isinstance(library("generic"), ctypes.CDLL)
