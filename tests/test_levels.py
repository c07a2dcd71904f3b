"""Samples and classes are forgotten as clients are: what remains, what is measured."""

from dataclasses import replace

import numpy as np
import pytest

from fedunlearn.data import ClientData
from fedunlearn.data.divide import divide
from fedunlearn.errors import ConfigError, RequestError, RequirementError
from fedunlearn.history import InMemoryHistory
from fedunlearn.method import UnlearningRequest
from fedunlearn.params import sha256
from fedunlearn.training import LocalWork
from simulations import compare, load_scenario
from simulations.engine import identify
from simulations.evaluate import Evaluator
from simulations.prepare import open_grid, prepare
from simulations.train import Curve, train
from strategies import FedEraser, Retrain
from strategies.directory import Directory
from tests.flower_helpers import small_task
from tests.test_local import clients_of

QUICKSTART = "configs/scenario/quickstart.yaml"
FAST = ["seeds=[3]", "rounds=3", "forget=[]", "methods=[nothing,retrain]"]


def scenario(*overrides):
    return load_scenario(QUICKSTART, [*FAST, *overrides])


def client(labels, holdout=()):
    y, h = np.array(labels, np.int64), np.array(holdout, np.int64)
    x = np.arange(len(y), dtype=np.float32)[:, None]
    return ClientData("c", x, y, 100 + np.arange(len(h), dtype=np.float32)[:, None], h)


CLIENTS = (client([0, 1, 2, 1], [1, 2]), client([2, 2], [2]), client([1], [0]))


def test_samples_are_taken_from_the_client_that_asked():
    divided = divide(CLIENTS, UnlearningRequest(samples={0: (1, 2)}))
    assert divided.shrunk == {0}
    assert not divided.gone
    assert divided.remaining[0].x[:, 0].tolist() == [0, 3]
    assert divided.forgotten[0].x[:, 0].tolist() == [1, 2]
    assert divided.forgotten[0].y_holdout.tolist() == [1, 2]


def test_a_class_is_taken_from_everybody_who_holds_it():
    divided = divide(CLIENTS, UnlearningRequest(classes=frozenset({1})))
    assert divided.shrunk == {0}
    assert divided.gone == {2}
    assert divided.remaining[0].y.tolist() == [0, 2]
    assert divided.forgotten[0].y.tolist() == [1, 1]
    assert divided.forgotten[0].y_holdout.tolist() == [1]
    assert len(divided.forgotten[2].y_holdout) == 0


def test_a_class_that_nobody_holds_is_refused():
    asked = scenario("forget_classes=[3]")
    dataset = asked.data.load()
    keep = dataset.y_train != 3
    x, y = dataset.x_train[keep], dataset.y_train[keep]
    poorer = replace(dataset, x_train=x, y_train=y)

    class Poorer:
        def load(self):
            return poorer

    with pytest.raises(RequestError, match="no client holds anything"):
        prepare(replace(asked, data=Poorer()))


def test_levels_add_up():
    request = UnlearningRequest(
        clients=frozenset({1}), samples={0: (0,)}, classes=frozenset({1})
    )
    divided = divide(CLIENTS, request)
    assert request.levels == ("client", "sample", "class")
    assert divided.gone == {1, 2}
    assert divided.remaining[0].y.tolist() == [2]
    assert divided.forgotten[1].y_holdout.tolist() == [2]


@pytest.mark.parametrize("view", ["remaining", "forgotten", "all"])
def test_a_view_parts_what_a_client_holds(view):
    divided = divide(CLIENTS, UnlearningRequest(samples={0: (1,)}))
    sizes = [len(divided.of(c, data, view).y) for c, data in enumerate(CLIENTS)]
    expected = {"all": [4, 2, 1], "remaining": [3, 2, 1], "forgotten": [1, 0, 0]}
    assert sizes == expected[view]


def test_a_row_that_is_not_there_is_an_error():
    with pytest.raises(RequestError, match="trains on 2 examples: it has no row 7"):
        divide(CLIENTS, UnlearningRequest(samples={1: (7,)}))


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (UnlearningRequest(), "nobody is to be forgotten"),
        (UnlearningRequest(samples={9: (0,)}), "client 9 is not one of"),
        (UnlearningRequest(samples={0: ()}), "distinct rows"),
        (UnlearningRequest(samples={0: (1, 1)}), "distinct rows"),
        (UnlearningRequest(samples={0: (-1,)}), "distinct rows"),
        (
            UnlearningRequest(clients=frozenset({0}), samples={0: (1,)}),
            "its samples go with it",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(request_, why):
    with pytest.raises(RequestError, match=why):
        request_.check(range(3))


@pytest.mark.parametrize(
    ("kernel", "workers"),
    [("reference", 0), ("fused", 0), ("batched", 0), ("fused", 2)],
)
def test_an_order_may_name_a_view(kernel, workers):
    """What remains is trained as if the rest had never been there."""
    prepared = prepare(
        scenario(
            "forget_samples={4: 0.5}",
            f"engine.kernel={kernel}",
            f"engine.workers={workers}",
        )
    )
    task = prepared.task
    bare = replace(task, clients=(task.data_of(4, "remaining"),) * 10)
    start = task.initial_model(0)
    with open_grid(prepared) as grid:
        remaining = replace(
            clients_of(grid, task), config={"seed": 3, "view": "remaining"}
        )
        found = remaining.train(start, [4], round_index=1)
        expected = bare.train(4, start, LocalWork(seed=3, round_index=1))
    assert found.num_examples.tolist() == [expected.num_examples]
    assert found.after[0] == pytest.approx(expected.model, abs=1e-5)
    if kernel == "reference":
        assert found.after[0].tobytes() == expected.model.tobytes()


def test_a_view_nobody_knows_is_an_error():
    with pytest.raises(ValueError, match="view must be one of"):
        small_task().train(
            0,
            small_task().initial_model(0),
            LocalWork(seed=0, round_index=1, view="x"),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("override", ["forget_samples={9: 0.5}", "forget_classes=[3]"])
def test_retraining_forgets_what_was_taken_back(override):
    """It is what training gives where the rest never existed, bit for bit."""
    asked = scenario(override, "training.lr=0.1")
    comparison = compare(asked)
    prepared = prepare(asked)
    everybody = enumerate(prepared.federation.clients)
    rest = tuple(prepared.divided.of(c, data, "remaining") for c, data in everybody)
    with open_grid(
        replace(prepared, task=replace(prepared.task, clients=rest))
    ) as grid:
        trained = train(
            prepared,
            3,
            grid,
            InMemoryHistory(prepared.task.layout),
            directory=Directory(identify),
            curve=Curve(Evaluator(prepared), prepared.task.layout),
        )
    (retrained,) = [r for r in comparison.rows if r.method == "retrain"]
    assert retrained.model_sha256 == sha256(trained.model)


def test_what_is_measured_is_what_was_taken_back():
    prepared = prepare(scenario("forget_classes=[3]"))
    sets = Evaluator(prepared).sets
    assert set(sets["forget"][1]) == set(sets["forget_holdout"][1]) == {3}
    assert 3 not in sets["retain"][1]
    assert 3 in sets["test"][1]
    whole = sum(len(c.y) for c in prepared.federation.clients)
    assert len(sets["forget"][1]) + len(sets["retain"][1]) == whole


def test_which_samples_does_not_depend_on_the_seed_of_a_run():
    one, other = (
        prepare(scenario("forget_samples={4: 0.5}", f"seeds=[{seed}]"))
        for seed in (1, 2)
    )
    assert one.request == other.request
    assert len(one.request.samples[4]) == -(-len(one.federation.clients[4].y) // 2)


def test_a_client_that_takes_everything_back_is_not_trained_any_more():
    prepared = prepare(scenario("forget_samples={4: 1.0}"))
    assert prepared.forget == {4}
    assert not prepared.shrunk
    rows = compare(scenario("forget_samples={4: 1.0}")).rows
    assert {r.method: r.cost.client_rounds for r in rows}["retrain"] == 3 * 9


def test_a_method_that_serves_clients_only_is_refused():
    with pytest.raises(
        RequirementError, match=r"a request of level client \(asked: sa"
    ):
        compare(scenario("forget_samples={4: 0.5}"), methods={"e": FedEraser()})


def test_methods_serve_levels_together():
    asked = scenario("forget=[9]", "forget_samples={4: 0.5}", "forget_classes=[1]")
    assert {r.method for r in compare(asked, methods={"retrain": Retrain()}).rows} == {
        "trained",
        "retrain",
    }


@pytest.mark.parametrize(
    ("override", "error", "why"),
    [
        (
            "forget_samples={4: 0}",
            ConfigError,
            r"forget_samples.4 must lie in \(0, 1\]",
        ),
        (
            "forget_samples={4: 2}",
            ConfigError,
            r"forget_samples.4 must lie in \(0, 1\]",
        ),
        ("forget_samples={44: 0.5}", RequestError, "unknown client '44'"),
        ("forget_classes=[10]", ConfigError, "10 is not one of 10 classes"),
        (
            "forget_classes=[a]",
            ConfigError,
            "forget_classes must be a list of integers",
        ),
        ("forget_classes=[0,1,2,3,4,5,6,7,8,9]", RequestError, "nothing would remain"),
    ],
)
def test_wrong_settings_are_named(override, error, why):
    with pytest.raises(error, match=why):
        prepare(scenario(override))


def test_the_server_s_examples_are_taken_out_of_the_test_set():
    without, own = (
        prepare(scenario("forget=[1]")),
        prepare(scenario("forget=[1]", "server_examples=50")),
    )
    assert own.server_data is not None
    assert len(own.server_data.y) == 50
    assert not own.server_data.y.any()
    assert len(own.federation.y_test) == len(without.federation.y_test) - 50
    rows = {row.tobytes() for row in own.federation.x_test}
    assert not any(row.tobytes() in rows for row in own.server_data.x)


def test_the_server_cannot_own_the_whole_test_set():
    with pytest.raises(ConfigError, match="leave some to measure on"):
        prepare(scenario("forget=[1]", "server_examples=100000"))
