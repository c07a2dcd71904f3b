"""The compact L-BFGS product against the dense BFGS recursion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.lbfgs import hessian_product, pair_of


def dense(steps, differences):
    """The textbook BFGS recursion, one rank-two update a pair."""
    s, y = steps[-1], differences[-1]
    hessian = np.eye(len(s)) * (y @ s) / (s @ s)
    for s, y in zip(steps, differences, strict=True):
        towards = hessian @ s
        hessian = hessian - np.outer(towards, towards) / (s @ towards)
        hessian = hessian + np.outer(y, y) / (y @ s)
    return hessian


def quadratic(seed, size, count):
    """Steps and gradient differences of a random positive definite quadratic."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    steps = rng.normal(size=(count, size)).astype(np.float32)
    return steps, steps @ (root @ root.T / size + 0.1 * np.eye(size)), rng


def pairs_of(steps, differences):
    return [
        pair_of(np.float32(s), np.float32(y))
        for s, y in zip(steps, differences, strict=True)
    ]


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_product_is_that_of_the_dense_recursion(seed, count):
    steps, differences, rng = quadratic(seed, 6, count)
    v = rng.normal(size=6).astype(np.float32)
    pairs = pairs_of(steps, differences)
    exact = dense(*(np.float64([pair[i] for pair in pairs]) for i in (0, 1))) @ v
    assert hessian_product(pairs, v) == pytest.approx(exact, rel=1e-7, abs=1e-7)
    unscaled = dense(np.float64(steps), np.float64(differences)) @ v
    assert hessian_product(pairs, v) == pytest.approx(unscaled, rel=1e-3, abs=1e-3)


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_newest_pair_meets_its_secant_equation(seed, count):
    steps, differences, _ = quadratic(seed, 7, count)
    product = hessian_product(pairs_of(steps, differences), steps[-1])
    assert product == pytest.approx(differences[-1], rel=1e-4, abs=1e-4)


def test_older_pairs_do_not_meet_theirs():
    steps, differences, _ = quadratic(3, 7, 3)
    product = hessian_product(pairs_of(steps, differences), steps[0])
    assert np.linalg.norm(product - differences[0]) > 0.01


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([1e-3, 1.0, 50.0]))
def test_a_multiple_of_the_identity_is_exact(seed, count, c):
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(count, 5)).astype(np.float32)
    v = rng.normal(size=5).astype(np.float32)
    product = hessian_product(pairs_of(steps, np.float32(c) * steps), v)
    assert product == pytest.approx(c * v, rel=1e-5, abs=1e-6 * c)


def test_two_pairs_by_hand():
    # s0 = 4. From 4 I the pair ((1, 0), (2, 0)) makes diag(2, 4), and ((0, 1), (0, 4))
    # leaves it.
    pairs = pairs_of([[1, 0], [0, 1]], [[2, 0], [0, 4]])
    assert hessian_product(pairs, np.float32([1, 0])) == pytest.approx([2, 0])
    assert hessian_product(pairs, np.float32([0, 3])) == pytest.approx([0, 12])


def test_the_same_pair_twice_and_pairs_of_very_different_size_are_no_trouble():
    s, y = np.float32([1, 2, 0]), np.float32([2, 1, 1])
    once, twice = (pairs_of([s] * k, [y] * k) for k in (1, 2))
    v = np.float32([1, -1, 3])
    assert hessian_product(twice, v) == pytest.approx(hessian_product(once, v))
    tiny, big = np.float32(1e-30), np.float32(1e10)
    apart = pairs_of([tiny * s, big * s], [tiny * y, big * y])
    assert hessian_product(apart, v) == pytest.approx(hessian_product(once, v))


@pytest.mark.parametrize(
    ("step", "difference"),
    [
        ([0, 0], [0, 0]),
        ([0, 0], [1, 0]),
        ([1, 0], [0, 0]),
        ([1, 0], [0, 1]),
        ([1, 0], [-1, 0]),
        ([1, 0], [1e-7, 1]),
        ([1, 0], [np.nan, 1]),
    ],
)
def test_pairs_without_positive_curvature_are_not_kept(step, difference):
    assert pair_of(np.float32(step), np.float32(difference)) is None


def test_a_pair_is_scaled_by_the_length_of_its_step():
    step, difference = pair_of(np.float32([3, 4]), np.float32([5, 0]))
    assert (step.tolist(), difference.tolist()) == (
        pytest.approx([0.6, 0.8]),
        [1, 0],
    )
    assert step.dtype == difference.dtype == np.float32


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_pairs_of_positive_curvature_give_a_positive_product(seed, count):
    rng = np.random.default_rng(seed)
    steps, differences = rng.normal(size=(2, count, 5))
    pairs = [p for p in pairs_of(steps, differences) if p is not None]
    v = rng.normal(size=5).astype(np.float32)
    if pairs:
        assert v @ hessian_product(pairs, v) > 0
