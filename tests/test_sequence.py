"""Requests one after another, in the middle of training, and somebody who returns."""

from dataclasses import replace

import numpy as np
import pytest

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import ConfigError, HistoryError, RequestError
from fedunlearn.history import first_round_of, records
from fedunlearn.method import Requires, UnlearningRequest
from fedunlearn.params import norm
from fedunlearn.rewrite import RewrittenHistory, Steps
from fedunlearn.testing.bench import LEAVER, five_clients
from fedunlearn.updates import MeanServer, Updates
from simulations import compare, load_scenario
from simulations.prepare import prepare
from simulations.requests import requests_of
from simulations.sequence import Removal, run_removals
from strategies import FedEraser, FineTune, Nothing, Retrain, Rollback, Subtract
from strategies.leave_out import leave_one_out
from strategies.sifu import Sifu

QUICKSTART = "configs/scenario/quickstart.yaml"
FAST = ["seeds=[3]", "rounds=6", "training.epochs=1", "engine.noise_floor=false"]
TWO = "requests=[{forget: [9]}, {forget: [4]}]"
HALFWAY = "requests=[{forget: [9], after_round: 3}]"


def scenario(*overrides):
    return load_scenario(QUICKSTART, [*FAST, "forget=[]", *overrides])


def hashes(comparison):
    return {row.method: row.model_sha256 for row in comparison.rows}


ALL = {
    "nothing": Nothing(),
    "rollback": Rollback(),
    "fine_tune": FineTune(rounds=2),
    "fed_eraser": FedEraser(),
    "subtract": Subtract(),
    "fed_accum": Subtract(weighting="renormalised"),
}


@pytest.fixture(scope="module")
def two():
    return compare(scenario(TWO), ALL)


def test_one_after_the_other_and_both_at_once_are_rows(two):
    labels = [row.method for row in two.rows]
    assert labels[:2] == ["trained", "retrain"]
    assert {f"{name}+joint" for name in ALL} <= set(labels)


@pytest.mark.parametrize("method", ["retrain", "rollback"])
def test_exact_methods_give_the_same_bits_either_way(two, method):
    found = hashes(two)
    assert found[method] == found[f"{method}+joint"] == found["retrain"]


def test_accumulating_what_remains_does_not_depend_on_the_order(two):
    by_label = {row.method: row.metrics["l2_to_retrain"] for row in two.rows}
    assert by_label["fed_accum"] == pytest.approx(by_label["fed_accum+joint"], rel=1e-4)
    # The lazy sum is another: once the first has left, the second one's share of every
    # round is larger.
    assert by_label["subtract"] != pytest.approx(by_label["subtract+joint"], rel=1e-3)


def test_the_second_request_costs_on_top_of_the_first(two):
    cost = {row.method: row.cost for row in two.rows}
    assert cost["retrain"].client_rounds == 6 * 9 + 6 * 8
    assert cost["retrain+joint"].client_rounds == 6 * 8
    assert cost["fine_tune"].client_rounds == 2 * 9 + 2 * 8
    assert cost["nothing"].client_rounds == 0


def test_a_leaver_halfway_is_out_at_once_and_training_goes_on():
    found = compare(scenario(HALFWAY), ALL)
    labels = [row.method for row in found.rows]
    assert not any("joint" in label for label in labels)
    # Retraining and rollback come to the federation that never had the leaver.
    never = compare(load_scenario(QUICKSTART, [*FAST, "forget=[9]"]), ALL)
    assert hashes(found)["retrain"] == hashes(never)["retrain"]
    assert hashes(found)["rollback"] == hashes(never)["retrain"]
    assert hashes(found)["trained"] == hashes(never)["trained"]
    # Doing nothing is not the trained model: the leaver missed the second half.
    assert hashes(found)["nothing"] != hashes(never)["trained"]
    cost = {row.method: row.cost for row in found.rows}
    assert cost["retrain"].client_rounds == 3 * 9
    assert cost["nothing"].client_rounds == 0


@pytest.mark.parametrize("rule", ["fed_avgm", "fed_adam", "fed_trimmed_avg"])
def test_a_server_rule_s_state_goes_on_after_the_removal(rule):
    with_rule = [f"server.name={rule}", "methods=[retrain,rollback]"]
    found = compare(scenario(HALFWAY, *with_rule))
    never = compare(load_scenario(QUICKSTART, [*FAST, "forget=[9]", *with_rule]))
    assert hashes(found)["retrain"] == hashes(never)["retrain"]
    assert hashes(found)["rollback"] == hashes(never)["retrain"]


def test_requests_may_come_at_several_times_and_with_some_clients_a_round():
    asked = "requests=[{forget: [4], after_round: 4}, {forget: [9], after_round: 2}]"
    found = compare(scenario(asked, "clients_per_round=5"), ALL)
    assert all(np.isfinite(row.metrics["test_loss"]) for row in found.rows)
    both = load_scenario(QUICKSTART, [*FAST, "forget=[4,9]", "clients_per_round=5"])
    assert hashes(found)["retrain"] == hashes(compare(both, ALL))["retrain"]


def test_who_returns_is_somebody_new_with_the_same_data():
    asked = scenario(HALFWAY, "returns={9: 5}", "methods=[retrain,rollback]")
    prepared = prepare(asked)
    assert prepared.joins == {10: 5}
    assert prepared.federation.clients[10].x is prepared.federation.clients[9].x
    found = compare(asked)
    assert found.client_names[10] == "client-9 again"
    # Rollback and retraining train the newcomer in rounds 5 and 6.
    assert hashes(found)["rollback"] == hashes(found)["retrain"]
    without = compare(scenario(HALFWAY, "methods=[retrain,rollback]"))
    assert hashes(found)["retrain"] != hashes(without)["retrain"]


def test_a_run_of_several_requests_is_resumed_to_the_same_bits(tmp_path):
    whole = compare(scenario(TWO), ALL, out=tmp_path / "a")
    again = compare(scenario(TWO), ALL, out=tmp_path / "a", resume=True)
    assert hashes(whole) == hashes(again)


@pytest.mark.parametrize(
    ("overrides", "error", "why"),
    [
        (["forget=[1]", TWO], ConfigError, "must not stand beside forget"),
        ([], ConfigError, "forget must name at least one client"),
        (["requests=[{forget: []}]"], ConfigError, r"requests.0.forget must name"),
        (["requests=[{forget: [1], after_round: 7}]"], ConfigError, "beyond 6 rounds"),
        (["requests=[{forget: [1], after_round: 0}]"], ConfigError, "at least 1"),
        (["requests=[{who: [1]}]"], ConfigError, "requests.0.who"),
        (["requests=[1]"], ConfigError, "requests.0 must be a group"),
        (["requests=3"], ConfigError, "requests must be a list"),
        (
            ["requests=[{forget: [1]}, {forget: [1, 2]}]"],
            RequestError,
            "client 1 leaves in two requests",
        ),
        (["requests=[{forget: [77]}]"], RequestError, "unknown client '77'"),
        ([TWO, "returns={9: 1}"], ConfigError, "returns.9 must be a round from 2"),
        ([TWO, "returns={9: 99}"], ConfigError, "returns.9 must be a round from 2"),
    ],
)
def test_wrong_requests_are_named(overrides, error, why):
    with pytest.raises(error, match=why):
        prepare(scenario(*overrides))


def test_requests_are_served_by_time():
    asked = scenario(
        "requests=[{forget: [1]}, {forget: [2], after_round: 5}, "
        "{forget: [3], after_round: 1}]"
    )
    found = requests_of(prepare(asked).federation, asked)
    assert [(sorted(r.clients), after) for r, after in found] == [
        ([3], 1),
        ([2], 5),
        ([1], 6),
    ]


# The rewritten history.


def rewritten(*, steps=(), attendance=None, gone=(LEAVER,), until=None):
    _, context = five_clients(clients_per_round=3, attendance=attendance)
    ctx = context(gone)
    noted = Steps()
    server = noted.watch(MeanServer)()
    for index in steps:
        updates = ctx.clients.train(
            ctx.initial_model, sorted(ctx.clients.ids), round_index=index
        )
        server.step(
            Updates.of_deltas(
                updates.before,
                updates.deltas,
                updates.clients,
                updates.num_examples,
                round_index=index,
            )
        )
    return ctx.history, RewrittenHistory(
        ctx.history, frozenset(gone), noted.rounds, until
    )


def test_without_steps_only_the_leavers_are_missing():
    old, new = rewritten()
    assert new.rounds == old.rounds
    for before, after in zip(records(old), records(new), strict=True):
        left = [c for c in before.clients if c != LEAVER]
        assert list(after.clients) == left
        assert np.array_equal(after.updates, before.updates_of(left))
        assert after.broadcast.tobytes() == before.broadcast.tobytes()
        assert after.num_examples.tolist() == before.examples_of(left).tolist()
        assert np.array_equal(after.updates_of(left[-1:]), before.updates_of(left[-1:]))
    assert first_round_of(new, (LEAVER,)) is None


def test_steps_replace_what_was_recorded_from_there_on():
    old, new = rewritten(steps=(3, 4))
    assert new.rounds == (1, 2, 3, 4)
    assert new.round(3).clients == (0, 2, 3, 4)
    assert new.rounds_of(2)[-2:] == (3, 4)
    assert new.round(1).broadcast.tobytes() == old.round(1).broadcast.tobytes()
    assert new.holds.updates == {1, 2, 3, 4}
    with pytest.raises(HistoryError, match="round 5 is not in"):
        new.round(5)


def test_steps_after_the_end_are_added():
    _, new = rewritten(steps=(6, 7))
    assert new.rounds == (1, 2, 3, 4, 5, 6, 7)


def test_a_round_of_the_leaver_alone_is_no_round_any_more():
    attendance = {c: (1, 3, 4, 5) for c in range(5) if c != LEAVER}
    _, new = rewritten(attendance=attendance)
    assert new.rounds == (1, 3, 4, 5)


def test_a_history_ends_where_the_request_came():
    _, new = rewritten(gone=(), until=2)
    assert new.rounds == (1, 2)


def test_a_replay_that_stands_for_no_round_is_not_noted():
    _, context = five_clients()
    ctx, noted = context((LEAVER,)), Steps()
    server = noted.watch(MeanServer)()
    record = ctx.history.round(1)
    server.step(
        Updates.of_deltas(
            record.broadcast, record.updates, record.clients, record.num_examples
        )
    )
    assert not noted.rounds
    assert noted.server is server


@pytest.mark.parametrize("method", [Retrain(), Rollback(), FedEraser(), Subtract()])
def test_after_a_removal_a_method_finds_nothing_of_the_leaver(method):
    model, context = five_clients(clients_per_round=3)
    outcome = run_unlearning(method, model, context((LEAVER,)), watch=True)
    new = RewrittenHistory(
        context((LEAVER,)).history, frozenset({LEAVER}), outcome.steps.rounds
    )
    assert new.rounds
    assert all(LEAVER not in record.clients for record in records(new))
    assert method.requires.unmet_by(new, {3}) == ()
    assert isinstance(method.requires, Requires)
    last = new.round(new.rounds[-1])
    after = MeanServer().step(
        Updates.of_deltas(last.broadcast, last.updates, last.clients, last.num_examples)
    )
    if not isinstance(method, Subtract):
        assert norm(after - outcome.model) < 1e-5


# What a second request must know of the first one's leaver, though it is gone.


def second(method, model, context, leavers=(1, 3), seed=0):
    """The outcome for the second of two leavers, one after the other."""
    asked = [
        Removal(UnlearningRequest(clients=frozenset({c})), frozenset({c}), 5)
        for c in leavers
    ]
    ctx = replace(context((3,)), clients=context(()).clients)
    ctx = replace(ctx, schedule=replace(ctx.schedule, seed=seed))
    return run_removals(method, model, ctx, asked).model


def test_a_sensitivity_counts_those_who_have_left_since():
    old, new = rewritten(gone=(0,))
    for before, after in zip(records(old), records(new), strict=True):
        felt = leave_one_out(before, frozenset({3}))
        assert leave_one_out(after, frozenset({3})) == pytest.approx(felt)
    assert any({0, 3} <= set(r.clients) for r in records(old))


def test_training_started_where_it_did_though_its_first_round_is_gone():
    attendance = {c: (2, 3, 4, 5) for c in range(5) if c != 1}
    model, context = five_clients(attendance=attendance)
    method = Subtract(weighting="renormalised")
    joint = method.unlearn(model, context((1, 3)))
    np.testing.assert_allclose(second(method, model, context), joint, atol=1e-5)


def test_noise_hides_an_earlier_leaver_where_the_present_one_never_was():
    model, context = five_clients(attendance={3: (5,)})
    method = Sifu(sigma=0.05, rounds=0)
    one, other = (second(method, model, context, seed=s) for s in (0, 1))
    assert not np.array_equal(one, other)
    recorded = {r.broadcast.tobytes() for r in records(context(()).history)}
    assert one.tobytes() not in recorded


def test_who_was_asked_and_stayed_silent_is_noted():
    _, context = five_clients()
    ctx, noted = context((LEAVER,)), Steps()
    fresh = ctx.clients.train(ctx.initial_model, [0, 2], round_index=3)
    noted.watch(MeanServer)().step(replace(fresh, round_index=3, asked=(0, 2, 4)))
    assert noted.rounds[3].asked == (0, 2, 4)
    assert noted.rounds[3].clients == (0, 2)
