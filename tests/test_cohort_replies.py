"""A cohort that was trained as one answers as its clients would one by one."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from fedunlearn import params
from fedunlearn.arrays import MatrixArray, decode, encode, from_arrays, to_arrays
from fedunlearn.cohort import CohortResult
from fedunlearn.errors import EmptyRoundError, FedUnlearnError
from fedunlearn.flower_compat import claim_identity, copy_records, with_id
from fedunlearn.history import InMemoryHistory
from fedunlearn.params import Layout, weighted_mean
from fedunlearn.updates import MeanServer, Updates
from simulations.engine import SimulationGrid
from simulations.engine.grid import identify
from simulations.engine.trainer import CohortSpec
from strategies.answers import read_answers
from strategies.cohort_replies import CohortReplies
from strategies.directory import Directory
from strategies.flower_server import asking_all
from strategies.mean import mean_reply, takes_the_mean
from strategies.recording import RecordingStrategy
from strategies.replies import Broadcast
from strategies.server_rules import SERVER_RULES, server_of
from tests.flower_helpers import LAYOUT, bits, small_app, small_task


@pytest.fixture(autouse=True)
def one_thread():
    claim_identity()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def result_of(models, examples=None, **other):
    models = np.asarray(models, np.float32)
    count = len(models)
    rng = np.random.default_rng(count)
    examples = rng.integers(1, 99, count) if examples is None else examples
    settings = {
        "num_examples": np.asarray(examples, np.int64),
        "num_steps": rng.integers(1, 9, count),
        "num_samples": rng.integers(1, 500, count),
        "losses": rng.random(count),
        **other,
    }
    return CohortResult(models=models, **settings)


def random_models(count, layout=LAYOUT, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, layout.size)).astype(np.float32)


def orders_to(nodes, content=None):
    content = RecordDict() if content is None else content
    return [
        with_id(Message(content, dst_node_id=node, message_type="train"), f"m{node}")
        for node in nodes
    ]


def replies_of(result, nodes=None, layout=LAYOUT):
    nodes = range(1, len(result.models) + 1) if nodes is None else nodes
    return CohortReplies(orders_to(nodes), layout, result)


def made(order, layout, result, k):
    """The reply that a client would send."""
    content = RecordDict(
        {
            "arrays": ArrayRecord(
                {
                    n: Array(np.asarray(a))
                    for n, a in layout.unflatten(result.models[k]).items()
                }
            ),
            "metrics": MetricRecord(
                {
                    "num-examples": int(result.num_examples[k]),
                    "num-steps": int(result.num_steps[k]),
                    "num-samples": int(result.num_samples[k]),
                    "train-loss": float(result.losses[k]),
                }
            ),
        }
    )
    return Message(content, reply_to=order)


def all_of(message):
    """All there is to a reply, but the time at which it was made."""
    metadata = message.metadata
    arrays = message.content["arrays"]
    metrics = message.content["metrics"]
    return (
        (metadata.src_node_id, metadata.dst_node_id, metadata.reply_to_message_id),
        (metadata.message_type, metadata.group_id, metadata.run_id),
        list(message.content),
        [(n, a.dtype, tuple(a.shape), a.stype, a.data) for n, a in arrays.items()],
        [(n, type(v), v) for n, v in metrics.items()],
        message.has_error(),
    )


def test_it_is_a_list_of_the_replies_the_clients_would_send():
    result = result_of(random_models(4))
    replies = replies_of(result, nodes=[3, 9, 10, 20])
    expected = [
        all_of(made(order, LAYOUT, result, k))
        for k, order in enumerate(orders_to([3, 9, 10, 20]))
    ]
    assert len(replies) == 4
    assert replies.nodes == [3, 9, 10, 20]
    assert bool(replies)
    assert [all_of(m) for m in replies] == expected
    assert [all_of(m) for m in list(replies)] == expected
    assert [all_of(replies[k]) for k in range(4)] == expected
    assert [all_of(replies[k]) for k in range(-4, 0)] == expected
    assert [all_of(m) for m in reversed(replies)] == expected[::-1]
    assert all_of(replies[np.int64(2)]) == expected[2]
    everything = slice(None)
    for part in (everything, slice(1, 3), slice(None, None, -2), slice(5, 9)):
        assert isinstance(replies[part], list)
        assert [all_of(m) for m in replies[part]] == expected[part]


@pytest.mark.parametrize("index", [2, -3, 100])
def test_no_such_reply(index):
    replies = replies_of(result_of(random_models(2)))
    with pytest.raises(IndexError):
        replies[index]


def test_nobody_is_an_empty_list():
    replies = replies_of(result_of(np.zeros((0, LAYOUT.size))))
    assert len(replies) == 0
    assert list(replies) == []
    assert not replies


def test_arrays_are_copies_whoever_writes_to_them():
    models = random_models(3)
    before = models.copy()
    replies = replies_of(result_of(models))
    for message in replies:
        for array in message.content["arrays"].values():
            values = array.numpy()
            assert values.flags.writeable
            values += 1
            assert array.numpy().tobytes() != values.tobytes()
        message.content["arrays"].clear()
    assert models.tobytes() == before.tobytes()
    assert len(replies[0].content["arrays"]) == 3


@pytest.mark.parametrize(
    "values",
    [
        np.float32(3),
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.zeros((0, 3), np.float32),
        np.arange(12, dtype=np.float32)[::3],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([[np.nan, -0.0], [np.inf, 1e-45]], np.float32),
        np.arange(3, dtype=np.int64),
        np.arange(3, dtype=np.float16),
    ],
    ids=str,
)
def test_a_matrix_array_is_flowers_to_the_byte(values):
    values = np.asarray(values)
    own, flowers = (
        MatrixArray(values),
        Array(np.ascontiguousarray(values).reshape(values.shape)),
    )
    for made in (own, encode(values)):
        found = (made.dtype, tuple(made.shape), made.stype, made.data)
        assert found == (
            flowers.dtype,
            tuple(flowers.shape),
            flowers.stype,
            flowers.data,
        )
        back = decode(made)
        assert (back.dtype, back.shape) == (values.dtype, values.shape)
        assert back.tobytes() == values.tobytes() == made.numpy().tobytes()
        assert back.flags.writeable
        assert not np.shares_memory(back, values)
    record = RecordDict({"arrays": ArrayRecord({"a": own})})
    assert copy_records(record)["arrays"]["a"].data == flowers.data


def test_a_matrix_array_is_the_object_flower_would_send():
    """Flower's wire format names the class: what it does not know it cannot read."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    own, flowers = MatrixArray(values), Array(values)
    assert own.deflate() == flowers.deflate()
    assert own.object_id == flowers.object_id


# Reading: the fast path says what the slow one does.


def broadcast(asked, model=None, layout=LAYOUT):
    model = random_models(1, layout, seed=9)[0] if model is None else model
    return Broadcast.of(to_arrays(model, layout), tuple(asked))


def client_of(node):
    return node - 1 if node < 100 else None


def told(answers, strategy):
    """All that is seen of answers, and what a strategy makes of them."""
    updates = answers.updates
    arrays = (updates.before, updates.after, updates.deltas, updates.num_examples)
    arrays += (updates.num_steps, updates.num_samples)
    merged = []
    if updates.clients:
        made, metrics = strategy.aggregate_train(1, answers.messages(strategy))
        merged = [bits(made), {n: repr(v) for n, v in metrics.items()}]
    return (
        updates.clients,
        [(a.dtype, a.shape, a.tobytes()) for a in arrays],
        [(s.client, s.reason) for s in answers.aside],
        repr(answers.loss),
        merged,
    )


def slow_path_taken(answers, replies):
    return answers.updates.after is not replies.result.models


def assert_same_reading(replies, sent, *, fast, weight_key="num-examples"):
    strategy = asking_all(flower.FedAvg)
    found = read_answers(replies, sent, client_of, weight_key)
    wanted = read_answers(list(replies), sent, client_of, weight_key)
    assert slow_path_taken(found, replies) != fast
    assert told(found, strategy) == told(wanted, strategy)
    median = asking_all(flower.FedMedian)
    assert told(found, median) == told(wanted, median)
    # Messages can be asked for again: the first reader may have emptied its own.
    assert told(found, median) == told(wanted, median)
    return found


def test_all_that_were_asked_answer():
    replies = replies_of(result_of(random_models(4)))
    found = assert_same_reading(replies, broadcast(range(4)), fast=True)
    assert found.updates.clients == (0, 1, 2, 3)


def test_some_of_those_asked_answer():
    replies = replies_of(result_of(random_models(3)), nodes=[1, 4, 5])
    found = assert_same_reading(replies, broadcast(range(6)), fast=True)
    assert found.updates.clients == (0, 3, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("row", [0, 2])
def test_a_row_that_is_not_finite_is_set_aside(value, row):
    models = random_models(3)
    models[row, 5] = value
    replies = replies_of(result_of(models))
    found = assert_same_reading(replies, broadcast(range(3)), fast=False)
    assert [s.client for s in found.aside] == [row]
    assert len(found.updates.clients) == 2


def test_infinities_that_cancel_are_seen():
    models = random_models(3)
    models[1, 2], models[1, 7] = np.inf, -np.inf
    found = assert_same_reading(
        replies_of(result_of(models)), broadcast(range(3)), fast=False
    )
    assert found.updates.clients == (0, 2)


def test_large_models_are_kept():
    models = np.full((3, LAYOUT.size), 1e38, np.float32)
    found = assert_same_reading(
        replies_of(result_of(models)), broadcast(range(3)), fast=False
    )
    assert found.updates.clients == (0, 1, 2)


def test_all_rows_bad():
    models = np.full((2, LAYOUT.size), np.nan, np.float32)
    found = assert_same_reading(
        replies_of(result_of(models)), broadcast(range(2)), fast=False
    )
    assert found.updates.clients == ()


def test_nobody_answers():
    replies = replies_of(result_of(np.zeros((0, LAYOUT.size))))
    found = read_answers(replies, broadcast(range(2)), client_of)
    wanted = read_answers([], broadcast(range(2)), client_of)
    assert found.updates.clients == wanted.updates.clients == ()
    assert found.updates.after.shape == wanted.updates.after.shape
    assert found.loss == wanted.loss


def test_a_client_without_examples_is_set_aside():
    replies = replies_of(result_of(random_models(3), examples=[4, 0, 2]))
    found = assert_same_reading(replies, broadcast(range(3)), fast=False)
    assert found.updates.clients == (0, 2)


@pytest.mark.parametrize("nodes", [[1, 2, 9], [9, 1, 2], [1, 2, 100]], ids=str)
def test_a_client_that_was_not_asked_is_set_aside(nodes):
    replies = replies_of(result_of(random_models(3)), nodes=nodes)
    found = assert_same_reading(replies, broadcast(range(4)), fast=False)
    assert found.updates.clients == (0, 1)
    assert [s.reason for s in found.aside] == ["was not asked"]


@pytest.mark.parametrize("nodes", [[2, 1, 3], [3, 2, 1], [1, 3, 2]], ids=str)
def test_rows_out_of_order_are_put_in_order(nodes):
    replies = replies_of(result_of(random_models(3)), nodes=nodes)
    found = assert_same_reading(replies, broadcast(range(3)), fast=False)
    assert found.updates.clients == (0, 1, 2)


def test_a_client_that_answers_twice():
    replies = replies_of(result_of(random_models(3)), nodes=[1, 1, 2])
    found = assert_same_reading(replies, broadcast(range(3)), fast=False)
    assert found.updates.clients == (0, 1)


def test_another_weight_key():
    replies = replies_of(result_of(random_models(3)))
    # FedAvg weighs by num-examples here; what counts is how replies are read.
    found = assert_same_reading(
        replies, broadcast(range(3)), fast=False, weight_key="num-samples"
    )
    assert found.updates.num_examples.tolist() == replies.result.num_samples.tolist()
    nothing = assert_same_reading(
        replies, broadcast(range(3)), fast=False, weight_key="weight"
    )
    assert nothing.updates.clients == ()


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite(loss):
    losses = np.array([0.5, loss, 0.25])
    replies = replies_of(result_of(random_models(3), losses=losses))
    found = assert_same_reading(replies, broadcast(range(3)), fast=True)
    assert found.loss is None


def test_a_broadcast_in_another_order_of_names():
    """Flower keeps the order of whoever made the first record."""
    turned = Layout(LAYOUT.names[::-1], LAYOUT.shapes[::-1])
    replies = replies_of(result_of(random_models(3)))
    sent = broadcast(range(3), layout=turned)
    strategy = asking_all(flower.FedAvg)
    found = told(read_answers(replies, sent, client_of), strategy)
    wanted = told(read_answers(list(replies), sent, client_of), strategy)
    assert found[:4] == wanted[:4]


def test_a_broadcast_that_carries_an_integer_array():
    arrays = to_arrays(random_models(1)[0], LAYOUT, {"count": Array(np.arange(2))})
    replies = replies_of(result_of(random_models(3)))
    found = assert_same_reading(replies, Broadcast.of(arrays, (0, 1, 2)), fast=False)
    assert found.updates.clients == ()  # an array is missing


@settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(st.integers(0, 7), unique=True, max_size=6).map(sorted),
    nodes=st.lists(st.sampled_from([*range(1, 9), 100, 101]), min_size=1, max_size=6),
    bad=st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=6, max_size=6),
)
def test_whatever_comes_is_read_alike(asked, nodes, bad):
    claim_identity()
    models, examples = random_models(len(nodes)), np.arange(1, len(nodes) + 1)
    for k in range(len(nodes)):
        if bad[k] == 1:
            models[k, k] = np.nan
        if bad[k] == 2:
            examples[k] = 0
    replies = replies_of(result_of(models, examples), nodes=nodes)
    sent, strategy = broadcast(asked), asking_all(flower.FedAvg)
    found = told(read_answers(replies, sent, client_of), strategy)
    assert found == told(read_answers(list(replies), sent, client_of), strategy)


# One reply for all.


def updates_of(result, clients=None):
    count = len(result.models)
    return Updates(
        clients=tuple(range(count)) if clients is None else clients,
        before=np.zeros(result.models.shape[1], np.float32),
        after=result.models,
        num_examples=result.num_examples,
        num_steps=result.num_steps,
        num_samples=result.num_samples,
    )


def flowers(strategy, messages):
    arrays, metrics = strategy.aggregate_train(1, messages)
    return bits(arrays), [(n, repr(v)) for n, v in metrics.items()]


def one_for_all(result, layout, order):
    metrics = {
        "num-steps": result.num_steps,
        "num-samples": result.num_samples,
        "train-loss": result.losses,
    }
    return mean_reply(order, updates_of(result), layout, metrics)


FLAT = {size: Layout(("w",), ((size,),)) for size in range(1, 4)}
BLOCK = params._BLOCK
ZERO = np.array([[-0.0, 0.0, 1e-45, -1.0], [-0.0, -0.0, 1e-45, 1.0]], np.float32)


@pytest.mark.parametrize(
    ("models", "examples"),
    [
        (random_models(1), [7]),
        (random_models(2), None),
        (random_models(7), None),
        (random_models(3), [2**53, 1, 2**52 + 1]),
        (random_models(3), [2**53 - 1, 2**53 - 3, 2**53 - 5]),
        (random_models(1), [2**53]),
        (random_models(1000), None),
        (ZERO, [1, 2]),
        (ZERO[:1], [3]),
        (np.random.default_rng(0).normal(size=(3, BLOCK - 1)), None),
        (np.random.default_rng(1).normal(size=(3, BLOCK)), None),
        (np.random.default_rng(2).normal(size=(3, BLOCK + 1)), None),
        (np.random.default_rng(3).normal(size=(2, 2 * BLOCK + 3)), None),
    ],
    ids=lambda v: str(v) if isinstance(v, list) else None,
)
def test_the_mean_of_all_is_flowers_own(models, examples):
    result = result_of(models, examples)
    size = result.models.shape[1]
    layout = LAYOUT if size == LAYOUT.size else Layout(("w",), ((size,),))
    replies = replies_of(result, layout=layout)
    strategy = asking_all(flower.FedAvg)
    wanted = flowers(strategy, list(replies))
    assert flowers(strategy, [one_for_all(result, layout, replies.orders[0])]) == wanted
    mean = MeanServer().step(updates_of(result))
    assert bits(to_arrays(mean, layout)) == wanted[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 2**53), min_size=1, max_size=9), st.integers(0, 99))
def test_any_counts_weigh_as_in_flower(examples, seed):
    claim_identity()
    result = result_of(random_models(len(examples), seed=seed), examples)
    replies = replies_of(result)
    strategy = asking_all(flower.FedAvg)
    wanted = flowers(strategy, list(replies))
    assert flowers(strategy, [one_for_all(result, LAYOUT, replies.orders[0])]) == wanted


def test_blocks_do_not_show():
    rng = np.random.default_rng(0)
    for size in (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7):
        rows = rng.normal(size=(5, size)).astype(np.float32)
        weights = rng.integers(1, 100, 5).tolist()
        factors = [np.float32(w / sum(weights)) for w in weights]
        expected = rows[0] * factors[0]
        for row, factor in zip(rows[1:], factors[1:], strict=True):
            expected += row * factor
        before = rows.tobytes()
        assert weighted_mean(rows, weights).tobytes() == expected.tobytes()
        assert weighted_mean(list(rows), weights).tobytes() == expected.tobytes()
        assert rows.tobytes() == before


class Nosy(flower.FedAvg):
    """Looks at every reply before it takes their mean."""

    def aggregate_train(self, server_round, replies):
        messages = list(replies)
        self.seen = getattr(self, "seen", [])
        self.seen += [(all_of(m)[3], dict(m.content["metrics"])) for m in messages]
        return super().aggregate_train(server_round, messages)


MEANS = [
    flower.FedAvg,
    flower.FedAvgM,
    flower.FedProx,
    flower.FedAdam,
    flower.FedAdagrad,
    flower.FedYogi,
]
STRATEGIES = {
    "FedAvg": lambda: asking_all(flower.FedAvg),
    "FedAvgM": lambda: asking_all(flower.FedAvgM, server_momentum=0.9),
    "FedProx": lambda: asking_all(flower.FedProx, proximal_mu=0.3),
    "FedAdam": lambda: asking_all(flower.FedAdam),
    "FedAdagrad": lambda: asking_all(flower.FedAdagrad),
    "FedYogi": lambda: asking_all(flower.FedYogi),
    "FedMedian": lambda: asking_all(flower.FedMedian),
    "FedTrimmedAvg": lambda: asking_all(flower.FedTrimmedAvg, beta=0.2),
    "Krum": lambda: asking_all(flower.Krum, num_malicious_nodes=1),
    "a subclass": lambda: asking_all(Nosy),
    "own metrics": lambda: asking_all(
        flower.FedAvg,
        train_metrics_aggr_fn=lambda records, key: MetricRecord(
            {"worst": max(r["metrics"]["train-loss"] for r in records)}
        ),
    ),
}


def test_who_is_given_the_mean():
    given_it = [n for n, make in STRATEGIES.items() if takes_the_mean(make())]
    assert given_it == [kind.__name__ for kind in MEANS]
    assert not takes_the_mean(asking_all(flower.FedAvg, weighted_by_key="num-steps"))


# Through a grid.


def poisoned(task, client):
    data = list(task.clients)
    bad = data[client]
    x = bad.x.copy()
    x[0] = np.nan
    data[client] = replace(bad, x=x)
    return replace(task, clients=tuple(data))


TASKS = {
    "all answer": small_task((20, 7, 13, 16, 5), momentum=0.5),
    "one has nothing": small_task((20, 7, 0, 16, 5, 8)),
    "one diverges": poisoned(small_task((20, 7, 13, 16, 5, 8)), 3),
}


def federation(task, strategy, kernel, *, arrays=None, rounds=3, config=(), **grid):
    """All that a federation leaves."""
    history = InMemoryHistory(task.layout)
    recording = RecordingStrategy(strategy, history, directory=Directory(identify))
    cohorts = None if kernel is None else CohortSpec(task=task, kernel=kernel)
    if arrays is None:
        arrays = to_arrays(task.initial_model(1), task.layout)
    with SimulationGrid(
        small_app(task), num_clients=len(task.clients), cohorts=cohorts, **grid
    ) as engine:
        done = recording.start(
            engine,
            arrays,
            num_rounds=rounds,
            train_config=ConfigRecord({"seed": 2, **dict(config)}),
        )
    records = [
        (
            r.clients,
            r.asked,
            [(s.client, s.reason) for s in r.set_aside],
            repr(r.loss),
            r.updates.tobytes(),
            r.broadcast.tobytes(),
            [a.tolist() for a in (r.num_examples, r.num_steps, r.num_samples)],
        )
        for r in map(history.round, history.rounds)
    ]
    metrics = {
        at: [(n, repr(v)) for n, v in m.items()]
        for at, m in done.train_metrics_clientapp.items()
    }
    return bits(done.arrays), records, metrics, getattr(strategy, "seen", None)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("task", TASKS)
def test_by_the_reference_kernel_a_federation_is_the_same_to_the_bit(name, task):
    make = STRATEGIES[name]
    plain = federation(TASKS[task], make(), None)
    assert federation(TASKS[task], make(), "reference") == plain
    assert len(plain[1]) == 3
    assert bool(plain[1][0][2]) == (task != "all answer")


def updates(told, task):
    _, records, _, _ = told
    return np.concatenate(
        [np.frombuffer(r[4], np.float32).reshape(-1, task.layout.size) for r in records]
    )


@pytest.mark.parametrize("kernel", ["fused", "batched", "vmap"])
def test_by_other_kernels_up_to_rounding(kernel):
    task = TASKS["all answer"]
    plain = federation(task, STRATEGIES["FedAvgM"](), None)
    found = federation(task, STRATEGIES["FedAvgM"](), kernel)
    wanted, given = updates(plain, task), updates(found, task)
    off = np.linalg.norm(given - wanted, axis=1)
    assert (off <= 1e-3 * np.linalg.norm(wanted, axis=1)).all()
    for one, other in zip(found[1], plain[1], strict=True):
        assert one[:3] == other[:3]
        assert one[6] == other[6]
        assert float(one[3]) == pytest.approx(float(other[3]), rel=1e-5)


@pytest.mark.parametrize("name", ["FedAvg", "FedMedian", "FedAdam", "a subclass"])
def test_a_strategy_that_is_not_recorded(name):
    """It gets the replies themselves, which behave as a list."""
    task = TASKS["all answer"]

    def run(cohorts):
        random.seed(5)  # Flower draws the order of nodes from it
        strategy = STRATEGIES[name]()
        with SimulationGrid(small_app(task), num_clients=5, cohorts=cohorts) as grid:
            done = strategy.start(
                grid, to_arrays(task.initial_model(1), task.layout), num_rounds=2
            )
        return bits(done.arrays), {
            r: dict(m) for r, m in done.train_metrics_clientapp.items()
        }

    assert run(CohortSpec(task=task, kernel="reference")) == run(None)


def test_the_kernel_did_train(monkeypatch):
    """Else the comparisons above would compare a thing with itself."""
    task, calls = TASKS["all answer"], []
    whole = CohortReplies.__init__

    def noting(self, *given):
        calls.append(len(given[0]))
        whole(self, *given)

    monkeypatch.setattr(CohortReplies, "__init__", noting)
    federation(task, STRATEGIES["FedAvg"](), "reference")
    assert calls == [5, 5, 5]


def test_clients_that_are_silent():
    def answering(work, clients):
        return [(c + work.round_index) % 3 > 0 for c in clients]

    task = TASKS["all answer"]
    plain = federation(task, STRATEGIES["FedAvg"](), None, answering=answering)
    found = federation(task, STRATEGIES["FedAvg"](), "reference", answering=answering)
    assert found == plain
    assert all(len(r[0]) < len(r[1]) for r in plain[1])


def test_nobody_answers_a_round():
    task = TASKS["all answer"]

    def silent(work, clients):
        return [False] * len(clients)

    for kernel in (None, "reference"):
        with pytest.raises(EmptyRoundError, match="no reply came"):
            federation(task, STRATEGIES["FedAvg"](), kernel, answering=silent)


def outcome(*given, **named):
    """What a federation leaves, or the error of ours it ends with."""
    try:
        return federation(*given, **named)
    except FedUnlearnError as error:
        return type(error).__name__


def test_initial_arrays_in_another_order():
    """A server may list a model's arrays in any order, such as the alphabet's."""
    task = TASKS["all answer"]
    named = to_arrays(task.initial_model(1), task.layout)
    turned = ArrayRecord({name: named[name] for name in sorted(named)[::-1]})
    assert list(turned) != list(task.layout.names)
    layout = Layout.of({n: a.numpy() for n, a in turned.items()})

    def run(kernel):
        history = InMemoryHistory(layout)
        strategy = RecordingStrategy(
            STRATEGIES["FedAvg"](), history, directory=Directory(identify)
        )
        cohorts = None if kernel is None else CohortSpec(task=task, kernel=kernel)
        with SimulationGrid(small_app(task), num_clients=5, cohorts=cohorts) as grid:
            done = strategy.start(grid, turned, num_rounds=2)
        found = [history.round(r) for r in history.rounds]
        return from_arrays(done.arrays, task.layout).tobytes(), [
            (r.broadcast.tobytes(), r.updates.tobytes()) for r in found
        ]

    assert run("reference") == run(None)


def test_initial_arrays_in_half_precision():
    task = TASKS["all answer"]
    named = task.layout.unflatten(task.initial_model(1))
    halves = ArrayRecord({n: Array(a.astype(np.float16)) for n, a in named.items()})
    plain = outcome(task, STRATEGIES["FedAvg"](), None, arrays=halves)
    assert outcome(task, STRATEGIES["FedAvg"](), "reference", arrays=halves) == plain


@pytest.mark.parametrize(
    "config",
    [
        {"epochs": 0},
        {"epochs": 0.5, "proximal-mu": 0.2},
        {"note": "hello", "layers": [1, 2]},
        {"seed": -1},
        {"epochs": "many"},
        {"epochs": [1.0]},
        {"seed": 2**63 - 1},
    ],
    ids=str,
)
def test_odd_orders_are_refused_or_carried_out_alike(config):
    task = TASKS["all answer"]
    plain = outcome(task, STRATEGIES["FedAvg"](), None, config=config.items())
    found = outcome(task, STRATEGIES["FedAvg"](), "reference", config=config.items())
    assert found == plain


@pytest.mark.parametrize("rule", ["fed_avg", "fed_adam", "krum"])
def test_methods_replay_what_a_cohort_trained(rule):
    """The server as methods use it comes to the strategy's bits."""
    task = TASKS["all answer"]
    history = InMemoryHistory(task.layout)
    strategy = RecordingStrategy(
        SERVER_RULES[rule]().strategy(), history, directory=Directory(identify)
    )
    cohorts = CohortSpec(task=task, kernel="batched")
    with SimulationGrid(small_app(task), num_clients=5, cohorts=cohorts) as grid:
        done = strategy.start(
            grid, to_arrays(task.initial_model(1), task.layout), num_rounds=1
        )
    record = history.round(1)
    server = server_of(SERVER_RULES[rule](), task.layout)
    replies_after = record.broadcast + record.updates
    step = server.step(
        Updates(
            clients=record.clients,
            before=record.broadcast,
            after=replies_after,
            num_examples=record.num_examples,
            num_steps=record.num_steps,
            num_samples=record.num_samples,
        )
    )
    # Models come from stored differences here: equal up to their rounding.
    wanted = from_arrays(done.arrays, task.layout)
    np.testing.assert_allclose(step, wanted, rtol=1e-4, atol=1e-6)
