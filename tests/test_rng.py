"""Random streams depend on names only."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.rng import SEED_LIMIT, derive

SEEDS = st.integers(0, SEED_LIMIT - 1)
KEYS = st.integers(0, 2**32 - 1)


def first(*name):
    return derive(*name).integers(0, 2**63, 4).tolist()


@given(SEEDS, KEYS, KEYS)
def test_the_same_name_gives_the_same_stream(seed, round_index, client):
    name = (seed, "batches", round_index, client)
    assert first(*name) == first(*name)


@given(st.lists(st.tuples(SEEDS, KEYS, KEYS), min_size=2, max_size=2, unique=True))
def test_another_seed_or_key_gives_another_stream(names):
    one, other = names
    assert first(one[0], "a", *one[1:]) != first(other[0], "a", *other[1:])


def test_the_order_of_keys_counts():
    assert first(0, "a", 1, 2) != first(0, "a", 2, 1)


def test_another_purpose_gives_another_stream():
    purposes = ("cohort", "batches", "initial model", "backdoor", "test split")
    purposes += ("partition", "holdout", "method", "noise")
    assert len({tuple(first(0, purpose, 1)) for purpose in purposes}) == len(purposes)


def test_both_halves_of_a_long_seed_count():
    assert first(1, "a") != first(1 + 2**32, "a")
    assert first(2**32, "a") != first(0, "a") != first(1, "a")


def test_drawing_from_one_stream_does_not_shift_another():
    alone = first(0, "a", 2)
    derive(0, "a", 1).random(1000)
    assert first(0, "a", 2) == alone


def test_no_key_and_the_key_zero_are_one_stream():
    """NumPy pads a short seed with zeros: hence one number of keys per purpose."""
    assert first(0, "a") == first(0, "a", 0)


@pytest.mark.parametrize("seed", [-1, SEED_LIMIT])
def test_a_seed_outside_its_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed {seed} does not lie in"):
        derive(seed, "a")


@pytest.mark.parametrize("key", [-1, 2**32])
def test_a_key_outside_its_range_is_refused(key):
    """A key of two words would name another purpose's stream: 2**32 is (0, 1)."""
    with pytest.raises(ValueError, match="do not lie in"):
        derive(0, "a", 0, key)


def test_the_numbers_are_pinned():
    """They may not change between versions: recorded runs depend on them."""
    assert derive(7, "cohort", 3).random(2).tolist() == PINNED_UNIFORM
    assert derive(2**40 + 5, "batches", 1, 2).permutation(8).tolist() == PINNED_ORDER


def test_neighbouring_streams_are_uncorrelated():
    draws = np.array([derive(0, "a", k).standard_normal(400) for k in range(30)])
    correlation = np.corrcoef(draws) - np.eye(30)
    # The largest of 435 correlations of 400 numbers is about 3.1 / sqrt(400).
    assert abs(correlation).max() < 5 / np.sqrt(400)


def test_the_global_random_state_is_left_alone():
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    derive(0, "a", 1).random(10)
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002


PINNED_UNIFORM = [0.28410914797536346, 0.2646471795040025]
PINNED_ORDER = [3, 4, 2, 1, 0, 7, 5, 6]
