"""SIFU: sensitivities, the return, the noise, and the branches of several requests."""

from dataclasses import replace
from math import exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm as normal

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import RequirementError
from fedunlearn.history import DiskHistory, InMemoryHistory, records
from fedunlearn.history.shares import sensitivities
from fedunlearn.method import Requires
from fedunlearn.params import norm, weighted_mean
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import (
    QuadraticClients,
    check_method,
    keeps_a_model_the_leaver_never_touched,
    quadratic_federation,
)
from fedunlearn.updates import MeanServer
from strategies import Retrain
from strategies.gaussian import largest_ratio, true_delta
from strategies.leave_out import bounded_sensitivity, leave_one_out
from strategies.sifu import Sifu
from strategies.sifu_branches import Node, branch_after, within_budget

SIZES = (10, 20, 40, 15, 25)
LEAVER = 2


def federation(*, size=6, per_round=None, rounds=6, only=None, server=MeanServer):
    centres = derive(0, "centres").standard_normal((5, size)).astype(np.float32)
    clients = QuadraticClients(
        centres=tuple(centres),
        num_examples=SIZES,
        schedule=TrainingSchedule(
            seed=11, rounds=rounds, epochs=2, clients_per_round=per_round
        ),
        lr=0.2,
        noise=0.1,
    )
    attends = {} if only is None else {LEAVER: only}
    return quadratic_federation(clients, attendance=attends, new_server=server)


@pytest.mark.parametrize(
    "method",
    [
        Sifu(),
        Sifu(sigma=1.0, epsilon=1.0),
        Sifu(sigma=0.3, contraction=0.7, calibration="exact"),
        Sifu(sigma=0.2, budget=0.25),
        Sifu(sigma=0.2, rounds=0, delta=1e-3),
    ],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)
    keeps_a_model_the_leaver_never_touched(method)


@given(st.integers(0, 10**6), st.integers(2, 6))
def test_the_leave_one_out_norm_is_the_distance_of_two_aggregates(seed, count):
    rng = np.random.default_rng(seed)
    models = rng.standard_normal((count, 5)).astype(np.float32)
    sizes = rng.integers(1, 50, count)
    felt = sensitivities(models, sizes)
    for k in range(count):
        others = np.delete(models, k, 0).astype(np.float64)
        without = np.average(others, axis=0, weights=np.delete(sizes, k))
        both = np.average(models.astype(np.float64), axis=0, weights=sizes)
        direct = np.linalg.norm(both - without)
        assert felt[k] == pytest.approx(direct, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("per_round", [None, 3])
def test_psi_is_the_sum_of_the_differences_of_aggregates(per_round):
    _, make = federation(per_round=per_round)
    ctx = make((LEAVER,))
    total, psi = 0.0, bounded_sensitivity(ctx, 1.0)
    for record in records(ctx.history):
        assert psi[record.index] == pytest.approx(total, rel=1e-5)
        if LEAVER in record.clients:
            stay = [c for c in record.clients if c != LEAVER]
            both = weighted_mean(record.updates, record.num_examples.tolist())
            without = weighted_mean(
                record.updates_of(stay), record.examples_of(stay).tolist()
            )
            total += norm(both - without)
    assert psi[7] == pytest.approx(total, rel=1e-5)
    assert list(psi) == [1, 2, 3, 4, 5, 6, 7]
    assert total > 0


def test_psi_of_several_leavers_is_the_largest():
    _, make = federation(per_round=3)
    alone = [bounded_sensitivity(make((c,)), 1.0) for c in (0, LEAVER)]
    together = bounded_sensitivity(make((0, LEAVER)), 1.0)
    assert together == {n: max(psi[n] for psi in alone) for n in together}


@given(st.integers(0, 1000))
def test_without_contraction_psi_never_falls(seed):
    _, make = federation(per_round=1 + seed % 4)
    psi = list(bounded_sensitivity(make((seed % 5,)), 1.0).values())
    assert psi == sorted(psi)
    assert psi[0] == 0


def test_a_contraction_weighs_the_past_less():
    _, make = federation(per_round=3)
    ctx = make((LEAVER,))
    felt = [leave_one_out(r, frozenset({LEAVER})) for r in records(ctx.history)]
    steps = [one.get(LEAVER, 0.0) for one in felt]
    psi = bounded_sensitivity(ctx, 0.6)
    for n in range(7):
        by_hand = sum(0.6 ** (n - 1 - s) * steps[s] for s in range(n))
        assert psi[n + 1] == pytest.approx(by_hand)
    assert psi[7] < bounded_sensitivity(ctx, 1.0)[7]


def returned_to(method, make, leavers=(LEAVER,)):
    """The round whose broadcast was taken; one after the last for the model."""
    model, context = make
    ctx = context(leavers)
    method.unlearn(model, ctx)
    return min((c.round_index for c in ctx.clients.calls), default=7)


def test_more_epsilon_sigma_or_delta_never_returns_earlier():
    trained, seen = federation(), set()
    for name, values in (
        ("epsilon", np.geomspace(0.1, 100, 25)),
        ("sigma", np.geomspace(1e-3, 1, 25)),
        ("delta", np.geomspace(1e-9, 0.99, 25)),
        ("contraction", np.linspace(1, 0.1, 25)),
    ):
        base = Sifu(epsilon=5, sigma=0.3)
        returns = [returned_to(replace(base, **{name: v}), trained) for v in values]
        assert returns == sorted(returns)
        seen.add(len(set(returns)))
    assert min(seen) > 1  # each of them matters


def test_the_return_is_the_last_model_within_the_papers_threshold():
    trained = federation()
    psi = bounded_sensitivity(trained[1]((LEAVER,)), 1.0)
    ratio = 10 / sqrt(2 * (log(1.25) - log(0.2)))  # delta = 1/5: five clients
    for t in range(2, 7):
        just = psi[t] / ratio
        assert returned_to(Sifu(sigma=just * 1.001), trained) == t
        assert returned_to(Sifu(sigma=just * 0.999), trained) == t - 1


def test_with_a_sigma_too_small_it_is_retraining_bit_for_bit():
    model, make = federation()
    result = Sifu(sigma=1e-6).unlearn(model, make((LEAVER,)))
    assert result.tobytes() == Retrain().unlearn(model, make((LEAVER,))).tobytes()


def test_the_noise_has_the_right_deviation_and_is_drawn_anew():
    model, make = federation(size=20_000, rounds=2)
    method = Sifu(epsilon=1e9, sigma=0.3)
    one, other = (method.unlearn(model, make((LEAVER,), seed)) for seed in (0, 1))
    for noise in (one - model, other - model):
        assert noise.std() == pytest.approx(0.3, rel=0.03)
        assert abs(noise.mean()) < 4 * 0.3 / sqrt(20_000)
    assert abs(np.corrcoef(one - model, other - model)[0, 1]) < 0.03


def test_a_model_before_the_leaver_gets_no_noise():
    model, make = federation(only=(5, 6))
    ctx = make((LEAVER,))
    result = Sifu(sigma=1e-6, rounds=0).unlearn(model, ctx)
    assert result.tobytes() == ctx.history.round(5).broadcast.tobytes()


def test_training_goes_on_from_the_return_within_the_budget():
    model, make = federation(only=(3, 4, 5, 6))
    for settings, rounds in (
        ({}, [3, 4, 5, 6]),
        ({"budget": 0.5}, [3, 4, 5]),
        ({"budget": 0.0}, []),
        ({"rounds": 1}, [3]),
        ({"rounds": 5, "budget": 1 / 3}, [3, 4]),
    ):
        ctx = make((LEAVER,))
        Sifu(sigma=1e-6, **settings).unlearn(model, ctx)
        assert [call.round_index for call in ctx.clients.calls] == rounds


def recorded(ctx):
    """The same history with its sensitivities."""
    history = InMemoryHistory(ctx.layout)
    for record in records(ctx.history):
        felt = sensitivities(record.updates, record.num_examples)
        history.append_round(replace(record, sensitivities=felt))
    return history


def test_recorded_sensitivities_give_the_same_bits_and_read_no_update():
    model, make = federation(per_round=3)
    computed = Sifu(sigma=0.1).unlearn(model, make((LEAVER,)))
    ctx = make((LEAVER,))
    ctx = replace(ctx, history=recorded(ctx))
    outcome = run_unlearning(Sifu(sigma=0.1, sensitivities="recorded"), model, ctx)
    assert outcome.model.tobytes() == computed.tobytes()
    assert outcome.cost.history_bytes == model.nbytes


def test_a_history_of_sensitivities_alone_serves_it(tmp_path):
    model, make = federation(per_round=3)
    ctx = make((LEAVER,))
    disk = DiskHistory.create(tmp_path, ctx.layout, retention="sensitivities")
    for record in records(ctx.history):
        disk.append_round(record)
    ctx = replace(ctx, history=disk)
    method = Sifu(sigma=0.1, sensitivities="recorded")
    result = run_unlearning(method, model, ctx).model
    computed = Sifu(sigma=0.1).unlearn(model, make((LEAVER,)))
    assert result.tobytes() == computed.tobytes()
    with pytest.raises(RequirementError, match="updates of round"):
        run_unlearning(Sifu(sigma=0.1), model, ctx)
    disk.close()


def test_what_it_requires_follows_its_settings():
    assert Sifu().requires == Requires(
        updates="all", broadcasts="all", clients=True, mean=True
    )
    assert Sifu(sensitivities="recorded", rounds=0).requires == Requires(
        sensitivities=True, broadcasts="all", mean=True
    )


class Momentum(MeanServer):
    mean = False


def test_a_server_rule_other_than_a_mean_is_refused():
    model, make = federation(server=Momentum)
    with pytest.raises(RequirementError, match="weighted mean"):
        run_unlearning(Sifu(), model, make((LEAVER,)))


def test_a_client_alone_in_its_round_counts_with_its_update():
    clients = QuadraticClients(
        centres=(np.ones(3, np.float32), np.zeros(3, np.float32)),
        schedule=TrainingSchedule(seed=0, rounds=4, epochs=1),
    )
    attends = {0: (4,), 1: (1, 2, 3)}
    model, make = quadratic_federation(clients, attendance=attends)
    psi = bounded_sensitivity(make((0,)), 1.0)
    assert psi[4] == 0
    assert psi[5] == pytest.approx(norm(model))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"sigma": 0.0},
        {"sigma": float("nan")},
        {"delta": 0.0},
        {"delta": 1.0},
        {"contraction": 0.0},
        {"contraction": 1.1},
        {"rounds": -1},
        {"budget": -0.1},
        {"budget": 1.1},
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sifu(**wrong)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0, 50.0])
@pytest.mark.parametrize("delta", [1e-6, 0.01, 0.2])
def test_the_exact_ratio_spends_delta_wholly(epsilon, delta):
    r = largest_ratio(epsilon, delta, "exact")
    spent = normal.cdf(r / 2 - epsilon / r)
    spent -= exp(epsilon) * normal.cdf(-r / 2 - epsilon / r)
    assert spent == pytest.approx(delta, rel=1e-6)
    assert true_delta(epsilon, r) == pytest.approx(delta, rel=1e-6)


def test_the_papers_formula_fails_at_its_own_epsilon():
    # SIFU's setting: epsilon 10 and delta 1/100, sigma 0.05 give Psi* = 0.161.
    ratio = largest_ratio(10, 0.01, "classical")
    assert 0.05 * ratio == pytest.approx(0.161, abs=5e-4)
    assert true_delta(10, ratio) == pytest.approx(0.0406, abs=1e-4)
    assert true_delta(0.9, largest_ratio(0.9, 0.01, "classical")) < 0.01


def test_a_huge_epsilon_does_not_overflow():
    assert largest_ratio(1e4, 1e-5, "exact") == pytest.approx(1e2 * sqrt(2), rel=0.1)
    assert true_delta(1.0, 0.0) == 0


def steps(*values):
    """Psi of a history from what each round adds, beginning at the first value."""
    return np.cumsum(values).tolist()


def test_the_first_request_follows_the_training_within_budget():
    psi = [steps(0, 1, 1, 1, 1)]
    assert branch_after((), psi, 2.5) == (Node(0, 2),)
    assert branch_after((), psi, 0.5) == (Node(0, 0),)
    assert branch_after((), psi, 9) == (Node(0, 4),)


def test_a_request_that_was_small_enough_goes_on_from_the_newest_history():
    branch = (Node(0, 2),)
    # Small at node (0, 2), 0.4, and grows by 0.3 a round in history 1 from there.
    psi = [steps(0, 0.2, 0.2, 0.2, 0.2), steps(0.4, 0.3, 0.3, 0.3)]
    assert branch_after(branch, psi, 1.0) == (Node(0, 2), Node(1, 2))


def test_a_request_over_budget_at_a_node_cuts_the_branch_there():
    branch = (Node(0, 2), Node(1, 3))
    psi = [steps(0, 0.6, 0.6, 0.6), steps(1.2, 0.1, 0.1, 0.1), steps(1.5, 0.1)]
    assert branch_after(branch, psi, 1.0) == (Node(0, 1),)
    later = [steps(0, 0.2, 0.2, 0.2), steps(0.4, 0.3, 0.4, 0.4), steps(1.5, 0.1)]
    assert branch_after(branch, later, 1.0) == (Node(0, 2), Node(1, 1))


def test_a_request_that_never_took_part_returns_to_the_newest_model():
    branch = (Node(0, 2), Node(1, 3))
    psi = [[0.0] * 5, [0.0] * 6, [0.0] * 4]
    assert branch_after(branch, psi, 0.0) == (*branch, Node(2, 3))


def test_a_branch_does_not_end_in_the_same_node_twice():
    psi = [steps(0, 1, 1), steps(1, 0, 0)]
    once = branch_after((), psi[:1], 1.0)
    assert once == (Node(0, 1),)
    again = branch_after(once, [psi[0]], 1.0)
    assert again == once


def test_every_node_stays_within_budget_for_every_request_so_far():
    rng = np.random.default_rng(0)
    for _ in range(200):
        # psi[zeta][n, i]: clients 0..3; client r - 1 leaves at request r.
        branch, psi = (), [np.cumsum(rng.random((8, 4)), 0) - rng.random(4)]
        psi[0][0] = 0
        psi[0] = np.maximum.accumulate(psi[0])
        for request in range(1, 4):
            branch = branch_after(branch, [p[:, request - 1] for p in psi], 2.0)
            for node in branch:
                for gone in range(request):
                    assert psi[node.history][node.rounds, gone] <= 2.0
            start = psi[branch[-1].history][branch[-1].rounds]
            more = rng.random((8, 4)) * (np.arange(4) >= request)
            more[0] = 0
            psi.append(start + np.cumsum(more, 0))
        assert len(branch) >= 1


def test_a_history_that_begins_over_budget_is_refused():
    with pytest.raises(ValueError, match="at most 1"):
        within_budget([2.0, 3.0], 1)
