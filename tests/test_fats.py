"""FATS: how often it recomputes, from where, and that nobody can tell afterwards."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, chisquare

from fedunlearn.cost import run_unlearning
from fedunlearn.history import InMemoryHistory, records
from fedunlearn.method import continue_training
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import (
    QuadraticClients,
    check_method,
    keeps_a_model_the_leaver_never_touched,
    quadratic_federation,
)
from strategies import Retrain, Rollback
from strategies.fats import Fats
from strategies.fats_sampler import (
    first_use,
    recomputation,
    resample,
    sample_cohorts,
    stability,
)

RUNS = 1000


@pytest.mark.parametrize("cohorts", ["fresh", "lots"])
def test_it_obeys_the_laws(cohorts):
    check_method(Fats(cohorts=cohorts))
    keeps_a_model_the_leaver_never_touched(Fats(cohorts=cohorts))


def near(count, probability):
    """Whether a count of RUNS lies in the interval that holds 999 of 1000 counts."""
    low, high = binom.interval(0.999, RUNS, probability)
    return low <= count <= high


@pytest.mark.parametrize(
    ("clients", "size", "rounds", "leavers"),
    [(300, 5, 50, 1), (50, 5, 4, 2), (40, 2, 5, 3), (10, 1, 3, 1), (1000, 5, 3, 1)],
)
def test_recomputations_are_as_frequent_as_the_theory_says(
    clients, size, rounds, leavers
):
    rng = derive(0, "recomputations")
    gone = range(leavers)
    used = sum(
        first_use(sample_cohorts(rng, range(clients), size, rounds), gone) is not None
        for _ in range(RUNS)
    )
    exact = recomputation(clients, size, rounds, leavers)
    assert near(used, exact)
    bound = min(1, leavers * stability(clients, size, rounds))
    assert exact <= bound
    assert used <= binom.ppf(0.999, RUNS, bound)


def test_the_papers_setting_of_fashion_mnist():
    assert stability(300, 5, 50) == pytest.approx(250 / 300)
    assert recomputation(300, 5, 50) == pytest.approx(0.5660, abs=5e-5)
    assert stability(10, 10, 10) == 1


@pytest.mark.parametrize("size", [1, 4])
def test_lots_without_replacement_keep_the_union_bound(size):
    clients, rounds = 40, 5
    used = 0
    for seed in range(RUNS):
        lots = TrainingSchedule(
            seed=seed, rounds=rounds, epochs=1, clients_per_round=size
        )
        cohorts = {t: lots.cohort(t, range(clients)) for t in range(1, rounds + 1)}
        used += first_use(cohorts, [7]) is not None
    assert near(used, 1 - (1 - size / clients) ** rounds)
    assert used / RUNS <= stability(clients, size, rounds)


def test_cohorts_are_multisets_of_the_wanted_size():
    cohorts = sample_cohorts(derive(0, "cohorts"), {3, 5, 8}, 4, 50)
    assert list(cohorts) == list(range(1, 51))
    assert all(len(ids) == 4 and set(ids) <= {3, 5, 8} for ids in cohorts.values())
    assert all(list(ids) == sorted(ids) for ids in cohorts.values())
    assert any(len(set(ids)) < 4 for ids in cohorts.values())


def test_a_resampled_run_keeps_its_beginning_and_loses_the_leaver():
    cohorts = {1: (0, 2), 2: (2, 2), 3: (1, 3), 4: (0, 0), 7: (0, 1)}
    assert first_use(cohorts, {1}) == 3
    assert first_use(cohorts, {1, 2}) == 1
    assert first_use(cohorts, {9}) is None
    drawn = resample(derive(0, "again"), cohorts, range(4), {1})
    assert (drawn[1], drawn[2]) == (cohorts[1], cohorts[2])
    assert list(drawn) == list(cohorts)
    assert all(len(drawn[t]) == 2 and 1 not in drawn[t] for t in (3, 4, 7))
    assert resample(derive(0, "again"), cohorts, range(4), {9}) == cohorts


def test_resampled_cohorts_are_distributed_as_if_the_leaver_had_never_been():
    rng = derive(1, "distribution")
    seen = Counter()
    for _ in range(4000):
        cohorts = sample_cohorts(rng, range(4), 2, 2)
        seen[tuple(resample(rng, cohorts, range(4), {3}).values())] += 1
    # Two ordered draws from three clients: {i, i} has 1/9, {i, j} 2/9.
    chance = {(i, j): (1 if i == j else 2) / 9 for i in range(3) for j in range(i, 3)}
    pairs = [(a, b) for a in chance for b in chance]
    expected = [4000 * chance[a] * chance[b] for a, b in pairs]
    assert sum(seen.values()) == sum(seen[pair] for pair in pairs)
    assert chisquare([seen[pair] for pair in pairs], expected).pvalue > 1e-3


def federation(*, seed=3, per_round=2, rounds=6, noise=0.1, only=None, count=5):
    centres = derive(0, "centres").standard_normal((count, 4)).astype(np.float32)
    clients = QuadraticClients(
        centres=tuple(centres),
        num_examples=tuple(range(10, 10 + count)),
        schedule=TrainingSchedule(
            seed=seed, rounds=rounds, epochs=1, clients_per_round=per_round
        ),
        noise=noise,
    )
    return quadratic_federation(clients, attendance=only or {})


def test_the_method_leaves_behind_cohorts_as_if_the_leaver_had_never_been():
    seen = Counter()
    recomputed = 0
    for seed in range(1500):
        model, make = federation(seed=seed, rounds=2, noise=0.0, count=4)
        ctx = make((3,), seed)
        Fats().unlearn(model, ctx)
        cohorts = {r.index: r.clients for r in records(ctx.history)}
        cohorts |= {call.round_index: call.clients for call in ctx.clients.calls}
        seen[cohorts[1], cohorts[2]] += 1
        recomputed += bool(ctx.clients.calls)
    pairs = list(combinations(range(3), 2))
    counts = [seen[a, b] for a in pairs for b in pairs]
    assert sum(counts) == 1500
    assert chisquare(counts).pvalue > 1e-3
    assert recomputed / 1500 == pytest.approx(0.75, abs=0.05)  # 1 - (1 - 2/4)^2


@pytest.mark.parametrize("per_round", [None, 1, 2, 3])
def test_with_the_recorded_lots_it_is_retraining_bit_for_bit(per_round):
    for seed in range(8):
        model, make = federation(seed=seed, per_round=per_round)
        result = Fats(cohorts="lots").unlearn(model, make((2,)))
        retrained = Retrain().unlearn(model, make((2,)))
        assert result.tobytes() == retrained.tobytes()


def test_with_everybody_in_every_round_fresh_cohorts_are_the_same_ones():
    model, make = federation(per_round=None)
    result = Fats().unlearn(model, make((2,)))
    assert result.tobytes() == Retrain().unlearn(model, make((2,))).tobytes()


def test_a_leaver_that_was_never_drawn_costs_nothing():
    free = 0
    for seed in range(20):
        model, make = federation(seed=seed, per_round=1, rounds=4)
        ctx = make((2,))
        outcome = run_unlearning(Fats(), model, ctx)
        used = ctx.history.rounds_of(2)
        rounds = 4 - used[0] + 1 if used else 0
        assert outcome.cost.client_rounds == rounds
        if not used:
            assert outcome.model.tobytes() == model.tobytes()
            free += 1
    assert 0 < free < 20


def test_fresh_cohorts_are_drawn_from_the_methods_generator():
    model, make = federation(rounds=8)
    runs = []
    for rng_seed in range(6):
        ctx = make((2,), rng_seed)
        Fats().unlearn(model, ctx)
        runs.append(tuple(call.clients for call in ctx.clients.calls))
        assert {len(ids) for ids in runs[-1]} == {2}
    assert len(set(runs)) == 6


def asked_in(history, asked):
    """The same history, in which more clients were asked than answered."""
    other = InMemoryHistory(history.layout)
    for record in records(history):
        more = {*record.asked, *asked.get(record.index, ())}
        other.append_round(replace(record, asked=tuple(sorted(more))))
    return other


def test_a_round_counts_from_when_the_leaver_was_asked():
    # The leaver is there from round 4 on, but was asked in round 2 and was silent.
    model, make = federation(only={2: (4, 5, 6)}, per_round=None)
    ctx = make((2,))
    ctx = replace(ctx, history=asked_in(ctx.history, {2: (2,)}))
    Fats().unlearn(model, ctx)
    assert ctx.clients.calls[0].round_index == 2
    again = make((2,))
    Rollback().unlearn(model, again)
    assert again.clients.calls[0].round_index == 4


def test_it_goes_on_with_the_training_of_the_first_use():
    model, make = federation(only={2: (3, 5)}, per_round=None)
    ctx = make((2,))
    result = Fats().unlearn(model, ctx)
    start = ctx.history.round(3).broadcast
    by_hand = continue_training(start, make((2,)), [3, 4, 5, 6])
    assert result.tobytes() == by_hand.tobytes()


def test_several_leavers_go_back_to_the_first_of_them():
    model, make = federation(only={1: (5,), 2: (3, 4)}, per_round=None)
    ctx = make((1, 2))
    Fats().unlearn(model, ctx)
    assert [call.round_index for call in ctx.clients.calls] == [3, 4, 5, 6]
