"""PGD against hand-computed numbers, a walk written out, and a planted backdoor."""

from dataclasses import replace
from math import log, sqrt

import numpy as np
import pytest

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import RequirementError
from fedunlearn.method import Requires, continue_training
from fedunlearn.params import Layout, norm
from fedunlearn.rewrite import RewrittenHistory
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import (
    QuadraticClients,
    check_method,
    keeps_a_model_the_leaver_never_touched,
    quadratic_federation,
)
from fedunlearn.testing.problem import QuadraticProblem
from fedunlearn.training import Training
from simulations import compare, load_scenario
from strategies import FineTune
from strategies.pgd import Pgd
from strategies.reference import (
    distance_to_random,
    last_aggregate_without,
    shuffled,
)
from tests.small_rounds import context, record

SIZES = {0: 10, 1: 30, 2: 10}
MODEL = np.array([10, 20], np.float32)
NEVER = 1e9
"""A squared distance nobody reaches."""


def test_after_an_earlier_request_the_mean_is_that_of_the_updates():
    updates = {0: [1, 2], 1: [5, -2]}
    ctx = replace(
        context([record(1, updates, SIZES, [3, 3])], {1}), departed=frozenset({2})
    )
    found = last_aggregate_without(ctx, MODEL)
    # The mean of 10 and 30 examples is (4, -1); client 0 alone makes (1, 2).
    assert found == pytest.approx(MODEL + np.float32([-3, 3]))
    poor = LeaversOnly(ctx.history)
    without = last_aggregate_without(replace(ctx, history=poor), MODEL)
    assert without.tobytes() == MODEL.tobytes()
    assert without is not MODEL


class LeaversOnly:
    """A history that keeps no round whole."""

    def __init__(self, inner):
        self.inner, self.holds = inner, replace(inner.holds, updates=frozenset())

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_a_second_leaver_leaves_the_mean_of_who_is_left():
    sizes, trained = (10, 20, 30, 40, 50), 3
    clients = QuadraticClients(
        centres=tuple(derive(1, "centres").standard_normal((5, 4)).astype(np.float32)),
        num_examples=sizes,
        schedule=TrainingSchedule(seed=0, rounds=trained, epochs=1),
    )
    model, make = quadratic_federation(clients)
    first = make((3,))
    method = Pgd(recovery_rounds=0, stop_distance=NEVER)
    ascended = method.unlearn(model, first)
    assert norm(ascended - model) > 0.01
    history = RewrittenHistory(first.history, frozenset({3}), {})
    ctx = replace(make((4,)), history=history, departed=frozenset({3}))
    last = history.round(trained)
    three, four = (
        np.average(last.updates[:n], axis=0, weights=sizes[:3] + sizes[4:][: n - 3])
        for n in (3, 4)
    )
    found = last_aggregate_without(ctx, ascended)
    assert found - ascended == pytest.approx(three - four, abs=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        Pgd(),
        Pgd(recovery_rounds=0),
        Pgd(reference="model", recovery_rounds=1),
        Pgd(stop_distance=2.2),
        Pgd(stop_distance=NEVER, recovery_rounds=0),
        Pgd(stop_distance=NEVER, lr=0.01, momentum=0.0, radius=0.5, epochs=2),
    ],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)


@pytest.mark.parametrize("reference", ["history", "model"])
def test_a_leaver_that_never_took_part_is_not_asked(reference):
    keeps_a_model_the_leaver_never_touched(
        Pgd(reference=reference, recovery_rounds=0, stop_distance=NEVER)
    )


# The reference model.


def test_with_equal_clients_the_reference_is_the_paper_s():
    models = np.array([[1, 2], [4, -3], [0, 7], [5, 5]], np.float32)
    w_t = models.mean(axis=0)
    one = record(1, dict(enumerate(models)), dict.fromkeys(range(4), 25))
    found = last_aggregate_without(context([one], {2}), w_t)
    assert found == pytest.approx(4 / 3 * w_t - models[2] / 3, abs=1e-6)
    assert found == pytest.approx(models[[0, 1, 3]].mean(axis=0), abs=1e-6)


def test_weights_and_several_leavers_give_the_weighted_mean_of_the_others():
    models = {0: (1, 2), 1: (4, -3), 2: (0, 7)}
    mean = np.average(list(models.values()), axis=0, weights=list(SIZES.values()))
    one = record(1, models, SIZES)
    for gone, stay in (({1}, [0, 2]), ({0, 2}, [1])):
        expected = np.average(
            [models[c] for c in stay], axis=0, weights=[SIZES[c] for c in stay]
        )
        found = last_aggregate_without(context([one], gone), np.float32(mean))
        assert found == pytest.approx(expected, abs=1e-5)


# Client 0 last took part in round 2, with 10 of 40 examples; its model was (3, 3), the
# mean that came of it (5, 9): a third of (2, 6) is added to the model of round 3.
ROUNDS = [
    record(1, {0: (1, 1), 1: (3, 3)}, SIZES, (0, 0)),
    record(2, {0: (1, 2), 1: (9, 9)}, SIZES, (2, 1)),
    record(4, {1: (1, 1), 2: (1, 1)}, SIZES, (5, 9)),
    record(5, {1: (1, 1), 2: (2, 2)}, SIZES, (6, 6)),
]


def test_after_later_rounds_the_shift_of_the_leaver_s_last_one_is_added():
    found = last_aggregate_without(context(ROUNDS, {0}), MODEL)
    assert found == pytest.approx([10 + 2 / 3, 20 + 2], abs=1e-6)


def test_a_round_of_leavers_alone_is_taken_back():
    rounds = [*ROUNDS, record(7, {0: (7, 7)}, SIZES, (6, 6))]
    found = last_aggregate_without(context(rounds, {0}), MODEL)
    assert found.tolist() == [6, 6]


def test_a_round_of_somebody_who_loses_a_part_only_is_not_looked_at():
    ctx = replace(context(ROUNDS, {0}), shrunk=frozenset({2}))
    found = last_aggregate_without(ctx, MODEL)
    assert found == pytest.approx([10 + 2 / 3, 20 + 2], abs=1e-6)


def test_a_leaver_without_weight_or_history_changes_nothing():
    weightless = record(1, {0: (9, 9), 1: (3, 3)}, {0: 0, 1: 4})
    for rounds, gone in (([weightless], {0}), (ROUNDS[:2], {2})):
        found = last_aggregate_without(context(rounds, gone), MODEL)
        assert found.tolist() == MODEL.tolist()
        assert not np.shares_memory(found, MODEL)


# The ball.

WIDE = Layout(("a", "none", "b"), ((2, 3), (0,), (4,)))


def test_the_distance_to_random_models_is_the_mean_over_shuffles():
    rng = derive(1, "radius")
    w = (rng.standard_normal(10) + 1).astype(np.float32)
    centre = np.array([0.5] * 6 + [-2] * 4)
    initial = (rng.standard_normal(10) + centre).astype(np.float32)
    drawn = [norm(w - shuffled(initial, WIDE, rng)) ** 2 for _ in range(4000)]
    error = 4 * np.std(drawn) / sqrt(len(drawn))
    assert distance_to_random(w, initial, WIDE) == pytest.approx(
        np.mean(drawn), abs=error
    )
    assert error < 0.03 * np.mean(drawn)


def test_a_shuffled_model_has_the_numbers_of_each_array():
    initial = np.arange(10, dtype=np.float32)
    found = shuffled(initial, WIDE, derive(2, "shuffle"))
    assert sorted(found[:6]) == list(range(6))
    assert sorted(found[6:]) == list(range(6, 10))
    assert found.tolist() != initial.tolist()


PROBLEM = QuadraticProblem(
    np.array([1, 2, 3], np.float32), 5, Training(batch_size=5, lr=0.2)
)
START = np.array([1.5, 2, 2], np.float32)


def walk(steps, lr, momentum, clip, radius):
    """The ascent written out: minus the cross-entropy of the scores (-L, 0)."""
    start, centre = START.astype(float), PROBLEM.centre.astype(float)
    w, v, ball = start.copy(), np.zeros(3), sqrt(radius)
    for _ in range(steps):
        half_square = (w - centre) @ (w - centre) / 2
        right = 1 / (1 + np.exp(half_square))
        g = -(1 - right) * (w - centre)
        g = g * min(1, clip / np.linalg.norm(g))
        v = momentum * v + g
        apart = w - lr * v - start
        w = start + apart * min(1, ball / np.linalg.norm(apart))
    return w


@pytest.mark.parametrize(
    ("lr", "momentum", "clip", "radius"),
    [(0.1, 0, 9, 99), (0.1, 0.9, 9, 99), (0.1, 0.5, 0.3, 99), (0.5, 0.9, 9, 0.4)],
)
def test_the_ascent_is_momentum_clipping_and_projection(lr, momentum, clip, radius):
    method = Pgd(
        lr=lr,
        momentum=momentum,
        clip=clip,
        radius=radius,
        epochs=4,
        stop_distance=NEVER,
    )
    expected = walk(4, lr, momentum, clip, radius)
    assert method.run(START, PROBLEM) == pytest.approx(expected, abs=1e-5)
    inside = np.linalg.norm(expected - START) ** 2
    assert inside == pytest.approx(radius) if radius < 1 else inside < radius


def test_without_a_rate_of_its_own_it_takes_that_of_training():
    given = Pgd(lr=0.2, radius=99, stop_distance=NEVER).run(START, PROBLEM)
    taken = Pgd(radius=99, stop_distance=NEVER).run(START, PROBLEM)
    assert given.tobytes() == taken.tobytes()


def test_it_stops_beyond_the_squared_distance():
    settings = {"lr": 0.1, "radius": 99, "momentum": 0, "epochs": 50}
    found = Pgd(**settings, stop_distance=0.5).run(START, PROBLEM)
    path = [walk(n, 0.1, 0, 5, 99) for n in range(30)]
    far = [np.sum((w - START) ** 2) > 0.5 for w in path]
    assert 1 < far.index(True) < 29
    assert found == pytest.approx(path[far.index(True)], abs=1e-5)


class Certain(QuadraticProblem):
    """A third class, so that the loss may lie below that of a guess."""

    def logits(self, model, rows=None):
        scores = super().logits(model, rows)
        return np.hstack([scores, scores[:, 1:] - 9]) + np.array([3, 0, 0], np.float32)


def test_it_stops_where_the_loss_is_that_of_a_guess():
    problem = Certain(PROBLEM.centre, 5, PROBLEM.training)
    found = Pgd(lr=0.1, radius=99, epochs=200).run(START, problem)
    farther = Pgd(lr=0.1, radius=99, epochs=200, stop_loss=2).run(START, problem)

    def loss(w):
        scores = problem.logits(w)[0].astype(float)
        return np.log(np.exp(scores).sum()) - scores[0]

    assert loss(START) < log(3) <= loss(found) < 1.5 * log(3)
    assert 2 * log(3) <= loss(farther) < 3 * log(3)
    assert Pgd(radius=99).run(found, problem).tolist() == found.tolist()


# The method.


def federation(**settings):
    centres = derive(3, "centres").standard_normal((4, 5)).astype(np.float32)
    clients = QuadraticClients(
        centres=tuple(centres),
        num_examples=(10, 20, 30, 40),
        schedule=TrainingSchedule(seed=1, rounds=4, epochs=2, **settings),
        lr=0.2,
    )
    start = derive(3, "start").standard_normal(5).astype(np.float32)
    return quadratic_federation(clients, initial=start)


@pytest.mark.parametrize("per_round", [None, 2])
def test_leavers_climb_from_the_reference_and_are_averaged_by_examples(per_round):
    model, make = federation(clients_per_round=per_round)
    ctx = make((1, 3))
    method = Pgd(recovery_rounds=0, stop_distance=NEVER, lr=0.05)
    w_ref = last_aggregate_without(ctx, model)
    radius = distance_to_random(w_ref, ctx.initial_model, ctx.layout) / 3
    there = [c for c in (1, 3) if ctx.history.rounds_of(c)]
    climbed = [
        replace(method, radius=radius).run(w_ref, ctx.leavers.problem(c)) for c in there
    ]
    expected = np.average(climbed, axis=0, weights=[(20, 40)[c > 1] for c in there])
    assert method.unlearn(model, make((1, 3))) == pytest.approx(expected, abs=1e-5)
    assert max(norm(w - w_ref) ** 2 for w in climbed) <= radius * (1 + 1e-5)


def test_the_ascent_raises_the_leaver_s_loss_and_recovery_is_plain_training():
    model, make = federation()
    method = Pgd(recovery_rounds=0, stop_distance=NEVER, lr=0.05)
    climbed = method.unlearn(model, make((3,)))
    centre = make((3,)).leavers.centres[3]
    assert norm(climbed - centre) > norm(model - centre) + 0.1
    after = replace(method, recovery_rounds=3).unlearn(model, make((3,)))
    by_hand = continue_training(climbed, make((3,)), [5, 6, 7])
    assert after.tobytes() == by_hand.tobytes()
    half = replace(method, recovery_rounds=None).unlearn(model, make((3,)))
    assert half.tobytes() == continue_training(climbed, make((3,)), [5, 6]).tobytes()


def test_who_loses_a_part_of_its_data_only_stays_in_the_reference():
    model, make = federation()
    ctx = make(())
    one = replace(ctx.leavers, gone=frozenset({0, 1, 2}))
    ctx = replace(ctx, shrunk=frozenset({3}), leavers=one)
    method = Pgd(recovery_rounds=0, stop_distance=NEVER, lr=0.05)
    found = method.unlearn(model, ctx)
    radius = distance_to_random(model, ctx.initial_model, ctx.layout) / 3
    expected = replace(method, radius=radius).run(model, one.problem(3))
    assert found.tobytes() == expected.tobytes()


def test_only_one_client_may_be_left():
    model, make = federation()
    assert np.isfinite(Pgd().unlearn(model, make((0, 1, 3)))).all()


def test_a_start_without_any_spread_stays_where_it_is():
    clients = QuadraticClients(
        centres=tuple(np.zeros((2, 3), np.float32)),
        schedule=TrainingSchedule(seed=0, rounds=2, epochs=1),
    )
    model, make = quadratic_federation(clients)
    method = Pgd(stop_distance=NEVER)
    assert method.unlearn(model, make((1,))).tolist() == [0, 0, 0]


def test_what_it_requires_follows_its_settings():
    levels = ("client", "sample", "class")
    assert Pgd().requires == Requires(
        updates="leavers",
        broadcasts="all",
        leaver=True,
        clients=True,
        mean=True,
        levels=levels,
    )
    assert Pgd(reference="model", recovery_rounds=0).requires == Requires(
        broadcasts="initial", leaver=True, levels=levels
    )


def test_it_does_not_start_without_the_leaver():
    model, make = federation()
    with pytest.raises(RequirementError, match="the leaver to answer"):
        run_unlearning(Pgd(), model, replace(make((3,)), leavers=None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"clip": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"radius": 0},
        {"stop_loss": 0},
        {"stop_distance": -1},
        {"recovery_rounds": -1},
    ],
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} "):
        Pgd(**wrong)


# A claim on images: digits, five clients, one with a backdoor on most of its images.

SCENARIO = [
    "seeds=[0]",
    "clients=5",
    "forget=[4]",
    "rounds=10",
    "partition.alpha=1.0",
    "backdoor.fraction=0.8",
    "methods=[retrain,fine_tune]",
    "fine_tune.rounds=2",
    "engine.noise_floor=false",
]


def test_the_backdoor_is_gone_after_the_ascent_and_accuracy_back_after_recovery():
    scenario = load_scenario("configs/scenario/quickstart.yaml", SCENARIO)
    methods = {
        "ascent": Pgd(recovery_rounds=0),
        "pgd": Pgd(recovery_rounds=2),
        "fine_tune": FineTune(rounds=2),
    }
    rows = {row.method: row for row in compare(scenario, methods).rows}
    works = {name: row.metrics["backdoor_success"] for name, row in rows.items()}
    right = {name: row.metrics["test_accuracy"] for name, row in rows.items()}
    assert works["trained"] > 0.8
    assert works["retrain"] < 0.02
    assert works["ascent"] < 0.02
    assert right["ascent"] < right["trained"] - 0.1
    assert works["pgd"] < 0.2 < 0.5 < works["fine_tune"]
    assert right["pgd"] > right["retrain"] - 0.03
    assert rows["ascent"].cost.client_rounds == 1
