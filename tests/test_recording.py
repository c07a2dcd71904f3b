"""RecordingStrategy: training is unchanged, and every round is remembered."""

import random

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedunlearn.errors import EmptyRoundError, LeaverContactError
from fedunlearn.history import InMemoryHistory
from simulations.engine import SimulationGrid
from strategies.directory import Directory
from strategies.flower_server import asking_all
from strategies.grids import CohortGrid, NoGrid
from strategies.recording import RecordingStrategy
from strategies.server_rules import SERVER_RULES
from tests.flower_helpers import (
    LAYOUT,
    Server,
    answer,
    bits,
    by_number,
    drift_app,
    initial_arrays,
    record,
    values,
)

ROUNDS, CLIENTS = 4, 5


def narrow(arrays):
    return {n: a.astype(np.float32) for n, a in arrays.items()}


def start(strategy, seen=None, arrays=None, rounds=ROUNDS):
    with SimulationGrid(drift_app(seen), num_clients=CLIENTS) as grid:
        return strategy.start(
            grid, initial_arrays() if arrays is None else arrays, num_rounds=rounds
        )


def recording(inner, history=None, **others):
    return RecordingStrategy(
        inner,
        InMemoryHistory(LAYOUT) if history is None else history,
        directory=Directory(by_number),
        **others,
    )


@pytest.fixture
def in_order(monkeypatch):
    """Flower's ``random.sample`` takes the nodes as they come."""
    monkeypatch.setattr(random, "sample", lambda nodes, k: list(nodes)[:k])


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_recorded_training_gives_the_bits_of_plain_training(rule, in_order):
    config = SERVER_RULES[rule]()
    expected, found = start(config.strategy()), start(recording(config.strategy()))
    assert bits(found.arrays) == bits(expected.arrays)
    assert found.train_metrics_clientapp == expected.train_metrics_clientapp


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_recorded_training_does_not_depend_on_flowers_sampling_order(rule):
    """Flower shuffles the nodes with the global ``random``; the record is sorted."""
    runs = [start(recording(SERVER_RULES[rule]().strategy())) for _ in range(3)]
    assert bits(runs[0].arrays) == bits(runs[1].arrays) == bits(runs[2].arrays)


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_the_history_holds_after_minus_before_of_every_client_exactly(rule):
    seen, history = [], InMemoryHistory(LAYOUT)
    start(recording(SERVER_RULES[rule]().strategy(), history), seen)
    assert history.rounds == tuple(range(1, ROUNDS + 1))
    assert len(seen) == ROUNDS * CLIENTS
    for index, client, sent, returned in seen:
        kept = history.round(index)
        # FedAdam sends float64 from round 2 on; a history holds float32.
        before, after = narrow(sent), narrow(returned)
        difference = {n: after[n] - before[n] for n in before}
        found = LAYOUT.unflatten(kept.updates[client])
        assert bits(found) == bits(difference)
        assert bits(LAYOUT.unflatten(kept.broadcast)) == bits(before)
        assert kept.clients == kept.asked == tuple(range(CLIENTS))
        assert kept.num_examples.tolist() == [1, 4, 7, 10, 13]
        assert kept.num_steps.tolist() == [2, 3, 4, 5, 6]
        assert kept.num_samples.tolist() == [5, 15, 25, 35, 45]
        assert kept.set_aside == ()


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_an_integer_array_travels_beside_the_model_as_without_recording(rule, in_order):
    """BatchNorm counts batches; Flower's averages make that a float64."""
    history, arrays = InMemoryHistory(LAYOUT), initial_arrays()
    arrays["count"] = record(count=np.int64(7))["count"]
    rule = SERVER_RULES[rule]()
    plain = start(rule.strategy(), arrays=arrays)
    recorded = start(recording(rule.strategy(), history), arrays=arrays)
    assert bits(recorded.arrays) == bits(plain.arrays)
    assert history.rounds == tuple(range(1, ROUNDS + 1))
    assert history.round(ROUNDS).updates.shape == (CLIENTS, LAYOUT.size)


def test_float16_stays_float16_and_is_recorded_in_float32():
    server = Server(inner=asking_all(flower.FedMedian))
    half = ArrayRecord(
        {
            n: record(x=a.astype(np.float16))["x"]
            for n, a in values(initial_arrays()).items()
        }
    )
    asked = server.ask(half)
    arrays, _ = server.strategy.aggregate_train(
        1, [answer(m, c) for c, m in asked.items()]
    )
    assert {a.dtype for a in arrays.values()} == {"float16"}
    assert server.history.round(1).updates.dtype == np.float32


def test_float64_arrays_are_refused_by_name():
    """A model is float32: rounding it for the record would lose bits silently."""
    wide = record(w=np.zeros(3, np.float32), v=np.zeros(2, np.float64))
    with pytest.raises(ValueError, match=r"'v' is float64.*float32"):
        Server().ask(wide)


@pytest.mark.parametrize("rule", SERVER_RULES)
def test_replies_passed_in_are_neither_emptied_nor_changed(rule):
    server = Server(inner=SERVER_RULES[rule]().strategy())
    replies = [answer(m, c) for c, m in server.ask().items()]
    before = [bits(r.content["arrays"]) for r in replies]
    metrics = [dict(r.content["metrics"]) for r in replies]
    server.strategy.aggregate_train(1, replies)
    assert [bits(r.content["arrays"]) for r in replies] == before
    assert [dict(r.content["metrics"]) for r in replies] == metrics


def aggregate(rule, order, *, extra=(), lazily=False):
    """The aggregate and the record of one round whose replies come in ``order``."""
    server = Server(inner=SERVER_RULES[rule]().strategy())
    asked = server.ask()
    replies = [answer(asked[c], c) for c in order] + [f(asked) for f in extra]
    given_in = iter(replies) if lazily else replies
    arrays, _ = server.strategy.aggregate_train(1, given_in)
    return bits(arrays), server.history.round(1)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(5)), lazily=st.booleans())
@pytest.mark.parametrize("rule", ["fed_avg", "fed_median", "krum"])
def test_replies_may_come_in_any_order_and_lazily(rule, order, lazily):
    expected, kept = aggregate(rule, range(5))
    found, again = aggregate(rule, order, lazily=lazily)
    assert found == expected
    assert again.clients == kept.clients
    assert again.updates.tobytes() == kept.updates.tobytes()


def test_a_second_reply_of_a_client_is_set_aside():
    def twice(asked):
        return answer(asked[2], 77)

    expected, _ = aggregate("fed_avg", range(5))
    found, kept = aggregate("fed_avg", range(5), extra=[twice])
    assert found == expected
    assert [(s.client, s.reason) for s in kept.set_aside] == [(2, "answered twice")]


def test_replies_of_strangers_are_set_aside():
    def stranger(asked):
        request = Message(RecordDict({"arrays": initial_arrays()}), 99, "train")
        return answer(request, 1)

    expected, _ = aggregate("fed_avg", range(5))
    found, kept = aggregate("fed_avg", range(5), extra=[stranger])
    assert found == expected
    assert [(s.client, s.reason) for s in kept.set_aside] == [(None, "was not asked")]


def test_a_known_client_that_was_not_asked_is_set_aside():
    server = Server(settings={"cohort": lambda r, there: tuple(there)[:3]})
    asked = server.ask()
    request = Message(RecordDict({"arrays": initial_arrays()}), 5, "train")
    replies = [answer(request, 4), *(answer(m, c) for c, m in asked.items())]
    server.strategy.aggregate_train(1, replies)
    kept = server.history.round(1)
    assert (kept.asked, kept.clients) == ((0, 1, 2), (0, 1, 2))
    assert [(s.client, s.reason) for s in kept.set_aside] == [(4, "was not asked")]


def test_who_did_not_answer_stands_in_the_record():
    _, kept = aggregate("fed_avg", [0, 3])
    assert (kept.asked, kept.clients) == ((0, 1, 2, 3, 4), (0, 3))
    assert kept.num_examples.tolist() == [1, 4]


def test_a_round_without_any_usable_answer_is_an_error_that_says_why():
    server = Server(num_clients=2)
    asked = server.ask()
    with pytest.raises(EmptyRoundError, match=r"round 1.*2 asked; no reply came"):
        server.strategy.aggregate_train(1, [])
    bad = [answer(asked[0], 0, num_examples=0), answer(asked[1], 1, num_examples=None)]
    with pytest.raises(
        EmptyRoundError, match=r"client 0: num-examples is 0.*client 1: num-examples is"
    ):
        server.strategy.aggregate_train(1, bad)
    assert server.history.rounds == ()


def test_aggregating_a_round_that_was_not_configured_is_an_error():
    with pytest.raises(EmptyRoundError, match="round 1 was never configured"):
        Server().strategy.aggregate_train(1, [])


def test_withdrawn_clients_are_never_asked():
    seen, history = [], InMemoryHistory(LAYOUT)
    strategy = recording(
        asking_all(flower.FedAvg),
        history,
        withdrawn=[1, 4],
        cohort=lambda r, there: there,
    )
    start(strategy, seen)
    assert {client for _, client, *_ in seen} == {0, 2, 3}
    assert {history.round(r).asked for r in history.rounds} == {(0, 2, 3)}


def test_the_cohort_chooses_among_those_who_stay():
    offered, seen = [], []

    def cohort(server_round, there):
        offered.append(tuple(there))
        return tuple(sorted(there))[server_round - 1 : server_round + 1]

    strategy = recording(asking_all(flower.FedAvg), withdrawn=[0], cohort=cohort)
    start(strategy, seen, rounds=3)
    assert set(offered) == {(1, 2, 3, 4)}
    asked = {r: {c for s, c, *_ in seen if s == r} for r in (1, 2, 3)}
    assert asked == {1: {1, 2}, 2: {2, 3}, 3: {3, 4}}


@pytest.mark.parametrize(
    "who", [{"withdrawn": range(5)}, {"cohort": lambda r, there: ()}]
)
def test_a_round_with_nobody_to_ask_is_an_error(who):
    with pytest.raises(EmptyRoundError, match="round 1 has nobody to ask"):
        Server(settings=who).ask()


def test_nodes_that_connect_late_are_waited_for(monkeypatch):
    """Flower's runtimes start the ServerApp before any node is there."""
    arriving = iter([(), (), (1,), (1,), (1, 2, 3)])
    last = [()]

    def there():
        last[0] = next(arriving, last[0])
        return last[0]

    def no_sleep(seconds):
        """Nothing to wait for: the next look finds more nodes."""

    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", no_sleep)
    inner = flower.FedAvg(min_train_nodes=3, min_available_nodes=3)
    server = Server(inner=inner)
    server.grid = CohortGrid(NoGrid(), there)
    assert sorted(server.ask()) == [0, 1, 2]


class AskingOwnList(Strategy):
    """Ignores the grid it is shown and asks nodes 1 to 3."""

    def configure_train(self, server_round, arrays, config, grid):
        content = RecordDict({"arrays": arrays, "config": config})
        return [Message(content, node, "train") for node in (1, 2, 3)]

    def configure_evaluate(self, server_round, arrays, config, grid):
        content = RecordDict({"arrays": arrays, "config": config})
        return [Message(content, node, "evaluate") for node in (1, 2, 3)]

    def aggregate_train(self, server_round, replies):
        return None, None

    def aggregate_evaluate(self, server_round, replies):
        return None

    def summary(self):
        pass


@pytest.mark.parametrize("stage", ["configure_train", "configure_evaluate"])
def test_an_inner_strategy_cannot_reach_withdrawn_clients_past_the_grid(stage):
    server = Server(inner=AskingOwnList(), settings={"withdrawn": [2]})
    configure = getattr(server.strategy, stage)
    with pytest.raises(LeaverContactError, match=r"AskingOwnList.*client 2"):
        configure(1, initial_arrays(), ConfigRecord(), server.grid)


def test_a_strategy_that_gives_no_model_goes_through():
    server = Server(inner=AskingOwnList())
    asked = server.ask()
    replies = [answer(m, c) for c, m in asked.items()]
    assert server.strategy.aggregate_train(1, replies) == (None, None)
    assert server.history.rounds == (1,)


class Noting(InMemoryHistory):
    """A history that notes when it was written to."""

    def __init__(self, log):
        super().__init__(LAYOUT)
        self.log = log

    def append_round(self, record, state=None):
        self.log.append(("append", record.index))
        super().append_round(record, state)


class Aggregating(flower.FedAvg):
    """Notes the call; fails in round 2."""

    def __init__(self, log):
        super().__init__(fraction_evaluate=0.0)
        self.log = log

    def aggregate_train(self, server_round, replies):
        self.log.append(("aggregate", server_round))
        if server_round == 2:
            raise ZeroDivisionError
        return super().aggregate_train(server_round, replies)


def test_nobody_sees_a_model_before_the_round_that_made_it_is_recorded():
    log = []
    strategy = RecordingStrategy(
        Aggregating(log),
        Noting(log),
        directory=Directory(by_number),
        on_round=lambda r: log.append(("told", r.index)),
    )
    with pytest.raises(ZeroDivisionError):
        start(strategy, rounds=2)
    assert log == [("aggregate", 1), ("append", 1), ("told", 1), ("aggregate", 2)]


def test_a_round_whose_aggregation_fails_is_not_recorded():
    history = InMemoryHistory(LAYOUT)
    with pytest.raises(ZeroDivisionError):
        start(recording(Aggregating([]), history), rounds=2)
    assert history.rounds == (1,)
    assert history.tip.round == 1


class Decaying(flower.FedAvg):
    """Halves the learning rate every round in the ConfigRecord, as Flower shows it."""

    def configure_train(self, server_round, arrays, config, grid):
        config["lr"] *= 0.5
        return super().configure_train(server_round, arrays, config, grid)


def test_the_inner_strategy_gets_the_callers_config_and_may_let_it_decay():
    """Flower hands one ConfigRecord to every round and documents strategies on it."""
    config, seen, sent = ConfigRecord({"lr": 1.0}), [], []
    strategy = recording(asking_all(Decaying))
    grid = CohortGrid(NoGrid(), (1, 2))
    for server_round in (1, 2, 3):
        messages = strategy.configure_train(
            server_round, initial_arrays(), config, grid
        )
        sent = [m.content["config"] for m in messages]
        seen.append(config["lr"])
    assert seen == [0.5, 0.25, 0.125]
    assert all(c is config for c in sent)


def test_the_weight_may_have_another_name():
    inner = asking_all(flower.FedAvg)
    inner.weighted_by_key = "tokens"
    server = Server(inner=inner, settings={"weight_key": "tokens"})
    replies = [
        answer(m, c, num_examples=None, tokens=9 - c) for c, m in server.ask().items()
    ]
    server.strategy.aggregate_train(1, replies)
    assert server.history.round(1).num_examples.tolist() == [9, 8, 7, 6, 5]


def test_evaluation_leaves_withdrawn_clients_alone_and_sees_replies_in_order():
    inner = flower.FedAvg(
        evaluate_metrics_aggr_fn=lambda contents, key: MetricRecord(
            {"order": [int(c["metrics"]["who"]) for c in contents]}
        )
    )
    result = start(recording(inner, withdrawn=[2]))
    found = {r: m["order"] for r, m in result.evaluate_metrics_clientapp.items()}
    assert found == {r: [0, 1, 3, 4] for r in range(1, ROUNDS + 1)}


def test_an_evaluation_without_any_answer_is_no_error():
    strategy = recording(flower.FedAvg())
    assert strategy.aggregate_evaluate(1, iter([])) is None


def test_the_summary_is_the_inner_strategys(caplog):
    class Saying(AskingOwnList):
        def summary(self):
            said.append("inner")

    said = []
    recording(Saying()).summary()
    assert said == ["inner"]
