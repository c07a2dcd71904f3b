"""What is reset: against information worked out by hand and from single gradients."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import RequirementError
from fedunlearn.method import Requires, continue_training
from fedunlearn.models import Mlp
from fedunlearn.testing import check_method
from fedunlearn.testing.bench import LEAVER, SIZES, five_clients
from strategies.fisher_reset import FisherReset, highest, information_of_leavers
from tests.perturb_helpers import (
    TorchClients,
    accuracy,
    class_context,
    client_context,
    torch_federation,
)


@pytest.fixture(scope="module")
def federation():
    return torch_federation(Mlp(hidden=(6,)), (5,), 3)


@pytest.mark.parametrize(
    "method",
    [
        FisherReset(),
        FisherReset(recovery_rounds=0),
        FisherReset(per="model", share=0.2, recovery_rounds=1),
        FisherReset(share=1.0, recovery_rounds=0),
        FisherReset(share=0.0),
    ],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)


def by_hand(model, centres, leavers):
    """On quadratics the Fisher information of client k is ``(w - c_k)^2``."""
    each = {c: SIZES[c] * np.square(model - centres[c], dtype=float) for c in range(5)}
    return 0.5 * (sum(each[c] for c in leavers) / sum(each.values())) ** 2


@pytest.mark.parametrize("leavers", [(LEAVER,), (0, 3)])
def test_information_on_quadratics(leavers):
    model, make = five_clients()
    ctx = make(leavers)
    expected = by_hand(model, ctx.clients.centres, leavers)
    assert information_of_leavers(model, ctx) == pytest.approx(expected, rel=1e-5)
    assert (expected > 0).all()
    assert (expected < 0.5).all()


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.3, 2), (0.5, 4), (1, 7)])
def test_the_top_share_goes_back_to_its_initial_value(share, count):
    model, make = five_clients()
    ctx = make((LEAVER,))
    initial = np.linspace(5, 6, 7, dtype=np.float32)
    first = replace(ctx.history.round(1), arrays=Start(initial))
    ctx = replace(ctx, history=Only(ctx.history, first))
    method = FisherReset(share=share, per="model", recovery_rounds=0)
    after = method.unlearn(model, ctx)
    order = np.argsort(-by_hand(model, ctx.clients.centres, (LEAVER,)))
    expected = model.copy()
    expected[order[:count]] = initial[order[:count]]
    assert after.tobytes() == expected.tobytes()


class Start:
    """The arrays of a round of which only the broadcast is read."""

    def __init__(self, model):
        self.model = model

    def broadcast(self):
        return self.model


class Only:
    """A history whose first round is another."""

    def __init__(self, inner, first):
        self.rounds, self.first, self.inner = inner.rounds, first, inner

    def round(self, index):
        return self.first if index == self.rounds[0] else self.inner.round(index)


def test_per_array_takes_the_share_of_each_array(federation):
    task, model, history = federation
    ctx = client_context(task, history, {1})
    information = information_of_leavers(model, ctx)
    method = FisherReset(share=0.5, recovery_rounds=0)
    changed = method.unlearn(model, ctx) != model
    assert 0 < changed.sum() < len(model)
    for name, part in task.layout.slices.items():
        values = information[part]
        wanted = min(round(0.5 * values.size), (values > 0).sum())
        assert changed[part].sum() == wanted, name
        if 0 < wanted < values.size:
            assert values[changed[part]].min() >= values[~changed[part]].max()
    whole = FisherReset(share=0.5, per="model", recovery_rounds=0)
    assert (whole.unlearn(model, ctx) != model).tolist() != changed.tolist()


def test_information_is_that_of_single_examples(federation):
    task, model, history = federation
    ctx = client_context(task, history, {1})

    def summed(client):
        problem = TorchClients(task, frozenset([client])).problem(client)
        rows = range(len(problem.labels))
        single = [problem.gradient(model, np.array([row])) for row in rows]
        return np.square(np.array(single, np.float64)).sum(0)

    own, everybody = summed(1), sum(summed(c) for c in range(3))
    some = everybody > 1e-12
    expected = 0.5 * (own[some] / everybody[some]) ** 2
    assert information_of_leavers(model, ctx)[some] == pytest.approx(
        expected, rel=1e-3, abs=1e-6
    )


def test_a_parameter_that_nobody_touches_is_never_reset():
    model, make = five_clients()
    ctx = make((LEAVER,))
    alike = tuple(np.zeros(7, np.float32) for _ in SIZES)
    ctx = replace(
        ctx,
        clients=replace(ctx.clients, centres=alike),
        leavers=replace(ctx.leavers, centres=alike),
    )
    model = np.array([0, 0, 0, 1, 2, 0, 0], np.float32)
    assert (information_of_leavers(model, ctx) > 0).tolist() == (model > 0).tolist()
    after = FisherReset(share=1.0, recovery_rounds=0).unlearn(model, ctx)
    assert (after == np.where(model > 0, ctx.initial_model, model)).all()


VALUES = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1, width=32))


@given(VALUES, st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_highest_takes_the_largest_and_no_zeros(values, share):
    chosen = highest(values, share)
    assert chosen.sum() == min(round(share * values.size), (values > 0).sum())
    if chosen.any() and not chosen.all():
        assert values[chosen].min() >= values[~chosen].max()


def test_of_equals_the_first_are_taken():
    assert highest(np.array([1.0, 2, 2, 2, 0]), 0.4).tolist() == [0, 1, 1, 0, 0]


def test_recovery_is_continued_training_after_the_last_round():
    model, make = five_clients(clients_per_round=3)
    plain = FisherReset(recovery_rounds=0).unlearn(model, make((LEAVER,)))
    by_rounds = continue_training(plain, make((LEAVER,)), [6, 7, 8])
    found = FisherReset().unlearn(model, make((LEAVER,)))
    assert found.tobytes() == by_rounds.tobytes()


def test_a_share_of_nothing_is_plain_training_on():
    model, make = five_clients()
    found = FisherReset(share=0, recovery_rounds=2).unlearn(model, make((LEAVER,)))
    assert (
        found.tobytes() == continue_training(model, make((LEAVER,)), [6, 7]).tobytes()
    )


def test_a_class_is_forgotten_and_the_others_are_not():
    task, model, history = torch_federation(
        Mlp(hidden=(16,)), (8,), 3, rounds=12, lr=0.3
    )
    ctx = class_context(task, history, {2})
    after = FisherReset(recovery_rounds=6).unlearn(model, ctx)
    forgotten, kept = ctx.leavers.task, ctx.clients.task
    assert min(accuracy(forgotten, k, model) for k in range(3)) > 0.9
    assert max(accuracy(forgotten, k, after) for k in range(3)) < 0.1
    assert min(accuracy(kept, k, after) for k in range(3)) > 0.9


def test_the_server_is_sent_one_vector_by_each_and_reads_one_model():
    model, make = five_clients()
    cost = run_unlearning(FisherReset(recovery_rounds=0), model, make((LEAVER,))).cost
    assert cost.client_rounds == 5
    assert cost.bytes_up == 5 * model.nbytes
    assert cost.history_bytes == model.nbytes


def test_without_the_leaver_it_does_not_start():
    model, make = five_clients()
    with pytest.raises(RequirementError, match="the leaver to answer"):
        run_unlearning(FisherReset(), model, replace(make((LEAVER,)), leavers=None))


def test_what_it_requires():
    assert FisherReset().requires == Requires(
        broadcasts="initial",
        clients=True,
        leaver=True,
        levels=("client", "sample", "class"),
    )


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"share": -0.1}, r"share must lie in \[0, 1\]"),
        ({"share": 1.1}, r"share must lie in \[0, 1\]"),
        ({"share": float("nan")}, r"share must lie in \[0, 1\]"),
        ({"per": "layer"}, "per must be one of model, array"),
        ({"recovery_rounds": -1}, "recovery_rounds must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        FisherReset(**settings)
