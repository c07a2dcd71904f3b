"""Every codec against a slow reference and within its own error bound."""

import struct
from decimal import ROUND_CEILING, Decimal

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedunlearn.errors import ConfigError, HistoryError, UnknownNameError
from fedunlearn.history.codecs import (
    CODECS,
    BFloat16,
    Float16,
    Float32,
    Int8,
    TopK,
    codec,
    small,
)
from fedunlearn.history.spec import part_of
from fedunlearn.params import Layout

ALL = [Float32(), Float16(), BFloat16(), Int8(), TopK(0.1), TopK(0.4), TopK(1)]
LOSSY = ALL[1:]
MOST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
FLT_MAX = float(np.finfo(np.float32).max)
LEAST = 2.0**-149

by_name = pytest.mark.parametrize("with_codec", ALL, ids=lambda c: c.name)
lossy = pytest.mark.parametrize("with_codec", LOSSY, ids=lambda c: c.name)
shapes = st.lists(
    st.sampled_from([(), (1,), (3,), (2, 3), (4, 1, 2), (0,), (0, 2)]), max_size=4
)


def layout_of(*some):
    return Layout(tuple(f"t{i}" for i in range(len(some))), some)


@st.composite
def updates(draw, name="float32"):
    """Draw a layout and a matrix that the codec can hold, denormals and -0.0 too."""
    layout = layout_of(*draw(shapes))
    most = MOST.get(name, FLT_MAX)
    numbers = st.one_of(
        st.floats(-most, most, width=32),
        st.floats(-1, 1, width=32),
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, most, LEAST, -LEAST, 2.0**-126]),
    )
    shape = (draw(st.integers(0, 4)), layout.size)
    return layout, draw(arrays(np.float32, shape, elements=numbers))


def frozen(array):
    array.flags.writeable = False
    return array


def bits(array):
    return np.ascontiguousarray(array).view(np.uint32).tolist()


@by_name
@given(data=st.data())
def test_a_round_trip_stays_within_the_error_bound(with_codec, data):
    layout, rows = data.draw(updates(with_codec.name))
    stored = frozen(with_codec.encode(frozen(rows), layout))
    back = with_codec.decode(stored, layout)
    bound = with_codec.error_bound(rows, layout)
    assert stored.dtype == np.uint8
    assert stored.flags.c_contiguous
    assert stored.shape == (len(rows), with_codec.row_bytes(layout))
    assert back.shape == bound.shape == rows.shape
    assert back.dtype == bound.dtype == np.float32
    error = np.abs(back.astype(np.float64) - rows.astype(np.float64))
    assert (error <= bound).all()


@by_name
@given(data=st.data())
def test_each_row_is_stored_and_read_on_its_own(with_codec, data):
    layout, rows = data.draw(updates(with_codec.name))
    stored = with_codec.encode(rows, layout)
    back = with_codec.decode(stored, layout)
    for k in range(len(rows)):
        alone = with_codec.encode(rows[k : k + 1], layout)
        assert alone.tolist() == stored[k : k + 1].tolist()
        assert bits(with_codec.decode(alone, layout)) == bits(back[k : k + 1])
    some = with_codec.decode(stored[::-2], layout)
    assert bits(some) == bits(back[::-2])


@pytest.mark.parametrize("name", ["float16", "bfloat16", "top_k:0.4", "top_k:1.0"])
@given(data=st.data())
def test_storing_what_was_read_gives_the_same_bytes(name, data):
    layout, rows = data.draw(updates(name))
    stored = codec(name).encode(rows, layout)
    again = codec(name).encode(codec(name).decode(stored, layout), layout)
    assert again.tolist() == stored.tolist()


@by_name
@given(data=st.data())
def test_the_order_of_the_input_in_memory_does_not_matter(with_codec, data):
    layout, rows = data.draw(updates(with_codec.name))
    expected = with_codec.encode(rows, layout).tolist()
    spread = np.zeros((2 * len(rows), 2 * layout.size), np.float32)[::2, ::2]
    spread[:] = rows
    for same in (np.asfortranarray(rows), rows.astype(">f4"), spread):
        stored = with_codec.encode(same, layout)
        assert stored.tolist() == expected
        assert stored.flags.c_contiguous
    wide = np.zeros((len(rows), 2 * with_codec.row_bytes(layout)), np.uint8)[:, ::2]
    wide[:] = with_codec.encode(rows, layout)
    back = with_codec.decode(with_codec.encode(rows, layout), layout)
    assert bits(with_codec.decode(wide, layout)) == bits(back)


@given(arrays(np.uint32, (2, 3)))
def test_float32_is_exact_to_the_bit_nan_payloads_included(words):
    layout, rows = layout_of((3,)), words.view(np.float32)
    stored = Float32().encode(rows, layout)
    expected = [list(struct.pack("<3I", *row)) for row in words.tolist()]
    assert stored.tolist() == expected
    assert Float32().decode(stored, layout).view(np.uint32).tolist() == words.tolist()
    assert not Float32().error_bound(rows, layout).any()


def test_float32_copies_nothing_and_a_read_only_input_stays_so():
    layout, rows = layout_of((2, 3)), np.ones((4, 6), np.float32)
    stored = Float32().encode(rows, layout)
    assert np.shares_memory(stored, rows)
    back = Float32().decode(stored, layout)
    assert np.shares_memory(back, rows)
    assert back.flags.writeable
    assert not Float32().decode(frozen(stored), layout).flags.writeable
    assert np.shares_memory(Float32().decode(stored[::2], layout), rows)


@given(updates("float16"))
def test_float16_is_what_struct_packs(drawn):
    layout, rows = drawn
    expected = [list(struct.pack(f"<{len(r)}e", *r)) for r in rows.tolist()]
    assert Float16().encode(rows, layout).tolist() == expected


@given(updates("bfloat16"))
def test_bfloat16_is_what_torch_converts_to(drawn):
    layout, rows = drawn
    words = torch.from_numpy(rows.copy()).to(torch.bfloat16).view(torch.int16).numpy()
    stored = BFloat16().encode(rows, layout)
    assert stored.reshape(-1).tolist() == list(words.astype("<i2").tobytes())
    back = torch.from_numpy(words).view(torch.bfloat16).float().numpy()
    assert bits(BFloat16().decode(stored, layout)) == bits(back)


@pytest.mark.parametrize(
    ("word", "half"),
    [
        (0x3F808000, 0x3F80),  # a tie goes to the even neighbour, here down
        (0x3F818000, 0x3F82),  # and here up
        (0x3F808001, 0x3F81),
        (0x3F807FFF, 0x3F80),
        (0x80000001, 0x8000),
        (0x7F7F7FFF, 0x7F7F),
        (0xFF7F7FFF, 0xFF7F),
    ],
)
def test_bfloat16_rounds_to_nearest_even(word, half):
    rows = np.array([[word]], np.uint32).view(np.float32)
    stored = BFloat16().encode(rows, layout_of(()))
    assert stored.tolist() == [list(struct.pack("<H", half))]


@given(updates("int8"))
def test_int8_is_a_scale_a_tensor_and_small_integers(drawn):
    layout, rows = drawn
    expected = [int8_row(row, layout) for row in rows]
    assert Int8().encode(rows, layout).tolist() == expected


def int8_row(row, layout):
    scales, values = [], []
    for part in layout.slices.values():
        largest = max((abs(float(x)) for x in row[part]), default=0.0)
        scale = np.float32(np.float32(largest) / np.float32(127))
        if float(scale) * 127 > FLT_MAX * (1 + 2**-25):
            scale = np.nextafter(scale, np.float32(0))
        scales.append(float(scale))
        for x in row[part]:
            q = round(float(x / scale)) if scale else 0
            values.append(max(-127, min(127, q)))
    return list(struct.pack(f"<{len(scales)}f{len(values)}b", *scales, *values))


def test_int8_by_hand():
    layout = layout_of((3,), ())
    rows = np.float32([[127, -63.6, 0.4, -2]])
    stored = Int8().encode(rows, layout)
    assert stored.tolist() == [
        list(struct.pack("<2f4b", 1, 2 / 127, 127, -64, 0, -127))
    ]
    assert Int8().decode(stored, layout).tolist() == [[127, -64, 0, pytest.approx(-2)]]


@pytest.mark.parametrize("largest", [FLT_MAX, LEAST, 100 * LEAST, 300 * LEAST])
def test_int8_holds_the_largest_and_the_least_numbers(largest):
    layout, rows = layout_of((3,)), np.float32([[largest, -largest, 0]])
    back = Int8().decode(Int8().encode(rows, layout), layout)
    assert np.isfinite(back).all()
    assert back == pytest.approx(rows, rel=1e-6, abs=64 * LEAST)


@given(updates("top_k"), st.sampled_from([0.1, 0.34, 0.5, 1.0]))
def test_top_k_is_what_sorting_finds(drawn, fraction):
    layout, rows = drawn
    expected = [top_k_row(row, fraction) for row in rows.tolist()]
    assert TopK(fraction).encode(rows, layout).tolist() == expected


def top_k_row(row, fraction):
    k = min(len(row), max(1, int(np.ceil(fraction * len(row)))))
    kept = sorted(sorted(range(len(row)), key=lambda i: (-abs(row[i]), i))[:k])
    return list(struct.pack(f"<{k}I{k}f", *kept, *(row[i] for i in kept)))


def test_top_k_keeps_the_lower_index_of_a_tie_and_reads_zeros_elsewhere():
    layout, rows = (
        layout_of((2, 2), ()),
        np.float32([[2, -3, 1, 2, -2], [0, 0, 0, 0, 0]]),
    )
    stored = TopK(0.4).encode(rows, layout)
    assert stored[0].tolist() == list(struct.pack("<2I2f", 0, 1, 2, -3))
    back = TopK(0.4).decode(stored, layout)
    assert back.tolist() == [[2, -3, 0, 0, 0], [0] * 5]
    bound = TopK(0.4).error_bound(rows, layout)
    assert bound.tolist() == [[0, 0, 1, 2, 2], [0] * 5]


@pytest.mark.parametrize("block", [1, 7, 12, 1000])
def test_top_k_does_not_depend_on_its_block_size(monkeypatch, block):
    layout = layout_of((6,))
    rows = np.random.default_rng(0).integers(-3, 4, (9, 6)).astype(np.float32)
    expected = TopK(0.5).encode(rows, layout).tolist()
    monkeypatch.setattr(small, "_BLOCK", block)
    assert TopK(0.5).encode(rows, layout).tolist() == expected
    assert expected == [top_k_row(row, 0.5) for row in rows.tolist()]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "top_k:1.0"])
def test_the_sign_of_zero_survives(name):
    layout, rows = layout_of((2,)), np.float32([[0.0, -0.0]])
    back = codec(name).decode(codec(name).encode(rows, layout), layout)
    assert np.signbit(back).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("with_codec", "dtype", "row_bytes"),
    [
        (Float32(), "F32", 44),
        (Float16(), "F16", 22),
        (BFloat16(), "BF16", 22),
        (Int8(), "U8", 11 + 4 * 4),
        (TopK(0.1), "U8", 8 * 2),
        (TopK(1), "U8", 8 * 11),
        (TopK(1e-9), "U8", 8),
    ],
)
def test_what_an_update_takes(with_codec, dtype, row_bytes):
    layout = layout_of((2, 3), (4,), (), (0,))
    assert with_codec.dtype == dtype
    assert with_codec.row_bytes(layout) == row_bytes
    assert with_codec.encode(np.ones((3, 11), np.float32), layout).shape == (
        3,
        row_bytes,
    )


@by_name
def test_a_model_without_parameters_can_be_stored(with_codec):
    for layout in (layout_of(), layout_of((0,), (2, 0))):
        rows = np.zeros((3, 0), np.float32)
        stored = with_codec.encode(rows, layout)
        assert stored.shape == (3, 8 if layout.names and with_codec == Int8() else 0)
        assert with_codec.decode(stored, layout).shape == (3, 0)
        assert with_codec.error_bound(rows, layout).shape == (3, 0)


@pytest.mark.parametrize(
    ("with_codec", "expected"),
    [
        (Float16(), lambda x: abs(x) / 2**11 + 2**-25),
        (BFloat16(), lambda x: abs(x) / 2**8 + 2.0**-134),
        (Int8(), lambda x: 6 / 127 / 2 + abs(x) / 2**22 + 2.0**-142),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_error_bound_is_the_documented_one(with_codec, expected):
    row = [6, -1.5, 1e-30, 0, -6]
    bound = with_codec.error_bound(np.float32([row]), layout_of((5,)))[0]
    assert bound == pytest.approx([expected(x) for x in row], rel=1e-6, abs=1e-45)


def test_the_int8_bound_is_one_a_tensor_and_reached():
    layout, rows = layout_of((2,), (2,)), np.float32([[127, 0.5, 1270, 5]])
    bound = Int8().error_bound(rows, layout)
    assert bound[0] == pytest.approx([0.5, 0.5, 5, 5], rel=1e-4)
    back = Int8().decode(Int8().encode(rows, layout), layout)
    assert abs(back[0, 1] - 0.5) == 0.5
    assert abs(back[0, 3] - 5) == 5


@lossy
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_lossy_codec_refuses_what_is_not_finite(with_codec, bad):
    layout, rows = layout_of((2, 2)), np.ones((3, 4), np.float32)
    rows[1, 2] = bad
    with pytest.raises(HistoryError, match=r"NaN or infinity \(row 1\); use float32"):
        with_codec.encode(rows, layout)


def test_float16_names_the_way_out_of_its_range():
    layout = layout_of((2,))
    edge = np.float32([[1, -65504]])
    assert Float16().decode(Float16().encode(edge, layout), layout).tolist() == [
        [1, -65504]
    ]
    for above in (np.nextafter(np.float32(65504), np.float32(1e9)), np.float32(-1e30)):
        with pytest.raises(HistoryError, match=r"beyond 65504.*use bfloat16"):
            Float16().encode(np.float32([[1, above]]), layout)


@pytest.mark.parametrize("word", [0x7F7F8000, 0xFF7F8000, 0x7F7FFFFF])
def test_bfloat16_refuses_what_would_round_to_infinity(word):
    rows = np.array([[0], [word]], np.uint32).view(np.float32)
    with pytest.raises(HistoryError, match=r"beyond 3.39e38 \(row 1\); use float32"):
        BFloat16().encode(rows, layout_of((1,)))


@by_name
def test_a_matrix_that_does_not_fit_is_refused(with_codec):
    layout = layout_of((2, 2))
    for shape in ((3, 5), (4,), (1, 3, 4)):
        with pytest.raises(HistoryError, match="not rows of 4 parameters"):
            with_codec.encode(np.ones(shape, np.float32), layout)
    with pytest.raises(HistoryError, match="float64"):
        with_codec.encode(np.ones((1, 4)), layout)
    size = with_codec.row_bytes(layout)
    for bad in (
        np.zeros((1, size + 1), np.uint8),
        np.zeros((1, size - 1), np.uint8),
        np.zeros(size, np.uint8),
        np.zeros((1, size), np.int8),
    ):
        with pytest.raises(HistoryError, match=f"is {size} bytes, found"):
            with_codec.decode(bad, layout)


@pytest.mark.parametrize(
    "indices", [(0, 5), (2, 1), (1, 1), (0, 2**32 - 1), (2**31, 2**31 + 1)]
)
def test_indices_no_row_can_have_are_refused(indices):
    stored = np.frombuffer(struct.pack("<2I2f", *indices, 1, 2), np.uint8)[None]
    with pytest.raises(HistoryError, match="must ascend and stay below 5"):
        TopK(0.4).decode(stored, layout_of((5,)))


@pytest.mark.parametrize(
    ("with_codec", "stored"),
    [
        (Float16(), struct.pack("<e", np.inf)),
        (BFloat16(), struct.pack("<H", 0xFF80)),
        (Int8(), struct.pack("<fb", np.nan, 0)),
        (Int8(), struct.pack("<fb", 3e38, 2)),
        (TopK(1), struct.pack("<If", 0, np.nan)),
    ],
)
def test_bytes_that_read_as_no_number_are_refused(with_codec, stored):
    rows = np.frombuffer(stored, np.uint8)[None]
    with pytest.raises(HistoryError, match="cannot hold NaN or infinity"):
        with_codec.decode(rows, layout_of((1,)))


@by_name
def test_a_name_reads_back(with_codec):
    assert codec(with_codec.name) == with_codec


@given(st.floats(0, 1, exclude_min=True))
def test_any_fraction_reads_back(fraction):
    assert codec(TopK(fraction).name) == TopK(fraction)
    assert codec(TopK(np.float64(fraction)).name) == TopK(fraction)


@pytest.mark.parametrize("name", ["float64", "top_p:0.1", "", "Float32", ":1"])
def test_an_unknown_codec_is_answered_with_the_known_ones(name):
    with pytest.raises(UnknownNameError, match=f"known: {', '.join(CODECS)}"):
        codec(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("top_k", "of the form top_k:FRACTION"),
        ("top_k:", "of the form top_k:FRACTION"),
        ("top_k:much", "of the form top_k:FRACTION"),
        ("top_k:0.1,0.2", "of the form top_k:FRACTION"),
        ("int8:4", "of the form int8$"),
        ("int8:", "of the form int8$"),
        ("top_k:0", r"in \(0, 1\], got 0"),
        ("top_k:1.5", r"in \(0, 1\], got 1.5"),
        ("top_k:nan", r"in \(0, 1\], got nan"),
    ],
)
def test_a_bad_number_is_answered_with_the_allowed_ones(name, said):
    with pytest.raises(ConfigError, match=said):
        codec(name)


@given(st.integers(0, 5000), st.integers(1, 1000))
@example(100, 70)
@example(0, 1000)
@example(5, 1)
def test_a_part_is_taken_of_the_fraction_as_it_is_written(n, thousandths):
    exact = (Decimal(thousandths) / 1000 * n).to_integral_value(ROUND_CEILING)
    assert part_of(n, thousandths / 1000) == min(n, max(1, int(exact)))
