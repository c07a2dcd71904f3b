"""The noise baseline, and the recovery rounds that the perturbations share."""

import numpy as np
import pytest

from fedunlearn.method import Requires, continue_training
from fedunlearn.models import Mlp
from fedunlearn.rng import derive
from fedunlearn.testing import check_method
from fedunlearn.testing.bench import LEAVER, five_clients
from strategies.noise import Noise, root_mean_square
from strategies.recovery import recovered
from tests.perturb_helpers import client_context, torch_federation


@pytest.fixture(scope="module")
def federation():
    return torch_federation(Mlp(hidden=(200,)), (60,), 3, rounds=1)


@pytest.mark.parametrize(
    "method",
    [
        Noise(),
        Noise(recovery_rounds=0),
        Noise(relative_std=0.1, recovery_rounds=2),
        Noise(relative_std=0),
    ],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_the_noise_of_an_array_is_a_share_of_its_own_size(std, federation):
    task, model, history = federation
    model = model.copy()
    model[task.layout.slices["1.weight"]] *= 100
    ctx = client_context(task, history, {1})
    after = Noise(relative_std=std, recovery_rounds=0).unlearn(model, ctx)
    for name, many in (("1.weight", 0.05), ("3.weight", 0.15), ("1.bias", 0.25)):
        part = task.layout.slices[name]
        size = np.sqrt(np.mean(model[part].astype(np.float64) ** 2))
        noise = (after - model)[part].astype(np.float64) / size
        assert np.std(noise) == pytest.approx(std, rel=many)
        assert abs(noise.mean()) < 6 * std / np.sqrt(noise.size)


def test_the_noise_is_the_context_s_and_nobody_else_s(federation):
    task, model, history = federation
    ctx = client_context(task, history, {1})
    after = Noise(recovery_rounds=0).unlearn(model, ctx)
    drawn = derive(0, "method").standard_normal(len(model), np.float32)
    for part in task.layout.slices.values():
        size = np.sqrt(np.mean(model[part].astype(np.float64) ** 2))
        assert (after - model)[part] == pytest.approx(size * drawn[part], abs=1e-6)
    assert ctx.clients.calls == []


def test_an_array_of_zeros_gets_no_noise(federation):
    task, model, history = federation
    model, part = model.copy(), task.layout.slices["3.weight"]
    model[part] = 0
    after = Noise(recovery_rounds=0).unlearn(model, client_context(task, history, {1}))
    assert not after[part].any()


def test_without_noise_and_recovery_nothing_changes(federation):
    task, model, history = federation
    method = Noise(relative_std=0, recovery_rounds=0)
    after = method.unlearn(model, client_context(task, history, {1}))
    assert after.tobytes() == model.tobytes()


def test_without_noise_it_is_plain_training_on():
    model, make = five_clients(clients_per_round=3)
    found = Noise(relative_std=0).unlearn(model, make((LEAVER,)))
    by_hand = continue_training(model, make((LEAVER,)), [6, 7, 8])
    assert found.tobytes() == by_hand.tobytes()


def test_root_mean_square():
    assert root_mean_square(np.array([3, -4, 0, 0], np.float32)) == 2.5
    assert root_mean_square(np.zeros(0, np.float32)) == 0
    assert root_mean_square(np.full(3, 1e30, np.float32)) == pytest.approx(1e30)


@pytest.mark.parametrize(("rounds", "trained"), [(None, [6, 7, 8]), (1, [6]), (0, [])])
def test_recovery_counts_on_from_the_last_round(rounds, trained):
    model, make = five_clients()
    ctx = make((LEAVER,))
    recovered(model, ctx, rounds)
    assert [call.round_index for call in ctx.clients.calls] == trained


def test_what_it_requires_follows_its_settings():
    levels = ("client", "sample")
    assert Noise().requires == Requires(clients=True, levels=levels)
    assert Noise(recovery_rounds=0).requires == Requires(levels=levels)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"recovery_rounds": -1}, "recovery_rounds must not be negative"),
        ({"relative_std": -0.1}, "relative_std must be finite and not negative"),
        ({"relative_std": float("nan")}, "relative_std must be finite"),
        ({"relative_std": float("inf")}, "relative_std must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        Noise(**settings)


@pytest.mark.parametrize("rounds", [None, 0])
def test_rounds_may_be_none(rounds):
    assert Noise(recovery_rounds=rounds).recovery_rounds == rounds
