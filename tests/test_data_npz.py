"""What is a data set and what is none, in memory and in an .npz file."""

import contextlib
import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedunlearn.data import (
    Dataset,
    Npz,
)
from fedunlearn.errors import DataError


def tiny(**changes):
    arrays = {
        "x_train": np.arange(12.0).reshape(6, 2),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.ones((2, 2)),
        "y_test": np.array([3, 0]),
    }
    return arrays | changes


def saved(folder, **arrays):
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return path


# --- Dataset -------------------------------------------------------------------------


def test_a_valid_data_set_is_brought_to_canonical_types():
    data = Dataset("d", **tiny(client_train=np.array([1, 1, 2, 2, 10, 10]))).validated()
    assert data.x_train.dtype == data.x_test.dtype == np.float32
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert data.client_train.tolist() == ["1", "1", "2", "2", "10", "10"]
    assert (data.input_shape, data.num_classes, data.num_clients) == ((2,), 4, 3)
    assert replace(data, client_train=None).num_clients is None


def test_integral_float_labels_are_labels():
    data = Dataset("d", **tiny(y_train=np.array([0.0, 1, 2, 0, 1, 2]))).validated()
    assert data.y_train.tolist() == [0, 1, 2, 0, 1, 2]


BAD = {
    "y_train too short": ({"y_train": np.zeros(5, int)}, "y_train"),
    "y_train is a matrix": ({"y_train": np.zeros((6, 1), int)}, "y_train"),
    "y_test too long": ({"y_test": np.zeros(3, int)}, "y_test"),
    "empty train": (
        {"x_train": np.zeros((0, 2)), "y_train": np.zeros(0, int)},
        "empty",
    ),
    "empty test": ({"x_test": np.zeros((0, 2)), "y_test": np.zeros(0, int)}, "empty"),
    "nan": ({"x_test": np.array([[0, 1], [np.nan, 0]])}, "x_test.*row 1"),
    "inf": ({"x_train": np.full((6, 2), np.inf)}, "x_train.*row 0"),
    "too large for float32": ({"x_train": np.full((6, 2), 1e300)}, "x_train"),
    "complex": ({"x_train": np.ones((6, 2), complex)}, "x_train.*complex"),
    "text": ({"x_train": np.full((6, 2), "a")}, "x_train"),
    "x without features": ({"x_train": np.ones(6)}, r"x_train.*\(n, \.\.\.\)"),
    "x with zero features": ({"x_train": np.ones((6, 0))}, r"x_train.*\(n, \.\.\.\)"),
    "negative label": ({"y_test": np.array([0, -1])}, "y_test.*-1"),
    "label wraps": ({"y_test": np.array([0, 2**64 - 1], np.uint64)}, "y_test"),
    "half label": ({"y_test": np.array([0, 0.5])}, "y_test.*0.5"),
    "nan label": ({"y_test": np.array([0, np.nan])}, "y_test.*nan"),
    "inf label": ({"y_test": np.array([0, np.inf])}, "y_test.*inf"),
    "huge label": ({"y_test": np.array([0, 1e300])}, "y_test"),
    "text label": ({"y_test": np.array(["a", "b"])}, "y_test"),
    "shapes differ": ({"x_test": np.ones((2, 3))}, r"\(2,\).*\(3,\)"),
    "clients too few": ({"client_train": np.array(["a"])}, "client_train"),
    "clients are floats": ({"client_test": np.ones(2)}, "client_test"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD)
def test_what_is_no_data_set_is_refused(changes, said):
    with pytest.raises(DataError, match=said):
        Dataset("d", **tiny(**changes)).validated()


# --- Npz -----------------------------------------------------------------------------


def test_an_npz_comes_back_as_it_was_saved(tmp_path):
    keys = {"client_train": np.array(list("aabbcc")), "client_test": np.array([7, 8])}
    data = Npz(str(saved(tmp_path, **tiny(**keys)))).load()
    assert np.array_equal(data.x_train, np.arange(12).reshape(6, 2))
    assert data.client_train.tolist() == list("aabbcc")
    assert data.client_test.tolist() == ["7", "8"]
    assert data.x_train.flags.writeable, "torch.from_numpy warns about read-only arrays"


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD)
def test_a_bad_npz_names_its_file(tmp_path, changes, said):
    path = saved(tmp_path, **tiny(**changes))
    with pytest.raises(DataError, match=rf"own\.npz.*{said}"):
        Npz(str(path)).load()


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_a_missing_key_is_named(tmp_path, key):
    arrays = tiny()
    del arrays[key]
    with pytest.raises(DataError, match=rf"own\.npz.*'{key}'"):
        Npz(str(saved(tmp_path, **arrays))).load()


def test_pickled_objects_are_refused(tmp_path):
    path = saved(tmp_path, **tiny(y_test=np.array([0, None], object)))
    with pytest.raises(DataError, match=r"own\.npz.*'y_test'.*allow_pickle"):
        Npz(str(path)).load()


def test_a_scalar_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"own\.npz.*'x_test'.*single"):
        Npz(str(saved(tmp_path, **tiny(x_test=np.float32(1))))).load()


def test_a_member_that_is_no_array_is_refused(tmp_path):
    path = saved(tmp_path, x_train=np.ones((1, 1)))
    with zipfile.ZipFile(path, "a") as archive:
        for key in ("y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", b"hello")
    with pytest.raises(DataError, match=r"own\.npz.*'y_train' is not an array"):
        Npz(str(path)).load()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"own\.npz: there is no such file"):
        Npz(str(tmp_path / "own.npz")).load()


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\x03\x04 no zip", b"\x93NUMPY", b"x"]
)
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "own.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"own\.npz"):
        Npz(str(path)).load()


def test_a_single_npy_is_refused(tmp_path):
    np.save(tmp_path / "own.npy", np.ones(3))
    with pytest.raises(DataError, match=r"own\.npy"):
        Npz(str(tmp_path / "own.npy")).load()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = saved(tmp_path_factory.mktemp("npz"), **tiny())
    return path, path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_gives_data_errors_only(archive, data):
    path, good = archive
    where = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[where] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(bad), where]))
    path.write_bytes(bytes(bad[:cut]))
    with contextlib.suppress(DataError):
        loaded = Npz(str(path)).load()
        assert loaded.y_train.tolist() == tiny()["y_train"].tolist()


def test_a_header_that_claims_too_much_is_refused(tmp_path):
    path = saved(tmp_path, **tiny())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2)}
    )
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in (members | {"x_train.npy": header.getvalue()}).items():
            new.writestr(name, content)
    with pytest.raises(DataError, match=r"own\.npz.*x_train"):
        Npz(str(path)).load()
