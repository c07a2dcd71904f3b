"""Every method in every kind of federation: it runs, or is refused with the reason."""

from itertools import product

import numpy as np
import pytest

from fedunlearn.errors import RequirementError
from simulations import compare, load_scenario
from strategies import METHODS

QUICKSTART = "configs/scenario/quickstart.yaml"
FAST = [
    "seeds=[1]",
    "rounds=4",
    "training.epochs=1",
    "server_examples=40",
    "engine.noise_floor=false",
    "methods=[retrain]",
]
CELLS = list(
    product(
        ("clients_per_round=null", "clients_per_round=3"),
        ("partition.name=iid", "partition.alpha=0.1"),
        ("forget=[9]", "forget=[1,4,9]"),
        ("fed_avg", "fed_trimmed_avg"),
    )
)
OF_CLIENTS = {
    name: cls() for name, cls in METHODS.items() if "client" in cls().requires.levels
}


def served(rule):
    """The methods that make sense under a server rule, in one piece or in shards."""
    mean, shards = rule == "fed_avg", rule == "shards"
    return {
        name: method
        for name, method in OF_CLIENTS.items()
        if (mean or not method.requires.mean) and (shards or not method.requires.shards)
    }


@pytest.mark.parametrize(("cohort", "split", "leavers", "rule"), CELLS)
def test_every_method_runs_in_every_federation(cohort, split, leavers, rule):
    cell = load_scenario(
        QUICKSTART, [*FAST, cohort, split, leavers, f"server.name={rule}"]
    )
    methods = served(rule)
    rows = {row.method: row for row in compare(cell, methods).rows}
    assert rows.keys() == {"trained", *methods}
    for name, row in rows.items():
        assert np.isfinite(row.metrics["test_loss"]), name
        asks = name == "trained" or methods[name].requires.clients
        asks = asks or methods[name].requires.leaver
        assert asks or row.cost.client_rounds == 0, name
    if cohort == "clients_per_round=null":
        assert rows["rollback"].model_sha256 == rows["retrain"].model_sha256


@pytest.mark.parametrize("name", [n for n, m in OF_CLIENTS.items() if m.requires.mean])
def test_a_method_that_needs_a_mean_is_refused_under_another_rule(name):
    cell = load_scenario(QUICKSTART, [*FAST, "server.name=fed_trimmed_avg"])
    with pytest.raises(RequirementError, match="a server rule that is a weighted mean"):
        compare(cell, {name: OF_CLIENTS[name]})


@pytest.mark.parametrize(
    "name", [n for n, m in OF_CLIENTS.items() if m.requires.leaver]
)
def test_a_method_that_needs_the_leaver_is_refused_once_it_is_gone(name):
    cell = load_scenario(QUICKSTART, [*FAST, "leavers_online=false"])
    with pytest.raises(RequirementError, match="the leaver to answer"):
        compare(cell, {name: OF_CLIENTS[name]})


@pytest.mark.parametrize(
    "name", [n for n, m in OF_CLIENTS.items() if m.requires.server_data]
)
def test_a_method_that_needs_data_on_the_server_says_so(name):
    cell = load_scenario(QUICKSTART, [*FAST, "server_examples=0"])
    with pytest.raises(RequirementError, match="data on the server"):
        compare(cell, {name: OF_CLIENTS[name]})


@pytest.mark.parametrize("level", ["sample", "class"])
def test_every_method_runs_at_every_level_it_names(level):
    asked = {"sample": "forget_samples={9: 0.5}", "class": "forget_classes=[3]"}
    cell = load_scenario(QUICKSTART, [*FAST, "forget=[]", asked[level]])
    methods = {
        name: cls()
        for name, cls in METHODS.items()
        if level in cls().requires.levels and name not in {"channel_prune", "sharded"}
    }
    rows = compare(cell, methods).rows
    assert {row.method for row in rows} == {"trained", *methods}
    assert all(np.isfinite(row.metrics["test_loss"]) for row in rows)


@pytest.mark.parametrize("rule", ["fed_avgm", "fed_adam", "fed_median", "krum"])
def test_replay_uses_the_rule_that_trained_the_model(rule):
    """Methods that step a rule step this one; the others are refused."""
    cell = load_scenario(QUICKSTART, [*FAST, f"server.name={rule}"])
    methods = served(rule)
    rows = compare(cell, methods).rows
    assert {row.method for row in rows} == {"trained", *methods}
    assert all(np.isfinite(row.metrics["test_loss"]) for row in rows)


@pytest.mark.parametrize("cohort", ["clients_per_round=null", "clients_per_round=4"])
def test_a_federation_in_shards_serves_every_method_without_a_mean(cohort):
    cell = load_scenario(QUICKSTART, [*FAST, cohort, "shards=2"])
    methods = served("shards")
    rows = {row.method: row for row in compare(cell, methods).rows}
    assert rows.keys() == {"trained", *methods}
    assert all(np.isfinite(row.metrics["test_loss"]) for row in rows.values())
    assert rows["sharded"].model_sha256 == rows["retrain"].model_sha256
