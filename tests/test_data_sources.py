"""Data sets: what they hold and how they fail."""

import gzip
import hashlib
import io
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedunlearn.data import (
    DATASETS,
    Dataset,
    Digits,
    FashionMnist,
    Heart,
    Npz,
    Watch,
    catalogue,
    default_cache,
)
from fedunlearn.data.fashion_mnist import DEBIAN_PATH, FILES, MEAN, STD
from fedunlearn.data.heart import scaled
from fedunlearn.data.split import held_out, share_of
from fedunlearn.data.watch import held_out_series
from fedunlearn.errors import DataError

CONFIGS = Path(__file__).parents[1] / "configs" / "data"


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
    try:
        loaded = Npz(str(path)).load()
    except DataError as error:
        assert path.name in str(error)
    else:
        assert loaded.y_train.tolist() == tiny()["y_train"].tolist()
    finally:
        path.write_bytes(good)


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


# --- Digits --------------------------------------------------------------------------


def test_digits_are_split_by_class_and_for_good():
    data, again = Digits().load(), Digits().load()
    assert data.input_shape == (1, 8, 8)
    assert (len(data.x_train), len(data.x_test)) == (1438, 359)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    total = np.bincount(data.y_train) + np.bincount(data.y_test)
    assert np.abs(np.bincount(data.y_test) / total - 0.2).max() < 0.005
    assert np.array_equal(data.x_test, again.x_test)
    digest = hashlib.sha256(data.y_test.astype("<i8").tobytes()).hexdigest()
    assert digest.startswith(DIGITS_TEST_LABELS), "the fixed split moved"


DIGITS_TEST_LABELS = "@@@"


@given(share=st.floats(0, 1, exclude_max=True), size=st.integers(0, 10_000))
def test_a_share_leaves_both_sides_some(share, size):
    taken = share_of(share, size)
    if share == 0 or size < 2:
        assert taken == 0
    else:
        assert 1 <= taken <= size - 1
        assert abs(taken - share * size) <= 1


def test_a_group_of_one_stays_in_training():
    mask = held_out(np.array(["a"] * 10 + ["b"]))
    assert mask.sum() == 2
    assert not mask[-1]


# --- Fashion-MNIST -------------------------------------------------------------------


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
    with pytest.raises(DataError, match="fashion_mnist.*y_train"):
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


# --- Heart and Watch from a made-up cache --------------------------------------------


@pytest.fixture
def hearts(tmp_path):
    rng = np.random.default_rng(1)
    np.savez(
        tmp_path / "heart.npz",
        features=rng.uniform(0, 200, (60, 16)).astype(np.float32),
        labels=rng.integers(0, 2, 60),
        clients=np.repeat(["A", "B", "C"], (30, 20, 10)),
    )
    return Heart(cache=str(tmp_path))


def test_each_hospital_gives_a_fifth_to_the_test(hearts):
    data = hearts.load()
    assert np.unique(data.client_test, return_counts=True)[1].tolist() == [6, 4, 2]
    assert np.unique(data.client_train, return_counts=True)[1].tolist() == [24, 16, 8]
    assert np.array_equal(data.x_test, hearts.load().x_test)


def test_scaling_takes_nothing_from_the_data():
    rng = np.random.default_rng(2)
    x = rng.uniform(0, 200, (50, 16)).astype(np.float32)
    assert np.array_equal(scaled(x)[:5], scaled(x[:5])), "others' rows must not matter"
    point = np.array([[65, 150, 320, 165, 2, *range(11)]], np.float32)
    assert scaled(point).tolist() == [[1, 1, 1, 1, 1, *range(11)]]


@pytest.fixture
def watches(tmp_path):
    """Twelve series of two people, three classes; each sample says where it is from."""
    lengths = np.arange(20, 32)
    signal = np.concatenate(
        [np.full((n, 6), i) + np.arange(n)[:, None] / 64 for i, n in enumerate(lengths)]
    )
    np.savez(
        tmp_path / "watch.npz",
        signal=signal.astype(np.float32),
        lengths=lengths,
        labels=np.arange(12) % 3,
        subjects=np.repeat(["subject-01", "subject-02"], 6),
    )
    return tmp_path


def test_no_test_window_shares_a_sample_with_a_training_window(watches):
    data = Watch(window=8, step=4, cache=str(watches)).load()
    assert data.input_shape == (6, 8)
    train, test = (set(x[:, 0].ravel().tolist()) for x in (data.x_train, data.x_test))
    assert train
    assert test
    assert not train & test
    series = np.unique(np.floor(data.x_test[:, 0, 0]))
    assert len(series) == 2, "a fifth of six series, of each of two people"


def test_windows_are_cut_at_every_step(watches):
    data = Watch(window=8, step=4, cache=str(watches)).load()
    first = np.concatenate([data.x_train[:, 0, 0], data.x_test[:, 0, 0]])
    wanted = [i + s / 64 for i in range(12) for s in range(0, 20 + i - 8 + 1, 4)]
    assert sorted(first.tolist()) == wanted
    labels = np.concatenate([data.y_train, data.y_test])
    assert np.array_equal(labels, np.floor(first) % 3)
    owners = np.concatenate([data.client_train, data.client_test])
    assert np.array_equal(owners == "subject-02", first >= 6)


def test_rotation_is_scaled_by_a_constant(watches):
    data = Watch(window=8, step=4, cache=str(watches)).load()
    np.testing.assert_array_equal(data.x_train[:, 0], 2 * data.x_train[:, 5])


def test_a_window_longer_than_a_series_is_refused(watches):
    with pytest.raises(DataError, match=r"data\.window is 21.*has 20 samples"):
        Watch(window=21, cache=str(watches)).load()
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        Watch(step=0)


def test_no_two_test_series_of_a_person_are_of_one_class():
    labels, subjects = np.tile(np.arange(7), 20), np.repeat(list("abcdefghij"), 14)
    mask = held_out_series(labels, subjects)
    for subject in np.unique(subjects):
        own = labels[mask & (subjects == subject)]
        assert len(own) == len(set(own)) == 3


@pytest.mark.parametrize("source", [Heart, Watch])
def test_what_was_not_fetched_says_how_to_fetch_it(tmp_path, source):
    with pytest.raises(
        DataError, match=f"fedunlearn data fetch {source.__name__.lower()}"
    ):
        source(cache=str(tmp_path)).load()


def test_a_damaged_cache_says_what_to_do(tmp_path):
    (tmp_path / "heart.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        DataError, match=r"heart\.npz.*delete.*fedunlearn data fetch heart"
    ):
        Heart(cache=str(tmp_path)).load()


@pytest.mark.skipif(
    not all((default_cache() / f"{n}.npz").is_file() for n in ("heart", "watch")),
    reason="heart and watch were not fetched",
)
def test_the_fetched_data_have_the_published_counts():
    heart, watch = Heart().load(), Watch().load()
    everyone = np.concatenate([heart.client_train, heart.client_test])
    names, counts = np.unique(everyone, return_counts=True)
    assert names.tolist() == ["Cleveland", "Hungary", "Switzerland", "VA Long Beach"]
    assert counts.tolist() == [303, 261, 46, 130]
    assert len(watch.y_train) + len(watch.y_test) == 4677
    assert (watch.num_clients, watch.num_classes) == (10, 7)


# --- Tables and configuration --------------------------------------------------------


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDUNLEARN_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("FEDUNLEARN_CACHE")
    assert default_cache() == Path.home() / ".cache" / "fedunlearn"


def test_the_catalogue_has_every_data_set(tmp_path):
    entries = {info.name: info for info in catalogue(tmp_path)}
    assert list(entries) == list(DATASETS)
    assert not entries["heart"].available
    (tmp_path / "heart.npz").touch()
    assert {i.name: i for i in catalogue(tmp_path)}["heart"].available
    assert entries["digits"].available
    assert all(i.licence and i.citation and i.how_to_get for i in entries.values())


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_a_yaml_with_its_defaults(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert config.pop("name") == name
    schema = OmegaConf.structured(DATASETS[name])
    assert config == schema, "the file must show the defaults of the class, all of them"
