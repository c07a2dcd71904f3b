"""Fashion-MNIST from idx files made here, and how it fails."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from fedunlearn.data import (
    FashionMnist,
)
from fedunlearn.data.fashion_mnist import DEBIAN_PATH, FILES, MEAN, STD
from fedunlearn.errors import DataError


def idx(array):
    head = (
        b"\x00\x00\x08"
        + bytes([array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
    )
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def clothes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = (
        rng.integers(0, 256, (12, 28, 28)),
        np.arange(12) % 10,
        rng.integers(0, 256, (5, 28, 28)),
        np.arange(5),
    )
    for position, (name, array) in enumerate(zip(FILES, arrays, strict=True)):
        raw = idx(array)
        if position % 2:
            (tmp_path / name).write_bytes(raw)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(raw))
    return tmp_path, arrays


def test_idx_files_are_read_plain_and_compressed(clothes):
    folder, (x, y, x_test, y_test) = clothes
    data = FashionMnist(str(folder)).load()
    assert data.input_shape == (1, 28, 28)
    np.testing.assert_allclose(data.x_train[:, 0], (x / 255 - MEAN) / STD, atol=1e-6)
    np.testing.assert_allclose(
        data.x_test[:, 0], (x_test / 255 - MEAN) / STD, atol=1e-6
    )
    assert np.array_equal(data.y_train, y)
    assert np.array_equal(data.y_test, y_test)
    assert data.x_train.flags.writeable


def test_limit_keeps_the_first_images(clothes):
    folder, (_, y, _, y_test) = clothes
    full, cut = FashionMnist(str(folder)).load(), FashionMnist(str(folder), 3).load()
    assert np.array_equal(cut.x_train, full.x_train[:3])
    assert np.array_equal(cut.y_train, y[:3])
    assert len(cut.y_test) == len(y_test)
    with pytest.raises(DataError, match=r"data\.limit is 13.*12 images"):
        FashionMnist(str(folder), 13).load()
    with pytest.raises(ValueError, match="limit must not be negative, got -1"):
        FashionMnist(limit=-1)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_idx_file_is_named(clothes, name):
    folder, _ = clothes
    for file in folder.glob(f"{name}*"):
        file.unlink()
    with pytest.raises(
        DataError, match=f"{name}.*apt-get install dataset-fashion-mnist"
    ):
        FashionMnist(str(folder)).load()


DAMAGE = {
    "empty": lambda raw: b"",
    "short header": lambda raw: raw[:7],
    "truncated": lambda raw: raw[:-1],
    "too long": lambda raw: raw + b"x",
    "other magic": lambda raw: b"\x00\x00\x0d" + raw[3:],
    "other axes": lambda raw: raw[:3] + b"\x02" + raw[4:],
    "claims too much": lambda raw: raw[:4] + b"\xff" * 12 + raw[16:],
    "truncated gzip": lambda raw: gzip.compress(raw)[:-20],
    "no gzip": lambda raw: b"\x1f\x8b" + raw,
    "flipped gzip": lambda raw: gzip.compress(raw)[:40] + b"\xff" * 40,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_idx_file_is_named(clothes, damage):
    folder, (x, *_) = clothes
    (folder / f"{FILES[0]}.gz").write_bytes(damage(idx(x)))
    with pytest.raises(DataError, match=FILES[0]):
        FashionMnist(str(folder)).load()


def test_images_and_labels_that_disagree_are_refused(clothes):
    folder, (_, y, *_) = clothes
    (folder / FILES[1]).write_bytes(idx(y[:-1]))
    with pytest.raises(DataError, match=r"fashion_mnist.*y_train"):
        FashionMnist(str(folder)).load()


@pytest.mark.skipif(
    not Path(DEBIAN_PATH).is_dir(), reason="Fashion-MNIST is not installed"
)
def test_the_installed_fashion_mnist_is_the_published_one():
    starts = (
        "c59f468a2f672dc8",
        "bad3541b69d91243",
        "5b4141f0afbad91e",
        "0402a96d92fd2663",
    )
    for name, start in zip(FILES, starts, strict=True):
        raw = gzip.decompress((Path(DEBIAN_PATH) / f"{name}.gz").read_bytes())
        assert hashlib.sha256(raw).hexdigest().startswith(start)
