"""The main job on real digits: what must be equal is equal, bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.history import InMemoryHistory, first_round_of
from fedunlearn.params import sha256
from fedunlearn.schedule import TrainingSchedule
from simulations import compare, load_scenario
from simulations.evaluate import Evaluator
from simulations.prepare import open_grid, prepare
from simulations.train import Curve, train
from strategies import METHODS
from strategies.directory import Directory
from strategies.recording import RecordingStrategy

QUICKSTART = Path(__file__).parents[1] / "configs" / "scenario" / "quickstart.yaml"
RULES = ["fed_avg", "fed_avgm", "fed_adam", "fed_prox", "fed_trimmed_avg"]
# Every method that can forget a whole client of a plain federation.
PLAIN = sorted(set(METHODS) - {"channel_prune", "sharded"})
COHORTS = ["clients_per_round=null", "clients_per_round=3"]


def digests(comparison):
    return {(r.method, r.seed): r.model_sha256 for r in comparison.rows}


def digest_of(comparison, method, seed=0):
    return digests(comparison)[method, seed]


def trained_on(prepared, seed=0, clients=None):
    """Train as the comparison does, on all clients or the given ones; record it."""
    data = prepared.task.clients if clients is None else tuple(clients)
    prepared = replace(prepared, task=replace(prepared.task, clients=data))
    history = InMemoryHistory(prepared.task.layout)
    with open_grid(prepared) as grid:
        return train(
            prepared,
            seed,
            grid,
            history,
            directory=Directory(),
            curve=Curve(Evaluator(prepared), prepared.task.layout),
        )


def trained_without(prepared, withdrawn, seed=0):
    """Train through RecordingStrategy with clients withdrawn from the start."""
    task, outline = prepared.task, prepared.scenario.outline
    schedule = TrainingSchedule(
        seed=seed,
        rounds=outline.rounds,
        epochs=prepared.scenario.training.epochs,
        clients_per_round=outline.clients_per_round,
    )
    history = InMemoryHistory(task.layout)
    strategy = RecordingStrategy(
        prepared.scenario.server.strategy(),
        history,
        withdrawn=withdrawn,
        cohort=schedule.cohort,
    )
    with open_grid(prepared) as grid:
        result = strategy.start(
            grid,
            to_arrays(task.initial_model(seed), task.layout),
            num_rounds=schedule.rounds,
            train_config=ConfigRecord({"seed": seed}),
        )
    return from_arrays(result.arrays, task.layout), history


@pytest.fixture(scope="module")
def plain(tiny):
    """Return the scenario's comparison over two seeds."""
    return compare(load_scenario(tiny, ["seeds=[0,1]"]))


# --- what must be equal


def test_doing_nothing_equals_the_trained_model_in_every_metric(plain):
    rows = {(r.method, r.seed): r for r in plain.rows}
    for seed in (0, 1):
        trained, nothing = rows["trained", seed], rows["nothing", seed]
        assert nothing.model_sha256 == trained.model_sha256
        assert nothing.metrics == trained.metrics


@pytest.mark.parametrize("rule", RULES)
def test_rollback_of_a_founding_client_equals_retraining(rule, tiny):
    comparison = compare(load_scenario(tiny, [f"server.name={rule}"]))
    assert digest_of(comparison, "rollback") == digest_of(comparison, "retrain")
    assert digest_of(comparison, "rollback") != digest_of(comparison, "trained")


def test_rollback_of_a_late_client_equals_retraining_and_costs_less(tiny):
    overrides = ["rounds=8", "clients_per_round=1", "seeds=[3]"]
    scenario = load_scenario(tiny, overrides)
    first = first_round_of(trained_on(prepare(scenario), 3).history, {4})
    assert first is not None
    assert first > 1
    comparison = compare(scenario)
    assert digest_of(comparison, "rollback", 3) == digest_of(comparison, "retrain", 3)
    rows = {r.method: r for r in comparison.rows}
    assert rows["rollback"].cost.client_rounds == 8 - (first - 1)


@pytest.mark.parametrize("cohort", COHORTS)
@pytest.mark.parametrize("rule", RULES)
def test_retraining_equals_a_federation_in_which_the_leaver_never_existed(
    rule, cohort, tiny
):
    scenario = load_scenario(tiny, [f"server.name={rule}", cohort, "methods=[]"])
    prepared = prepare(scenario)
    retrained = digest_of(compare(scenario), "retrain")
    never, history = trained_without(prepared, {4})
    absent = trained_on(prepared, clients=prepared.task.clients[:4])
    assert sha256(never) == retrained
    assert sha256(absent.model) == retrained
    assert history.rounds_of(4) == ()


@pytest.mark.parametrize("cohort", COHORTS)
def test_it_does_so_for_leavers_in_the_middle(cohort, tiny):
    scenario = load_scenario(tiny, ["forget=[1,2]", cohort, "methods=[]"])
    never, _ = trained_without(prepare(scenario), {1, 2})
    assert sha256(never) == digest_of(compare(scenario), "retrain")


def test_retraining_equals_a_federation_in_which_the_leaver_has_no_data(tiny):
    scenario = load_scenario(tiny, ["forget=[1]", "methods=[]"])
    prepared = prepare(scenario)
    clients = list(prepared.task.clients)
    gone = clients[1]
    clients[1] = replace(gone, x=gone.x[:0], y=gone.y[:0])
    empty = trained_on(prepared, clients=clients)
    assert sha256(empty.model) == digest_of(compare(scenario), "retrain")
    assert empty.history.rounds_of(1) == ()
    assert [s.client for s in empty.history.round(1).set_aside] == [1]


@pytest.mark.parametrize("rule", ["fed_avg", "fed_avgm"])
def test_the_trained_row_is_the_federation_with_the_leaver(rule, tiny):
    scenario = load_scenario(tiny, [f"server.name={rule}", "methods=[]"])
    full, _ = trained_without(prepare(scenario), ())
    assert sha256(full) == digest_of(compare(scenario), "trained")


def test_a_leavers_backdoor_does_not_reach_retraining(tiny):
    clean = compare(load_scenario(tiny, ["methods=[]"]))
    dirty = compare(load_scenario(tiny, ["methods=[]", "backdoor.fraction=0.9"]))
    assert digest_of(clean, "retrain") == digest_of(dirty, "retrain")
    assert digest_of(clean, "trained") != digest_of(dirty, "trained")


# --- what must not matter


def test_two_runs_give_the_same_bits_and_metrics(plain, tiny):
    again = compare(load_scenario(tiny, ["seeds=[0,1]"]))
    assert digests(again) == digests(plain)
    assert [r.metrics for r in again.rows] == [r.metrics for r in plain.rows]


def test_a_seed_gives_the_same_alone_and_among_others(plain, tiny):
    alone = digests(compare(load_scenario(tiny, ["seeds=[1]"])))
    assert alone == {k: v for k, v in digests(plain).items() if k[1] == 1}


def test_different_seeds_give_different_models(plain):
    for method in ("trained", "retrain"):
        assert digest_of(plain, method, 0) != digest_of(plain, method, 1)


def test_a_method_in_the_list_changes_no_other_row(tiny):
    every = [f"methods=[{','.join(PLAIN)}]", "server_examples=30"]
    many = digests(compare(load_scenario(tiny, every)))
    few = digests(
        compare(load_scenario(tiny, ["methods=[subtract,nothing]", every[1]]))
    )
    assert len(many) == 1 + len(PLAIN)
    assert few.items() <= many.items()


def test_history_on_disk_or_in_memory_makes_no_difference(plain, tiny, tmp_path):
    on_disk = compare(load_scenario(tiny), out=tmp_path / "run")
    assert digests(on_disk).items() <= digests(plain).items()


@pytest.mark.ray
def test_the_number_of_workers_makes_no_difference(tiny, tmp_path):
    every = [f"methods=[{','.join(PLAIN)}]", "server_examples=30"]

    def run(workers):
        overrides = [*every, "rounds=2", "model.name=cnn", f"engine.workers={workers}"]
        return digests(compare(load_scenario(tiny, overrides), out=tmp_path / workers))

    assert run("0") == run("1") == run("2")


# --- what must be so on the quickstart


@pytest.mark.slow
def test_the_quickstart_shows_that_leaving_matters():
    scenario = load_scenario(
        QUICKSTART, ["seeds=[0]", "methods=[nothing,rollback,subtract@recover]"]
    )
    rows = {row.method: row for row in compare(scenario).rows}
    accuracy = {m: row.metrics["forget_accuracy"] for m, row in rows.items()}
    assert accuracy["trained"] > 0.85
    assert accuracy["retrain"] < accuracy["trained"] - 0.3
    assert rows["retrain"].metrics["test_accuracy"] > 0.75
    assert rows["nothing"].metrics == rows["trained"].metrics
    assert rows["rollback"].model_sha256 == rows["retrain"].model_sha256


def test_costs_are_those_of_the_schedule(plain):
    size = 650 * 4
    rows = {r.method: r.cost for r in plain.rows if r.seed == 0}
    assert rows["trained"].client_rounds == 15
    assert rows["retrain"].client_rounds == rows["rollback"].client_rounds == 12
    assert rows["retrain"].bytes_up == rows["retrain"].bytes_down == 12 * size
    assert rows["nothing"].client_rounds == rows["nothing"].history_bytes == 0
    assert rows["retrain"].history_bytes == size  # the initial model
    assert rows["trained"].history_bytes == (15 + 3) * size


def test_steps_and_examples_are_those_of_the_remaining_clients(tiny, plain):
    clients = prepare(load_scenario(tiny)).task.clients[:4]
    cost = next(r.cost for r in plain.rows if r.method == "retrain")
    assert cost.examples == 3 * sum(len(c.y) for c in clients)
    assert cost.local_steps == 3 * sum(int(np.ceil(len(c.y) / 32)) for c in clients)
