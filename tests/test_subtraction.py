"""Subtraction against hand-computed numbers and the identity between its two kinds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import RequirementError
from fedunlearn.method import Requires, continue_training
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import QuadraticClients, quadratic_federation
from strategies import Subtract
from tests.small_rounds import context, record

# Shares of client 0: 10/40 in round 1, 10/20 in round 2, none in round 3.
SIZES = {0: 10, 1: 30, 2: 10}
ROUNDS = [
    record(1, {0: (4, 8), 1: (1, 1)}, SIZES, broadcast=(1, -1)),
    record(2, {0: (2, -6), 2: (3, 3)}, SIZES),
    record(3, {1: (2, 2), 2: (-2, 6)}, SIZES),
]
MODEL = np.array([10, 20], np.float32)


def test_lazy_takes_out_the_leavers_share_of_each_round():
    result = Subtract().unlearn(MODEL, context(ROUNDS, {0}))
    assert result.tolist() == [10 - 4 / 4 - 2 / 2, 20 - 8 / 4 + 6 / 2]


def test_renormalised_adds_up_the_others_means_from_the_initial_model():
    result = Subtract(weighting="renormalised").unlearn(MODEL, context(ROUNDS, {0}))
    third = np.array([30 * 2 - 10 * 2, 30 * 2 + 10 * 6]) / 40
    expected = np.array([1 + 1 + 3, -1 + 1 + 3]) + third
    assert result == pytest.approx(expected, abs=1e-6)


def test_several_leavers_are_taken_out_together():
    result = Subtract().unlearn(MODEL, context(ROUNDS, {0, 2}))
    by_hand = MODEL - [1, 2] - [1, -3] - [1.5, 1.5] - [-0.5, 1.5]
    assert result == pytest.approx(by_hand, abs=1e-6)


def test_a_round_of_leavers_alone_is_left_out_when_renormalising():
    rounds = [*ROUNDS, record(4, {0: (50, 50)}, SIZES)]
    method = Subtract(weighting="renormalised")
    with_it = method.unlearn(MODEL, context(rounds, {0}))
    assert (with_it == method.unlearn(MODEL, context(ROUNDS, {0}))).all()


def test_a_round_of_the_leaver_alone_is_taken_out_whole():
    rounds = [record(1, {0: (3, 4)}, SIZES)]
    assert Subtract().unlearn(MODEL, context(rounds, {0})).tolist() == [7, 16]


UPDATES = arrays(np.float32, (4, 3, 2), elements=st.floats(-10, 10, width=32))
EXAMPLES = st.lists(st.integers(1, 100), min_size=3, max_size=3)


@given(UPDATES, EXAMPLES, st.sampled_from([0, 1, 2]))
@settings(deadline=None)
def test_with_equal_shares_the_two_kinds_differ_by_a_factor(updates, examples, leaver):
    sizes = dict(enumerate(examples))
    start = np.array([0.5, -2], np.float32)
    rounds, model = [], start.astype(np.float64)
    for index, matrix in enumerate(updates, 1):
        rounds.append(record(index, dict(enumerate(matrix)), sizes, broadcast=start))
        model += np.average(matrix.astype(np.float64), axis=0, weights=examples)
    ctx = context(rounds, {leaver})
    share = examples[leaver] / sum(examples)
    lazy = Subtract().unlearn(model.astype(np.float32), ctx)
    renormalised = Subtract(weighting="renormalised").unlearn(MODEL, ctx)
    # Divided by 1 - p, down to 1/100, rounding of lazy grows a hundredfold.
    expected = (lazy.astype(np.float64) - start) / (1 - share)
    assert renormalised - start == pytest.approx(expected, rel=1e-4, abs=2e-3)


SEED = 2
"""Asks client 3 in some rounds and not in others."""


def federation():
    schedule = TrainingSchedule(seed=SEED, rounds=4, epochs=2, clients_per_round=2)
    clients = QuadraticClients(
        centres=tuple(np.eye(4, 3, dtype=np.float32)),
        schedule=schedule,
        num_examples=(10, 20, 30, 40),
        noise=0.1,
    )
    return quadratic_federation(clients)


@pytest.mark.parametrize("weighting", ["lazy", "renormalised"])
def test_recovery_is_continued_training_on_the_rounds_after_the_last(weighting):
    model, make = federation()
    plain = Subtract(weighting=weighting).unlearn(model, make((3,)))
    recovered = Subtract(weighting=weighting, recovery_rounds=3).unlearn(
        model, make((3,))
    )
    by_hand = continue_training(plain, make((3,)), [5, 6, 7])
    assert recovered.tobytes() == by_hand.tobytes()
    assert recovered.tobytes() != plain.tobytes()


def test_partial_participation_uses_the_share_in_each_cohort():
    model, make = federation()
    ctx = make((3,))
    by_hand, sizes = model.astype(np.float64), (10, 20, 30, 40)
    for index in ctx.history.rounds:
        one = ctx.history.round(index)
        if 3 in one.clients:
            total = sum(sizes[c] for c in one.clients)
            by_hand -= 40 / total * one.updates[one.clients.index(3)]
    assert 0 < len(ctx.history.rounds_of(3)) < 4
    assert Subtract().unlearn(model, ctx) == pytest.approx(by_hand, abs=1e-6)


def test_lazy_reads_the_leavers_updates_only():
    model, make = federation()
    ctx = make((3,))
    cost = run_unlearning(Subtract(), model, ctx).cost
    assert cost.history_bytes == len(ctx.history.rounds_of(3)) * model.nbytes
    assert cost.client_rounds == 0


def test_what_it_requires_follows_its_settings():
    assert Subtract().requires == Requires(updates="leavers", sums=True, mean=True)
    assert Subtract(recovery_rounds=1).requires == Requires(
        updates="leavers", sums=True, clients=True, mean=True
    )
    assert Subtract(weighting="renormalised").requires == Requires(
        updates="all", broadcasts="initial", mean=True
    )


def test_without_a_recorded_round_it_does_not_start():
    with pytest.raises(RequirementError, match="at least one recorded round"):
        run_unlearning(Subtract(), MODEL, context([], {0}))


def test_a_negative_number_of_rounds_is_refused():
    with pytest.raises(ValueError, match="recovery_rounds must not be negative"):
        Subtract(recovery_rounds=-1)
