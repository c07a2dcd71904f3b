"""Digits, the fixed splits, the catalogue and the configuration files."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedunlearn.data import (
    DATASETS,
    Digits,
    catalogue,
    default_cache,
)
from fedunlearn.data.split import held_out, share_of

CONFIGS = Path(__file__).parents[1] / "configs" / "data"


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


DIGITS_TEST_LABELS = "d587dc72a6716aff"


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
