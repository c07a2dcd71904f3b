"""Runs that advance together give what each gives alone, and end together."""

import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.errors import RunError
from fedunlearn.history import InMemoryHistory
from fedunlearn.training import LocalWork
from simulations.engine import SimulationGrid
from simulations.engine.grid import identify
from simulations.engine.kernels import make_kernel
from simulations.engine.lockstep import in_lockstep
from simulations.engine.orders import Order
from simulations.engine.trainer import CohortSpec, Trainer
from strategies.directory import Directory
from strategies.recording import RecordingStrategy
from strategies.server_rules import SERVER_RULES
from tests.flower_helpers import small_app, small_task

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Counting:
    """A backend that counts, and notes how many orders it was given at once."""

    def __init__(self, task=None, delay=0.0):
        self.task = small_task() if task is None else task
        self.trainer = Trainer(self.task, make_kernel("batched", self.task), 1)
        self.calls, self.jobs, self.delay = [], 0, delay
        self.inside = threading.Lock()

    def train(self, orders):
        assert self.inside.acquire(blocking=False), "two calls at the same time"
        try:
            self.calls.append(len(orders))
            time.sleep(self.delay)
            return self.trainer.train(orders)
        finally:
            self.inside.release()

    def run(self, jobs, contents):
        assert self.inside.acquire(blocking=False), "two calls at the same time"
        try:
            self.jobs += len(jobs)
            return []
        finally:
            self.inside.release()

    def close(self):
        self.trainer.close()


def walk(task, seed, rounds, after=lambda r: None):
    """A run: ``rounds`` times the mean of two clients, from its own model."""

    def run(backend):
        model = task.initial_model(seed)
        for r in range(1, rounds + 1):
            order = Order(model, (seed % 4, 3), LocalWork(seed=seed, round_index=r))
            if seed % 4 == 3:
                order = Order(model, (3, 0), order.work)
            (result,) = backend.train([order])
            model = result.models.mean(0)
            after(r)
        return model.tobytes()

    return run


LENGTHS = [5, 1, 8, 0, 3, 3, 2]


@pytest.mark.parametrize("width", [1, 2, 3, 7, 50])
def test_runs_give_what_each_gives_alone(width):
    backend = Counting()
    runs = [walk(backend.task, seed, n) for seed, n in enumerate(LENGTHS)]
    alone = [run(backend) for run in runs]
    backend.calls.clear()
    assert in_lockstep(backend, width, runs) == alone
    assert len(set(alone)) == len(alone)
    assert sum(backend.calls) == sum(LENGTHS)
    assert max(backend.calls) <= width
    if width >= len(LENGTHS):
        # A call serves half of those that run, or more.
        assert len(backend.calls) <= 2 * max(LENGTHS)
        assert backend.calls[0] >= len(LENGTHS) / 2
    if width == 1:
        assert backend.calls == [1] * sum(LENGTHS)


def test_results_come_in_the_order_of_the_runs():
    backend = Counting()
    runs = [walk(backend.task, 0, n) for n in (9, 1, 4)]
    first = [run(backend) for run in runs]
    assert in_lockstep(backend, 3, runs) == first


def test_several_orders_of_a_run_come_back_to_it():
    backend = Counting()
    task = backend.task

    def asking(seed):
        def run(backend):
            orders = [
                Order(
                    task.initial_model(seed + k), (k,), LocalWork(seed=1, round_index=1)
                )
                for k in range(seed)
            ]
            results = backend.train(orders)
            return [r.models.tobytes() for r in results]

        return run

    runs = [asking(n) for n in (1, 3, 2)]
    alone = [run(backend) for run in runs]
    assert in_lockstep(backend, 3, runs) == alone
    assert sum(backend.calls) == 2 * 6


def test_no_runs_give_no_results():
    assert in_lockstep(Counting(), 4, []) == []


def test_runs_that_ask_nothing():
    assert in_lockstep(Counting(), 2, [lambda b, n=n: n for n in range(5)]) == [
        *range(5)
    ]


def test_what_is_no_training_is_passed_on_one_at_a_time():
    backend = Counting()

    def run(member):
        for _ in range(20):
            member.run([None], [])
            member.train(
                [
                    Order(
                        backend.task.initial_model(0),
                        (0,),
                        LocalWork(seed=0, round_index=1),
                    )
                ]
            )

    in_lockstep(backend, 4, [run] * 4)
    assert backend.jobs == 80
    assert sum(backend.calls) == 80
    assert len(backend.calls) <= 41


class OddError(Exception):
    """A test's own."""


@pytest.mark.parametrize(("width", "fails"), [(2, 0), (2, 1), (3, 0), (3, 2)])
def test_a_run_that_raises_ends_the_call_with_its_error(width, fails):
    backend, rounds = Counting(delay=0.002), [0] * 3

    def walker(seed):
        def after(r):
            rounds[seed] = r
            if seed == fails and r == 3:
                raise OddError(f"run {seed}")

        return walk(backend.task, seed, 200, after)

    with pytest.raises(OddError, match=f"run {fails}"):
        in_lockstep(backend, width, [walker(s) for s in range(3)])
    # The others end where they ask next, which is soon.
    assert max(rounds) < 50


def test_a_last_run_that_fails_does_not_wait_for_the_first_to_end():
    """The first is the one whose result is looked at first."""
    backend = Counting(delay=0.005)
    rounds = []
    first = walk(backend.task, 0, 150, rounds.append)

    def last(member):
        raise OddError("at once")

    with pytest.raises(OddError, match="at once"):
        in_lockstep(backend, 2, [first, last])
    assert len(rounds) < 50


def test_runs_that_wait_are_not_begun_after_a_failure():
    backend, begun = Counting(), []

    def failing(member):
        raise OddError

    def late(member):
        begun.append(1)
        time.sleep(0.01)

    with pytest.raises(OddError):
        in_lockstep(backend, 1, [failing, *[late] * 50])
    assert len(begun) < 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_even_an_exit_in_a_run_ends_the_call(error):
    backend = Counting()

    def leaving(member):
        raise error

    runs = [leaving, walk(backend.task, 1, 300)]
    with pytest.raises(error):
        in_lockstep(backend, 2, runs)


def test_a_run_that_only_asks_what_is_no_training_ends_too():
    backend, asked = Counting(), []
    begun = time.perf_counter()

    def failing(member):
        raise OddError

    def asking(member):
        while time.perf_counter() - begun < 1:
            member.run([], [])
            asked.append(1)
            time.sleep(0.001)

    with pytest.raises(OddError):
        in_lockstep(backend, 2, [failing, asking])
    assert time.perf_counter() - begun < 0.8


def test_a_failure_of_the_kernel_is_everybodys():
    backend, seen = Counting(), []

    def broken(orders):
        raise OddError("no memory")

    backend.train = broken

    def run(member):
        try:
            walk(backend.task, 0, 3)(member)
        except OddError as error:
            seen.append(error)
            raise

    with pytest.raises(OddError, match="no memory"):
        in_lockstep(backend, 3, [run] * 3)
    assert seen


def test_a_run_that_survives_its_error_goes_on_with_the_others():
    """What a run catches is its own affair."""
    backend = Counting()
    task, whole = backend.task, backend.train
    once = iter([True])

    def train(orders):
        if next(once, False):
            raise OddError
        return whole(orders)

    backend.train = train

    def stubborn(seed):
        def run(member):
            try:
                walk(task, seed, 4)(member)
            except OddError:
                failed.append(seed)
                return walk(task, seed, 4)(member)
            return walk(task, seed, 4)(member)

        return run

    failed = []
    found = in_lockstep(backend, 2, [stubborn(0), stubborn(1)])
    assert failed
    assert found == [walk(task, seed, 4)(Counting(task)) for seed in (0, 1)]


def test_after_a_stop_whoever_asks_is_told():
    backend, told = Counting(), []

    def stubborn(member):
        for _ in range(3):
            try:
                walk(backend.task, 0, 9)(member)
            except RunError as error:
                told.append(str(error))

    def failing(member):
        walk(backend.task, 1, 2)(member)
        raise OddError

    with pytest.raises(OddError):
        in_lockstep(backend, 2, [stubborn, failing])
    assert len(told) == 3
    assert all("another run failed" in text for text in told)


def test_whatever_a_stopped_run_holds_is_given_back():
    backend, closed = Counting(), []

    def holding(member):
        with ExitStack() as stack:
            stack.callback(closed.append, 1)
            walk(backend.task, 0, 9)(member)

    def failing(member):
        walk(backend.task, 1, 2)(member)
        raise OddError

    with pytest.raises(OddError):
        in_lockstep(backend, 3, [holding, failing, holding])
    assert closed == [1, 1]


# Through a grid.


def federate(task, seed, rounds, rule="fed_avg"):
    def run(grid):
        history = InMemoryHistory(task.layout)
        strategy = RecordingStrategy(
            SERVER_RULES[rule]().strategy(), history, directory=Directory(identify)
        )
        result = strategy.start(
            grid,
            to_arrays(task.initial_model(seed), task.layout),
            num_rounds=rounds,
            train_config=ConfigRecord({"seed": seed}),
        )
        updates = [history.round(r).updates.tobytes() for r in history.rounds]
        return from_arrays(result.arrays, task.layout).tobytes(), updates

    return run


def grid_of(task, kernel):
    cohorts = None if kernel is None else CohortSpec(task=task, kernel=kernel)
    return SimulationGrid(small_app(task), num_clients=4, cohorts=cohorts)


@pytest.mark.parametrize("kernel", ["batched", "fused", "reference", None])
def test_federations_in_lockstep_are_those_one_by_one(kernel):
    task = small_task(momentum=0.9)
    runs = [
        federate(task, seed, rounds, rule)
        for seed, (rounds, rule) in enumerate(
            [(3, "fed_avg"), (2, "fed_prox"), (4, "fed_adam"), (1, "krum")]
        )
    ]
    with grid_of(task, kernel) as grid:
        alone = [run(grid) for run in runs]
        backend, calls = grid._backend, []
        whole = backend.train

        def train(orders):
            calls.append(len(orders))
            return whole(orders)

        backend.train = train
        assert grid.in_lockstep(3, runs) == alone
        if kernel is not None:
            assert sum(calls) == 10
            assert 1 < max(calls) <= 3
            assert len(calls) < 10
        # The grid still works.
        assert runs[1](grid) == alone[1]
    assert len({model for model, _ in alone}) == 4


def test_a_closed_grid_has_no_lockstep():
    grid = grid_of(small_task(), "batched")
    with pytest.raises(RunError, match="with statement"):
        grid.in_lockstep(2, [])


def test_a_run_that_fails_leaves_the_grid_usable():
    task = small_task()
    with grid_of(task, "batched") as grid:
        alone = federate(task, 0, 2)(grid)

        def failing(twin):
            raise OddError

        with pytest.raises(OddError):
            grid.in_lockstep(2, [federate(task, 1, 60), failing])
        assert federate(task, 0, 2)(grid) == alone
        assert grid.in_lockstep(2, [federate(task, 0, 2)]) == [alone]
    assert np.isfinite(np.frombuffer(alone[0], np.float32)).all()


# What takes time but no processor.


def test_while_one_waits_for_its_disk_the_others_go_on():
    backend, steps, go = Counting(), [], threading.Event()

    def waiting(member):
        steps.append("asked")
        # Without the other run this would never end.
        steps.append(member.aside(lambda: go.wait(10)))
        return threading.get_ident()

    def other(member):
        found = walk(backend.task, 1, 2)(member)
        steps.append("other")
        go.set()
        return found

    thread, found = in_lockstep(backend, 2, [waiting, other])
    assert steps == ["asked", "other", True]
    assert thread == threading.get_ident()
    assert found == walk(backend.task, 1, 2)(Counting(backend.task))


def test_many_wait_and_each_gets_what_its_own_call_returned():
    backend = Counting(delay=0.002)

    def run(seed):
        def work(member):
            seen = []
            after = lambda r: seen.append(member.aside(lambda: (seed, r)))  # noqa: E731
            model = walk(backend.task, seed, 5, after)(member)
            return model, seen

        return work

    runs = [run(seed) for seed in range(12)]
    found = in_lockstep(backend, 5, runs)
    for seed, (model, seen) in enumerate(found):
        assert model == walk(backend.task, seed, 5)(Counting(backend.task))
        assert seen == [(seed, r) for r in range(1, 6)]


def test_an_error_of_a_disk_is_raised_where_it_was_waited_for():
    def run(member):
        with pytest.raises(OSError, match="disk full"):
            member.aside(lambda: (_ for _ in ()).throw(OSError("disk full")))
        return "went on"

    assert in_lockstep(Counting(), 2, [run, run]) == ["went on"] * 2


def test_a_stopped_run_closes_nothing_its_disk_is_working_on():
    steps, begun = [], threading.Event()

    def slow():
        begun.set()
        time.sleep(0.2)
        steps.append("written")

    def waiting(member):
        try:
            member.aside(slow)
        finally:
            steps.append("closed")
            # There is nobody left to be waited for.
            steps.append(member.aside(lambda: "sealed"))

    def failing(member):
        begun.wait(5)
        raise OddError

    with pytest.raises(OddError):
        in_lockstep(Counting(), 2, [waiting, failing])
    assert steps == ["written", "closed", "sealed"]


def test_a_grid_alone_makes_the_call_itself():
    with SimulationGrid(small_app(small_task()), num_clients=2) as grid:
        assert grid.aside(threading.get_ident) == threading.get_ident()
