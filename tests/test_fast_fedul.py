"""Fast-FedUL: its recursion, its identities, and the alpha that is measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from fedunlearn.updates import MeanServer
from strategies import Retrain, Subtract
from strategies.fast_fedul import FastFedul, measured_alpha
from tests.small_rounds import context, record


@pytest.mark.parametrize("alpha", [None, 0.07, 0.0, -0.5])
def test_it_obeys_the_laws(alpha):
    check_method(FastFedul(alpha=alpha))
    keeps_a_model_the_leaver_never_touched(FastFedul(alpha=alpha))


def test_the_recursion_by_hand():
    sizes = {0: 1, 1: 1, 2: 2}
    rounds = [
        record(1, {0: (4, 8), 1: (0, 4)}, sizes),  # without 0: (0, 4) - (2, 6)
        record(2, {1: (3, 3)}, sizes),  # nothing is taken out, what was is carried
        record(3, {0: (8, 0), 1: (0, 0), 2: (2, 2)}, sizes),  # (4/3, 4/3) - (3, 1)
    ]
    model = np.array([10, 20], np.float32)
    result = FastFedul(alpha=0.5).unlearn(model, context(rounds, {0}))
    one, three = np.array([-2, -2]), np.array([4 / 3 - 3, 4 / 3 - 1])
    assert result == pytest.approx(model + 1.5**2 * one + three, abs=1e-6)


def test_it_is_the_papers_formula_with_equal_shares():
    rng = np.random.default_rng(0)
    updates = rng.standard_normal((6, 4, 2))
    sizes = dict.fromkeys(range(4), 7)
    rounds = [record(i, dict(enumerate(u)), sizes) for i, u in enumerate(updates, 1)]
    model = np.array([1, -1], np.float32)
    result = FastFedul(alpha=0.07).unlearn(model, context(rounds, {3}, clients=4))
    total, n = np.zeros(2), 4
    for u in updates:
        total = 1.07 * total + u[:3].sum(0) / (n * (n - 1)) - u[3] / n
    assert result == pytest.approx(model + total, abs=1e-5)


@given(st.integers(0, 10**6), st.booleans())
@settings(deadline=None)
def test_at_alpha_zero_it_is_renormalised_subtraction(seed, alike):
    rng = np.random.default_rng(seed)
    sizes = {c: 5 if alike else int(rng.integers(1, 60)) for c in range(4)}
    start, rounds = rng.standard_normal(2).astype(np.float32), []
    model = start.astype(np.float64)
    for index in range(1, 6):
        there = rng.permutation(4)[: rng.integers(1, 5)].tolist()
        updates = {c: rng.standard_normal(2).astype(np.float32) for c in there}
        rounds.append(record(index, updates, sizes, broadcast=start))
        weights = [sizes[c] for c in there]
        model += np.average([updates[c] for c in there], axis=0, weights=weights)
    ctx = context(rounds, {int(rng.integers(4))}, clients=4)
    accumulated = Subtract(weighting="renormalised").unlearn(start, ctx)
    result = FastFedul(alpha=0.0).unlearn(model.astype(np.float32), ctx)
    assert result == pytest.approx(accumulated, abs=1e-5)


def federation(*, lr=0.3, epochs=2, only=None, noise=0.0, per_round=None, sizes=None):
    centres = derive(0, "centres").standard_normal((5, 6)).astype(np.float32)
    clients = QuadraticClients(
        centres=tuple(centres),
        num_examples=sizes or (10, 20, 40, 15, 25),
        schedule=TrainingSchedule(
            seed=11, rounds=6, epochs=epochs, clients_per_round=per_round
        ),
        lr=lr,
        noise=noise,
    )
    return quadratic_federation(clients, attendance=only or {})


@pytest.mark.parametrize(("lr", "epochs"), [(0.1, 1), (0.3, 2), (0.9, 1)])
@pytest.mark.parametrize("per_round", [None, 3])
def test_the_measured_alpha_is_the_pull_of_a_quadratic(lr, epochs, per_round):
    _, make = federation(lr=lr, epochs=epochs, per_round=per_round)
    expected = (1 - lr) ** epochs - 1
    assert measured_alpha(make((2,))) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "attendance",
    [
        {},
        {2: (3, 4)},
        {0: (1, 2, 3), 2: (2, 5)},
        # In round 3 the leaver is alone: without it there is no step.
        dict.fromkeys((0, 1, 3, 4), (1, 2, 4, 5, 6)),
    ],
    ids=str,
)
def test_with_equal_curvature_it_is_retraining(attendance):
    model, make = federation(only=attendance)
    replay, _ = federation(only={**attendance, 2: ()})  # it was never there
    assert FastFedul().unlearn(model, make((2,))) == pytest.approx(replay, abs=1e-4)
    assert model != pytest.approx(replay, abs=0.05)


def test_the_papers_alpha_goes_past_retraining():
    model, make = federation()
    retrained = Retrain().unlearn(model, make((2,)))
    result = FastFedul(alpha=0.07).unlearn(model, make((2,)))
    assert np.linalg.norm(result - retrained) > np.linalg.norm(model - retrained)


def test_alpha_is_the_remaining_clients_own():
    _, make = federation(noise=0.5)
    without = measured_alpha(make((2,)))
    assert without != pytest.approx(measured_alpha(make((3,))), abs=1e-6)


def test_alpha_weighs_clients_by_examples_and_stays_in_range():
    sizes = {0: 1, 1: 3, 2: 5}
    rounds = [
        record(1, {0: (0, 0), 1: (0, 0), 2: (0, 0)}, sizes, broadcast=(0, 0)),
        record(2, {0: (-1, 0), 1: (0, 0), 2: (0, 0)}, sizes, broadcast=(2, 0)),
    ]
    assert measured_alpha(context(rounds, {2})) == pytest.approx(-2 / 16)
    grows = [rounds[0], record(2, {0: (9, 0)}, sizes, broadcast=(2, 0))]
    assert measured_alpha(context(grows, {2})) == 0
    turns = [rounds[0], record(2, {0: (-9, 0)}, sizes, broadcast=(2, 0))]
    assert measured_alpha(context(turns, {2})) == -1


def test_alpha_is_zero_where_nothing_can_be_measured():
    sizes = {0: 1, 1: 1}
    once = [record(1, {0: (1, 0), 1: (1, 1)}, sizes)]
    assert measured_alpha(context(once, {0})) == 0
    still = [record(i, {0: (0, 0), 1: (0, 0)}, sizes) for i in (1, 2)]
    assert measured_alpha(context(still, {0})) == 0
    model = np.array([1, 2], np.float32)
    assert FastFedul().unlearn(model, context(still, {0})).tolist() == [1, 2]


def test_what_it_requires_follows_its_settings():
    assert FastFedul(alpha=0.07).requires == Requires(updates="all", mean=True)
    assert FastFedul().requires == Requires(updates="all", broadcasts="all", mean=True)


class Median(MeanServer):
    mean = False


def test_a_server_rule_other_than_a_mean_is_refused():
    clients = QuadraticClients(
        centres=(np.ones(3, np.float32), np.zeros(3, np.float32)),
        schedule=TrainingSchedule(seed=0, rounds=2, epochs=1),
    )
    model, make = quadratic_federation(clients, new_server=Median)
    with pytest.raises(RequirementError, match="weighted mean"):
        run_unlearning(FastFedul(), model, make((0,)))


@pytest.mark.parametrize("alpha", [-1.0, -2.0, float("inf"), float("nan")])
def test_an_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must lie above -1"):
        FastFedul(alpha=alpha)
