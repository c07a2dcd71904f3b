"""FedRecovery: residuals by hand, the bound on the distance, the noise."""

from math import sqrt

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
from strategies.fed_recovery import FedRecovery
from strategies.gaussian import largest_ratio
from tests.small_rounds import context, record


@pytest.mark.parametrize(
    "method",
    [
        FedRecovery(),
        FedRecovery(sigma=0.0, weights="inclusive", scale=5),
        FedRecovery(epsilon=1.0, growth=0.5),
        FedRecovery(epsilon=0.5, calibration="classical"),
    ],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)
    keeps_a_model_the_leaver_never_touched(method)


SIZES = {0: 1, 1: 1, 2: 2}
ROUNDS = [
    record(1, {0: (6, 0), 1: (0, 4)}, SIZES),  # step (3, 2), 13; d = (3, -2)
    record(2, {1: (1, 1), 2: (1, 1)}, SIZES),  # step (1, 1), 2; no leaver
    record(3, {0: (0, 0), 1: (4, 4), 2: (0, 0)}, SIZES),  # (1, 1), 2; d = (-1/3, -1/3)
]
MODEL = np.array([10, 20], np.float32)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_residuals_and_weights_by_hand(scale):
    method = FedRecovery(sigma=0.0, scale=scale, weights="inclusive")
    result = method.unlearn(MODEL, context(ROUNDS, {0}))
    taken = 13 / 13 * np.array([3, -2]) + 2 / 17 * np.array([-1 / 3, -1 / 3])
    assert result == pytest.approx(MODEL - scale * taken, abs=1e-5)


def test_by_default_the_first_round_has_no_weight():
    method = FedRecovery(sigma=0.0)
    result = method.unlearn(MODEL, context(ROUNDS, {0}))
    taken = 2 / 15 * np.array([-1 / 3, -1 / 3])
    assert result == pytest.approx(MODEL - taken, abs=1e-5)


@given(st.integers(0, 10**6))
@settings(deadline=None)
def test_with_equal_shares_the_residual_is_the_leavers_distance_over_n_minus_one(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    updates = rng.standard_normal((n, 2))
    one = record(1, dict(enumerate(updates)), dict.fromkeys(range(n), 3))
    method = FedRecovery(sigma=0.0, weights="inclusive")
    result = method.unlearn(MODEL, context([one], {0}, clients=n))
    residual = (updates[0] - updates.mean(0)) / (n - 1)
    assert MODEL - result == pytest.approx(residual, abs=1e-5)


def test_a_single_round_is_unlearned_exactly():
    one = record(1, {0: (6, 0), 1: (0, 4), 2: (2, 2)}, SIZES)
    trained = np.array([2.5, 2.0], np.float32)
    method = FedRecovery(sigma=0.0, weights="inclusive")
    result = method.unlearn(trained, context([one], {0}))
    assert result == pytest.approx([4 / 3, 8 / 3], abs=1e-6)


def federation(*, lr=0.3, epochs=2, attendance=None, size=6, server=MeanServer):
    centres = derive(0, "centres").standard_normal((5, size)).astype(np.float32)
    clients = QuadraticClients(
        centres=tuple(centres),
        num_examples=(10, 20, 40, 15, 25),
        schedule=TrainingSchedule(seed=11, rounds=6, epochs=epochs),
        lr=lr,
    )
    return quadratic_federation(clients, attendance=attendance or {}, new_server=server)


def sigma_of(method, model, make):
    """The deviation, from the noise that the generator is known to give."""
    quiet = FedRecovery(sigma=0.0, scale=method.scale, weights=method.weights)
    noise = method.unlearn(model, make((2,))) - quiet.unlearn(model, make((2,)))
    drawn = make((2,)).rng.standard_normal(len(model))
    assert np.std(noise / drawn) < 1e-3 * abs(np.mean(noise / drawn))
    return float(np.mean(noise / drawn))


@pytest.mark.parametrize(
    "attendance",
    [
        {},
        {2: (3, 4)},
        dict.fromkeys((0, 1, 3, 4), (1, 2, 4, 5, 6)),  # alone in round 3
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("weights", ["before", "inclusive"])
def test_retraining_lies_within_the_distance_that_the_noise_is_made_for(
    attendance, scale, weights
):
    model, make = federation(attendance=attendance)
    retrained, _ = federation(attendance={**attendance, 2: ()})
    how = {"scale": scale, "weights": weights}
    method = FedRecovery(epsilon=100.0, growth=0.7**2, **how)
    bound = sigma_of(method, model, make) * largest_ratio(100.0, 0.01, "exact")
    quiet = FedRecovery(sigma=0.0, **how).unlearn(model, make((2,)))
    apart = np.linalg.norm(retrained - quiet)
    assert apart <= bound * (1 + 1e-4)
    # With nothing taken out and residuals of one direction the bound is met.
    if scale == 0:
        assert bound < 3 * apart


@pytest.mark.parametrize("weights", ["before", "inclusive"])
def test_the_distance_by_hand(weights):
    make = lambda forget: context(ROUNDS, forget)  # noqa: E731
    ctx, quiet = make({0}), make({0})
    how = {"scale": 2.0, "weights": weights}
    noise = FedRecovery(epsilon=1.0, growth=1.5, **how).unlearn(MODEL, ctx)
    noise = noise - FedRecovery(sigma=0.0, **how).unlearn(MODEL, quiet)
    d1, d3 = sqrt(13), sqrt(2) / 3
    p1, p3 = (0, 2 / 15) if weights == "before" else (1, 2 / 17)
    distance = 1.5**2 * d1 + d3 + 2 * (p1 * d1 + p3 * d3)
    sigma = distance / largest_ratio(1.0, 0.01, "exact")
    drawn = make({0}).rng.standard_normal(2)
    assert noise == pytest.approx(sigma * drawn, rel=1e-4)


def test_a_smaller_epsilon_beta_or_larger_growth_needs_more_noise():
    model, make = federation()
    for name, values in (
        ("epsilon", (10.0, 1.0, 0.1)),
        ("beta", (0.1, 1e-3, 1e-6)),
        ("growth", (0.5, 1.0, 1.5)),
    ):
        given_epsilon = {} if name == "epsilon" else {"epsilon": 1.0}
        found = [
            sigma_of(FedRecovery(**given_epsilon, **{name: v}), model, make)
            for v in values
        ]
        assert found[0] < found[1] < found[2]


def test_the_default_noise_is_a_tenth_of_the_way():
    model, make = federation()
    expected = 0.1 * np.sqrt(np.mean(np.square(model)))  # it started from zeros
    assert sigma_of(FedRecovery(), model, make) == pytest.approx(expected, rel=1e-3)


def test_the_noise_has_the_given_deviation_and_is_drawn_anew():
    model, make = federation(size=20_000)
    quiet = FedRecovery(sigma=0.0).unlearn(model, make((2,)))
    one, other = (
        FedRecovery(sigma=0.5).unlearn(model, make((2,), seed)) - quiet
        for seed in (0, 1)
    )
    assert one.std() == pytest.approx(0.5, rel=0.03)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_rounds_without_a_step_do_not_matter():
    still = record(1, {0: (0, 0), 1: (0, 0)}, SIZES)
    result = FedRecovery().unlearn(MODEL, context([still], {0}))
    assert np.isfinite(result).all()
    quiet = FedRecovery(sigma=0.0).unlearn(MODEL, context([still], {0}))
    assert quiet.tolist() == MODEL.tolist()


def test_what_it_requires_follows_its_settings():
    noisy = Requires(updates="all", mean=True)
    assert FedRecovery(sigma=0.1).requires == noisy
    assert FedRecovery(epsilon=1.0).requires == noisy
    assert FedRecovery().requires == Requires(
        updates="all", broadcasts="initial", mean=True
    )


class Median(MeanServer):
    mean = False


def test_a_server_rule_other_than_a_mean_is_refused():
    model, make = federation(server=Median)
    with pytest.raises(RequirementError, match="weighted mean"):
        run_unlearning(FedRecovery(), model, make((2,)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": -1.0},
        {"sigma": -0.1},
        {"sigma": float("nan")},
        {"epsilon": 0.0},
        {"growth": 0.0},
        {"beta": 0.0},
        {"beta": 1.0},
        {"sigma": 0.1, "epsilon": 1.0},
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FedRecovery(**wrong)
