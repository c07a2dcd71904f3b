"""The simulation grid on Ray workers: the same bits, and no client takes others down.

Ray starts twice: by the first test's grid, and by the module's fixture as a user would.
"""

import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.errors import ConfigError, RunError
from fedunlearn.history import InMemoryHistory
from simulations.engine import SimulationGrid
from strategies.directory import Directory
from strategies.recording import RecordingStrategy
from strategies.server_rules import SERVER_RULES
from tests.flower_helpers import (
    LAYOUT,
    bits,
    by_number,
    drift_app,
    initial_arrays,
    small_app,
    small_task,
)

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")


def descendants():
    """This process and all below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parent = int(text[text.rindex(")") + 2 :].split()[1])
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [os.getpid()]
    for pid in found:
        found += parents.get(pid, [])
    return found


def listening():
    """(command, address) of every TCP port this process and those below it open."""
    addresses = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_rest = line.split()
            if state == "0A":
                addresses[line.split()[9]] = local.split(":")[0]
    found = set()
    for pid in descendants():
        try:
            links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
        except OSError:
            continue
        for link in links:
            socket = re.fullmatch(r"socket:\[(\d+)\]", link)
            if socket and socket[1] in addresses:
                found.add((Path(command).name, addresses[socket[1]]))
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}


def counting_app():
    """Counts a client's messages in its state, and says in which process it ran."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        record = context.state.setdefault("memory", MetricRecord({"calls": 0}))
        record["calls"] += 1
        found = MetricRecord(
            {
                "calls": record["calls"],
                "partition": context.node_config["partition-id"],
                "of": context.node_config["num-partitions"],
                "pid": os.getpid(),
                "threads": torch.get_num_threads(),
            }
        )
        return Message(RecordDict({"found": found}), reply_to=message)

    return app


def requests(nodes, content=None):
    content = RecordDict() if content is None else content
    return [Message(content, node, "train") for node in nodes]


def found(replies, name):
    return [r.content["found"][name] for r in replies]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
def test_ray_started_by_the_grid_is_on_loopback_only_and_gone_afterwards():
    assert not ray.is_initialized()
    threads = torch.get_num_threads()
    with SimulationGrid(counting_app(), num_clients=4, workers=2) as grid:
        replies = list(grid.send_and_receive(requests([1, 2, 3, 4])))
        assert found(replies, "threads") == [1] * 4
        assert os.getpid() not in found(replies, "pid")
        open_ports = listening()
    assert {"raylet", "gcs_server"} <= {command for command, _ in open_ports}
    assert {p for p in open_ports if p[1] not in LOOPBACK} == set()
    assert not ray.is_initialized()
    assert torch.get_num_threads() == threads


@pytest.fixture(scope="module")
def users_ray():
    """A Ray that the user started, with two CPUs."""
    from simulations.engine.cluster import Cluster
    from simulations.engine.ray_start import start_ray

    assert start_ray(2, Cluster())
    yield
    ray.shutdown()


@pytest.fixture
def open_grid(users_ray):
    """Opens grids on the user's Ray and checks that they leave it running."""

    def opened(app, clients, workers):
        return SimulationGrid(app, num_clients=clients, workers=workers)

    yield opened
    assert ray.is_initialized()


def drift_bits(rule, workers):
    history = InMemoryHistory(LAYOUT)
    strategy = RecordingStrategy(
        SERVER_RULES[rule]().strategy(), history, directory=Directory(by_number)
    )
    with SimulationGrid(drift_app(), num_clients=7, workers=workers) as grid:
        result = strategy.start(grid, initial_arrays(), num_rounds=2)
    updates = [history.round(r).updates.tobytes() for r in history.rounds]
    return bits(result.arrays), updates, result.train_metrics_clientapp


@pytest.mark.parametrize("workers", [1, 2])
def test_a_users_numpy_app_gives_the_same_bits_on_workers(users_ray, workers):
    assert drift_bits("fed_avg", workers) == drift_bits("fed_avg", 0)


def task_bits(workers):
    task = small_task(momentum=0.9)
    history = InMemoryHistory(task.layout)
    strategy = RecordingStrategy(SERVER_RULES["fed_prox"]().strategy(), history)
    with SimulationGrid(small_app(task), num_clients=4, workers=workers) as grid:
        result = strategy.start(
            grid,
            to_arrays(task.initial_model(0), task.layout),
            num_rounds=3,
            train_config=ConfigRecord({"seed": 2}),
        )
    updates = [history.round(r).updates.tobytes() for r in history.rounds]
    return from_arrays(result.arrays, task.layout).tobytes(), updates


@pytest.mark.parametrize("workers", [1, 2])
def test_our_torch_app_gives_the_same_bits_on_workers(users_ray, workers):
    assert task_bits(workers) == task_bits(0)


def test_a_client_keeps_its_state_and_nobody_elses_on_workers(open_grid):
    with open_grid(counting_app(), 9, 2) as grid:
        first = list(grid.send_and_receive(requests(range(1, 10))))
        second = list(grid.send_and_receive(requests([9, 2, 2, 5])))
    assert found(first, "calls") == [1] * 9
    assert found(second, "calls") == [2, 2, 3, 2]
    assert found(second, "partition") == [8, 1, 1, 4]
    assert set(found(first, "of")) == {9}
    assert len(set(found(first, "pid"))) == 2


def spoiling_app(original):
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays, config = message.content["arrays"], message.content["config"]
        now = {n: a.data for n, a in arrays.items()}
        same = now == original and config["layers"] == [1, 2]
        arrays["b"].data = Array(np.zeros(3, np.float32)).data
        arrays.pop("s")
        config["layers"].append(9)
        reply = RecordDict({"found": MetricRecord({"calls": int(same)})})
        return Message(reply, reply_to=message)

    return app


def test_clients_of_one_worker_cannot_change_each_others_messages(open_grid):
    content = RecordDict(
        {"arrays": initial_arrays(), "config": ConfigRecord({"layers": [1, 2]})}
    )
    app = spoiling_app({n: a.data for n, a in initial_arrays().items()})
    with open_grid(app, 12, 1) as grid:
        replies = grid.send_and_receive(requests(range(1, 13), content))
        assert found(replies, "calls") == [1] * 12


def dying_app(flags, *, once=(), always=(), raising=()):
    """Kills its worker at some clients, and adds one to the state before it does."""
    train = counting_app()._registered_funcs["train.default"]
    dying = ClientApp()

    @dying.train()
    def die(message, context):
        client = context.node_config["partition-id"]
        flag = Path(flags) / str(client)
        if client in always or (client in once and not flag.exists()):
            flag.touch()
            os._exit(1)
        if client in raising:
            raise ValueError("tired")
        return train(message, context)

    return dying


def test_a_worker_that_dies_once_is_replaced_and_its_clients_are_tried_again(
    open_grid, tmp_path
):
    """A client that merely raises needs no new worker."""
    app = dying_app(str(tmp_path), once=[4], raising=[7])
    with open_grid(app, 20, 2) as grid:
        for expected in (1, 2):
            replies = list(grid.send_and_receive(requests(range(1, 21))))
            failed = replies.pop(7)
            assert (failed.error.code, failed.error.reason) == (2, "ValueError: tired")
            assert found(replies, "calls") == [expected] * 19
            assert found(replies, "partition") == [c for c in range(20) if c != 7]
            assert grid._backend.replaced == 1
        assert len(set(found(replies, "pid"))) == 2


@pytest.mark.slow
def test_a_client_that_always_kills_its_worker_fails_alone(open_grid, tmp_path):
    """Its neighbours are answered, and the next round has all workers."""
    everybody = range(1, 21)
    with open_grid(dying_app(str(tmp_path), always=[4]), 20, 2) as grid:
        replies = list(grid.send_and_receive(requests(everybody)))
        assert grid._backend.replaced == 2
        dead = replies.pop(4)
        assert dead.metadata.src_node_id == 5
        assert (dead.error.code, dead.error.reason) == (
            8,
            "the client's worker died twice",
        )
        assert found(replies, "calls") == [1] * 19
        others = [node for node in everybody if node != 5]
        again = list(grid.send_and_receive(requests(others)))
        assert found(again, "calls") == [2] * 19
        assert len(set(found(again, "pid"))) == 2
        assert grid._backend.replaced == 2


def crash_bits(flags, workers, once):
    app, marker = drift_app(), Path(flags)
    train = app._registered_funcs["train.default"]
    dying = ClientApp()

    @dying.train()
    def die(message, context):
        flag = marker / str(context.node_config["partition-id"])
        if context.node_config["partition-id"] in once and not flag.exists():
            flag.touch()
            os._exit(1)
        return train(message, context)

    history = InMemoryHistory(LAYOUT)
    strategy = RecordingStrategy(
        SERVER_RULES["fed_avgm"]().strategy(), history, directory=Directory(by_number)
    )
    with SimulationGrid(dying, num_clients=7, workers=workers) as grid:
        result = strategy.start(grid, initial_arrays(), num_rounds=2)
        replaced = grid._backend.replaced if workers else 0
    return bits(result.arrays), replaced


def test_training_through_a_crash_gives_the_bits_of_a_clean_run(users_ray, tmp_path):
    clean, _ = crash_bits(str(tmp_path), 0, once=())
    crashed, replaced = crash_bits(str(tmp_path), 2, once=(2,))
    assert (crashed, replaced) == (clean, 1)


def test_an_app_that_cannot_be_sent_leaves_nothing_behind(users_ray):
    app, lock, threads = ClientApp(), threading.Lock(), torch.get_num_threads()

    @app.train()
    def train(message, context):
        with lock:
            return Message(RecordDict(), reply_to=message)

    grid = SimulationGrid(app, num_clients=1, workers=1)
    with pytest.raises(TypeError, match="lock"):
        grid.__enter__()
    assert torch.get_num_threads() == threads
    with pytest.raises(RunError, match="with statement"):
        grid.send_and_receive(requests([1]))


def test_more_workers_than_the_running_ray_has_cpus_are_refused(users_ray):
    """They would wait for ever for a CPU."""
    grid = SimulationGrid(counting_app(), num_clients=1, workers=3)
    with pytest.raises(ConfigError, match=r"engine.workers is 3, .* has 2 CPUs"):
        grid.__enter__()
