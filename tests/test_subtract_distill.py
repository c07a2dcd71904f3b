"""Subtraction and distillation against closed forms, torch and finite differences."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import RequirementError
from fedunlearn.method import Requires
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import (
    QuadraticClients,
    check_method,
    keeps_a_model_the_leaver_never_touched,
    quadratic_federation,
)
from fedunlearn.training import Training
from fedunlearn.updates import MeanServer
from strategies import Subtract
from strategies.subtract_distill import SubtractDistill, soft_slope

METHODS = [
    SubtractDistill(),
    SubtractDistill(temperature=1, epochs=0.5, lr=0.01, batch_size=2),
    SubtractDistill(temperature=20, epochs=8),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_obeys_the_laws(method):
    check_method(method)
    keeps_a_model_the_leaver_never_touched(method)


def scores(seed, rows=5, classes=4, spread=3):
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((rows, classes))).astype(np.float32)


LABELS = np.zeros(5, np.int64)


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0, 10.0])
def test_the_slope_is_the_one_torch_finds(tau):
    student, teacher = scores(0), scores(1)
    slope = soft_slope(student, LABELS, teacher=teacher, temperature=tau)
    free = torch.from_numpy(student.astype(np.float64)).requires_grad_()
    soft = torch.softmax(torch.from_numpy(teacher.astype(np.float64)) / tau, 1)
    loss = tau * functional.cross_entropy(free / tau, soft)
    loss.backward()
    assert slope == pytest.approx(free.grad.numpy(), abs=1e-6)
    assert slope.dtype == np.float32


def test_the_slope_is_the_limit_of_differences():
    student, teacher, tau, step = scores(2), scores(3), 2.5, 1e-5

    def loss(z):
        shares = np.exp(teacher / tau) / np.exp(teacher / tau).sum(1, keepdims=True)
        logs = z / tau - np.log(np.exp(z / tau).sum(1, keepdims=True))
        return -tau * np.mean((shares * logs).sum(1))

    slope = soft_slope(student, LABELS, teacher=teacher, temperature=tau)
    for place in np.ndindex(student.shape):
        moved = np.zeros(student.shape)
        moved[place] = step
        difference = loss(student + moved) - loss(student - moved)
        assert slope[place] == pytest.approx(difference / (2 * step), abs=1e-6)


def test_the_slope_vanishes_at_the_teacher_and_survives_large_scores():
    teacher = scores(4, spread=1e4)
    at_teacher = soft_slope(teacher, LABELS, teacher=teacher, temperature=1.0)
    assert not at_teacher.any()
    far = soft_slope(-teacher, LABELS, teacher=teacher, temperature=0.1)
    assert np.isfinite(far).all()
    assert np.abs(far).max() <= 1 / 5
    # A constant added to a row's scores is no difference.
    shifted = soft_slope(teacher + 7, LABELS, teacher=teacher, temperature=1.0)
    assert shifted == pytest.approx(0, abs=1e-6)


@dataclass
class LinearProblem:
    """A linear classifier on given inputs; the model is its matrix, flattened."""

    x: np.ndarray
    classes: int
    training: Training
    batch: int = 4
    seen: list = field(default_factory=list)

    @property
    def labels(self):
        return np.zeros(len(self.x), np.int64)

    def batches(self, epochs=None, batch_size=None):
        size = self.batch if batch_size is None else batch_size
        rows = np.arange(len(self.x))
        one = [rows[i : i + size] for i in range(0, len(rows), size)]
        return one * int(epochs)

    def logits(self, model, rows=None):
        x = self.x if rows is None else self.x[rows]
        return x @ model.reshape(self.x.shape[1], self.classes)

    def gradient(self, model, rows=None, loss=None):
        self.seen.append(rows)
        slope = loss(self.logits(model, rows), self.labels[rows])
        return (self.x[rows].T @ slope).reshape(-1)


def federation(*, only=None, size=6, server=MeanServer):
    centres = derive(0, "centres").standard_normal((4, size)).astype(np.float32)
    clients = QuadraticClients(
        centres=tuple(2 * centres),
        num_examples=(10, 20, 40, 15),
        schedule=TrainingSchedule(seed=1, rounds=3, epochs=1),
    )
    attends = {} if only is None else {2: only}
    return quadratic_federation(clients, attendance=attends, new_server=server)


def linear(seed=0, count=12):
    x = np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)
    return LinearProblem(x, 2, Training(lr=0.25, batch_size=4))


def test_it_is_sgd_on_the_soft_cross_entropy_from_the_lazy_model():
    model, make = federation()
    problem = linear()
    ctx = replace(make((2,)), server_data=problem)
    result = SubtractDistill(temperature=2.0, epochs=3).unlearn(model, ctx)
    w = torch.from_numpy(Subtract().unlearn(model, make((2,))).astype(np.float64))
    w.requires_grad_()
    teacher = torch.from_numpy(model.astype(np.float64)).reshape(3, 2)
    optimiser = torch.optim.SGD([w], lr=0.25)
    for _ in range(3):
        for begin in (0, 4, 8):
            x = torch.from_numpy(problem.x[begin : begin + 4].astype(np.float64))
            optimiser.zero_grad()
            soft = torch.softmax(x @ teacher / 2, 1)
            loss = 2 * functional.cross_entropy(x @ w.reshape(3, 2) / 2, soft)
            loss.backward()
            optimiser.step()
    assert result == pytest.approx(w.detach().numpy(), abs=1e-5)
    assert len(problem.seen) == 9


def test_the_student_comes_to_the_teachers_answers():
    model, make = federation()
    problem = linear()
    ctx = replace(make((2,)), server_data=problem)
    apart = []
    for epochs in (0, 5, 400):
        student = SubtractDistill(temperature=1, epochs=epochs).unlearn(model, ctx)
        z, taught = (problem.logits(w) for w in (student, model))
        apart.append(np.abs((z[:, 0] - z[:, 1]) - (taught[:, 0] - taught[:, 1])).max())
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 0.02


def test_no_epoch_is_lazy_subtraction_bit_for_bit():
    model, make = federation()
    result = SubtractDistill(epochs=0).unlearn(model, make((2,)))
    assert result.tobytes() == Subtract().unlearn(model, make((2,))).tobytes()
    assert result.tobytes() != model.tobytes()


def test_step_size_and_batches_are_the_clients_unless_given():
    model, make = federation()
    start = Subtract().unlearn(model, make((2,)))

    def moved(**settings):
        problem = linear()
        ctx = replace(make((2,)), server_data=problem)
        result = SubtractDistill(epochs=1, **settings).unlearn(model, ctx)
        return result, problem.seen

    given, seen = moved(lr=0.25, batch_size=4)
    plain, _ = moved()
    assert given.tobytes() == plain.tobytes()
    assert len(seen) == 3
    small, whole = moved(lr=0.05, batch_size=12)
    assert len(whole) == 1
    large, _ = moved(lr=0.1, batch_size=12)
    assert large - start == pytest.approx(2 * (small - start), abs=1e-5)


def test_nobody_is_asked():
    model, make = federation()
    ctx = make((2,))
    cost = run_unlearning(SubtractDistill(), model, ctx).cost
    assert cost.client_rounds == 0
    assert cost.history_bytes == len(ctx.history.rounds_of(2)) * model.nbytes


def test_what_it_requires():
    assert SubtractDistill().requires == Requires(
        updates="leavers", sums=True, server_data=True, mean=True
    )


def test_without_data_on_the_server_it_does_not_start():
    model, make = federation()
    ctx = replace(make((2,)), server_data=None)
    with pytest.raises(RequirementError, match="data on the server"):
        run_unlearning(SubtractDistill(), model, ctx)
    with pytest.raises(RequirementError, match="data on the server"):
        SubtractDistill().unlearn(model, ctx)


class Median(MeanServer):
    mean = False


def test_a_server_rule_other_than_a_mean_is_refused():
    model, make = federation(server=Median)
    with pytest.raises(RequirementError, match="weighted mean"):
        run_unlearning(SubtractDistill(), model, make((2,)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"epochs": -1.0},
        {"batch_size": 0},
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SubtractDistill(**wrong)
