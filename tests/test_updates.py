"""Updates of a cohort and the reference server rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedunlearn.updates import MeanServer, Updates

BEFORE = np.array([1, 2], np.float32)
DELTAS = np.array([[1, 0], [-1, 4]], np.float32)


def updates(sizes=(1, 3)):
    return Updates.of_deltas(BEFORE, DELTAS, [2, 5], np.array(sizes, np.int64))


def test_updates_known_by_their_differences_carry_the_models_after():
    made = updates()
    assert made.clients == (2, 5)
    assert made.after.tolist() == [[2, 2], [0, 6]]
    assert made.after.dtype == np.float32
    assert made.deltas.tolist() == DELTAS.tolist()


def test_stored_updates_count_as_no_work():
    assert not updates().num_steps.any()
    assert not updates().num_samples.any()


def test_deltas_are_after_minus_before():
    nothing = np.zeros(1, np.int64)
    trained = Updates(
        clients=(0,),
        before=np.float32([1, 2]),
        after=np.float32([[4, 0]]),
        num_examples=nothing,
        num_steps=nothing,
        num_samples=nothing,
    )
    assert trained.deltas.tolist() == [[3, -2]]


def test_the_mean_server_weighs_models_by_example_counts():
    assert MeanServer().step(updates()).tolist() == [0.5, 5]
    assert not MeanServer().stateful


def test_the_mean_server_refuses_a_cohort_without_examples():
    with pytest.raises(ValueError, match="positive total weight"):
        MeanServer().step(updates((0, 0)))


@given(
    arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32)),
    st.lists(st.integers(1, 99), min_size=3, max_size=3),
)
def test_the_mean_of_models_is_the_model_plus_the_mean_of_differences(deltas, sizes):
    before = np.float32([1, -2, 3, 0])
    made = Updates.of_deltas(before, deltas, [0, 1, 2], np.array(sizes))
    expected = before + np.average(deltas.astype(np.float64), axis=0, weights=sizes)
    assert MeanServer().step(made) == pytest.approx(expected, abs=1e-4)
    assert (before == np.float32([1, -2, 3, 0])).all()
