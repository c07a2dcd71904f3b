"""Layouts and the algebra on flat vectors."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedunlearn.params import Layout, norm, sha256, weighted_mean

SHAPES = st.lists(
    st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5
)


def named(shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        f"array {i}": np.asarray(rng.standard_normal(shape)).astype(dtype)
        for i, shape in enumerate(shapes)
    }


@given(SHAPES)
def test_flattening_and_unflattening_is_the_identity(shapes):
    parts = named(shapes)
    layout = Layout.of(parts)
    vector = layout.flatten(parts)
    assert vector.shape == (layout.size,)
    assert vector.dtype == np.float32
    back = layout.unflatten(vector)
    assert list(back) == list(parts)
    for name, array in parts.items():
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


def test_arrays_lie_in_the_vector_one_after_another():
    parts = {"a": np.array([[1, 2], [3, 4]], np.float32), "b": np.float32(5)}
    layout = Layout.of({n: np.asarray(a) for n, a in parts.items()})
    assert layout.flatten({n: np.asarray(a) for n, a in parts.items()}).tolist() == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert layout.slices == {"a": slice(0, 4), "b": slice(4, 5)}
    assert layout.size == 5


def test_unflattening_gives_views_and_flattening_a_copy():
    layout = Layout(("a",), ((3,),))
    source = {"a": np.zeros(3, np.float32)}
    vector = layout.flatten(source)
    layout.unflatten(vector)["a"][0] = 7
    assert vector[0] == 7
    assert source["a"][0] == 0


def test_strided_arrays_are_flattened_in_their_own_order():
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    layout = Layout.of({"a": array})
    assert layout.flatten({"a": array}).tolist() == array.ravel().tolist()


def test_integer_arrays_are_not_part_of_the_vector():
    parts = {"w": np.zeros(2, np.float32), "steps": np.zeros((), np.int64)}
    assert Layout.of(parts).names == ("w",)


def test_half_precision_fits_into_the_vector_without_loss():
    parts = named([(4,)], np.float16)
    vector = Layout.of(parts).flatten(parts)
    assert (vector.astype(np.float16) == parts["array 0"]).all()


def test_double_precision_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'array 0' is float64.*send float32"):
        Layout.of(named([(2,)], np.float64))


@pytest.mark.parametrize(
    ("arrays_", "message"),
    [
        ({}, r"'a' should have \(2,\), found nothing"),
        ({"a": np.zeros(3, np.float32)}, r"'a' should have \(2,\), found \(3,\)"),
        ({"a": np.zeros((2, 1), np.float32)}, r"found \(2, 1\)"),
    ],
)
def test_a_missing_array_or_another_shape_is_refused_by_name(arrays_, message):
    with pytest.raises(ValueError, match=message):
        Layout(("a",), ((2,),)).flatten(arrays_)


ROWS = arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.just(4)),
    elements=st.floats(-1000, 1000, width=32),
)


@given(ROWS, st.data())
def test_a_weighted_mean_agrees_with_numpy(rows, data):
    weights = data.draw(
        st.lists(st.integers(1, 1000), min_size=len(rows), max_size=len(rows))
    )
    result = weighted_mean(rows, weights)
    expected = np.average(rows.astype(np.float64), axis=0, weights=weights)
    assert result.dtype == np.float32
    assert result == pytest.approx(expected, abs=1e-3)


@given(ROWS)
def test_a_weight_of_zero_counts_for_nothing(rows):
    weights = [1.0, *[0.0] * (len(rows) - 1)]
    assert (weighted_mean(rows, weights) == rows[0]).all()


def test_a_weighted_mean_leaves_its_rows_alone_and_is_new():
    rows = np.ones((1, 3), np.float32)
    result = weighted_mean(rows, [5])
    result += 1
    assert (rows == 1).all()


def test_a_weighted_mean_takes_any_sequence_of_rows():
    rows = [np.float32([0, 2]), np.float32([4, 6])]
    assert weighted_mean(rows, [1, 3]).tolist() == [3, 5]


@pytest.mark.parametrize(
    ("rows", "weights"),
    [([], []), ([[1.0]], [0]), ([[1.0]], [-1]), ([[1.0]], [float("nan")])],
)
def test_a_mean_of_nothing_is_refused(rows, weights):
    with pytest.raises(ValueError, match="needs a row and a positive total weight"):
        weighted_mean(np.array(rows, np.float32), weights)


@pytest.mark.parametrize("weights", [[1], [1, 2, 3]])
def test_a_weight_too_many_or_too_few_is_refused(weights):
    with pytest.raises(ValueError, match="cannot have"):
        weighted_mean(np.ones((2, 2), np.float32), weights)


@given(
    arrays(
        np.float32, st.integers(0, 50), elements=st.floats(-(2**90), 2**90, width=32)
    )
)
def test_the_norm_agrees_with_numpy_in_double_precision(vector):
    assert norm(vector) == pytest.approx(np.linalg.norm(vector.astype(np.float64)))


def test_the_norm_of_a_huge_vector_does_not_overflow():
    assert norm(np.full(4, 1e38, np.float32)) == pytest.approx(2e38)
    assert norm(np.full(4, 2.0**-149, np.float32)) == 2.0**-148


def test_the_hash_is_that_of_the_little_endian_bytes():
    vector = np.array([1, -0.0, 2.5], np.float32)
    expected = hashlib.sha256(struct.pack("<3f", 1, -0.0, 2.5)).hexdigest()
    assert sha256(vector) == expected
    assert sha256(vector.astype(">f4")) == expected
    assert sha256(np.repeat(vector, 2)[::2]) == expected


def test_the_hash_tells_minus_zero_from_zero():
    assert sha256(np.zeros(1, np.float32)) != sha256(np.float32([-0.0]))
