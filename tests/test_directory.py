"""Which node is which client."""

from dataclasses import dataclass, field

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedunlearn.client import IDENTIFY, add_identity
from fedunlearn.errors import RunError
from fedunlearn.flower_compat import claim_identity
from simulations.engine import SimulationGrid
from strategies.directory import Directory, ask_nodes
from tests.flower_helpers import by_number


@dataclass
class Nodes:
    """A stand-in for a grid: nodes that answer with what the test says."""

    answers: dict
    asked: list = field(default_factory=list)

    def get_node_ids(self):
        return list(self.answers)

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.asked += [
            (m.metadata.dst_node_id, m.metadata.message_type) for m in messages
        ]
        replies = [self.reply(m) for m in messages]
        return reversed([r for r in replies if r is not None])

    def reply(self, message):
        answer = self.answers[message.metadata.dst_node_id]
        if answer is None:
            return None
        if isinstance(answer, int):
            answer = RecordDict({"client": ConfigRecord({"partition-id": answer})})
        return Message(answer, reply_to=message)


@pytest.fixture(autouse=True)
def identity():
    claim_identity()


def test_nodes_tell_their_partition_id_whatever_their_number():
    nodes = Nodes({9_000_000_000_000: 2, 5: 0, 77: 1})
    directory = Directory()
    there = directory.refresh(nodes)
    assert there == {0: 5, 1: 77, 2: 9_000_000_000_000}
    assert list(there) == [0, 1, 2]
    assert {kind for _, kind in nodes.asked} == {f"query.{IDENTIFY}"}
    assert directory.client_of(77) == 1
    assert directory.client_of(78) is None


def test_only_new_nodes_are_asked():
    nodes = Nodes({5: 0, 6: 1})
    directory = Directory()
    directory.refresh(nodes)
    nodes.answers[4] = 2
    assert directory.refresh(nodes) == {0: 5, 1: 6, 2: 4}
    assert [n for n, _ in nodes.asked] == [5, 6, 4]


def test_a_node_that_left_is_not_there_but_still_known():
    nodes = Nodes({5: 0, 6: 1})
    directory = Directory()
    directory.refresh(nodes)
    del nodes.answers[5]
    assert directory.refresh(nodes) == {1: 6}
    assert directory.client_of(5) == 0


def test_a_client_may_come_back_as_another_node():
    """Without authentication every restart of a SuperNode is a new node."""
    nodes = Nodes({5: 0, 6: 1})
    directory = Directory()
    directory.refresh(nodes)
    del nodes.answers[5]
    nodes.answers[8] = 0
    assert directory.refresh(nodes) == {0: 8, 1: 6}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_two_nodes_with_one_partition_id_are_an_error(late):
    nodes = Nodes({5: 0, 6: 1})
    directory = Directory()
    if late:
        directory.refresh(nodes)
    nodes.answers[7] = 1
    with pytest.raises(RunError, match="two nodes claim the same partition id"):
        directory.refresh(nodes)


def test_a_node_that_does_not_answer_is_asked_again():
    nodes = Nodes({5: 0, 6: None})
    directory = Directory()
    assert directory.refresh(nodes) == {0: 5}
    nodes.answers[6] = 1
    assert directory.refresh(nodes) == {0: 5, 1: 6}


@pytest.mark.parametrize(
    "answer",
    [
        Error(2, "no query function"),
        RecordDict(),
        RecordDict({"client": ConfigRecord()}),
        RecordDict({"client": ConfigRecord({"partition-id": "zero"})}),
        RecordDict({"client": ConfigRecord({"partition-id": [0]})}),
        RecordDict({"client": ConfigRecord({"partition-id": -1})}),
        RecordDict({"client": ConfigRecord({"partition-id": True})}),
        RecordDict({"client": ConfigRecord({"partition-id": 1.5})}),
        RecordDict({"client": MetricRecord({"partition-id": 0})}),
    ],
    ids=repr,
)
def test_a_node_without_a_proper_answer_is_an_error_with_the_remedy(answer):
    with pytest.raises(RunError, match=r"node 6 .* add .*add_identity\(app\)"):
        ask_nodes(Nodes({5: 0, 6: answer}), [5, 6])


def test_no_question_is_asked_where_nodes_are_known_by_number():
    nodes = Nodes({1: None, 2: None})
    assert Directory(by_number).refresh(nodes) == {0: 1, 1: 2}
    assert nodes.asked == []


def test_add_identity_is_all_an_existing_app_needs():
    app = ClientApp()
    with (
        SimulationGrid(app, num_clients=3) as grid,
        pytest.raises(RunError, match="node 1 did not say"),
    ):
        Directory().refresh(grid)
    assert add_identity(app) is app
    with SimulationGrid(app, num_clients=3) as grid:
        assert Directory().refresh(grid) == {0: 1, 1: 2, 2: 3}
