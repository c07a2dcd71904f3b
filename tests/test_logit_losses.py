"""Derivatives of losses by the scores, against finite differences and torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional

from fedunlearn.rng import derive
from strategies.logit_losses import (
    cross_entropy,
    divergence_from,
    mean_cross_entropy,
    negative_cross_entropy,
    softmax,
    unlearning_cross_entropy,
)

RNG = derive(0, "logit losses")
SCORES = 3 * RNG.standard_normal((6, 4))
LABELS = RNG.integers(0, 4, 6)
TARGETS = RNG.dirichlet(np.ones(4), 6)


def torch_divergence(scores, temperature):
    logs = functional.log_softmax(scores / temperature, 1)
    return functional.kl_div(logs, torch.from_numpy(TARGETS), reduction="batchmean")


def torch_unlearning(scores):
    chances = functional.softmax(scores, 1)
    own = chances[torch.arange(len(scores)), torch.from_numpy(LABELS)]
    return -torch.log(1 - own / 2).mean()


def torch_cross_entropy(scores):
    return functional.cross_entropy(scores, torch.from_numpy(LABELS))


LOSSES = {
    "ce": (cross_entropy, torch_cross_entropy),
    "-ce": (negative_cross_entropy, lambda z: -torch_cross_entropy(z)),
    "uce": (unlearning_cross_entropy, torch_unlearning),
    "kl": (divergence_from(TARGETS), lambda z: torch_divergence(z, 1)),
    "kl, warm": (divergence_from(TARGETS, 3.0), lambda z: torch_divergence(z, 3.0)),
    "kl, cold": (divergence_from(TARGETS, 0.5), lambda z: torch_divergence(z, 0.5)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_slope_is_the_one_torch_finds(name):
    slope, loss = LOSSES[name]
    scores = torch.from_numpy(SCORES).requires_grad_()
    (found,) = torch.autograd.grad(loss(scores), scores)
    assert slope(SCORES, LABELS) == pytest.approx(found.numpy(), abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_slope_is_the_difference_quotient(name):
    slope, loss = LOSSES[name]
    found, step = slope(SCORES, LABELS), 1e-5
    for at in np.ndindex(SCORES.shape):
        up, down = SCORES.copy(), SCORES.copy()
        up[at] += step
        down[at] -= step
        rise = loss(torch.from_numpy(up)) - loss(torch.from_numpy(down))
        assert found[at] == pytest.approx(float(rise) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_large_scores_give_finite_slopes_in_their_own_dtype(name, size):
    slope, _ = LOSSES[name]
    scores = (size * SCORES).astype(np.float32)
    found = slope(scores, LABELS)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 2 / len(scores)


FINITE = arrays(np.float64, (3, 5), elements=st.floats(-50, 50))


@given(FINITE, st.floats(-1e3, 1e3))
def test_a_slope_sums_to_zero_and_does_not_see_a_shift_of_a_row(scores, shift):
    labels = np.array([0, 4, 2])
    for slope in (
        cross_entropy,
        unlearning_cross_entropy,
        divergence_from(softmax(scores[::-1])),
    ):
        found = slope(scores, labels)
        assert found.sum(axis=1) == pytest.approx(np.zeros(3), abs=1e-12)
        assert slope(scores + shift, labels) == pytest.approx(found, abs=1e-9)


def test_the_divergence_from_one_s_own_probabilities_has_no_slope():
    slope = divergence_from(softmax(SCORES, 2.0), 2.0)
    assert not slope(SCORES, LABELS).any()


def test_the_divergence_from_certain_classes_is_the_cross_entropy():
    certain = divergence_from(np.eye(4)[LABELS])
    assert certain(SCORES, LABELS) == pytest.approx(cross_entropy(SCORES, LABELS))


def test_softmax_is_torch_s_and_gives_a_class_at_minus_infinity_nothing():
    expected = functional.softmax(torch.from_numpy(SCORES) / 2.5, 1).numpy()
    assert softmax(SCORES, 2.5) == pytest.approx(expected, abs=1e-12)
    assert softmax(np.array([[0.0, -np.inf, 0.0]])).tolist() == [[0.5, 0, 0.5]]


def test_unlearning_cross_entropy_is_flat_where_the_class_is_ruled_out_or_certain():
    sure = np.array([[40.0, 0.0, 0.0], [-40.0, 0.0, 0.0]])
    assert unlearning_cross_entropy(sure, np.array([0, 0])) == pytest.approx(
        np.zeros((2, 3)), abs=1e-12
    )


def test_unlearning_cross_entropy_by_hand():
    # p = (1/2, 1/2): the factor is (1/2) / (3/2) = 1/3, times (1/2, -1/2).
    slope = unlearning_cross_entropy(np.zeros((1, 2)), np.array([0]))
    assert slope == pytest.approx(np.array([[1 / 6, -1 / 6]]))


def test_the_mean_cross_entropy_is_torch_s_and_that_of_a_guess_is_log_c():
    expected = float(torch_cross_entropy(torch.from_numpy(SCORES)))
    assert mean_cross_entropy(SCORES, LABELS) == pytest.approx(expected, abs=1e-12)
    assert mean_cross_entropy(np.ones((5, 8)), LABELS[:5]) == pytest.approx(np.log(8))
    far = np.array([[0.0, 1e30]], np.float32)
    assert mean_cross_entropy(far, np.array([0])) == pytest.approx(1e30)
