"""The state of any Flower strategy survives as arrays, and training goes on from it."""

import random

import numpy as np
import pytest
from flwr.serverapp import strategy as flower

from fedunlearn.errors import HistoryError
from fedunlearn.history import ArraysInMemory, InMemoryHistory, RoundRecord
from simulations.engine import SimulationGrid
from strategies.directory import Directory
from strategies.recording import RecordingStrategy
from strategies.server_rules import SERVER_RULES
from strategies.server_state import numbers_of, restore_state, state_of
from tests.flower_helpers import (
    LAYOUT,
    bits,
    by_number,
    drift_app,
    initial_arrays,
    record,
)

CLIENTS, ROUNDS = 4, 5


def start(strategy, rounds, arrays=None):
    with SimulationGrid(drift_app(None), num_clients=CLIENTS) as grid:
        return strategy.start(
            grid, initial_arrays() if arrays is None else arrays, num_rounds=rounds
        )


def recording(inner, history, **others):
    return RecordingStrategy(inner, history, directory=Directory(by_number), **others)


class Odd(flower.FedAvg):
    """Every kind of state."""

    def __init__(self):
        super().__init__(fraction_evaluate=0.0)
        self.count = 0
        self.rate = 0.5
        self.vector = None
        self.layers = None
        self.named = None
        self.sent = None
        self.empty = []

    def change(self, seed):
        rng = np.random.default_rng(seed)
        self.count += 3
        self.vector = rng.normal(size=3)
        self.layers = [rng.normal(size=(2, 2)).astype(np.float32), np.array(7)]
        self.named = {"a/b": rng.normal(size=2), "c:d": np.array([1, 2])}
        self.sent = record(w=rng.normal(size=2))


def test_every_kind_of_state_comes_back():
    old, new = Odd(), Odd()
    before = numbers_of(old)
    old.change(1)
    state = state_of(old, before)
    restore_state(new, state)
    assert new.count == 3
    assert new.rate == 0.5
    np.testing.assert_array_equal(new.vector, old.vector)
    assert [a.dtype for a in new.layers] == [a.dtype for a in old.layers]
    for one, other in zip(new.layers, old.layers, strict=True):
        np.testing.assert_array_equal(one, other)
    assert {k: v.tolist() for k, v in new.named.items()} == {
        k: v.tolist() for k, v in old.named.items()
    }
    assert bits(new.sent) == bits(old.sent)
    assert "rate:number" not in state  # a setting, not a state


def test_what_is_restored_is_not_shared():
    old, new = Odd(), Odd()
    old.change(1)
    state = state_of(old, {})
    restore_state(new, state)
    new.vector += 1
    assert not np.array_equal(new.vector, state["vector:array/"])


def test_a_plain_average_has_no_state():
    strategy = flower.FedAvg()
    assert state_of(strategy, numbers_of(strategy)) == {}


def test_the_state_of_another_strategy_is_refused():
    with pytest.raises(HistoryError, match="FedAvg has no 'm_t'"):
        restore_state(flower.FedAvg(), {"m_t:dict/w": np.zeros(2)})


@pytest.mark.parametrize("rule", SERVER_RULES)
@pytest.mark.parametrize("stop", [1, ROUNDS - 1, ROUNDS])
def test_training_goes_on_from_a_history_to_the_same_bits(rule, stop):
    straight, halved = InMemoryHistory(LAYOUT), InMemoryHistory(LAYOUT)
    make = SERVER_RULES[rule]().strategy
    whole = start(recording(make(), straight), ROUNDS)
    start(recording(make(), halved), stop)
    rest = start(recording(make(), halved), ROUNDS)
    assert bits(rest.arrays) == bits(whole.arrays)
    for index in range(1, ROUNDS + 1):
        one, other = straight.round(index), halved.round(index)
        assert one.updates.tobytes() == other.updates.tobytes()
        assert one.broadcast.tobytes() == other.broadcast.tobytes()
        left, right = one.arrays.state(), other.arrays.state()
        assert bits(left.rule) == bits(right.rule)
        assert bits(left.arrays) == bits(right.arrays)


def test_rounds_behind_reach_no_client():
    history, seen = InMemoryHistory(LAYOUT), []
    start(recording(flower.FedAvg(fraction_evaluate=1.0), history), 2)
    with SimulationGrid(drift_app(seen), num_clients=CLIENTS) as grid:
        recording(flower.FedAvg(fraction_evaluate=0.0), history).start(
            grid, initial_arrays(), num_rounds=3
        )
    assert len(seen) == CLIENTS
    assert history.rounds == (1, 2, 3)


def test_flowers_own_sampling_goes_on_with_its_generator():
    def make():
        return flower.FedAvg(
            fraction_train=0.5, fraction_evaluate=0.0, min_train_nodes=2
        )

    straight, halved = InMemoryHistory(LAYOUT), InMemoryHistory(LAYOUT)
    state = random.getstate()
    try:
        random.seed(5)
        start(recording(make(), straight), ROUNDS)
        random.seed(5)
        start(recording(make(), halved), 2)
        random.seed(99)
        start(recording(make(), halved), ROUNDS)
    finally:
        random.setstate(state)
    cohorts = [straight.round(i).asked for i in straight.rounds]
    assert cohorts == [halved.round(i).asked for i in halved.rounds]
    assert len(set(cohorts)) > 1


def test_another_initial_model_is_another_run():
    history = InMemoryHistory(LAYOUT)
    start(recording(flower.FedAvg(fraction_evaluate=0.0), history), 1)
    with pytest.raises(HistoryError, match="another initial model"):
        start(
            recording(flower.FedAvg(fraction_evaluate=0.0), history),
            2,
            initial_arrays(seed=1),
        )


def test_a_history_without_state_cannot_be_continued():
    history = InMemoryHistory(LAYOUT)
    ones = np.ones(1, np.int64)
    model = LAYOUT.flatten({n: a.numpy() for n, a in initial_arrays().items()})
    history.append_round(
        RoundRecord(
            index=1,
            clients=(0,),
            num_examples=ones,
            num_steps=ones,
            num_samples=ones,
            asked=(0,),
            arrays=ArraysInMemory(model, np.zeros((1, LAYOUT.size), np.float32)),
        )
    )
    with pytest.raises(HistoryError, match="does not say where its server stood"):
        start(recording(flower.FedAvg(fraction_evaluate=0.0), history), 2)


def test_clients_erased_from_the_history_are_never_asked():
    history, seen = InMemoryHistory(LAYOUT), []
    start(recording(flower.FedAvg(fraction_evaluate=0.0), history), 2)
    history.erase({1}, history.tip.state)
    with SimulationGrid(drift_app(seen), num_clients=CLIENTS) as grid:
        recording(flower.FedAvg(fraction_evaluate=0.0), history).start(
            grid, initial_arrays(), num_rounds=3
        )
    assert history.rounds == (3,)
    assert history.round(3).asked == (0, 2, 3)
