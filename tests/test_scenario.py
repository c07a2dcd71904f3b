"""The dataclasses of a scenario, and what a scenario amounts to before training."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from fedunlearn.errors import ConfigError, RequestError, UnknownNameError
from simulations import load_scenario
from simulations.prepare import prepare, trigger_value
from simulations.scenario import Engine, Outline


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"seeds": ()}, "seeds must be distinct and at least one"),
        ({"seeds": (2, 2)}, "seeds must be distinct"),
        ({"seeds": (2**63,)}, r"must lie in \[0, 2\*\*63\)"),
        ({"data_seed": -1}, r"must lie in \[0, 2\*\*63\)"),
        ({"clients": 1}, "clients must be at least 2"),
        ({"clients_per_round": 0}, "clients_per_round must be at least 1"),
        ({"methods": ("nothing", "nothing")}, "methods must be distinct"),
        ({"holdout": 1.0}, "holdout must lie in"),
        ({"holdout": float("nan")}, "holdout must lie in"),
    ],
)
def test_an_outline_refuses_values_outside_their_range(wrong, says):
    with pytest.raises(ValueError, match=says):
        Outline(**{"forget": ("0",), **wrong})


def test_the_largest_seed_is_allowed():
    assert Outline(forget=("0",), seeds=(2**63 - 1,)).seeds == (2**63 - 1,)


def test_an_engine_refuses_a_negative_number_of_workers():
    with pytest.raises(ValueError, match="workers must not be negative, got -1"):
        Engine(workers=-1)


def test_a_scenario_is_frozen(tiny):
    scenario = load_scenario(tiny)
    with pytest.raises(FrozenInstanceError):
        scenario.data = None
    with pytest.raises(FrozenInstanceError):
        scenario.outline.rounds = 7


def test_an_integer_and_a_name_lead_to_the_same_leaver(tiny):
    by_id = prepare(load_scenario(tiny, ["forget=[3]"]))
    by_name = prepare(load_scenario(tiny, ["forget=[client-3]"]))
    both = prepare(load_scenario(tiny, ["forget=[3,client-3]"]))
    assert by_id.forget == by_name.forget == both.forget == {3}


@pytest.mark.parametrize("leaver", ["5", "-1", "client-5", "Client-1", "null", "1.0"])
def test_an_unknown_leaver_is_answered_with_the_known_clients(leaver, tiny):
    with pytest.raises(UnknownNameError, match=r"known: client-0, .*, client-4"):
        prepare(load_scenario(tiny, [f"forget=[{leaver}]"]))


def test_not_all_clients_may_leave(tiny):
    with pytest.raises(RequestError, match="all 5 clients are leaving"):
        prepare(load_scenario(tiny, ["forget=[0,1,2,3,4]"]))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["clients_per_round=6"], "clients_per_round is 6, there are 5 clients"),
        (["clients=null"], "clients must be given"),
        (["clients=5000"], "clients must lie between 1 and 1438"),
        (["partition.name=natural"], "'digits' has no natural clients"),
        (["model.name=lenet5"], "model.name=lenet5 needs images"),
        (["backdoor.target=10"], "backdoor.target=10 is not one of 10 classes"),
        (["backdoor.size=9"], "backdoor.size=9 does not fit"),
        (["partition.min_size=1000"], "set min_size to at most 287"),
    ],
)
def test_a_scenario_that_does_not_fit_its_data_is_refused(overrides, says, tiny):
    with pytest.raises(ConfigError, match=says):
        prepare(load_scenario(tiny, overrides))


def test_the_partition_depends_on_data_seed_and_not_on_seeds(tiny):
    def labels(*overrides):
        federation = prepare(load_scenario(tiny, list(overrides))).federation
        return [client.y.tolist() for client in federation.clients]

    assert labels("seeds=[0]") == labels("seeds=[7]")
    assert labels("data_seed=0") != labels("data_seed=1")


def test_no_example_is_trained_on_and_held_out_and_none_is_lost(tiny):
    prepared = prepare(load_scenario(tiny))
    data = prepared.scenario.data.load()
    parts = [a for c in prepared.federation.clients for a in (c.x, c.x_holdout)]
    rows = np.concatenate(parts).reshape(len(data.x_train), -1)
    expected = data.x_train.reshape(len(rows), -1)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, expected))


def test_without_a_backdoor_clients_train_on_the_clean_data(tiny):
    prepared = prepare(load_scenario(tiny))
    assert prepared.task.clients is prepared.federation.clients


def test_holdout_zero_leaves_nothing_unseen(tiny):
    prepared = prepare(load_scenario(tiny, ["holdout=0"]))
    assert all(len(c.y_holdout) == 0 for c in prepared.federation.clients)


def test_the_trigger_is_as_bright_as_the_brightest_test_pixel(tiny):
    federation = prepare(load_scenario(tiny)).federation
    assert trigger_value(federation) == federation.x_test.max() == 1.0
    darker = replace(federation, x_test=federation.x_test * np.float32(0.5))
    assert trigger_value(darker) == 0.5
