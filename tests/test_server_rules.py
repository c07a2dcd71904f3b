"""A server rule replayed gives the bits it gave in training."""

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.errors import RunError
from fedunlearn.history import InMemoryHistory
from fedunlearn.updates import MeanServer, Server, Updates
from simulations.engine import SimulationGrid
from strategies.directory import Directory
from strategies.flower_server import FlowerServer, asking_all, client_config
from strategies.grids import NoGrid
from strategies.recording import RecordingStrategy
from strategies.server_rules import SERVER_RULES, FedAvgM, FedProx, FedTrimmedAvg, Krum
from tests.flower_helpers import (
    LAYOUT,
    by_number,
    drift_app,
    initial_arrays,
    small_app,
    small_task,
)

STATEFUL = {"fed_avgm", "fed_adam"}


def bytes_of(vector):
    assert vector.dtype == np.float32
    return vector.tobytes()


def trained(rule, clients=5, rounds=4, cohort=None):
    """Train; return the rounds as ``Updates`` and the model after each."""
    seen, history, models = [], InMemoryHistory(LAYOUT), []
    strategy = RecordingStrategy(
        rule.strategy(), history, directory=Directory(by_number), cohort=cohort
    )

    def note(server_round, arrays):
        models.append(from_arrays(arrays, LAYOUT))

    with SimulationGrid(drift_app(seen), num_clients=clients) as grid:
        strategy.start(grid, initial_arrays(), num_rounds=rounds, evaluate_fn=note)
    return [updates(history.round(r), seen) for r in history.rounds], models[1:]


def updates(kept, seen):
    after = {c: a for r, c, _, a in seen if r == kept.index}
    return Updates(
        clients=kept.clients,
        before=kept.broadcast,
        after=np.stack([LAYOUT.flatten(after[c]) for c in kept.clients]),
        num_examples=kept.num_examples,
        num_steps=kept.num_steps,
        num_samples=kept.num_samples,
    )


@pytest.mark.parametrize(
    "rule",
    [
        *(rule() for rule in SERVER_RULES.values()),
        FedAvgM(lr=0.5, momentum=0.0),
        FedAvgM(lr=0.3, momentum=0.5),
        FedTrimmedAvg(beta=0.0),
        Krum(malicious=0),
    ],
    ids=repr,
)
def test_a_replayed_rule_gives_the_models_of_training_bit_for_bit(rule):
    rounds, models = trained(rule)
    server = FlowerServer(rule.strategy(), LAYOUT, rule.stateful)
    found = [server.step(u) for u in rounds]
    assert list(map(bytes_of, found)) == list(map(bytes_of, models))


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_a_replay_follows_changing_cohorts(rule):
    rule = SERVER_RULES[rule]()

    def cohort(server_round, there):
        return tuple(sorted(there))[server_round % 2 :: 2]

    rounds, models = trained(rule, clients=9, cohort=cohort)
    assert rounds[0].clients == (1, 3, 5, 7)
    server = FlowerServer(rule.strategy(), LAYOUT, rule.stateful)
    found = [server.step(u) for u in rounds]
    assert list(map(bytes_of, found)) == list(map(bytes_of, models))


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_a_rule_says_truly_whether_its_steps_depend_on_each_other(rule):
    rounds, _ = trained(SERVER_RULES[rule]())
    rule_ = SERVER_RULES[rule]()
    going = FlowerServer(rule_.strategy(), LAYOUT, rule_.stateful)
    along = [going.step(u) for u in rounds]
    alone = FlowerServer(rule_.strategy(), LAYOUT, rule_.stateful).step(rounds[-1])
    assert going.stateful == rule_.stateful == (rule in STATEFUL)
    assert (bytes_of(alone) != bytes_of(along[-1])) == (rule in STATEFUL)


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_a_step_writes_to_no_argument(rule):
    rounds, _ = trained(SERVER_RULES[rule](), rounds=1)
    u = rounds[0]
    before = [a.copy() for a in (u.before, u.after, u.num_examples)]
    for array in (u.before, u.after, u.num_examples):
        array.setflags(write=False)
    rule_ = SERVER_RULES[rule]()
    model = FlowerServer(rule_.strategy(), LAYOUT, rule_.stateful).step(u)
    model[:] = 0
    for old, new in zip(before, (u.before, u.after, u.num_examples), strict=True):
        assert np.array_equal(old, new)


def test_the_mean_server_is_flowers_fed_avg_over_a_whole_training():
    rounds, models = trained(SERVER_RULES["fed_avg"]())
    assert [bytes_of(MeanServer().step(u)) for u in rounds] == [
        bytes_of(m) for m in models
    ]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), clients=st.integers(1, 6))
def test_the_mean_server_equals_flowers_fed_avg_bit_for_bit(data, clients):
    """Minus zeros, denormals and large numbers included."""
    finite = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from(
        [-0.0, 0.0, 2.0**-140]
    )
    after = data.draw(hnp.arrays(np.float32, (clients, LAYOUT.size), elements=finite))
    weights = data.draw(
        st.lists(st.integers(1, 2**31), min_size=clients, max_size=clients)
    )
    u = Updates(
        clients=tuple(range(0, 2 * clients, 2)),
        before=np.zeros(LAYOUT.size, np.float32),
        after=after,
        num_examples=np.array(weights),
        num_steps=np.zeros(clients, np.int64),
        num_samples=np.zeros(clients, np.int64),
    )
    stock = FlowerServer(asking_all(flower.FedAvg), LAYOUT, stateful=False)
    assert bytes_of(MeanServer().step(u)) == bytes_of(stock.step(u))


def test_the_mean_server_keeps_the_sign_of_zero():
    u = Updates.of_deltas(
        np.full(2, -0.0, np.float32),
        np.full((3, 2), -0.0, np.float32),
        (0, 1, 2),
        np.array([1, 1, 1]),
    )
    assert np.signbit(MeanServer().step(u)).all()


def test_carried_integer_arrays_reach_the_strategy():
    u, _ = trained(SERVER_RULES["fed_avg"](), rounds=1)
    carried = {"count": Array(np.asarray(4))}
    rule = SERVER_RULES["fed_avg"]()
    plain = FlowerServer(rule.strategy(), LAYOUT, stateful=False).step(u[0])
    beside = FlowerServer(
        rule.strategy(), LAYOUT, stateful=False, carried=carried
    ).step(u[0])
    assert bytes_of(beside) == bytes_of(plain)


class NoModel(Strategy):
    def configure_train(self, server_round, arrays, config, grid):
        return flower.FedAvg(min_available_nodes=1).configure_train(
            server_round, arrays, config, grid
        )

    def aggregate_train(self, server_round, replies):
        return None, None

    def configure_evaluate(self, server_round, arrays, config, grid):
        return []

    def aggregate_evaluate(self, server_round, replies):
        return None

    def summary(self):
        pass


def test_a_strategy_that_gives_no_model_is_an_error():
    rounds, _ = trained(SERVER_RULES["fed_avg"](), rounds=1)
    with pytest.raises(RunError, match="NoModel gave no model"):
        FlowerServer(NoModel(), LAYOUT, stateful=False).step(rounds[0])


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_only_fed_prox_adds_to_a_clients_order(rule):
    vector = from_arrays(initial_arrays(), LAYOUT)
    found = client_config(SERVER_RULES[rule]().strategy(), vector, LAYOUT)
    assert found == ({"proximal-mu": 0.1} if rule == "fed_prox" else {})


def test_the_proximal_term_of_a_rule_reaches_the_clients_in_training():
    """What training sends and what ``client_config`` says give the same model."""
    task, rule = small_task(), FedProx(proximal_mu=0.7)
    initial = task.initial_model(0)
    extra = client_config(rule.strategy(), initial, task.layout)
    models = []
    for strategy, config in (
        (rule.strategy(), {"seed": 1}),
        (SERVER_RULES["fed_avg"]().strategy(), {"seed": 1, **extra}),
        (SERVER_RULES["fed_avg"]().strategy(), {"seed": 1}),
    ):
        recording = RecordingStrategy(strategy, InMemoryHistory(task.layout))
        with SimulationGrid(small_app(task), num_clients=4) as grid:
            result = recording.start(
                grid,
                to_arrays(initial, task.layout),
                num_rounds=2,
                train_config=ConfigRecord(config),
            )
        models.append(bytes_of(from_arrays(result.arrays, task.layout)))
    assert models[0] == models[1] != models[2]


def test_a_server_rule_cannot_reach_a_client():
    grid = NoGrid()
    assert list(grid.get_node_ids()) == []
    for call in (
        lambda: grid.send_and_receive([]),
        lambda: grid.push_messages([]),
        lambda: grid.pull_messages([]),
        lambda: grid.create_message(None, "train", 1, ""),
        lambda: grid.set_run(None),
        lambda: grid.run,
    ):
        with pytest.raises(RunError, match="tried to reach a client"):
            call()


def test_flower_and_mean_servers_are_servers():
    servers: list[Server] = [
        MeanServer(),
        FlowerServer(asking_all(flower.FedAvg), LAYOUT, stateful=False),
    ]
    assert [s.stateful for s in servers] == [False, False]
