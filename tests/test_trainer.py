"""The trainer: how work is cut and who does it shows in no number. Also on Ray."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import simulations.engine.trainer as trainer_module
from fedunlearn.errors import RunError
from fedunlearn.training import LocalWork
from simulations.engine.kernels import make_kernel
from simulations.engine.orders import Order, Piece, cut, joined
from simulations.engine.trainer import CohortSpec, Trainer, _cuts, cohort_of
from tests.engine_helpers import SOME, task_of
from tests.flower_helpers import small_app, small_task

SIZES = (13, 4, 20, 0, 6, 33, 6, 1)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def every_thread_pays(monkeypatch):
    """Small cohorts are one part otherwise."""
    monkeypatch.setattr(trainer_module, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(trainer_module, "_WORTH_A_PART", 1)


def orders_of(task):
    """Servers that want different things of different clients."""
    clients = range(len(task.clients))
    asked = [tuple(clients), tuple(clients)[::-2], (2,), (4, 0, 2, 3)]
    works = [
        LocalWork(seed=7, round_index=1),
        LocalWork(seed=8, round_index=3, proximal_mu=0.3),
        LocalWork(seed=7, round_index=1, epochs=2.5),
        LocalWork(seed=7, round_index=2, epochs=0.5, proximal_mu=0.1),
    ]
    return [
        Order(task.initial_model(at), who, work)
        for at, (who, work) in enumerate(zip(asked, works, strict=True))
    ]


def train(task, kernel, orders, threads=1):
    trainer = Trainer(task, make_kernel(kernel, task), threads)
    try:
        return trainer.train(orders)
    finally:
        trainer.close()


def all_of(result):
    arrays = (result.models, result.num_examples, result.num_steps)
    return [a.tobytes() for a in (*arrays, result.num_samples, result.losses)]


KERNELS = [*SOME, ("reference", "mlp")]


@pytest.mark.parametrize(("kernel", "model"), KERNELS)
def test_orders_together_give_what_each_gives_alone(kernel, model):
    task = task_of(model, SIZES, momentum=0.5, weight_decay=0.01)
    orders = orders_of(task)
    together = [all_of(r) for r in train(task, kernel, orders)]
    assert together == [all_of(train(task, kernel, [o])[0]) for o in orders]


@pytest.mark.parametrize(("kernel", "model"), KERNELS)
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_no_bit(kernel, model, threads, every_thread_pays):
    task = task_of(model, SIZES, momentum=0.5)
    orders = orders_of(task)
    expected = [all_of(r) for r in train(task, kernel, orders)]
    found = [all_of(r) for r in train(task, kernel, orders, threads)]
    assert found == expected


@pytest.mark.parametrize("kernel", ["reference", "fused", "batched", "vmap"])
def test_a_result_says_what_a_client_alone_would(kernel):
    """``LocalTask.train`` is what a client of a Flower federation runs."""
    task = task_of("mlp", SIZES, momentum=0.5)
    order = Order(
        task.initial_model(3),
        (5, 3, 0),
        LocalWork(seed=2, round_index=4, epochs=1.5, proximal_mu=0.2),
    )
    (result,) = train(task, kernel, [order])
    for row, client in enumerate(order.clients):
        alone = task.train(client, order.model, order.work)
        counts = (result.num_examples, result.num_steps, result.num_samples)
        found = tuple(int(c[row]) for c in counts)
        assert found == (alone.num_examples, alone.num_steps, alone.num_samples)
        assert result.losses[row] == pytest.approx(alone.loss, rel=1e-5)
        np.testing.assert_allclose(result.models[row], alone.model, atol=1e-5)
        if kernel == "reference":
            assert result.models[row].tobytes() == alone.model.tobytes()
            assert result.losses[row] == alone.loss
    assert result.models.dtype == np.float32
    assert result.num_steps.dtype == np.int64


@pytest.mark.parametrize("kernel", ["fused", "batched"])
def test_a_second_training_leaves_the_first_ones_result_alone(
    kernel, every_thread_pays
):
    task = task_of("mlp", SIZES)
    trainer = Trainer(task, make_kernel(kernel, task), 2)
    orders = orders_of(task)
    first = trainer.train(orders)
    before = [all_of(r) for r in first]
    trainer.train(orders_of(task)[::-1])
    assert [all_of(r) for r in first] == before
    again = trainer.train(orders)
    trainer.close()
    assert [all_of(r) for r in again] == before


def test_models_of_orders_are_not_written_to_and_may_be_read_only():
    task = task_of("mlp", SIZES)
    orders = orders_of(task)
    for order in orders:
        order.model.setflags(write=False)
    before = [order.model.tobytes() for order in orders]
    train(task, "batched", orders, 2)
    train(task, "fused", orders, 2)
    assert [order.model.tobytes() for order in orders] == before


def test_closing_ends_the_threads(every_thread_pays):
    before = set(threading.enumerate())
    task = task_of("mlp", SIZES)
    trainer = Trainer(task, make_kernel("fused", task), 3)
    trainer.train(orders_of(task))
    assert set(threading.enumerate()) - before
    trainer.close()
    assert set(threading.enumerate()) <= before


class Failing:
    """A kernel that cannot."""

    name, parallel, stacks, independent = "failing", True, False, True

    def train(self, cohort, out):
        raise RuntimeError("no more memory")


def test_an_error_of_the_kernel_reaches_whoever_asked(every_thread_pays):
    task = task_of("mlp", SIZES)
    trainer = Trainer(task, Failing(), 2)
    with pytest.raises(RuntimeError, match="no more memory"):
        trainer.train(orders_of(task))
    trainer.close()


class Noting:
    """Notes who is trained in which thread."""

    name = "noting"

    def __init__(self, *, parallel, stacks):
        self.parallel, self.stacks, self.independent = parallel, stacks, True
        self.seen = []

    def train(self, cohort, out):
        self.seen.append((len(cohort), threading.get_ident()))
        time.sleep(0.002)  # long enough for another thread to take the next part
        out[:] = cohort.starts[cohort.start_of]
        return np.zeros(len(cohort))


def test_a_kernel_that_is_not_parallel_has_one_thread(every_thread_pays):
    task = task_of("mlp", SIZES)
    kernel = Noting(parallel=False, stacks=False)
    trainer = Trainer(task, kernel, 4)
    trainer.train(orders_of(task))
    trainer.close()
    assert len(kernel.seen) > 1
    assert len({thread for _, thread in kernel.seen}) == 1
    kernel = Noting(parallel=True, stacks=False)
    trainer = Trainer(task, kernel, 4)
    trainer.train(orders_of(task))
    trainer.close()
    assert len({thread for _, thread in kernel.seen}) > 1


def test_small_cohorts_of_a_stacking_kernel_are_one_part():
    task = task_of("mlp", SIZES)
    kernel = Noting(parallel=True, stacks=True)
    trainer = Trainer(task, kernel, 4)
    trainer.train(orders_of(task))
    trainer.close()
    assert kernel.seen == [(17, threading.get_ident())]


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 100])
@pytest.mark.parametrize(
    "sizes", [SIZES, (0, 0, 0), (500, 1, 1, 1), (1, 1, 1, 500), (3,)], ids=str
)
def test_cuts_cover_every_client_once(parts, sizes):
    batches = cohort_of(t := task_of("softmax", sizes), orders_all(t)).batches
    cuts = _cuts(batches, parts)
    assert cuts[0] == 0
    assert cuts[-1] == len(sizes)
    assert cuts == sorted(set(cuts))
    assert len(cuts) <= parts + 1


def orders_all(task):
    clients = tuple(range(len(task.clients)))
    return [Order(task.initial_model(0), clients, LocalWork(seed=0, round_index=1))]


def test_cuts_balance_the_work():
    batches = cohort_of(t := task_of("softmax", (30,) * 40), orders_all(t)).batches
    assert np.diff(_cuts(batches, 4)).tolist() == pytest.approx([10] * 4, abs=1)


# Pieces of orders.


@pytest.mark.parametrize("parts", [1, 2, 5, 17, 60])
def test_pieces_are_all_clients_of_all_orders_once(parts):
    task = task_of("mlp", SIZES)
    orders = orders_of(task)
    chunks = cut(orders, task, parts)
    assert 1 <= len(chunks) <= parts
    pieces = [piece for chunk in chunks for piece in chunk]
    for at, order in enumerate(orders):
        mine = sorted((p for p in pieces if p.order == at), key=lambda p: p.begin)
        who = [client for piece in mine for client in piece.of(orders).clients]
        assert who == list(order.clients)
    assert all(piece.begin < piece.end for piece in pieces)
    for piece in pieces:
        whole = orders[piece.order]
        assert piece.of(orders).work == whole.work
        assert piece.of(orders).model is whole.model


def test_the_largest_chunk_is_first():
    task = task_of("mlp", (1, 1, 1, 90, 1, 1))
    orders = orders_all(task)
    first = cut(orders, task, 3)[0]
    assert 3 in [c for piece in first for c in piece.of(orders).clients]


def test_results_of_pieces_make_the_orders_results():
    task = task_of("mlp", SIZES)
    orders = orders_of(task)
    whole = train(task, "reference", orders)
    found = {}
    for at, order in enumerate(orders):
        for position in reversed(range(len(order.clients))):
            piece = Piece(at, position, position + 1)
            (found[piece],) = train(task, "reference", [piece.of(orders)])
    assert [all_of(r) for r in joined(orders, found)] == [all_of(r) for r in whole]


# Ray.


class Deadly:
    """Clients' data; some clients end the process that asks, unless it is the first.

    Args:
        clients: The data.
        flags: Folder in which deaths are counted.
        deaths: Client -> how many processes it ends.
    """

    def __init__(self, clients, flags, deaths):
        self.clients, self.flags, self.deaths = clients, flags, deaths
        self.home = os.getpid()

    def __len__(self):
        return len(self.clients)

    def __getitem__(self, client):
        if os.getpid() != self.home:
            for death in range(self.deaths.get(client, 0)):
                flag = Path(self.flags, f"{client}-{death}")
                if not flag.exists():
                    flag.touch()
                    os._exit(1)
        return self.clients[client]


@pytest.fixture(scope="module")
def ray():
    """A Ray that the user started, with two CPUs; it takes classes of this module."""
    ray = pytest.importorskip("ray")
    import sys

    from ray import cloudpickle

    from simulations.engine.cluster import Cluster
    from simulations.engine.ray_start import start_ray

    for name in (__name__, "tests.engine_helpers"):
        cloudpickle.register_pickle_by_value(sys.modules[name])
    assert start_ray(2, Cluster())
    yield ray
    ray.shutdown()
    for name in (__name__, "tests.engine_helpers"):
        cloudpickle.unregister_pickle_by_value(sys.modules[name])


@pytest.fixture
def pool_of(ray):
    from simulations.engine.cluster import Cluster
    from simulations.engine.ray_pool import RayPool

    pools = []

    def opened(task, kernel, workers):
        spec = CohortSpec(task=task, kernel=kernel)
        app = small_app(task)
        pools.append(RayPool(app, len(task.clients), workers, Cluster(), spec))
        return pools[-1]

    yield opened
    for pool in pools:
        pool.close()


@pytest.mark.ray
def test_one_worker_gives_the_bits_of_this_process(pool_of):
    task = small_task(SIZES, momentum=0.5)
    orders = orders_of(task)
    expected = [all_of(r) for r in train(task, "fused", orders)]
    pool = pool_of(task, "fused", 1)
    assert [all_of(r) for r in pool.train(orders)] == expected
    assert [all_of(r) for r in pool.train(orders[:1])] == expected[:1]
    wrong = replace(orders[0], model=np.zeros(3, np.float32))
    with pytest.raises(RunError, match="Ray worker failed"):
        pool.train([wrong])
    assert [all_of(r) for r in pool.train(orders)] == expected
    assert pool.replaced == 0


@pytest.mark.ray
def test_a_worker_that_dies_as_it_trains_is_replaced(pool_of, tmp_path):
    """Two workers give the same bits, and do so through a death."""
    task = small_task(SIZES, momentum=0.5)
    orders = orders_of(task)
    expected = [all_of(r) for r in train(task, "batched", orders)]
    clients = Deadly(task.clients, str(tmp_path), {2: 1})
    pool = pool_of(replace(task, clients=clients), "batched", 2)
    assert [all_of(r) for r in pool.train(orders[:1])] == expected[:1]
    assert pool.replaced == 1
    assert [all_of(r) for r in pool.train(orders)] == expected
    assert pool.replaced == 1


@pytest.mark.ray
def test_a_cohort_that_kills_two_workers_ends_the_run_with_its_reason(
    pool_of, tmp_path
):
    task = small_task(SIZES)
    orders = orders_of(task)
    clients = Deadly(task.clients, str(tmp_path), {2: 2})
    pool = pool_of(replace(task, clients=clients), "batched", 1)
    with pytest.raises(RunError, match="died twice while it trained"):
        pool.train(orders[:1])
    # The pool is whole again.
    expected = [all_of(r) for r in train(task, "batched", orders)]
    assert [all_of(r) for r in pool.train(orders)] == expected


@pytest.mark.ray
def test_workers_without_a_kernel_say_so(ray):
    from simulations.engine.cluster import Cluster
    from simulations.engine.ray_pool import RayPool

    task = small_task()
    pool = RayPool(small_app(task), 4, 1, Cluster())
    try:
        with pytest.raises(RunError, match="given no kernel"):
            pool.train(orders_of(small_task(SIZES)))
    finally:
        pool.close()


def test_memory_is_used_again_only_when_nobody_looks_at_it(every_thread_pays):
    task = task_of("mlp", SIZES)
    trainer = Trainer(task, make_kernel("fused", task), 2)
    orders = orders_of(task)
    kept = trainer.train(orders)[0].models[1:2]
    before = kept.copy()
    places = set()
    for _ in range(6):
        results = trainer.train(orders)
        places.add(results[0].models.ctypes.data)
        assert results[0].models.ctypes.data != kept.ctypes.data
    trainer.close()
    assert kept.tobytes() == before.tobytes()
    assert len(places) <= 2
