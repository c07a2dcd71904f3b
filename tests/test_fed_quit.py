"""FedQUIT: its teacher by hand, its student against torch, what it does to a leaver."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedunlearn.errors import RequirementError
from fedunlearn.method import Requires, check_requirements, continue_training
from fedunlearn.models.state import load, tensor_view
from fedunlearn.problem import TorchProblem
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import (
    QuadraticClients,
    check_method,
    keeps_a_model_the_leaver_never_touched,
    quadratic_federation,
)
from fedunlearn.training import LocalWork, Training
from simulations import compare, load_scenario
from strategies import FineTune
from strategies.fed_quit import FedQuit
from strategies.logit_losses import softmax
from tests.flower_helpers import small_task

TEACHERS = ("min", "entropy", "fixed")
SCORES = np.array([[3, -1, 2, 0], [1, 5, -2, 0]], np.float32)
LABELS = np.array([0, 2])


@pytest.mark.parametrize(
    "method",
    [
        FedQuit(),
        FedQuit(teacher="entropy", lr=0.1, recovery_rounds=0),
        FedQuit(teacher="fixed", value=-3.0, lr_scale=1.0, epochs=2, recovery_rounds=1),
    ],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_leaver_that_never_took_part_is_not_asked(teacher):
    keeps_a_model_the_leaver_never_touched(FedQuit(teacher=teacher, recovery_rounds=0))


# The teacher.


def test_the_smallest_score_stands_in_for_the_right_class_s():
    # In the second row the right class has it already.
    expected = [[-1, -1, 2, 0], [1, 5, -2, 0]]
    assert FedQuit().virtual(SCORES, LABELS).tolist() == expected


def test_a_fixed_score_stands_in():
    found = FedQuit(teacher="fixed", value=7.5).virtual(SCORES, LABELS)
    assert found.tolist() == [[7.5, -1, 2, 0], [1, 5, 7.5, 0]]
    assert found.dtype == np.float32


def test_the_entropy_teacher_is_the_most_uncertain_of_all():
    found = FedQuit(teacher="entropy").virtual(SCORES, LABELS)
    for row, label, scores in zip(found, LABELS, SCORES, strict=True):
        others = np.delete(scores, label).astype(float)
        tried = [np.append(others, v) for v in np.linspace(-10, 10, 20001)]
        chances = softmax(np.array(tried))
        entropies = -(chances * np.log(chances)).sum(axis=1)
        best = tried[int(entropies.argmax())][-1]
        assert row[label] == pytest.approx(best, abs=2e-3)
        assert np.delete(row, label).tolist() == others.tolist()


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_other_classes_keep_their_odds(teacher):
    virtual = FedQuit(teacher=teacher).virtual(SCORES, LABELS)
    for row, label, scores in zip(virtual, LABELS, SCORES, strict=True):
        assert np.delete(row, label).tolist() == np.delete(scores, label).tolist()


@pytest.mark.parametrize("teacher", TEACHERS)
def test_large_scores_stay_finite_and_scores_are_not_written_to(teacher):
    scores = SCORES * np.float32(1e30)
    before = scores.copy()
    assert np.isfinite(FedQuit(teacher=teacher).virtual(scores, LABELS)).all()
    assert scores.tolist() == before.tolist()


# The student.


def torch_student(problem, start, virtual, lr, batches):
    """Distillation as torch does it: autograd, kl_div, SGD."""
    student, teacher = (deepcopy(problem.task.module()) for _ in range(2))
    load(student, problem.task.layout, start)
    load(teacher, problem.task.layout, start)
    steps = torch.optim.SGD(student.parameters(), lr)
    x, y = tensor_view(problem.data.x), problem.data.y
    for rows in batches:
        chosen = torch.from_numpy(rows)
        with torch.no_grad():
            goal = torch.from_numpy(virtual(teacher(x[chosen]).numpy(), y[rows]))
        logs = functional.log_softmax(student(x[chosen]), 1)
        steps.zero_grad()
        functional.kl_div(
            logs, functional.softmax(goal, 1), reduction="batchmean"
        ).backward()
        steps.step()
    arrays = {n: a.detach().numpy() for n, a in student.state_dict().items()}
    return problem.task.layout.flatten(arrays)


def torch_problem(momentum=0.0):
    task = small_task()
    how = Training(epochs=1, batch_size=8, lr=0.2, momentum=momentum)
    task = replace(task, training=how)
    work = LocalWork(seed=3, round_index=2)
    return TorchProblem(task, task.clients[0], 0, work), task.initial_model(0)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_student_is_torch_s(teacher):
    problem, start = torch_problem()
    method = FedQuit(teacher=teacher, lr=0.3, epochs=3, batch_size=4)
    batches = problem.batches(3, 4)
    expected = torch_student(problem, start, method.virtual, 0.3, batches)
    found = method.run(start, problem)
    assert np.abs(expected - start).max() > 0.01
    assert found == pytest.approx(expected, abs=2e-6)


def test_its_rate_is_a_share_of_the_pace_of_training():
    problem, start = torch_problem(momentum=0.75)
    by_rule = FedQuit(lr_scale=0.5).run(start, problem)
    by_hand = FedQuit(lr=0.5 * 0.2 / 0.25).run(start, problem)
    assert by_rule.tobytes() == by_hand.tobytes()


def test_a_student_that_agrees_with_its_teacher_stays():
    """The right class has the smallest score on a quadratic: nothing to forget."""
    model, make = federation()
    found = FedQuit(recovery_rounds=0).unlearn(model, make((3,)))
    assert found.tobytes() == model.tobytes()


# The method.


def federation():
    centres = derive(3, "centres").standard_normal((4, 5)).astype(np.float32)
    clients = QuadraticClients(
        centres=tuple(centres),
        num_examples=(10, 20, 30, 40),
        schedule=TrainingSchedule(seed=1, rounds=4, epochs=2),
        lr=0.2,
    )
    return quadratic_federation(clients)


FORGETS = FedQuit(teacher="fixed", value=-9.0, lr=0.3, epochs=3)


def test_leavers_distil_by_themselves_and_are_averaged_by_examples():
    model, make = federation()
    ctx = make((1, 3))
    students = [FORGETS.run(model, ctx.leavers.problem(c)) for c in (1, 3)]
    expected = np.average(students, axis=0, weights=[20, 40])
    found = replace(FORGETS, recovery_rounds=0).unlearn(model, ctx)
    assert found == pytest.approx(expected, abs=1e-6)
    for student, client in zip(students, (1, 3), strict=True):
        centre = ctx.leavers.centres[client]
        apart = np.linalg.norm(student - centre) - np.linalg.norm(model - centre)
        assert apart > 0.03


@pytest.mark.parametrize(("rounds", "trained"), [(3, [5, 6, 7]), (None, [5, 6])])
def test_recovery_is_training_on_the_remaining_clients(rounds, trained):
    model, make = federation()
    student = replace(FORGETS, recovery_rounds=0).unlearn(model, make((3,)))
    found = replace(FORGETS, recovery_rounds=rounds).unlearn(model, make((3,)))
    by_hand = continue_training(student, make((3,)), trained)
    assert found.tobytes() == by_hand.tobytes()


def test_what_it_requires_follows_its_settings():
    levels = ("client", "sample")
    assert FedQuit().requires == Requires(leaver=True, clients=True, levels=levels)
    without = FedQuit(recovery_rounds=0).requires
    assert without == Requires(leaver=True, levels=levels)
    _, make = federation()
    with pytest.raises(RequirementError, match="the leaver to answer"):
        check_requirements(FedQuit(), replace(make((3,)), leavers=None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr_scale": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"value": float("inf")},
        {"recovery_rounds": -1},
    ],
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} "):
        FedQuit(**wrong)


def test_on_digits_it_forgets_more_than_fine_tuning_and_keeps_accuracy():
    scenario = load_scenario(
        "configs/scenario/quickstart.yaml",
        [
            "seeds=[0]",
            "methods=[retrain,fine_tune]",
            "fine_tune.rounds=5",
            "engine.noise_floor=false",
        ],
    )
    methods = {
        "student": FedQuit(recovery_rounds=0),
        "fed_quit": FedQuit(recovery_rounds=5),
        "fine_tune": FineTune(rounds=5),
    }
    rows = {row.method: row.metrics for row in compare(scenario, methods).rows}
    forget = {name: metrics["forget_accuracy"] for name, metrics in rows.items()}
    assert forget["trained"] > 0.9
    assert abs(forget["student"] - forget["retrain"]) < 0.1
    assert forget["retrain"] < forget["fed_quit"] < forget["fine_tune"] - 0.05
    assert rows["fed_quit"]["test_accuracy"] > rows["retrain"]["test_accuracy"]
