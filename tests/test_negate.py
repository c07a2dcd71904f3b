"""NoT: what negation does, that it undoes itself, and what a norm makes of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedunlearn.method import Requires, continue_training
from fedunlearn.models import Cnn, Mlp
from fedunlearn.models.state import load
from fedunlearn.testing import check_method
from fedunlearn.testing.bench import LEAVER, five_clients
from strategies import FineTune
from strategies.negate import NoT
from tests.perturb_helpers import (
    accuracy,
    client_context,
    separable,
    torch_federation,
    torch_federation_of,
)

CHOICES = ("first", "last", "all")


@pytest.fixture(scope="module")
def federation():
    return torch_federation(Mlp(hidden=(8,)), (6,), 3)


@pytest.mark.parametrize(
    "method",
    [NoT(), NoT(recovery_rounds=0), NoT(layers="last"), NoT(layers="all")],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)


@pytest.mark.parametrize("layers", CHOICES)
def test_twice_is_the_identity_bit_for_bit(layers, federation):
    task, model, history = federation
    model = model.copy()
    model[:3] = (0.0, -0.0, 1e-45)
    ctx = client_context(task, history, {1})
    once = NoT(layers=layers, recovery_rounds=0)
    there = once.unlearn(model, ctx)
    assert there.tobytes() != model.tobytes()
    assert once.unlearn(there, ctx).tobytes() == model.tobytes()


@pytest.mark.parametrize(
    ("layers", "negated"),
    [
        ("first", ("1.weight", "1.bias")),
        ("last", ("3.weight", "3.bias")),
        ("all", ("1.weight", "1.bias", "3.weight", "3.bias")),
    ],
)
def test_it_negates_weights_and_biases_of_the_chosen_layers(
    layers, negated, federation
):
    task, model, history = federation
    ctx = client_context(task, history, {1})
    after = NoT(layers=layers, recovery_rounds=0).unlearn(model, ctx)
    before, after = task.layout.unflatten(model), task.layout.unflatten(after)
    for name in task.layout.names:
        sign = -1 if name in negated else 1
        assert (after[name] == sign * before[name]).all()


def scores(task, model, x):
    module = task.new_module()
    load(module, task.layout, model)
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def test_norms_keep_their_scales_since_a_negated_scale_undoes_a_negated_layer():
    task, model, history = torch_federation(Cnn(channels=4), (1, 8, 8), 3, rounds=1)
    ctx = client_context(task, history, {1})
    layout, x = task.layout, task.clients[0].x
    first = NoT(recovery_rounds=0).unlearn(model, ctx)
    everywhere = NoT(layers="all", recovery_rounds=0).unlearn(model, ctx)
    for name in ("1.weight", "1.bias", "5.weight", "5.bias"):
        part = layout.slices[name]
        assert (everywhere[part] == model[part]).all()
    assert abs(scores(task, first, x) - scores(task, model, x)).max() > 0.1
    first[layout.slices["1.weight"]] *= -1
    assert scores(task, first, x) == pytest.approx(scores(task, model, x), abs=1e-4)


def test_recovery_is_continued_training_on_half_as_many_rounds(federation):
    model, make = five_clients(clients_per_round=3)
    found = NoT().unlearn(model, make((LEAVER,)))
    # The closed-form federation's model is one layer.
    by_hand = continue_training(-model, make((LEAVER,)), [6, 7, 8])
    assert found.tobytes() == by_hand.tobytes()
    two = NoT(recovery_rounds=2).unlearn(model, make((LEAVER,)))
    assert two.tobytes() == continue_training(-model, make((LEAVER,)), [6, 7]).tobytes()


def test_it_forgets_more_than_training_on_of_the_same_length():
    """The leaver alone has class 2; a model that never met it never says 2."""
    task, model, history = _only_the_leaver_knows_class_two()
    plain = FineTune(rounds=4).unlearn(model, client_context(task, history, {1}))
    negated = NoT(recovery_rounds=4).unlearn(model, client_context(task, history, {1}))
    assert accuracy(task, 1, model) > 0.9
    assert accuracy(task, 1, negated) < accuracy(task, 1, plain)
    assert min(accuracy(task, k, negated) for k in (0, 2)) > 0.9


def _only_the_leaver_knows_class_two():
    plain = separable((40, 30, 40), (6,), 3)
    kept = []
    for k, data in enumerate(plain):
        rows = (data.y == 2) == (k == 1)
        kept.append(replace(data, x=data.x[rows], y=data.y[rows]))
    return torch_federation_of(
        tuple(kept), Mlp(hidden=(16,)), (6,), 3, rounds=12, lr=0.3
    )


def test_a_leaver_that_never_took_part_is_forgotten_like_any_other():
    model, make = five_clients(attendance={LEAVER: ()})
    after = NoT(recovery_rounds=0).unlearn(model, make((LEAVER,)))
    assert (after == -model).all()


def test_one_client_is_enough_to_recover():
    model, make = five_clients(noise=0.0)
    ctx = make((0, 1, 2, 3))
    after = NoT(recovery_rounds=40).unlearn(model, ctx)
    assert after == pytest.approx(ctx.clients.centres[4], abs=0.2)


def test_a_model_of_zeros_stays_one():
    _, make = five_clients()
    after = NoT(recovery_rounds=0).unlearn(np.zeros(7, np.float32), make((LEAVER,)))
    assert not after.any()


def test_what_it_requires_follows_its_settings():
    levels = ("client", "sample")
    assert NoT().requires == Requires(clients=True, levels=levels)
    assert NoT(recovery_rounds=0).requires == Requires(levels=levels)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"recovery_rounds": -1}, "recovery_rounds must not be negative"),
        ({"layers": "second"}, "layers must be one of first, last, all"),
    ],
)
def test_settings_out_of_range_are_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        NoT(**settings)
