"""What the project promises about one departure, on the quickstart's data."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.client import client_app
from fedunlearn.history import InMemoryHistory
from fedunlearn.params import sha256
from fedunlearn.schedule import TrainingSchedule
from simulations import compare, load_scenario
from simulations.engine import SimulationGrid
from simulations.prepare import open_grid, prepare
from simulations.train import quiet_flower
from strategies import RecordingStrategy
from strategies.server_rules import SERVER_RULES

QUICKSTART = Path(__file__).parent.parent / "configs" / "scenario" / "quickstart.yaml"


def scenario(*overrides):
    return load_scenario(QUICKSTART, ["seeds=[0]", *overrides])


def digests(comparison):
    return {(row.method, row.seed): row.model_sha256 for row in comparison.rows}


def never_existed(loaded):
    """Train without the leavers through Flower; return the digest of the model."""
    prepared, outline = prepare(loaded), loaded.outline
    task, seed = prepared.task, outline.seeds[0]
    schedule = TrainingSchedule(
        seed=seed,
        rounds=outline.rounds,
        epochs=loaded.training.epochs,
        clients_per_round=outline.clients_per_round,
    )
    with quiet_flower():
        strategy = RecordingStrategy(
            loaded.server.strategy(),
            InMemoryHistory(task.layout),
            withdrawn=prepared.forget,
            cohort=schedule.cohort,
        )
        with open_grid(prepared) as grid:
            result = strategy.start(
                grid,
                to_arrays(task.initial_model(seed), task.layout),
                num_rounds=outline.rounds,
                train_config=ConfigRecord({"seed": seed}),
            )
    return sha256(from_arrays(result.arrays, task.layout))


@pytest.fixture(scope="module")
def quickstart():
    return compare(scenario("methods=[nothing,rollback]"))


def test_nothing_equals_the_trained_model(quickstart):
    trained, _, nothing, _ = quickstart.rows

    assert nothing.model_sha256 == trained.model_sha256
    assert nothing.metrics == trained.metrics
    assert nothing.cost.client_rounds == 0


def test_leaving_matters_in_the_quickstart(quickstart):
    trained, retrained, *_ = (row.metrics["forget_accuracy"] for row in quickstart.rows)

    assert retrained < trained - 0.3


def test_a_rollback_to_round_one_is_retraining_bit_for_bit(quickstart):
    _, retrained, _, rollback = quickstart.rows

    assert rollback.model_sha256 == retrained.model_sha256
    assert rollback.cost.client_rounds == retrained.cost.client_rounds


@pytest.mark.parametrize("server", ["fed_avg", "fed_avgm", "fed_adam"])
def test_a_rollback_to_a_later_round_is_retraining_bit_for_bit_too(server):
    """What a momentum was when the leaver first took part is in the history."""
    loaded = scenario(
        "rounds=6",
        "training.epochs=1",
        "training.lr=0.05",
        "methods=[rollback]",
        f"server.name={server}",
        "clients_per_round=2",
        "forget=[5]",
    )
    trained, retrained, rollback = compare(loaded).rows

    assert rollback.model_sha256 == retrained.model_sha256 != trained.model_sha256
    assert 0 < rollback.cost.client_rounds < retrained.cost.client_rounds


@pytest.mark.parametrize("cohort", ["null", "4"])
@pytest.mark.parametrize(
    "server", ["fed_avg", "fed_prox", "fed_avgm", "fed_adam", "fed_trimmed_avg"]
)
def test_retraining_equals_a_run_in_which_the_leaver_never_existed(server, cohort):
    loaded = scenario(
        "rounds=4",
        "training.epochs=1",
        "training.lr=0.05",
        "methods=[]",
        f"server.name={server}",
        f"clients_per_round={cohort}",
    )

    assert digests(compare(loaded))["retrain", 0] == never_existed(loaded)


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_recording_changes_no_bit_of_what_a_strategy_gives(rule, monkeypatch):
    # The plain strategy must see nodes in canonical order too: Flower shuffles them.
    monkeypatch.setattr(random, "sample", lambda population, k: sorted(population)[:k])
    task = prepare(scenario("methods=[]", "training.epochs=1")).task

    def train(strategy):
        with (
            quiet_flower(),
            SimulationGrid(client_app(task), num_clients=10) as grid,
        ):
            result = strategy.start(
                grid,
                to_arrays(task.initial_model(0), task.layout),
                num_rounds=4,
                train_config=ConfigRecord({"seed": 0}),
            )
        return {name: array.numpy() for name, array in result.arrays.items()}

    history = InMemoryHistory(task.layout)
    plain = train(SERVER_RULES[rule]().strategy())
    recorded = train(RecordingStrategy(SERVER_RULES[rule]().strategy(), history))

    assert plain.keys() == recorded.keys()
    for name, array in plain.items():
        assert array.dtype == recorded[name].dtype
        np.testing.assert_array_equal(array, recorded[name])
    assert history.rounds == (1, 2, 3, 4)
    assert all(history.round(i).clients == tuple(range(10)) for i in history.rounds)


@pytest.mark.ray
def test_the_same_bits_whatever_the_number_of_workers():
    def run(workers):
        loaded = scenario(
            "rounds=3", "methods=[fed_eraser,subtract]", f"engine.workers={workers}"
        )
        return digests(compare(loaded))

    alone = run(0)

    assert run(0) == alone
    assert run(1) == alone
    assert run(2) == alone


def test_another_seed_is_another_model_and_the_same_partition():
    first = compare(scenario("rounds=1", "methods=[]"))
    second = compare(scenario("rounds=1", "methods=[]", "seeds=[1]"))

    assert first.rows[0].model_sha256 != second.rows[0].model_sha256
    np.testing.assert_array_equal(first.label_counts, second.label_counts)


def best_time(*command):
    def once():
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start

    return min(once() for _ in range(5))


def test_importing_the_core_is_quick_and_loads_no_framework():
    code = (
        "import sys, fedunlearn;"
        "assert not {'torch', 'flwr', 'ray'} & sys.modules.keys(), 'loaded'"
    )

    assert best_time(sys.executable, "-c", code) < 0.3


def test_help_is_quick():
    script = Path(sys.executable).with_name("fedunlearn")

    assert best_time(script, "--help") < 1.0
