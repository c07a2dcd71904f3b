"""Heart and Watch, from caches made here: splits, windows and scales."""

import numpy as np
import pytest

from fedunlearn.data import (
    Heart,
    Watch,
    default_cache,
)
from fedunlearn.data.heart import scaled
from fedunlearn.data.watch import held_out_series
from fedunlearn.errors import DataError


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
