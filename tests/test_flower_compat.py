"""What fedunlearn touches of Flower's insides, for the version that is installed."""

from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedunlearn import flower_compat
from fedunlearn.flower_compat import (
    SERVER_NODE_ID,
    TESTED_FLOWER,
    claim_identity,
    copy_records,
    with_id,
    with_own_records,
)
from tests.flower_helpers import bits, record

FIELDS = ("_task_id", "_run_id", "_node_id")


@pytest.fixture
def identity(monkeypatch):
    """Sets Flower's process-wide identity for one test."""

    def put(*values):
        for name, value in zip(FIELDS, values, strict=True):
            monkeypatch.setattr(TaskIdentity, name, value)

    return put


def found():
    return tuple(TaskIdentity.__dict__[name] for name in FIELDS)


def content():
    return RecordDict(
        {
            "arrays": record(w=np.arange(3, dtype=np.float32)),
            "config": ConfigRecord({"lr": 0.5, "layers": [1, 2], "name": "x"}),
            "metrics": MetricRecord({"n": 3, "losses": [0.5, 0.25]}),
        }
    )


def message():
    claim_identity()
    return Message(content(), 7, "train.calibrate", ttl=60.0, group_id="g")


def test_the_installed_flower_is_a_tested_one():
    assert version("flwr").rsplit(".", 1)[0] in TESTED_FLOWER


def test_the_error_codes_are_flowers():
    assert flower_compat.CLIENT_APP_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION == 2
    assert flower_compat.CLIENT_APP_CRASHED == ErrorCode.CLIENT_APP_CRASHED == 8
    assert flower_compat.NODE_UNAVAILABLE == ErrorCode.NODE_UNAVAILABLE == 5


def test_a_process_without_an_identity_cannot_make_messages_until_it_claims_one(
    identity,
):
    identity(None, None, None)
    with pytest.raises(RuntimeError, match="TaskIdentity"):
        Message(RecordDict(), 2, "train")
    claim_identity()
    made = Message(RecordDict(), 2, "train")
    assert made.metadata.src_node_id == SERVER_NODE_ID
    assert found() == (1, 1, SERVER_NODE_ID)


def test_an_identity_that_is_set_is_left_alone(identity):
    identity(11, 22, 33)
    claim_identity()
    assert found() == (11, 22, 33)


def test_with_id_changes_the_id_and_nothing_else():
    original = message()
    twin = with_id(original, "42")
    assert (original.metadata.message_id, twin.metadata.message_id) == ("", "42")
    assert twin.content is original.content
    ours, theirs = twin.metadata.__dict__, original.metadata.__dict__
    assert {k for k in theirs if ours[k] != theirs[k]} == {"_message_id"}
    assert ours.keys() == theirs.keys()


def test_a_reply_to_a_message_with_an_id_names_it():
    reply = Message(RecordDict(), reply_to=with_id(message(), "42"))
    assert reply.metadata.reply_to_message_id == "42"
    assert reply.metadata.src_node_id == 7
    assert reply.metadata.group_id == "g"


def test_with_id_works_on_messages_that_carry_an_error():
    claim_identity()
    failed = Message(Error(2, "why"), reply_to=message())
    twin = with_id(failed, "9")
    assert (twin.error.reason, twin.metadata.message_id) == ("why", "9")


def spoil(records):
    """Write to records in every way a client could."""
    records["arrays"]["w"].data = b"spoilt"
    records["arrays"]["w"].shape = (1,)
    records["arrays"].pop("w")
    records["arrays"]["new"] = Array(np.zeros(2))
    records["config"]["layers"].append(3)
    records["config"]["lr"] = 99.0
    records["metrics"]["losses"].clear()
    del records["metrics"]["n"]
    records["more"] = MetricRecord({"n": 1})


def test_copied_records_are_equal_of_the_same_types_and_order():
    original = content()
    copied = copy_records(original)
    assert copied == original
    assert list(copied) == list(original)
    assert [type(r) for r in copied.values()] == [
        ArrayRecord,
        ConfigRecord,
        MetricRecord,
    ]
    assert copied["arrays"]["w"].data is original["arrays"]["w"].data


def test_writing_into_copied_records_leaves_the_original_alone():
    original = content()
    spoil(copy_records(original))
    assert original == content()
    assert bits(original["arrays"]) == bits(content()["arrays"])


def test_a_message_with_own_records_can_be_emptied_without_harm():
    original = Message(content(), reply_to=message())
    twin = with_own_records(original)
    assert twin.metadata is original.metadata
    spoil(twin.content)
    assert original.content == content()
