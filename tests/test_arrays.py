"""Between a flat vector and Flower's ArrayRecord."""

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedunlearn.arrays import (
    MatrixArray,
    carried_arrays,
    decode,
    encode,
    from_arrays,
    layout_of,
    to_arrays,
)
from fedunlearn.params import Layout
from tests.flower_helpers import LAYOUT, bits, initial_arrays, record, values

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(
    arrays=st.dictionaries(
        st.text(min_size=1, max_size=5),
        hnp.arrays(
            np.float32, hnp.array_shapes(min_dims=0, max_dims=3), elements=FLOATS
        ),
        max_size=4,
    )
)
def test_a_record_survives_the_way_through_a_vector_bit_for_bit(arrays):
    sent = record(**arrays)
    layout = Layout.of(values(sent))
    back = to_arrays(from_arrays(sent, layout), layout)
    assert bits(back) == bits(sent)
    assert list(back) == list(sent)


def test_the_vector_is_new_and_writable():
    sent = initial_arrays()
    vector = from_arrays(sent, LAYOUT)
    vector[:] = 0
    assert bits(sent) == bits(initial_arrays())


def test_integer_arrays_are_carried_beside_the_vector():
    sent = initial_arrays()
    counter = Array(np.asarray(5))
    sent["count"] = counter
    assert layout_of(sent) == LAYOUT
    carried = carried_arrays(sent, LAYOUT)
    assert carried == {"count": counter}
    assert bits(to_arrays(from_arrays(sent, LAYOUT), LAYOUT, carried)) == bits(sent)


def test_an_array_of_another_shape_or_none_is_refused():
    sent = initial_arrays()
    sent["w"] = Array(np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match=r"'w' should have \(3, 4\), found \(4, 3\)"):
        from_arrays(sent, LAYOUT)
    del sent["w"]
    with pytest.raises(ValueError, match=r"'w' should have \(3, 4\), found nothing"):
        from_arrays(sent, LAYOUT)


def test_the_layout_of_a_record_refuses_float64_by_name():
    with pytest.raises(ValueError, match=r"'w' is float64"):
        layout_of(record(w=np.zeros(2)))


# --- encoding and decoding with remembered heads

SHAPES = [(), (0,), (3,), (0, 4), (2, 3), (2, 3, 4, 5)]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1", "?"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_encoded_array_is_flowers_own_to_the_byte(shape, dtype):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    ours, flowers = encode(values), Array(values)
    assert ours.data == flowers.data
    assert (ours.dtype, ours.shape, ours.stype) == (
        flowers.dtype,
        flowers.shape,
        flowers.stype,
    )


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "i8", "?"])
@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_gives_what_flower_gives(shape, dtype):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    for array in (Array(values), encode(values), Array(values.T), encode(values.T)):
        found, expected = decode(array), array.numpy()
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        found[...] = 1  # it is the caller's own


@pytest.mark.parametrize(
    "spoil", [lambda d: d[:-1], lambda d: d + b"x", lambda d: d[:9]]
)
def test_what_flower_cannot_read_cannot_be_decoded(spoil):
    good = Array(np.ones((2, 3), np.float32))
    bad = Array(good.dtype, good.shape, good.stype, spoil(good.data))
    try:
        expected = bad.numpy()
    except (ValueError, EOFError):
        with pytest.raises((ValueError, EOFError)):
            decode(bad)
    else:
        np.testing.assert_array_equal(decode(bad), expected)


def test_a_view_is_sent_as_flowers_own_bytes_and_copied_for_who_asks():
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    view = MatrixArray(matrix[1])
    assert view.data == Array(matrix[1]).data
    view.numpy()[:] = 0
    decode(view)[:] = 0
    assert matrix[1].tolist() == [4, 5, 6, 7]
