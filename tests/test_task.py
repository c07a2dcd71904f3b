"""Local training equals a plain torch loop that shares none of its code."""

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from fedunlearn.models import MODELS, Cnn, LeNet5, Mlp, Softmax
from fedunlearn.models.state import single_thread, tensor_view
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork, Training, batch_order
from tests.flower_helpers import blobs, small_task


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    single_thread()
    yield
    torch.set_num_threads(before)


def plain(module, task, client, vector, work):
    """The same training by torch's own optimiser and backward pass."""
    data, t = task.clients[client], task.training
    with torch.no_grad():
        at = 0
        for weight in module.parameters():
            flat = torch.tensor(vector[at : at + weight.numel()])
            weight.copy_(flat.reshape(weight.shape))
            at += weight.numel()
    origin = [w.detach().clone() for w in module.parameters()]
    optimiser = torch.optim.SGD(
        module.parameters(), lr=t.lr, momentum=t.momentum, weight_decay=t.weight_decay
    )
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    losses = []
    for rows in batch_order(len(data.y), t, client, work):
        optimiser.zero_grad()
        loss = nn.CrossEntropyLoss()(module(x[rows]), y[rows])
        losses.append(loss.item())
        term = sum(
            ((w - o) ** 2).sum()
            for w, o in zip(module.parameters(), origin, strict=True)
        )
        (loss + work.proximal_mu / 2 * term).backward()
        optimiser.step()
    after = [w.detach().numpy().ravel() for w in module.parameters()]
    return np.concatenate(after), float(np.mean(losses))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("epochs", [1, 2.5])
@pytest.mark.parametrize("mu", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_local_training_equals_a_plain_torch_loop(epochs, mu, momentum, decay):
    task = small_task(momentum=momentum, weight_decay=decay, lr=0.2)
    start = task.initial_model(1)
    work = LocalWork(seed=3, round_index=2, epochs=epochs, proximal_mu=mu)
    for client in range(len(task.clients)):
        expected, loss = plain(mlp(), task, client, start, work)
        found = task.train(client, start, work)
        if mu == 0:
            assert found.model.tobytes() == expected.tobytes()
        else:
            np.testing.assert_allclose(found.model, expected, rtol=1e-5, atol=1e-7)
        assert found.loss == pytest.approx(loss, rel=1e-6)
        assert np.linalg.norm(found.model - start) > 0.01


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(4, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 3),
    )


def test_a_cnn_trains_as_in_plain_torch():
    task = LocalTask(
        clients=blobs((9, 6), shape=(2, 8, 8)),
        model=Cnn(channels=4),
        input_shape=(2, 8, 8),
        num_classes=3,
        training=Training(batch_size=4, lr=0.1, momentum=0.5),
    )
    start, work = task.initial_model(0), LocalWork(seed=0, round_index=1)
    expected, _ = plain(conv(), task, 0, start, work)
    np.testing.assert_allclose(
        task.train(0, start, work).model, expected, rtol=1e-6, atol=1e-7
    )


def test_the_proximal_term_pulls_towards_the_start():
    task = small_task(epochs=5)
    start = task.initial_model(0)
    steps = [
        task.train(0, start, LocalWork(seed=0, round_index=1, proximal_mu=mu))
        for mu in (0.0, 1.0, 5.0)
    ]
    lengths = [np.linalg.norm(s.model - start) for s in steps]
    assert lengths[0] > lengths[1] > lengths[2] > 0


def test_the_result_says_what_it_took():
    result = small_task(batch_size=6, epochs=2).train(
        0, small_task().initial_model(0), LocalWork(seed=0, round_index=1)
    )
    assert (result.num_examples, result.num_steps, result.num_samples) == (20, 8, 40)
    half = small_task(batch_size=6).train(
        0, small_task().initial_model(0), LocalWork(seed=0, round_index=1, epochs=0.6)
    )
    assert (half.num_steps, half.num_samples) == (3, 18)


def test_nothing_passed_in_is_written_to():
    task = small_task()
    start = task.initial_model(0)
    kept = start.copy()
    start.setflags(write=False)
    for data in task.clients:
        data.x.setflags(write=False)
        data.y.setflags(write=False)
    result = task.train(0, start, LocalWork(seed=0, round_index=1))
    assert np.array_equal(start, kept)
    assert not np.shares_memory(result.model, start)
    again = task.train(1, start, LocalWork(seed=0, round_index=1))
    assert not np.shares_memory(result.model, again.model)


def test_a_training_does_not_depend_on_the_one_before():
    """The module is scratch shared by all clients of a process."""
    task, work = small_task(momentum=0.9), LocalWork(seed=0, round_index=1)
    start = task.initial_model(0)
    first = task.train(0, start, work).model.copy()
    task.train(1, start * 3, work)
    assert task.train(0, start, work).model.tobytes() == first.tobytes()


def test_an_empty_client_gives_its_model_back_and_says_zero():
    task = small_task(sizes=(5, 0))
    start = task.initial_model(0)
    result = task.train(1, start, LocalWork(seed=0, round_index=1))
    assert result.model.tobytes() == start.tobytes()
    assert (result.num_examples, result.num_steps, result.num_samples) == (0, 0, 0)
    assert result.loss == 0.0


def order(n, client=0, round_index=1, seed=0, epochs=None, size=4, own=1):
    training = Training(epochs=own, batch_size=size)
    work = LocalWork(seed=seed, round_index=round_index, epochs=epochs)
    return [b.tolist() for b in batch_order(n, training, client, work)]


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 40),
    size=st.integers(1, 50),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 2**63 - 1),
    client=st.integers(0, 2**32 - 1),
    round_index=st.integers(1, 10**6),
)
def test_every_epoch_is_a_permutation_cut_into_batches(
    n, size, epochs, seed, client, round_index
):
    batches = order(n, client, round_index, seed, epochs, size)
    per_epoch = -(-n // size)
    assert len(batches) == epochs * per_epoch
    for epoch in range(epochs):
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(row for batch in part for row in batch) == list(range(n))
        assert [len(b) for b in part[:-1]] == [size] * (per_epoch - 1)
        assert len(part[-1]) == n - size * (per_epoch - 1)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 60),
    size=st.integers(1, 20),
    tenths=st.integers(1, 45),
)
@example(n=50, size=1, tenths=11)  # 1.1 * 50 is 55.00000000000001
@example(n=50, size=2, tenths=22)
def test_a_fraction_of_an_epoch_is_rounded_up_to_whole_batches(n, size, tenths):
    per_epoch = -(-n // size)
    steps = -(-tenths * per_epoch // 10)
    batches = order(n, epochs=tenths / 10, size=size)
    assert len(batches) == steps
    assert batches == order(n, epochs=5, size=size)[:steps]


def test_a_client_without_examples_has_no_batch():
    assert order(0, epochs=3) == []
    assert order(5, epochs=0) == []


def test_epochs_of_the_order_win_over_the_tasks_own():
    assert len(order(8, own=3)) == 6
    assert len(order(8, own=3, epochs=1)) == 2


def test_batch_orders_differ_by_seed_round_and_client_and_by_nothing_else():
    orders = [
        order(30, client=c, round_index=r, seed=s)
        for c in (0, 1)
        for r in (1, 2)
        for s in (0, 1)
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    random.seed(1)
    torch.rand(3)
    assert order(30) == orders[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": -1},
        {"batch_size": 0},
        {"lr": 0},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1e-3},
    ],
    ids=str,
)
def test_training_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Training(**wrong)


TASKS = {
    "softmax": (Softmax(), (5,)),
    "mlp": (Mlp(hidden=(7, 6)), (2, 4)),
    "lenet5": (LeNet5(), (1, 16, 16)),
    "cnn": (Cnn(channels=4), (3, 8, 8)),
}


def task_of(name):
    model, shape = TASKS[name]
    return LocalTask(
        clients=blobs((6,), shape=shape),
        model=model,
        input_shape=shape,
        num_classes=3,
        training=Training(),
    )


@pytest.mark.parametrize("name", MODELS)
def test_initial_models_depend_on_the_seed_alone(name):
    task = task_of(name)
    first = task.initial_model(4)
    task.train(0, first, LocalWork(seed=0, round_index=1))
    torch.rand(5)
    assert task.initial_model(4).tobytes() == first.tobytes()
    assert task.initial_model(5).tobytes() != first.tobytes()
    assert first.dtype == np.float32


@pytest.mark.parametrize("name", MODELS)
def test_initial_values_have_torchs_default_bounds(name):
    """Uniform in +-1/sqrt(fan_in) for weights and biases, GroupNorm at one and zero."""
    task = task_of(name)
    arrays = task.layout.unflatten(task.initial_model(0))
    for prefix, layer in task.module().named_modules():
        own = {
            k: arrays[f"{prefix}.{k}"] for k, _ in layer.named_parameters(recurse=False)
        }
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1 / np.sqrt(np.prod(layer.weight.shape[1:]))
            for array in own.values():
                assert np.abs(array).max() <= bound
            values = own["weight"].ravel() / bound
            assert len(np.unique(values)) > 0.9 * len(values)
            assert abs(values.mean()) < 4 / np.sqrt(3 * len(values))
            # Four standard errors of a uniform sample's deviation.
            spread = 4 * np.sqrt(0.2 / len(values))
            assert values.std() == pytest.approx(1 / np.sqrt(3), rel=spread)
        elif isinstance(layer, nn.GroupNorm):
            assert (own["weight"] == 1).all()
            assert (own["bias"] == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_global_random_states_are_left_alone(name):
    model, shape = TASKS[name]
    states = (torch.get_rng_state(), np.random.get_state()[1], random.getstate())  # noqa: NPY002
    task = LocalTask(
        clients=blobs((6,), shape=shape),
        model=model,
        input_shape=shape,
        num_classes=11,  # no other test's: the module is not cached
        training=Training(),
    )
    start = task.initial_model(0)
    task.train(0, start, LocalWork(seed=0, round_index=1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_reading_read_only_data_gives_no_warning():
    array = np.ones(3, np.float32)
    array.setflags(write=False)
    assert tensor_view(array).sum() == 3
