"""The meter counts what passes, refuses leavers and checks what comes back."""

import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from fedunlearn.cost import (
    COST_NAMES,
    Meter,
    MeteredClients,
    UnlearningCost,
    run_unlearning,
)
from fedunlearn.errors import (
    EmptyRoundError,
    LeaverContactError,
    RequirementError,
    RunError,
)
from fedunlearn.history import Holdings, InMemoryHistory, RoundRecord, records
from fedunlearn.metered_history import MeteredHistory
from fedunlearn.method import Requires, continue_training
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import QuadraticClients, quadratic_federation
from fedunlearn.updates import Updates
from strategies import FedOsd, FedQuit, MoDe, Nothing, Pgd, Retrain, Subtract

SIZES = (10, 20, 30)


def federation(rounds=3):
    clients = QuadraticClients(
        centres=tuple(np.eye(3, 4, dtype=np.float32)),
        num_examples=SIZES,
        schedule=TrainingSchedule(seed=0, rounds=rounds, epochs=2),
    )
    return quadratic_federation(clients)


class Method:
    """A method made of one function."""

    def __init__(self, unlearn, **needs):
        self.requires, self.body = Requires(**needs), unlearn

    def unlearn(self, model, ctx):
        return self.body(model, ctx)


def run(body, **needs):
    model, make = federation()
    return run_unlearning(Method(body, **needs), model, make({1}))


def test_the_work_of_the_clients_is_counted_by_hand():
    def body(model, ctx):
        ctx.clients.train(model, [0, 2], round_index=1)
        ctx.clients.train(model, [2], round_index=2, epochs=0.5)
        return model.copy()

    cost = run(body, clients=True).cost
    assert cost.client_rounds == 3
    assert cost.local_steps == 2 + 2 + 1
    assert cost.examples == 2 * (10 + 30) + 15
    assert cost.bytes_down == cost.bytes_up == 3 * 4 * 4


def test_who_does_not_answer_costs_the_way_down_only():
    model, make = federation()

    class OneAnswers:
        ids = frozenset({0, 1, 2})

        def train(self, model, ids, *, round_index, epochs=None):
            return make({1}).clients.train(model, [0], round_index=round_index)

    ctx = replace(make({1}), clients=OneAnswers())
    method = Method(lambda m, c: continue_training(m, c, [1]), clients=True)
    cost = run_unlearning(method, model, ctx).cost
    assert (cost.client_rounds, cost.bytes_down, cost.bytes_up) == (1, 32, 16)


def test_a_leaver_cannot_be_trained_and_nobody_else_is_then():
    model, make = federation()
    inner = QuadraticClients(
        centres=make({1}).clients.centres, schedule=make({1}).schedule
    )
    meter = Meter()
    metered = MeteredClients(inner, frozenset({1}), meter)
    assert metered.ids == {0, 2}
    with pytest.raises(LeaverContactError, match="client 1 is to be forgotten"):
        metered.train(model, [0, 1], round_index=1)
    assert not inner.calls
    assert meter.used == UnlearningCost()


@pytest.mark.parametrize("method", [Pgd(), FedQuit(), FedOsd(), MoDe(rounds=2)])
def test_a_leaver_that_does_not_answer_ends_the_run(method):
    model, make = federation()
    everybody = make({1, 2}).leavers

    class OneAnswers:
        ids = frozenset({1, 2})

        def run(self, procedure, model, ids, *, round_index):
            there = [c for c in ids if c == 1]
            if not there:
                raise EmptyRoundError("nobody")
            return everybody.run(procedure, model, there, round_index=round_index)

    ctx = replace(make({1, 2}), leavers=OneAnswers())
    with pytest.raises(RunError, match=r"leaver 2 gave no usable answer|nobody"):
        run_unlearning(method, model, ctx)


@pytest.mark.parametrize(
    ("read", "vectors"),
    [
        (lambda h: None, 0),
        (lambda h: h.round(1), 0),
        (lambda h: h.round(1).broadcast, 1),
        (lambda h: [h.round(1).broadcast for _ in range(5)], 1),
        (lambda h: h.round(2).updates, 3),
        (lambda h: h.round(2).updates_of((0, 2)), 2),
        (lambda h: (h.round(2).updates_of((0,)), h.round(2).updates), 3),
        (lambda h: [r.updates for r in records(h)], 9),
        (lambda h: (h.rounds_of(1), h.round(1).share_of(1)), 0),
    ],
)
def test_each_recorded_vector_that_is_read_counts_once(read, vectors):
    def body(model, ctx):
        read(ctx.history)
        return model.copy()

    assert run(body).cost.history_bytes == vectors * 4 * 4


def test_a_metered_history_is_the_history():
    _, make = federation()
    inner = make({1}).history
    metered = MeteredHistory(inner)
    assert metered.rounds == inner.rounds
    assert metered.layout == inner.layout
    assert metered.holds == inner.holds
    assert metered.tip == inner.tip
    assert metered.rounds_of(2) == inner.rounds_of(2)
    for one, other in zip(records(metered), records(inner), strict=True):
        assert isinstance(one, RoundRecord)
        assert one.updates.tobytes() == other.updates.tobytes()
        assert one.updates_of((2, 0)).tobytes() == other.updates_of((2, 0)).tobytes()
        assert one.broadcast.tobytes() == other.broadcast.tobytes()
        assert one.clients == other.clients


def test_time_at_the_clients_is_not_time_at_the_server():
    model, make = federation()

    class Slow:
        ids = frozenset({0, 2})

        def train(self, model, ids, *, round_index, epochs=None):
            time.sleep(0.05)
            return Updates.of_deltas(
                model, np.zeros((1, 4), np.float32), [0], np.array([1])
            )

    def body(m, ctx):
        time.sleep(0.02)
        return continue_training(m, ctx, [1, 2])

    ctx = replace(make({1}), clients=Slow())
    cost = run_unlearning(Method(body, clients=True), model, ctx).cost
    assert cost.wall_seconds >= 0.12
    assert 0.02 <= cost.server_seconds < cost.wall_seconds - 0.09


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda m, c: m[:-1], "returned float32 .3,., not float32 .4,."),
        (lambda m, c: m.astype(np.float64), "returned float64"),
        (lambda m, c: m * np.float32(np.nan), "diverged: its model is not finite"),
        (lambda m, c: m + np.float32(np.inf), "diverged: its model is not finite"),
    ],
)
def test_a_model_of_another_kind_or_not_finite_fails_the_run(body, message):
    with pytest.raises(RunError, match=message):
        run(body)


def test_requirements_are_checked_before_anything_runs():
    def never(model, ctx):
        raise NotImplementedError

    model, make = federation()
    with pytest.raises(RequirementError, match="at least one remaining client"):
        run_unlearning(Method(never, clients=True), model, make({0, 1, 2}))


class Thin:
    """Rounds 1 to 5; client 1 took part in 2 and 4, client 2 in 3 only."""

    rounds: ClassVar = (1, 2, 3, 4, 5)

    def __init__(self, **holds):
        self.holds = Holdings(
            **{k: frozenset(v) if isinstance(v, set) else v for k, v in holds.items()}
        )

    def rounds_of(self, client):
        return {1: (2, 4), 2: (3,)}.get(client, ())


ALL = {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("holds", "needs", "unmet"),
    [
        (
            {"updates": ALL, "broadcasts": ALL},
            {"updates": "all", "broadcasts": "all"},
            (),
        ),
        ({}, {}, ()),
        ({}, {"clients": True}, ()),
        (
            {"updates": {2, 4}, "broadcasts": {1}},
            {"updates": "all", "broadcasts": "all"},
            (
                "updates of rounds 1, 3, 5 (kept: rounds 2, 4)",
                "broadcasts of rounds 2, 3, 4 and 1 more (kept: round 1)",
            ),
        ),
        ({"updates": {1, 3, 5}}, {"updates": "all", "interval": 2}, ()),
        ({"updates": {1, 4}}, {"updates": "all", "interval": 3}, ()),
        (
            {"updates": {1, 3, 5}},
            {"updates": "all", "interval": 3},
            ("updates of round 4 (kept: rounds 1, 3, 5)",),
        ),
        ({"updates": {2, 4}, "broadcasts": {1}}, {"updates": "leavers"}, ()),
        ({"broadcasts": {1}}, {"broadcasts": "initial"}, ()),
        ({"broadcasts": {2}}, {"broadcasts": "first"}, ()),
        (
            {"broadcasts": {1, 3}},
            {"broadcasts": "first"},
            ("broadcasts of round 2 (kept: rounds 1, 3)",),
        ),
        (
            {"broadcasts": ALL},
            {"updates": "leavers"},
            ("updates of rounds 2, 4 (kept: none)",),
        ),
        ({"sums_from": 1}, {"updates": "leavers", "sums": True}, ()),
        ({"sums_from": 2}, {"updates": "leavers", "sums": True}, ()),
        (
            {"sums_from": 3},
            {"updates": "leavers", "sums": True},
            ("updates of rounds 2, 4 (kept: none)",),
        ),
        (
            {"sums_from": 1},
            {"updates": "leavers"},
            ("updates of rounds 2, 4 (kept: none)",),
        ),
        ({"sensitivities": ALL}, {"sensitivities": True}, ()),
        ({"some_updates": {4}}, {"updates": "some"}, ()),
        (
            {"broadcasts": ALL},
            {"updates": "some"},
            ("updates of at least one round (kept: none)",),
        ),
        (
            {"sensitivities": {1, 2, 3, 4}},
            {"sensitivities": True},
            ("sensitivities of round 5 (kept: rounds 1, 2, 3 and 1 more)",),
        ),
    ],
)
def test_a_history_that_holds_too_little_is_told_apart(holds, needs, unmet):
    assert Requires(**needs).unmet_by(Thin(**holds), {1}) == unmet


def test_what_is_needed_depends_on_who_leaves():
    history = Thin(updates={3}, broadcasts={3})
    needs = Requires(updates="leavers", broadcasts="first")
    assert needs.unmet_by(history, {2}) == ()
    assert len(needs.unmet_by(history, {1, 2})) == 2
    assert needs.unmet_by(history, {7}) == ()


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ({}, {}, {}),
        (
            {"updates": "all", "interval": 4},
            {"updates": "all", "interval": 6},
            {"updates": "all", "interval": 2},
        ),
        (
            {"updates": "all", "interval": 4},
            {"broadcasts": "first"},
            {"updates": "all", "interval": 4, "broadcasts": "first"},
        ),
        (
            {"updates": "leavers", "sums": True},
            {"updates": "leavers"},
            {"updates": "leavers"},
        ),
        (
            {"updates": "leavers", "sums": True},
            {"sensitivities": True, "clients": True},
            {
                "updates": "leavers",
                "sums": True,
                "sensitivities": True,
                "clients": True,
            },
        ),
    ],
)
def test_two_needs_together(one, other, both):
    assert Requires(**one) | Requires(**other) == Requires(**both)
    assert Requires(**other) | Requires(**one) == Requires(**both)


def test_an_empty_history_serves_only_who_needs_none_of_it():
    model, make = federation()
    ctx = replace(make({1}), history=InMemoryHistory(make({1}).layout))
    with pytest.raises(RequirementError, match="Retrain needs at least one recorded"):
        run_unlearning(Retrain(), model, ctx)
    with pytest.raises(RequirementError, match="Subtract needs"):
        run_unlearning(Subtract(), model, ctx)
    assert run_unlearning(Nothing(), model, ctx).cost.client_rounds == 0


def test_what_two_steps_need_is_the_more_of_both():
    one = Requires(updates="leavers", broadcasts="all")
    other = Requires(updates="all", broadcasts="initial", clients=True)
    both = Requires(updates="all", broadcasts="all", clients=True)
    assert one | other == other | one == both
    assert one | Requires() == one


def test_training_on_without_anybody_is_an_error_with_the_round():
    model, make = federation()
    with pytest.raises(EmptyRoundError, match="round 7 has nobody left to train"):
        continue_training(model, make({0, 1, 2}), [7])


def test_ratios_are_none_where_the_other_cost_nothing():
    one = UnlearningCost(client_rounds=6, local_steps=3)
    other = UnlearningCost(client_rounds=12)
    ratios = one.ratio_to(other)
    assert tuple(ratios) == COST_NAMES
    assert ratios["client_rounds"] == 0.5
    assert ratios["local_steps"] is None
    assert ratios["bytes_up"] is None


def test_retraining_costs_all_rounds_of_the_remaining_clients():
    model, make = federation(rounds=5)
    cost = run_unlearning(Retrain(), model, make({1})).cost
    assert cost.client_rounds == 5 * 2
    assert cost.examples == 5 * 2 * (10 + 30)
    assert cost.history_bytes == model.nbytes


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ({}, "nothing"),
        ({"updates": "leavers", "sums": True}, "the leavers' updates or running sums"),
        ({"updates": "leavers"}, "the leavers' updates"),
        ({"updates": "some", "clients": True}, "any updates, remaining clients"),
        (
            {"updates": "all", "interval": 4, "broadcasts": "initial", "clients": True},
            "everybody's updates of one round in 4, the initial model, "
            "remaining clients",
        ),
        ({"broadcasts": "first"}, "the model of the leavers' first round"),
        (
            {"broadcasts": "all", "sensitivities": True, "leaver": True},
            "all broadcasts, sensitivities, the leaver",
        ),
    ],
)
def test_needs_in_words(needs, words):
    assert str(Requires(**needs)) == words
