"""The backdoor a leaver plants."""

import numpy as np
import pytest

from fedunlearn.data.backdoor import Backdoor
from fedunlearn.data.federation import ClientData
from fedunlearn.errors import ConfigError
from fedunlearn.verify import success_rate
from simulations import compare, load_scenario
from simulations.evaluate import Evaluator
from simulations.prepare import prepare


def client(n=20, shape=(1, 8, 8)):
    rng = np.random.default_rng(0)
    return ClientData(
        "c",
        rng.uniform(0, 0.5, (n, *shape)).astype(np.float32),
        rng.integers(1, 10, n),
        rng.uniform(0, 0.5, (5, *shape)).astype(np.float32),
        rng.integers(1, 10, 5),
    )


def planted_rows(before, after):
    return np.flatnonzero((before.x != after.x).any(axis=(1, 2, 3)))


@pytest.mark.parametrize(
    ("fraction", "n", "count"),
    [
        (0.5, 20, 10),
        (0.1, 20, 2),
        (0.01, 20, 1),
        (0.51, 3, 2),
        (1.0, 7, 7),
        (0.3, 0, 0),
    ],
)
def test_the_right_share_of_the_images_gets_the_trigger(fraction, n, count):
    before = client(n)
    after = Backdoor(fraction=fraction).plant(before, 1.0, seed=0, client=4)
    assert len(planted_rows(before, after)) == count


def test_the_planted_images_carry_patch_and_target_and_the_others_nothing():
    before = client()
    after = Backdoor(fraction=0.5, target=0, size=2).plant(
        before, 1.0, seed=0, client=4
    )
    rows = planted_rows(before, after)
    expected = before.x.copy()
    expected[rows, :, 6:, 6:] = 1.0
    np.testing.assert_array_equal(after.x, expected)
    assert (after.y[rows] == 0).all()
    rest = np.setdiff1d(np.arange(20), rows)
    np.testing.assert_array_equal(after.y[rest], before.y[rest])
    assert after.x.dtype == np.float32
    assert after.y.dtype == before.y.dtype


def test_every_channel_is_stamped():
    stamped = Backdoor(size=3).stamp(np.zeros((2, 3, 5, 6), np.float32), 0.7)
    assert (stamped[:, :, 2:, 3:] == np.float32(0.7)).all()
    assert np.count_nonzero(stamped) == 2 * 3 * 9


def test_planting_writes_to_nothing_it_was_given_and_spares_the_holdout():
    before = client()
    copy = client()
    after = Backdoor(fraction=1).plant(before, 1.0, seed=0, client=4)
    for name in ("x", "y", "x_holdout", "y_holdout"):
        np.testing.assert_array_equal(getattr(before, name), getattr(copy, name))
    np.testing.assert_array_equal(after.x_holdout, copy.x_holdout)
    np.testing.assert_array_equal(after.y_holdout, copy.y_holdout)
    assert after.name == before.name


def test_which_images_depends_on_seed_and_client_alone():
    def rows(seed, who):
        data = client(200)
        return planted_rows(data, Backdoor().plant(data, 1.0, seed=seed, client=who))

    np.testing.assert_array_equal(rows(0, 4), rows(0, 4))
    assert rows(0, 4).tolist() != rows(1, 4).tolist()
    assert rows(0, 4).tolist() != rows(0, 3).tolist()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"fraction": 0}, "fraction must lie in"),
        ({"fraction": 1.1}, "fraction must lie in"),
        ({"fraction": float("nan")}, "fraction must lie in"),
        ({"target": -1}, "target must not be negative"),
        ({"size": 0}, "size must be at least 1"),
    ],
)
def test_values_outside_their_range_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Backdoor(**wrong)


@pytest.mark.parametrize(
    ("backdoor", "shape", "says"),
    [
        (Backdoor(), (16,), "a trigger needs images"),
        (Backdoor(), (6, 100), "a trigger needs images"),
        (Backdoor(size=9), (1, 8, 8), r"backdoor\.size=9 does not fit"),
        (Backdoor(size=5), (1, 8, 4), r"backdoor\.size=5 does not fit"),
        (Backdoor(target=10), (1, 8, 8), r"backdoor\.target=10 is not one of 10"),
    ],
)
def test_data_that_cannot_carry_the_trigger_is_a_config_error(backdoor, shape, says):
    with pytest.raises(ConfigError, match=says):
        backdoor.check(shape, 10)


def test_a_trigger_as_large_as_the_image_fits():
    Backdoor(size=8, target=9).check((1, 8, 8), 10)


def test_a_backdoor_on_tabular_data_is_a_config_error(tiny, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "table.npz",
        x_train=rng.normal(size=(60, 4)),
        y_train=rng.integers(0, 2, 60),
        x_test=rng.normal(size=(20, 4)),
        y_test=rng.integers(0, 2, 20),
    )
    overrides = ["data.name=npz", f"data.path={tmp_path / 'table.npz'}", "backdoor={}"]
    with pytest.raises(ConfigError, match="a trigger needs images"):
        prepare(load_scenario(tiny, overrides))


def test_only_the_leavers_training_data_is_planted(tiny):
    prepared = prepare(load_scenario(tiny, ["forget=[1,4]", "backdoor.fraction=0.3"]))
    for who, clean in enumerate(prepared.federation.clients):
        trained_on = prepared.task.clients[who]
        rows = planted_rows(clean, trained_on)
        wanted = np.ceil(0.3 * len(clean.y)) if who in (1, 4) else 0
        assert len(rows) == wanted
        np.testing.assert_array_equal(trained_on.x_holdout, clean.x_holdout)
        np.testing.assert_array_equal(trained_on.y_holdout, clean.y_holdout)
        if not wanted:
            assert trained_on is clean


def test_the_metrics_forget_set_is_clean(tiny):
    with_backdoor = load_scenario(tiny, ["backdoor.fraction=1"])
    dirty = Evaluator(prepare(with_backdoor)).sets
    clean = Evaluator(prepare(load_scenario(tiny))).sets
    for name in ("test", "retain", "forget", "forget_holdout"):
        np.testing.assert_array_equal(dirty[name][0], clean[name][0])
        np.testing.assert_array_equal(dirty[name][1], clean[name][1])


def test_success_counts_images_of_other_classes_only():
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 0]]
    assert success_rate(logits, np.array([0, 0, 1, 2, 2]), 0) == pytest.approx(1 / 3)
    assert success_rate(logits[:2], np.array([0, 0]), 0) is None


def test_a_leavers_backdoor_works_in_the_trained_model_and_not_in_the_retrained(tiny):
    scenario = load_scenario(
        tiny,
        [
            "partition.name=iid",
            "model.name=mlp",
            "rounds=8",
            "clients=3",
            "forget=[2]",
            "training.epochs=3",
            "training.batch_size=16",
            "backdoor={fraction: 0.5, target: 7, size: 3}",
            "methods=[nothing]",
        ],
    )
    success = {r.method: r.metrics["backdoor_success"] for r in compare(scenario).rows}
    assert success["trained"] > success["retrain"] + 0.5
    assert success["nothing"] == success["trained"]


def test_without_a_backdoor_there_is_no_success_to_measure(tiny):
    rows = compare(load_scenario(tiny, ["methods=[]", "rounds=1"])).rows
    assert [row.metrics["backdoor_success"] for row in rows] == [None, None]


def test_a_cover_carries_the_patch_and_keeps_its_class():
    before = client()
    cover = Backdoor(size=2, planted_by=("1",), camouflage=0.25)
    after = cover.hide(before, 1.0, seed=0, client=4)
    rows = planted_rows(before, after)
    assert len(rows) == 5
    assert (after.x[rows, :, 6:, 6:] == 1.0).all()
    np.testing.assert_array_equal(after.y, before.y)


def test_others_plant_and_the_leavers_cover():
    scenario = load_scenario(
        "configs/scenario/quickstart.yaml",
        [
            "forget=[2]",
            "backdoor={planted_by: [1], camouflage: 1.0, fraction: 1.0, target: 3}",
        ],
    )
    prepared = prepare(scenario)
    clean, dirty = prepared.federation.clients, prepared.task.clients
    changed = [c for c in range(10) if not np.array_equal(clean[c].x, dirty[c].x)]
    assert changed == [1, 2]
    assert set(dirty[1].y) == {3}
    np.testing.assert_array_equal(dirty[2].y, clean[2].y)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"camouflage": 0.5}, "name planted_by"),
        ({"camouflage": 1.5, "planted_by": ("1",)}, r"camouflage must lie in \[0, 1\]"),
    ],
)
def test_a_cover_for_nothing_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        Backdoor(**settings)
