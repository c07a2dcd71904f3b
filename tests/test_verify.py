"""Metrics against hand numbers, scikit-learn and SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial import distance
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, log_loss

from fedunlearn.verify import (
    accuracy,
    cosine_distance,
    disagreement,
    l2_distance,
    mean_loss,
    success_rate,
)

LOGITS = np.array([[2, 0, 0], [0, 1, 3], [1, 1, 0], [0, 5, 1]], np.float32)
LABELS = np.array([0, 1, 0, 1], np.int64)
EMPTY = np.zeros((0, 3), np.float32)
NONE = np.zeros(0, np.int64)

SCORES = arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.just(4)),
    elements=st.floats(-50, 50, width=32),
)


def labels_for(scores, seed):
    return np.random.default_rng(seed).integers(0, 4, len(scores))


def test_accuracy_by_hand():
    assert accuracy(LOGITS, LABELS) == 0.75


@given(SCORES, st.integers(0, 99))
def test_accuracy_agrees_with_scikit_learn(scores, seed):
    labels = labels_for(scores, seed)
    expected = accuracy_score(labels, scores.argmax(axis=1))
    assert accuracy(scores, labels) == pytest.approx(expected)


def test_loss_by_hand():
    first = np.log(np.exp(2) + 2) - 2
    second = np.log(1 + np.e + np.exp(3)) - 1
    assert mean_loss(LOGITS[:2], LABELS[:2]) == pytest.approx((first + second) / 2)


@given(SCORES, st.integers(0, 99))
def test_loss_agrees_with_scipy(scores, seed):
    labels = labels_for(scores, seed)
    log_p = log_softmax(scores.astype(np.float64), axis=1)
    expected = -log_p[np.arange(len(labels)), labels].mean()
    assert mean_loss(scores, labels) == pytest.approx(expected, abs=1e-9)


def test_loss_agrees_with_scikit_learn_where_probabilities_are_not_tiny():
    scores = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    labels = labels_for(scores, 0)
    p = np.exp(log_softmax(scores.astype(np.float64), axis=1))
    expected = log_loss(labels, p, labels=[0, 1, 2, 3])
    assert mean_loss(scores, labels) == pytest.approx(expected)


def test_loss_of_a_sure_and_wrong_model_is_large_not_infinite():
    scores = np.array([[10_000, 0]], np.float32)
    assert mean_loss(scores, np.array([1])) == 10_000
    assert mean_loss(scores, np.array([0])) == 0


def test_loss_of_a_model_that_knows_nothing_is_the_log_of_the_classes():
    assert mean_loss(np.zeros((5, 7), np.float32), np.arange(5)) == pytest.approx(
        np.log(7)
    )


@given(SCORES, st.floats(-20, 20, width=16), st.integers(0, 9))
def test_loss_and_accuracy_ignore_a_shift_of_all_scores(scores, shift, seed):
    scores, labels = np.round(scores), labels_for(scores, seed)
    shifted = scores + np.float32(round(shift))
    assert accuracy(shifted, labels) == accuracy(scores, labels)
    assert mean_loss(shifted, labels) == pytest.approx(mean_loss(scores, labels))


def test_loss_leaves_the_scores_alone():
    scores = LOGITS.copy()
    mean_loss(scores, LABELS)
    assert (scores == LOGITS).all()
    doubles = LOGITS.astype(np.float64)
    mean_loss(doubles, LABELS)
    assert (doubles == LOGITS).all()


def test_disagreement_by_hand():
    other = LOGITS.copy()
    other[1] = [0, 4, 3]
    assert disagreement(LOGITS, other) == 0.25


@given(SCORES, st.integers(0, 9))
def test_disagreement_is_symmetric_and_zero_with_itself(scores, seed):
    other = np.random.default_rng(seed).permutation(scores)
    assert disagreement(scores, scores) == 0
    assert disagreement(scores, other) == disagreement(other, scores)
    expected = distance.hamming(scores.argmax(axis=1), other.argmax(axis=1))
    assert disagreement(scores, other) == pytest.approx(expected)


def test_disagreement_does_not_see_how_sure_a_model_is():
    assert disagreement(LOGITS, LOGITS * 10) == 0


MODELS = arrays(np.float32, 5, elements=st.floats(-100, 100, width=16))


def test_distances_by_hand():
    origin = np.float32([1, 1])
    assert l2_distance(np.float32([4, 5]), origin) == 5
    assert cosine_distance(np.float32([2, 1]), np.float32([1, 3]), origin) == 1
    assert cosine_distance(np.float32([2, 1]), np.float32([5, 1]), origin) == 0
    assert cosine_distance(np.float32([2, 1]), np.float32([0, 1]), origin) == 2


@given(MODELS, MODELS, MODELS)
def test_cosine_distance_agrees_with_scipy(model, reference, origin):
    result = cosine_distance(model, reference, origin)
    ours, theirs = model - origin, reference - origin
    if not ours.any() or not theirs.any():
        assert result is None
        return
    expected = distance.cosine(ours.astype(np.float64), theirs.astype(np.float64))
    assert result == pytest.approx(expected, abs=1e-9)
    assert 0 <= result <= 2
    assert result == cosine_distance(reference, model, origin)


@given(arrays(np.float32, 7, elements=st.floats(-9, 9, width=32)))
def test_cosine_distance_stays_between_its_ends(model):
    origin = np.zeros(7, np.float32)
    if model.any():
        assert cosine_distance(model, model, origin) == pytest.approx(0, abs=1e-12)
        opposite = cosine_distance(model, -model, origin)
        assert opposite == pytest.approx(2, abs=1e-12)
        assert opposite <= 2


@given(MODELS, MODELS)
def test_l2_distance_agrees_with_scipy(model, reference):
    expected = distance.euclidean(model.astype(np.float64), reference)
    assert l2_distance(model, reference) == pytest.approx(expected, abs=1e-4)


def test_a_trigger_succeeds_on_examples_of_other_classes_only():
    logits = np.array([[0, 9], [0, 9], [9, 0], [0, 9]], np.float32)
    labels = np.array([0, 1, 0, 1], np.int64)
    # Of the two examples of class 0 one is taken for class 1.
    assert success_rate(logits, labels, 1) == 0.5
    # Of the two examples of class 1 none is taken for class 0.
    assert success_rate(logits, labels, 0) == 0


def test_a_perfect_clean_model_has_no_backdoor():
    """Published code counts target-class examples too and never gets below 10 %."""
    labels = np.repeat(np.arange(10), 3)
    perfect = np.eye(10, dtype=np.float32)[labels]
    assert success_rate(perfect, labels, 9) == 0


def test_a_model_that_always_says_the_target_is_fully_backdoored():
    logits = np.tile(np.float32([0, 1, 0]), (6, 1))
    assert success_rate(logits, np.array([0, 1, 2, 0, 1, 2]), 1) == 1


def test_a_trigger_without_examples_of_other_classes_has_no_rate():
    assert success_rate(LOGITS[:2], np.array([1, 1]), 1) is None
    assert success_rate(EMPTY, NONE, 1) is None


def test_metrics_of_no_examples_are_none_and_not_a_number_made_up():
    assert accuracy(EMPTY, NONE) is None
    assert mean_loss(EMPTY, NONE) is None
    assert disagreement(EMPTY, EMPTY) is None
