"""Procedures of methods: what they see, how they travel, what clients refuse."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedunlearn.client import client_app
from fedunlearn.data import ClientData
from fedunlearn.errors import EmptyRoundError, RequestError
from fedunlearn.local import anything, decode, encode, installed
from fedunlearn.models import LeNet5
from fedunlearn.models.state import load, tensor_view
from fedunlearn.problem import TorchProblem
from fedunlearn.task import LocalTask
from fedunlearn.testing.problem import QuadraticProblem
from fedunlearn.training import LocalWork, Training
from simulations.engine import SimulationGrid
from strategies.directory import Directory
from strategies.grid_clients import GridClients
from tests.flower_helpers import by_number, small_task


@dataclass(frozen=True)
class Gradient:
    """Takes one gradient of a training batch."""

    scale: float = 1.0
    picks: tuple[int, ...] = (0,)
    word: str | None = "mean"

    def run(self, start, problem):
        rows = problem.batches()[self.picks[0]]
        return np.float32(self.scale) * problem.gradient(start, rows)


@dataclass(frozen=True)
class Short:
    """Returns as many numbers as it is told."""

    by_client: bool = False

    def run(self, start, problem):
        return np.ones(len(problem.labels) if self.by_client else 3)


@dataclass(frozen=True)
class Endless:
    """Returns infinity."""

    def run(self, start, problem):
        return start * np.inf


def clients_of(grid, task):
    return GridClients(
        grid=grid,
        layout=task.layout,
        config={"seed": 3},
        directory=Directory(by_number),
    )


def problem_of(task, client=0):
    return TorchProblem(
        task, task.clients[client], client, LocalWork(seed=3, round_index=2)
    )


def test_a_procedure_travels_as_its_name_and_fields():
    sent = encode(Gradient(scale=2.5, picks=(1, 2), word="x"))
    assert sent["procedure"] == f"{__name__}:Gradient"
    assert decode(sent, anything) == Gradient(scale=2.5, picks=(1, 2), word="x")
    assert decode(encode(Gradient(word=None)), anything) == Gradient(word=None)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"procedure": "os:system"}, "no procedure of 'os' is installed"),
        ({}, "no procedure of '' is installed"),
        ({"procedure": "strategies.nowhere:X"}, "cannot be made"),
        ({"procedure": "strategies.nothing:Nobody"}, "cannot be made"),
        ({"procedure": "strategies.mode:Guidance", "procedure.x": 1}, "cannot be made"),
        ({"procedure": "strategies.nothing:Nothing"}, "is no procedure"),
        ({"procedure": "strategies.pgd:Pgd.run"}, "is no procedure"),
        # What a trusted module imports is not its own.
        ({"procedure": "fedunlearn.data.fetch:subprocess.run"}, "is no procedure"),
        ({"procedure": "fedunlearn.data.fetch:subprocess.Popen"}, "is no procedure"),
        ({"procedure": "strategies.recovery:UnlearningContext"}, "is no procedure"),
        ({"procedure": "strategies.decoys:Blur"}, "is no procedure"),
        ({"procedure": "fedunlearn.local:LocalProcedure"}, "is no procedure"),
    ],
)
def test_a_client_runs_only_what_is_installed_there(config, why):
    with pytest.raises(RequestError, match=why):
        decode(config)


def test_our_own_packages_are_installed_and_others_are_not():
    assert installed("strategies.pgd")
    assert not installed("strategies_of_somebody.pgd")
    assert not installed("subprocess")


@pytest.mark.parametrize("workers", [0, 2])
def test_clients_run_a_procedure_on_their_own_data(workers):
    task = small_task()
    start = task.initial_model(0)
    app = client_app(task, anything)
    with SimulationGrid(app, num_clients=len(task.clients), workers=workers) as grid:
        found = clients_of(grid, task).run(
            Gradient(scale=2.0), start, [1, 0], round_index=2
        )
    assert found.clients == (0, 1)
    for row, client in enumerate(found.clients):
        problem = problem_of(task, client)
        expected = Gradient(scale=2.0).run(start, problem)
        assert found.values[row].tobytes() == expected.tobytes()
        assert found.num_samples[row] == problem.num_samples > 0
        assert found.num_steps[row] == 1


def test_a_stranger_s_procedure_is_refused_by_a_real_client():
    task = small_task()
    with (
        SimulationGrid(client_app(task), num_clients=2) as grid,
        pytest.raises(EmptyRoundError, match="no procedure of 'tests"),
    ):
        clients_of(grid, task).run(
            Gradient(), task.initial_model(0), [0], round_index=1
        )


@pytest.mark.parametrize(
    ("procedure", "why"),
    [(Endless(), "NaN or infinity"), (Gradient(picks=(99,)), "IndexError")],
)
def test_a_bad_result_is_set_aside(procedure, why):
    task = small_task()
    app = client_app(task, anything)
    with (
        SimulationGrid(app, num_clients=2) as grid,
        pytest.raises(EmptyRoundError, match=why),
    ):
        clients_of(grid, task).run(procedure, task.initial_model(0), [0], round_index=1)


def test_a_result_may_have_any_length_but_one_for_all():
    task = small_task()
    everybody = range(len(task.clients))
    app = client_app(task, anything)
    with SimulationGrid(app, num_clients=len(task.clients)) as grid:
        clients, start = clients_of(grid, task), task.initial_model(0)
        same = clients.run(Short(), start, everybody, round_index=1)
        odd = clients.run(Short(by_client=True), start, everybody, round_index=1)
    assert same.values.shape == (len(task.clients), 3)
    lengths = [len(task.clients[c].y) for c in odd.clients]
    assert set(lengths) == {odd.values.shape[1]}


def test_no_example_is_no_gradient():
    task = small_task()
    model, none = task.initial_model(1), np.array([], np.int64)
    for problem in (problem_of(task), QuadraticProblem(model + 1, 5, task.training)):
        found = [problem.gradient(model, none), *problem.gradient_moments(model, none)]
        assert not np.any(found)
        assert np.shape(found) == (3, len(model))
        assert (problem.num_steps, problem.num_samples) == (0, 0)


def test_a_gradient_is_autograd_s():
    task = small_task()
    model, problem = task.initial_model(1), problem_of(task)
    module = task.new_module()
    load(module, task.layout, model)
    x, y = tensor_view(problem.data.x), tensor_view(problem.data.y)
    functional.cross_entropy(module(x), y).backward()
    expected = {n: w.grad.numpy() for n, w in module.named_parameters()}
    assert problem.gradient(model) == pytest.approx(
        task.layout.flatten(expected), abs=1e-7
    )


def test_a_loss_of_one_s_own_goes_through_the_scores():
    task = small_task()
    model, problem = task.initial_model(1), problem_of(task)

    def cross_entropy(scores, labels):
        share = np.exp(scores - scores.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        share[np.arange(len(labels)), labels] -= 1
        return share / len(labels)

    assert problem.gradient(model, loss=cross_entropy) == pytest.approx(
        problem.gradient(model), abs=1e-6
    )


def test_gradient_moments_are_those_of_single_examples():
    task = small_task()
    model, problem = task.initial_model(1), problem_of(task)
    single = [
        problem.gradient(model, np.array([row])) for row in range(len(problem.labels))
    ]
    first, second = problem.gradient_moments(model)
    assert first == pytest.approx(np.mean(single, 0), abs=1e-6)
    assert second == pytest.approx(np.square(single).mean(0), abs=1e-6)


def test_the_batches_of_a_procedure_are_those_of_training():
    task = small_task()
    problem = problem_of(task)
    one, other = problem.batches(), problem.batches(epochs=1, batch_size=2)
    assert sorted(np.concatenate(other)) == sorted(range(len(problem.labels)))
    assert max(map(len, other)) == 2
    assert len(one) > 0


def test_the_quadratic_problem_s_scores_and_gradient_agree():
    how = Training(epochs=2, batch_size=4, lr=0.1)
    problem = QuadraticProblem(np.array([1, 2, 3], np.float32), 4, how)
    model = np.array([2, 0, 1], np.float32)

    def minus_right_score(scores, labels):
        slope = np.zeros_like(scores)
        slope[np.arange(len(labels)), labels] = -1 / len(labels)
        return slope

    assert problem.gradient(model) == pytest.approx([1, -2, -2])
    assert problem.gradient(model, loss=minus_right_score) == pytest.approx([1, -2, -2])
    assert problem.logits(model)[0] == pytest.approx([-4.5, 0])


def test_class_activations_are_means_of_relu_outputs():
    task = small_task()
    problem = problem_of(task)
    means = problem.class_activations(task.initial_model(0))
    assert means.shape[0] == task.num_classes
    convolutions = [
        m for m in task.module().modules() if isinstance(m, torch.nn.Conv2d)
    ]
    assert means.shape[1] == sum(c.out_channels for c in convolutions)


def test_class_activations_of_a_convolution_are_averaged_by_class():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 1, 16, 16)).astype(np.float32)
    data = ClientData("a", x, np.arange(9) % 3, x[:0], np.zeros(0, np.int64))
    task = LocalTask(
        clients=(data,),
        model=LeNet5(),
        input_shape=(1, 16, 16),
        num_classes=4,
        training=Training(),
    )
    model, module = task.initial_model(0), task.new_module()
    load(module, task.layout, model)
    first = module[0](torch.from_numpy(x)).relu().mean((2, 3)).detach().numpy()
    means = problem_of(task).class_activations(model)
    assert means.shape == (4, 6 + 16)
    assert means[1, :6] == pytest.approx(first[1::3].mean(0), abs=1e-6)
    assert not means[3].any()
