"""Rollback is retraining from the last model that owes nothing to the leavers."""

from dataclasses import replace

import numpy as np
import pytest

from fedunlearn.cost import run_unlearning
from fedunlearn.method import Requires, continue_training
from fedunlearn.params import norm
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import (
    QuadraticClients,
    check_method,
    keeps_a_model_the_leaver_never_touched,
    quadratic_federation,
)
from fedunlearn.updates import MeanServer
from strategies import Retrain, Rollback
from strategies.rollback import server_before


class MomentumServer:
    """FedAvgM: ``v <- 0.9 v + (mean - before)``; ``before + v``."""

    stateful = True

    def __init__(self):
        self.velocity = None

    def step(self, updates):
        change = MeanServer().step(updates) - updates.before
        if self.velocity is None:
            self.velocity = np.zeros_like(change)
        self.velocity = np.float32(0.9) * self.velocity + change
        return updates.before + self.velocity


class Nesterov(MomentumServer):
    """A rule whose state is said not to matter, which is a lie."""

    stateful = False


def federation(
    *, join=None, server=MeanServer, per_round=None, rounds=6, leaver=2, only=None
):
    centres = derive(0, "centres").standard_normal((5, 6)).astype(np.float32)
    clients = QuadraticClients(
        centres=tuple(centres),
        num_examples=(10, 20, 40, 15, 25),
        schedule=TrainingSchedule(
            seed=11, rounds=rounds, epochs=2, clients_per_round=per_round
        ),
        lr=0.2,
        noise=0.1,
    )
    attends = {} if join is None else {leaver: range(join, rounds + 1)}
    if only is not None:
        attends = {leaver: only}
    return quadratic_federation(clients, attendance=attends, new_server=server)


@pytest.mark.parametrize("per_round", [None, 3])
@pytest.mark.parametrize("join", [1, 2, 4, 6])
def test_it_is_retraining_bit_for_bit_whenever_the_leaver_joined(join, per_round):
    model, make = federation(join=join, per_round=per_round)
    rolled = Rollback().unlearn(model, make((2,)))
    retrained = Retrain().unlearn(model, make((2,)))
    assert rolled.tobytes() == retrained.tobytes()
    assert rolled.tobytes() != model.tobytes()


@pytest.mark.parametrize("per_round", [None, 2])
def test_the_first_of_several_leavers_decides(per_round):
    model, make = federation(join=4, per_round=per_round)
    ctx = make((2, 3))
    first = min(ctx.history.rounds_of(c)[0] for c in (2, 3))
    Rollback().unlearn(model, ctx)
    assert ctx.clients.calls[0].round_index == first


def test_retraining_is_training_without_the_leaver_bit_for_bit():
    model, make = federation()
    retrained = Retrain().unlearn(model, make((2,)))
    never_there, _ = federation(only=())
    assert retrained.tobytes() == never_there.tobytes()


def test_a_leaver_that_never_took_part_gives_the_model_back():
    model, make = federation(only=())
    ctx = make((2,))
    result = Rollback().unlearn(model, ctx)
    assert result.tobytes() == model.tobytes()
    assert not np.shares_memory(result, model)
    assert not ctx.clients.calls


def test_it_costs_the_rounds_since_the_leaver_joined():
    model, make = federation(join=4)
    rolled = run_unlearning(Rollback(), model, make((2,))).cost
    retrained = run_unlearning(Retrain(), model, make((2,))).cost
    assert rolled.client_rounds == 3 * 4
    assert retrained.client_rounds == 6 * 4
    assert rolled.history_bytes == retrained.history_bytes == model.nbytes


@pytest.mark.parametrize(("rounds", "trained"), [(0, []), (1, [3]), (4, [3, 4, 5, 6])])
def test_the_number_of_rounds_after_the_return_can_be_chosen(rounds, trained):
    model, make = federation(join=3)
    ctx = make((2,))
    Rollback(rounds=rounds).unlearn(model, ctx)
    assert [call.round_index for call in ctx.clients.calls] == trained


def test_more_rounds_than_were_trained_go_on_after_the_last():
    model, make = federation(join=3)
    ctx = make((2,))
    Rollback(rounds=6).unlearn(model, ctx)
    assert [call.round_index for call in ctx.clients.calls] == [3, 4, 5, 6, 7, 8]


def test_no_round_after_the_return_gives_the_broadcast_of_the_first_participation():
    model, make = federation(join=3)
    ctx = make((2,))
    result = Rollback(rounds=0).unlearn(model, ctx)
    assert result.tobytes() == ctx.history.round(3).broadcast.tobytes()


@pytest.mark.parametrize("join", [1, 3, 5])
def test_the_state_of_a_server_rule_is_rebuilt_by_replay(join):
    model, make = federation(join=join, server=MomentumServer)
    rolled = Rollback().unlearn(model, make((2,)))
    retrained = Retrain().unlearn(model, make((2,)))
    assert rolled == pytest.approx(retrained, abs=1e-5)


def test_without_the_replay_a_server_with_state_goes_elsewhere():
    model, make = federation(join=4, server=MomentumServer)
    honest = Rollback().unlearn(model, make((2,)))
    forgetful = replace(make((2,)), new_server=Nesterov)
    assert norm(Rollback().unlearn(model, forgetful) - honest) > 1e-2


def test_the_replayed_state_is_that_of_the_start_of_the_round():
    _, make = federation(join=4, server=MomentumServer)
    ctx = make((2,))
    server, fresh = server_before(4, ctx), MomentumServer()
    before_four = continue_training(ctx.initial_model, ctx, [1, 2, 3], fresh)
    assert server.velocity == pytest.approx(fresh.velocity, abs=1e-5)
    assert ctx.history.round(4).broadcast == pytest.approx(before_four, abs=1e-5)


def test_a_server_without_state_costs_no_reading_of_the_history():
    model, make = federation(join=5)
    cost = run_unlearning(Rollback(), model, make((2,))).cost
    assert cost.history_bytes == model.nbytes


def test_a_negative_number_of_rounds_is_refused():
    with pytest.raises(ValueError, match="rounds must not be negative, got -1"):
        Rollback(rounds=-1)


def weighed(*, per_round=None, only=None, server=MeanServer):
    """A federation, and the leaver's influence after each round over the way."""
    model, make = federation(per_round=per_round, only=only, server=server)
    way, influence, shares = 0.0, 0.0, [0.0]
    history = make((2,)).history
    for record in (history.round(i) for i in history.rounds):
        updates, sizes = record.updates.astype(np.float64), record.num_examples
        mean = np.average(updates, axis=0, weights=sizes)
        stay = np.array([c != 2 for c in record.clients])
        if not stay.any():
            influence += np.linalg.norm(mean)
        elif not stay.all():
            others = np.average(updates[stay], axis=0, weights=sizes[stay])
            influence += np.linalg.norm(mean - others)
        way += np.linalg.norm(mean)
        shares.append(influence)
    return model, make, [share / way for share in shares]


@pytest.mark.parametrize("per_round", [None, 3])
@pytest.mark.parametrize("server", [MeanServer, MomentumServer])
@pytest.mark.parametrize("only", [None, (), (4, 6)])
def test_a_budget_of_nothing_is_the_first_participation_bit_for_bit(
    per_round, server, only
):
    model, make = federation(per_round=per_round, server=server, only=only)
    first = run_unlearning(Rollback(), model, make((2,)))
    none = run_unlearning(Rollback(until="budget", budget=0), model, make((2,)))
    assert none.model.tobytes() == first.model.tobytes()
    assert none.cost.history_bytes == first.cost.history_bytes


@pytest.mark.parametrize("per_round", [None, 3])
def test_it_returns_to_the_newest_model_within_the_budget(per_round):
    model, make, shares = weighed(per_round=per_round)
    returns = set()
    for budget in np.linspace(0.001, 1, 40):
        ctx = make((2,))
        Rollback(until="budget", budget=budget).unlearn(model, ctx)
        first = min((c.round_index for c in ctx.clients.calls), default=7)
        assert first == max(n + 1 for n, share in enumerate(shares) if share <= budget)
        returns.add(first)
    assert len(returns) > 3


def test_a_leaver_within_the_budget_all_along_leaves_the_model_as_it_is():
    model, make, shares = weighed(only=(3,))
    ctx = make((2,))
    method = Rollback(until="budget", budget=shares[-1] + 1e-6)
    result = method.unlearn(model, ctx)
    assert result.tobytes() == model.tobytes()
    assert not np.shares_memory(result, model)
    assert not ctx.clients.calls


def test_a_round_of_the_leaver_alone_counts_whole():
    clients = QuadraticClients(
        centres=(np.ones(3, np.float32), np.zeros(3, np.float32)),
        schedule=TrainingSchedule(seed=0, rounds=3, epochs=1),
    )
    attends = {0: (2,), 1: (1, 3)}
    start = np.full(3, -2, np.float32)
    # Ways: -2 to -1 (1), to 0 by the leaver alone (1), to 0: a half of the way is its.
    model, make = quadratic_federation(clients, attendance=attends, initial=start)
    for budget, calls in ((0.49, 2), (0.51, 0)):
        ctx = make((0,))
        Rollback(until="budget", budget=budget).unlearn(model, ctx)
        assert len(ctx.clients.calls) == calls


def test_a_state_of_the_server_is_that_of_the_return():
    model, make, shares = weighed(server=MomentumServer)
    ctx = make((2,))
    method = Rollback(until="budget", budget=shares[3] + 1e-6)
    result = method.unlearn(model, ctx)
    again = continue_training(
        ctx.history.round(4).broadcast, make((2,)), [4, 5, 6], server_before(4, ctx)
    )
    assert result.tobytes() == again.tobytes()


@pytest.mark.parametrize("until", ["first", "budget"])
def test_clients_that_lose_a_part_of_their_data_are_returned_to_as_well(until):
    model, make = federation(join=4)
    ctx = replace(make(()), shrunk=frozenset({2}))
    method = Rollback(until=until, budget=0.01)
    method.unlearn(model, ctx)
    assert ctx.clients.calls[0].round_index == 4
    assert 2 in ctx.clients.calls[0].clients


def test_what_it_requires_follows_its_settings():
    levels = ("client", "sample", "class")
    first = Requires(broadcasts="first", clients=True, levels=levels)
    assert Rollback().requires == first
    assert Rollback(until="budget", budget=0).requires == first
    assert Rollback(until="budget").requires == Requires(
        updates="all", broadcasts="all", clients=True, levels=levels
    )


@pytest.mark.parametrize("budget", [-0.1, 1.1, float("nan")])
def test_a_budget_outside_its_range_is_refused(budget):
    with pytest.raises(ValueError, match=r"budget must lie in \[0, 1\]"):
        Rollback(until="budget", budget=budget)


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.3, 1.0])
def test_with_a_budget_it_obeys_the_laws(budget):
    method = Rollback(until="budget", budget=budget)
    check_method(method)
    keeps_a_model_the_leaver_never_touched(method)
