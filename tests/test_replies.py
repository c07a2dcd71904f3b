"""A bad reply is set aside with its reason and never reaches the aggregate."""

import io
import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.server_rules import SERVER_RULES
from tests.flower_helpers import (
    Server,
    answer,
    bits,
    initial_arrays,
    record,
    values,
)


def edit(name, change):
    """A fault: one array of an otherwise good reply is another."""

    def fault(message, client):
        reply = answer(message, client)
        arrays = reply.content["arrays"]
        changed = change(arrays[name].numpy())
        arrays[name] = changed if isinstance(changed, Array) else Array(changed)
        return reply

    return fault


def put(value):
    def change(array):
        array[0] = value
        return array

    return change


def metric(value):
    """A fault: ``num-examples`` is this value, None for missing."""
    return lambda message, client: answer(message, client, num_examples=value)


def content(**records):
    """A fault: records are added, or left out where the value is None."""

    def fault(message, client):
        reply = answer(message, client)
        for name, value in records.items():
            if value is None:
                del reply.content[name]
            else:
                reply.content[name] = value
        return reply

    return fault


def extra(message, client):
    reply = answer(message, client)
    reply.content["arrays"]["x"] = record(x=np.zeros(1, np.float32))["x"]
    return reply


def missing(message, client):
    reply = answer(message, client)
    del reply.content["arrays"]["b"]
    return reply


def failed(message, client):
    return Message(
        Error(2, "Traceback ...\nValueError: no data today"), reply_to=message
    )


def failed_silently(message, client):
    return Message(Error(8), reply_to=message)


def archive(array):
    """An ``.npz`` of the array, which ``np.load`` opens as well."""
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return Array("float32", array.shape, "numpy.ndarray", buffer.getvalue())


def lying(array):
    """Says float32 and the right shape; the bytes hold something else."""
    wide = Array(np.zeros(5, np.float32))
    return Array("float32", array.shape, "numpy.ndarray", wide.data)


def claims_float32(array):
    return Array(
        "float32", array.shape, "numpy.ndarray", Array(array.astype(np.float64)).data
    )


def bytes_of(data, stype="numpy.ndarray"):
    return lambda array: Array("float32", array.shape, stype, data)


WEIGHT = "num-examples is {}, not a positive whole number"
ONE_EACH = "does not hold exactly one array record and one metric record"
FAULTS = {
    "nan": (edit("w", put(np.nan)), "array 'w' holds NaN or infinity"),
    "inf": (edit("b", put(np.inf)), "array 'b' holds NaN or infinity"),
    "minus inf": (edit("b", put(-np.inf)), "array 'b' holds NaN or infinity"),
    "nan scalar": (
        edit("s", lambda a: np.asarray(np.float32(np.nan))),
        "array 's' holds NaN or infinity",
    ),
    "shape": (
        edit("w", lambda a: a[:2]),
        "array 'w' has shape (2, 4), not (3, 4)",
    ),
    "transposed": (
        edit("w", lambda a: np.ascontiguousarray(a.T)),
        "array 'w' has shape (4, 3), not (3, 4)",
    ),
    "flat": (edit("w", np.ravel), "array 'w' has shape (12,), not (3, 4)"),
    "broadcastable": (
        edit("b", lambda a: a[:1]),
        "array 'b' has shape (1,), not (3,)",
    ),
    "dtype": (
        edit("w", lambda a: a.astype(np.float64)),
        "array 'w' is float64, not float32",
    ),
    "integers": (
        edit("w", lambda a: a.astype(np.int64)),
        "array 'w' is int64, not float32",
    ),
    "big endian": (
        edit("w", lambda a: a.astype(">f4")),
        "array 'w' is >f4, not float32",
    ),
    "lying shape": (edit("w", lying), "array 'w' has shape (5,), not (3, 4)"),
    "lying dtype": (edit("w", claims_float32), "array 'w' is float64, not float32"),
    "rubbish": (edit("w", bytes_of(b"rubbish")), "array 'w' cannot be read"),
    "no bytes": (edit("w", bytes_of(b"")), "array 'w' cannot be read"),
    "broken zip": (edit("w", bytes_of(b"PK\x03\x04??")), "array 'w' cannot be read"),
    "archive": (edit("w", archive), "array 'w' cannot be read"),
    "other form": (edit("w", bytes_of(b"", "torch")), "array 'w' cannot be read"),
    "missing": (missing, "array 'b' is missing"),
    "extra": (extra, "array 'x' is extra"),
    "weight 0": (metric(0), WEIGHT.format(0)),
    "weight -1": (metric(-1), WEIGHT.format(-1)),
    "weight nan": (metric(math.nan), WEIGHT.format("nan")),
    "weight inf": (metric(math.inf), WEIGHT.format("inf")),
    "weight 2.5": (metric(2.5), WEIGHT.format(2.5)),
    "weight 2**63": (metric(2**63), WEIGHT.format("huge")),
    "weight 1e300": (metric(1e300), WEIGHT.format("1e+300")),
    "weight True": (metric(True), WEIGHT.format("True")),
    "weight str": (metric("12"), WEIGHT.format("'12'")),
    "weight list": (metric([3]), WEIGHT.format("[3]")),
    "weight missing": (metric(None), WEIGHT.format("None")),
    "two array records": (content(more=record(w=np.zeros(2, np.float32))), ONE_EACH),
    "two metric records": (content(more=MetricRecord({"num-examples": 3})), ONE_EACH),
    "no metric record": (content(metrics=None), ONE_EACH),
    "no array record": (content(arrays=None), ONE_EACH),
    "empty arrays": (content(arrays=ArrayRecord()), "array 'b' is missing"),
    "error": (failed, "failed: ValueError: no data today"),
    "error without text": (failed_silently, "failed: error 8"),
}


def run(bad, rule="fed_avg"):
    """Return the aggregate and the record when ``bad`` clients answer with a fault."""
    server = Server(inner=SERVER_RULES[rule]().strategy())
    replies = [
        FAULTS[bad[c]][0](m, c) if c in bad else answer(m, c)
        for c, m in server.ask().items()
    ]
    arrays, metrics = server.strategy.aggregate_train(1, replies)
    return bits(arrays), dict(metrics), server.history.round(1)


def without(clients, rule="fed_avg"):
    """Return the aggregate when these clients do not answer at all."""
    server = Server(inner=SERVER_RULES[rule]().strategy())
    replies = [answer(m, c) for c, m in server.ask().items() if c not in clients]
    arrays, metrics = server.strategy.aggregate_train(1, replies)
    return bits(arrays), dict(metrics)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_reply_is_set_aside_with_its_reason(fault):
    arrays, metrics, kept = run({1: fault})
    assert (arrays, metrics) == without({1})
    assert kept.clients == (0, 2, 3, 4)
    assert kept.asked == (0, 1, 2, 3, 4)
    assert kept.updates.shape[0] == len(kept.num_examples) == 4
    assert [(s.client, s.reason) for s in kept.set_aside] == [(1, FAULTS[fault][1])]


@settings(max_examples=60, deadline=None)
@given(
    bad=st.dictionaries(st.integers(0, 4), st.sampled_from(sorted(FAULTS)), max_size=4),
    rule=st.sampled_from(["fed_avg", "fed_median", "fed_avgm", "fed_adam"]),
)
def test_any_bad_replies_leave_the_aggregate_of_the_others(bad, rule):
    arrays, metrics, kept = run(bad, rule)
    assert (arrays, metrics) == without(bad, rule)
    assert kept.clients == tuple(c for c in range(5) if c not in bad)
    assert [(s.client, s.reason) for s in kept.set_aside] == [
        (c, FAULTS[bad[c]][1]) for c in sorted(bad)
    ]
    assert np.isfinite(kept.updates).all()


@pytest.mark.parametrize("value", [1, 7.0, 2**40])
def test_whole_positive_weights_are_accepted_as_int_or_float(value):
    server = Server(num_clients=2)
    replies = [answer(m, c, num_examples=value) for c, m in server.ask().items()]
    server.strategy.aggregate_train(1, replies)
    assert server.history.round(1).num_examples.tolist() == [value, value]


@pytest.mark.parametrize(
    "value", [[3, 4], math.nan, math.inf, -1, 2.5, None, 2**63, 1e300], ids=repr
)
@pytest.mark.parametrize("name", ["num_steps", "num_samples"])
def test_step_counts_that_are_no_counts_are_read_as_not_said(name, value):
    """Only the weight decides about a reply; a strange step count costs a zero."""
    server = Server()
    replies = [answer(m, c, **{name: value}) for c, m in server.ask().items()]
    arrays, _ = server.strategy.aggregate_train(1, replies)
    kept = server.history.round(1)
    assert bits(arrays) == without(())[0]
    assert kept.clients == (0, 1, 2, 3, 4)
    assert getattr(kept, name).tolist() == [0] * 5


ODD = "names its records or metrics unlike the others"


def renamed(message, client):
    reply = answer(message, client)
    reply.content["weights"] = reply.content["arrays"]
    del reply.content["arrays"]
    return reply


def renamed_metrics(message, client):
    reply = answer(message, client)
    reply.content["numbers"] = reply.content["metrics"]
    del reply.content["metrics"]
    return reply


ODD_REPLIES = {
    "a metric more": lambda m, c: answer(m, c, train_loss=0.5),
    "a metric less": lambda m, c: answer(m, c, num_steps=None),
    "a list for a number": lambda m, c: answer(m, c, num_steps=[1, 2]),
    "another array record": renamed,
    "another metric record": renamed_metrics,
}


@pytest.mark.parametrize("odd", ODD_REPLIES)
@pytest.mark.parametrize("client", [0, 3])
def test_one_client_with_other_names_does_not_stop_the_round(odd, client):
    """Flower's own aggregation raises if replies differ in names or kinds."""
    server = Server()
    replies = [
        ODD_REPLIES[odd](m, c) if c == client else answer(m, c)
        for c, m in server.ask().items()
    ]
    arrays, _ = server.strategy.aggregate_train(1, replies)
    kept = server.history.round(1)
    assert bits(arrays) == without({client})[0]
    assert [(s.client, s.reason) for s in kept.set_aside] == [(client, ODD)]


def test_of_two_equal_camps_the_one_of_the_lowest_client_stays():
    server = Server(num_clients=4)
    replies = [
        answer(m, c, **({"train_loss": 1.0} if c in (1, 2) else {}))
        for c, m in server.ask().items()
    ]
    server.strategy.aggregate_train(1, reversed(replies))
    assert server.history.round(1).clients == (0, 3)


def test_a_config_record_in_a_reply_is_no_fault():
    server = Server(num_clients=2)
    replies = [
        content(note=ConfigRecord({"battery": "low"}))(m, c)
        for c, m in server.ask().items()
    ]
    server.strategy.aggregate_train(1, replies)
    assert server.history.round(1).clients == (0, 1)


def test_a_bad_reply_may_be_followed_by_a_good_one():
    server = Server(num_clients=2)
    asked = server.ask()
    replies = [
        failed(asked[0], 0),
        answer(asked[0], 0),
        answer(asked[1], 1),
    ]
    server.strategy.aggregate_train(1, replies)
    kept = server.history.round(1)
    assert kept.clients == (0, 1)
    assert [s.client for s in kept.set_aside] == [0]


def test_an_integer_array_may_come_back_as_it_was_first_sent():
    """From round 2 Flower sends BatchNorm's counter as float64; torch answers int64."""
    server = Server(num_clients=2)
    arrays = initial_arrays()
    arrays["count"] = record(count=np.int64(3))["count"]
    first = [answer(m, c) for c, m in server.ask(arrays).items()]
    averaged, _ = server.strategy.aggregate_train(1, first)
    assert averaged["count"].dtype == "float64"
    asked = server.ask(averaged, server_round=2)
    replies = [answer(m, c) for c, m in asked.items()]
    for dtype, reply in zip((np.int64, np.float64), replies, strict=True):
        reply.content["arrays"]["count"] = Array(np.asarray(4).astype(dtype))
    server.strategy.aggregate_train(2, replies)
    assert server.history.round(2).clients == (0, 1)
    assert server.history.round(2).updates.shape == (2, 16)


def test_the_record_holds_the_float32_model_that_was_sent():
    server = Server(num_clients=2)
    sent = initial_arrays()
    asked = server.ask(sent)
    server.strategy.aggregate_train(1, [answer(m, c) for c, m in asked.items()])
    broadcast = server.history.round(1).broadcast
    assert broadcast.dtype == np.float32
    flat = np.concatenate([a.ravel() for a in values(sent).values()])
    assert broadcast.tobytes() == flat.tobytes()
