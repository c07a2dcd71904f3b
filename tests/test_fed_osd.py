"""FedOSD against its fixture, least squares, and what its algebra promises."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedunlearn.errors import RequirementError
from fedunlearn.method import Requires, check_requirements, continue_training
from fedunlearn.params import norm
from fedunlearn.problem import TorchProblem
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import (
    QuadraticClients,
    check_method,
    keeps_a_model_the_leaver_never_touched,
    quadratic_federation,
)
from fedunlearn.training import LocalWork
from simulations import compare, load_scenario
from strategies import FineTune
from strategies.fed_osd import FedOsd, Slope, steepest, without_component
from strategies.logit_losses import unlearning_cross_entropy
from tests.flower_helpers import small_task


@pytest.mark.parametrize(
    "method",
    [
        FedOsd(),
        FedOsd(recovery_rounds=0),
        FedOsd(lr=0.01, unlearn_rounds=3, recovery_rounds=2),
        FedOsd(reach=1.0, unlearn_rounds=2),
    ],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)


def test_a_leaver_that_never_took_part_is_not_asked():
    keeps_a_model_the_leaver_never_touched(FedOsd(recovery_rounds=0))


# The direction.


def test_the_fixture():
    """w goes along -d, the (0, 2.6458, -2.6458) of the fixture."""
    g_u = np.array([3, 1, 2], np.float32)
    rows = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    # Less (3, 0, 0) and (0, 1.5, 1.5): (0, -1/2, 1/2), of length sqrt(1/2).
    d = steepest(g_u, rows)
    assert -d == pytest.approx([0, 2.6458, -2.6458], abs=1e-4)
    assert -d == pytest.approx([0, np.sqrt(7), -np.sqrt(7)], abs=1e-6)
    assert d.dtype == np.float32


NUMBERS = st.floats(-10, 10, width=16)


@given(
    arrays(np.float32, (3, 6), elements=NUMBERS),
    arrays(np.float32, 6, elements=NUMBERS),
)
def test_no_row_feels_it_and_it_goes_the_leaver_s_way(rows, g_u):
    d = steepest(g_u, rows).astype(np.float64)
    rest, *_ = np.linalg.lstsq(rows.T.astype(float), g_u.astype(float), rcond=1e-5)
    nearest = g_u - rows.T.astype(float) @ rest
    lengths = np.linalg.norm(rows.astype(float), axis=1)
    assert (np.abs(rows @ d) <= 2e-3 * lengths * np.linalg.norm(d) + 1e-12).all()
    if not d.any():
        assert np.linalg.norm(nearest) <= 2e-3 * np.linalg.norm(g_u)
        return
    assert norm(d) == pytest.approx(norm(g_u), rel=1e-5)
    assert g_u @ d > 0


def test_it_is_the_remainder_of_least_squares_made_as_long():
    rng = derive(4, "steepest")
    rows = (rng.standard_normal((5, 40)) * 10.0 ** np.arange(-3, 2)[:, None]).astype(
        np.float32
    )
    g_u = rng.standard_normal(40).astype(np.float32)
    rest, *_ = np.linalg.lstsq(rows.T.astype(float), g_u.astype(float))
    nearest = g_u - rows.T.astype(float) @ rest
    expected = nearest * np.linalg.norm(g_u) / np.linalg.norm(nearest)
    d = steepest(g_u, rows)
    assert d == pytest.approx(expected, abs=1e-5)
    assert rows.astype(float) @ d.astype(float) == pytest.approx(np.zeros(5), abs=1e-4)


def test_equal_and_absent_gradients_do_no_harm():
    g_u = np.array([3, 1, 2], np.float32)
    twice = np.array([[1, 0, 0], [2, 0, 0], [0, 0, 0]], np.float32)
    expected = np.array([0, 1, 2]) * np.sqrt(14 / 5)
    assert steepest(g_u, twice) == pytest.approx(expected, abs=1e-6)
    assert steepest(g_u, np.zeros((2, 3), np.float32)) == pytest.approx(g_u)
    assert not steepest(np.zeros(3, np.float32), twice).any()
    assert not steepest(g_u, np.vstack([twice, g_u])).any()


# The recovery's projection.


def test_an_update_loses_its_way_back_and_keeps_its_length():
    rows = np.array([[3, 4], [0, -2], [5, 0]], np.float32)
    found = without_component(rows, np.array([0, 7], np.float32))
    assert found == pytest.approx(np.array([[5, 0], [0, 0], [5, 0]]), abs=1e-6)
    assert without_component(rows, np.zeros(2, np.float32)).tolist() == rows.tolist()


@given(
    arrays(np.float32, (2, 5), elements=NUMBERS),
    arrays(np.float32, 5, elements=NUMBERS),
)
def test_updates_are_orthogonal_to_the_way_that_was_gone(rows, way):
    found = without_component(rows, way)
    for row, before in zip(found.astype(float), rows, strict=True):
        bound = 1e-5 * norm(row) * norm(way)
        if way.any():
            assert abs(row @ way) <= bound + 1e-12
        if row.any():
            assert norm(row) == pytest.approx(norm(before), rel=1e-5)


# The method.


def federation(size=9, **settings):
    centres = derive(3, "centres").standard_normal((4, size)).astype(np.float32)
    clients = QuadraticClients(
        centres=tuple(centres),
        num_examples=(10, 20, 30, 40),
        schedule=TrainingSchedule(seed=1, rounds=4, epochs=2, **settings),
        lr=0.2,
    )
    return quadratic_federation(clients)


def unlearning_slope(w, centre):
    """UCE of the scores (-L, 0) and class 0, by hand: minus p (1-p) / (2-p) (w - c)."""
    p = 1 / (1 + np.exp((w - centre) @ (w - centre) / 2))
    return -p * (1 - p) / (2 - p) * (w - centre)


def written_out(model, centres, leavers, staying, weights, lr, rounds):
    w = model.astype(float)
    for _ in range(rounds):
        slopes = [unlearning_slope(w, centres[c].astype(float)) for c in leavers]
        g_u = np.average(slopes, axis=0, weights=weights)
        basis, _ = np.linalg.qr(np.array([w - centres[c] for c in staying]).T)
        d = g_u - basis @ (basis.T @ g_u)
        w = w - lr * d * np.linalg.norm(g_u) / np.linalg.norm(d)
    return w


@pytest.mark.parametrize(
    ("leavers", "weights"), [((3,), (40,)), ((0, 3), (10, 40)), ((1, 2), (20, 30))]
)
def test_unlearning_is_the_algorithm_written_out(leavers, weights):
    model, make = federation()
    ctx = make(leavers)
    staying = sorted(ctx.clients.ids)
    found = FedOsd(lr=2.0, unlearn_rounds=4, recovery_rounds=0).unlearn(model, ctx)
    expected = written_out(
        model, ctx.leavers.centres, leavers, staying, weights, 2.0, 4
    )
    assert norm(found - model) > 0.02
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_rate_is_set_so_that_first_steps_would_reach_a_share_of_the_norm():
    model, make = federation()
    one = FedOsd(reach=0.3, unlearn_rounds=1, recovery_rounds=0)
    moved = one.unlearn(model, make((3,))) - model
    assert norm(moved) == pytest.approx(0.3 * norm(model), rel=1e-5)
    size = np.linalg.norm(unlearning_slope(model, make((3,)).leavers.centres[3]))
    given = FedOsd(
        lr=0.3 * norm(model) / 3 / size, unlearn_rounds=3, recovery_rounds=0
    ).unlearn(model, make((3,)))
    ruled = replace(one, unlearn_rounds=3).unlearn(model, make((3,)))
    assert ruled == pytest.approx(given, abs=1e-5)


@pytest.mark.parametrize("per_round", [None, 2])
def test_only_a_round_s_cohort_is_asked_and_rounds_are_new(per_round):
    model, make = federation(clients_per_round=per_round)
    there = make(()).history.round(2).clients[0]
    ctx = make((there,))
    FedOsd(unlearn_rounds=3, recovery_rounds=2).unlearn(model, ctx)
    others = [c for c in range(4) if c != there]
    expected = [(i, ctx.schedule.cohort(i, others)) for i in range(5, 10)]
    assert [(c.round_index, c.clients) for c in ctx.clients.calls] == expected
    assert [c.epochs for c in ctx.clients.calls] == [None] * 3 + [2, 2]
    assert [c.round_index for c in ctx.leavers.calls] == [5, 6, 7]


def test_recovery_never_goes_back():
    model, make = federation()
    far = FedOsd(reach=0.5, recovery_rounds=0).unlearn(model, make((3,)))
    for rounds in (1, 2, 5):
        method = FedOsd(reach=0.5, recovery_rounds=rounds)
        w = method.unlearn(model, make((3,)))
        assert norm(w - model) >= norm(far - model) * (1 - 1e-5)
        assert norm(w - far) > 0.1


def test_one_round_of_recovery_written_out():
    model, make = federation()
    far = FedOsd(reach=0.5, recovery_rounds=0).unlearn(model, make((3,))).astype(float)
    way = (far - model) / np.linalg.norm(far - model)
    pull, steps = 1 - 0.8**2, []
    for centre in make((3,)).clients.centres[:3]:
        step = pull * (centre - far)
        across = step - (step @ way) * way
        steps.append(across * np.linalg.norm(step) / np.linalg.norm(across))
    expected = far + np.average(steps, axis=0, weights=[10, 20, 30])
    found = FedOsd(reach=0.5, recovery_rounds=1).unlearn(model, make((3,)))
    assert found == pytest.approx(expected, abs=1e-5)


def test_recovery_of_a_leaver_that_never_took_part_is_plain_training():
    clients = QuadraticClients(
        centres=tuple(np.eye(3, 4, dtype=np.float32)),
        schedule=TrainingSchedule(seed=1, rounds=4, epochs=2),
    )
    model, make = quadratic_federation(clients, attendance={2: ()})
    found = FedOsd(recovery_rounds=2).unlearn(model, make((2,)))
    by_hand = continue_training(model, make((2,)), [5, 6])
    assert found.tobytes() == by_hand.tobytes()


def test_more_clients_than_parameters_leave_no_direction():
    model, make = federation(size=3)
    found = FedOsd(recovery_rounds=0).unlearn(model, make((3,)))
    assert found.tobytes() == model.tobytes()
    alone = FedOsd(recovery_rounds=0).unlearn(model, make((0, 1, 3)))
    assert norm(alone - model) > 0


def test_a_client_s_slope_is_the_gradient_on_all_of_its_data():
    task = small_task()
    start = task.initial_model(0)
    problem = TorchProblem(task, task.clients[0], 0, LocalWork(seed=3, round_index=2))
    rows = np.arange(len(problem.labels))
    plain = problem.gradient(start, rows)
    other = problem.gradient(start, rows, unlearning_cross_entropy)
    assert Slope().run(start, problem).tobytes() == plain.tobytes()
    assert Slope(unlearn=True).run(start, problem).tobytes() == other.tobytes()
    assert norm(plain - other) > 0.01


def test_what_it_requires():
    assert FedOsd().requires == Requires(leaver=True, clients=True)
    _, make = federation()
    with pytest.raises(RequirementError, match="the leaver to answer"):
        check_requirements(FedOsd(), replace(make((3,)), leavers=None))


@pytest.mark.parametrize(
    "wrong", [{"unlearn_rounds": 0}, {"reach": 0}, {"lr": -1}, {"recovery_rounds": -1}]
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} "):
        FedOsd(**wrong)


def test_on_digits_it_forgets_and_keeps_what_the_others_know():
    scenario = load_scenario(
        "configs/scenario/quickstart.yaml",
        [
            "seeds=[0]",
            "methods=[retrain,fine_tune]",
            "fine_tune.rounds=2",
            "engine.noise_floor=false",
        ],
    )
    methods = {
        "unlearned": FedOsd(recovery_rounds=0),
        "fed_osd": FedOsd(),
        "fine_tune": FineTune(rounds=2),
    }
    rows = {row.method: row.metrics for row in compare(scenario, methods).rows}
    forget = {name: metrics["forget_accuracy"] for name, metrics in rows.items()}
    assert forget["trained"] > 0.9
    assert abs(forget["unlearned"] - forget["retrain"]) < 0.1
    assert (
        rows["unlearned"]["retain_accuracy"] > rows["trained"]["retain_accuracy"] - 0.02
    )
    assert abs(forget["fed_osd"] - forget["retrain"]) < 0.1
    assert forget["fed_osd"] < forget["fine_tune"] - 0.3
    assert (
        abs(rows["fed_osd"]["test_accuracy"] - rows["retrain"]["test_accuracy"]) < 0.02
    )
