"""Every kernel trains as the reference does, and no client sees another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import simulations.engine.kernels as kernels
import simulations.engine.kernels.feed as feed
from fedunlearn.errors import ConfigError, RequestError
from fedunlearn.models import Cnn, LeNet5, Mlp, Softmax
from fedunlearn.training import Training
from simulations.engine.kernels import KERNELS, choose, find_device, make_kernel
from simulations.engine.kernels.batched import Net
from simulations.engine.kernels.fused import Model
from simulations.engine.kernels.layers import stack_of
from simulations.engine.kernels.patches import Memory
from simulations.engine.kernels.sgd import Descent
from tests.engine_helpers import (
    CONVS,
    INDEPENDENT,
    LINEAR,
    MODELS,
    PAIRS,
    SERVES,
    SOME,
    Layers,
    cohort_of_all,
    lengths,
    same_bits,
    smooth,
    task_of,
    trained,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ALL = {"momentum": 0.9, "weight_decay": 0.02}
SETTINGS = {
    "plain": ({}, 0.0),
    "momentum": ({"momentum": 0.8}, 0.0),
    "decay": ({"weight_decay": 0.1}, 0.0),
    "proximal": ({}, 0.7),
    "decay and proximal": ({"weight_decay": 0.1}, 0.7),
    "momentum and proximal": ({"momentum": 0.8}, 0.7),
    "all": (ALL, 0.7),
}


def test_every_kernel_but_the_reference_is_tested():
    """The compiled one is there only where a compiler was."""
    assert {*SERVES, "compiled"} == set(KERNELS) - {"reference"}


def assert_close(kernel, task, cohort, *, of_model=None, of_update=None):
    found, losses = trained(kernel, task, cohort)
    expected, wanted = trained("reference", task, cohort)
    starts = cohort.starts[cohort.start_of]
    idle = cohort.batches.steps == 0
    off, moved = lengths(found - expected), lengths(expected - starts)
    assert (moved[~idle] > 1e-3 * lengths(starts[~idle])).all()
    if of_model is not None:
        assert (off <= of_model * lengths(expected)).all()
    if of_update is not None:
        assert (off <= of_update * moved).all()
    np.testing.assert_allclose(losses, wanted, rtol=1e-4, atol=1e-6)
    assert found[idle].tobytes() == starts[idle].tobytes()
    assert (losses[idle] == 0).all()


@pytest.mark.parametrize(("kernel", "model"), PAIRS)
@pytest.mark.parametrize("seed", [0, 1])
def test_one_step_gives_the_references_model(kernel, model, seed):
    task = task_of(model, (13, 1, 20, 6), seed, batch_size=20, lr=0.2)
    cohort = cohort_of_all(task, seed=seed)
    assert cohort.batches.steps.tolist() == [1] * 4
    assert_close(kernel, task, cohort, of_model=1e-6)


@pytest.mark.parametrize(("kernel", "model"), PAIRS)
def test_five_epochs_give_the_references_updates(kernel, model):
    task = task_of(model, (13, 4, 0, 20))
    cohort = cohort_of_all(task, epochs=5, starts=2)
    assert_close(kernel, task, cohort, of_update=1e-3)


@pytest.mark.parametrize(("kernel", "model"), SOME)
@pytest.mark.parametrize("name", SETTINGS)
def test_the_optimiser_is_the_references(kernel, model, name):
    training, mu = SETTINGS[name]
    task = task_of(model, **training)
    cohort = cohort_of_all(task, epochs=3, mu=mu)
    if name != "plain":
        # The setting does something, so that a kernel cannot pass by ignoring it.
        bare = cohort_of_all(task, epochs=3)
        without = trained("reference", task_of(model), bare)[0]
        changed = trained("reference", task, cohort)[0] - without
        moved = without - cohort.starts[cohort.start_of]
        assert (lengths(changed) > 5e-3 * lengths(moved)).all()
    assert_close(kernel, task, cohort, of_update=1e-3)


@pytest.mark.parametrize(("kernel", "model"), SOME)
@pytest.mark.parametrize("training", [{}, ALL], ids=["plain", "all"])
def test_every_client_has_its_own_pull(kernel, model, training):
    task = task_of(model, (13, 13, 9, 0, 20), **training)
    cohort = cohort_of_all(task, epochs=2, mu=[0.0, 1.5, 0.3, 2.0, 0.0], starts=3)
    assert_close(kernel, task, cohort, of_update=1e-3)


@pytest.mark.parametrize(("kernel", "model"), SOME)
@pytest.mark.parametrize("epochs", [0.1, 0.5, 1.5, 2.3])
def test_batches_of_any_size_and_number(kernel, model, epochs):
    """Last ones that are short, ones larger than the data, and parts of an epoch."""
    for size in (1, 7, 64):
        task = task_of(
            model, (15, 1, 0, 8), batch_size=size, lr=0.1 if size > 1 else 0.02
        )
        assert_close(kernel, task, cohort_of_all(task, epochs=epochs), of_update=1e-3)


@pytest.mark.parametrize(("kernel", "model"), SOME)
def test_only_clients_without_examples(kernel, model):
    task = task_of(model, (0, 0, 0))
    cohort = cohort_of_all(task, mu=[0.0, 1.0, 0.0], starts=2)
    models, losses = trained(kernel, task, cohort)
    assert models.tobytes() == cohort.starts[cohort.start_of].tobytes()
    assert losses.tolist() == [0, 0, 0]


# Hand-written derivatives, in float64: autograd agrees to the last digits, so a wrong
# term cannot hide in rounding.


def autograd(task, vector, batches, training, mu):
    """Vectors and losses of a plain torch loop in float64."""
    module = task.new_module().double()
    with torch.no_grad():
        nn.utils.vector_to_parameters(vector.clone(), module.parameters())
    start = vector.clone()
    sgd = torch.optim.SGD(
        module.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    losses = []
    for x, y in batches:
        sgd.zero_grad()
        loss = functional.cross_entropy(module(x), y)
        flat = nn.utils.parameters_to_vector(module.parameters())
        (loss + mu / 2 * ((flat - start) ** 2).sum()).backward()
        sgd.step()
        losses.append(loss.detach())
    flat = nn.utils.parameters_to_vector(module.parameters()).detach()
    return flat, torch.stack(losses)


def batches64(task, seed, count=4):
    generator = torch.Generator().manual_seed(seed)
    for n in [5, 1, 8, 3][:count]:
        x = torch.randn(n, *task.input_shape, generator=generator, dtype=torch.float64)
        yield x, torch.randint(task.num_classes, (n,), generator=generator)


def fused_losses(task, descent, batches):
    """The losses of the fused kernel's steps, whose weights the descent moves."""
    stack, (weights,) = stack_of(task.module(), task.layout), descent.weights
    memories = [Memory(layer, weights) for layer in stack.convs]
    layers = Model.of(stack, memories, descent)
    eye = torch.eye(task.num_classes, dtype=torch.float64)
    scores = [layers.step(x, eye[:, y]) for x, y in batches]
    pairs = zip(scores, batches, strict=True)
    return torch.stack(
        [functional.cross_entropy(found.t(), y) for found, (_, y) in pairs]
    )


@pytest.mark.parametrize("model", SERVES["fused"])
@pytest.mark.parametrize("name", ["plain", "decay and proximal", "all"])
def test_fused_layers_are_autograds_in_float64(model, name):
    settings, mu = SETTINGS[name]
    task, training = task_of(model), Training(lr=0.1, **settings)
    start = torch.from_numpy(task.initial_model(1)).double()
    batches = list(batches64(task, 1))
    wanted, expected = autograd(task, start, batches, training, mu)
    weights = start.clone()
    losses = fused_losses(task, Descent.of((weights,), training, mu), batches)
    moved = float((wanted - start).norm())
    assert moved > 0.01
    assert float((weights - wanted).norm()) <= 1e-10 * moved
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("model", SERVES["batched"])
@pytest.mark.parametrize("name", ["plain", "decay and proximal", "all"])
def test_batched_layers_are_autograds_in_float64(model, name):
    """Two clients, padded to ten; the second has another pull."""
    settings, mu = SETTINGS[name]
    task, training = task_of(model), Training(lr=0.1, **settings)
    mus = torch.tensor([mu, 2 * mu], dtype=torch.float64)
    starts = [torch.from_numpy(task.initial_model(s)).double() for s in (1, 2)]
    fed = [list(batches64(task, s)) for s in (1, 2)]
    stack = stack_of(task.module(), task.layout)
    both, parts = torch.stack(starts), []
    for layer in stack.linears:
        weight = both[:, layer.weight].reshape(2, layer.outputs, layer.inputs)
        parts += [weight.contiguous(), both[:, layer.bias, None].contiguous()]
    net = Net.of(
        Descent.of(tuple(parts), training, mus), [la.relu for la in stack.linears]
    )
    losses = []
    for step in zip(*fed, strict=True):
        x = torch.zeros(2, 10, *task.input_shape, dtype=torch.float64).flatten(2)
        targets = torch.zeros(2, 10, task.num_classes, dtype=torch.float64)
        shares = torch.zeros(2, 10, dtype=torch.float64)
        for a, (rows, y) in enumerate(step):
            n = len(y)
            x[a, :n], shares[a, :n] = rows.flatten(1), 1 / n
            targets[a, torch.arange(n), y] = 1 / n
        losses.append(net.step((x, targets, shares)))
    models = torch.cat([p.flatten(1) for p in parts], 1)
    for a in (0, 1):
        wanted, expected = autograd(task, starts[a], fed[a], training, float(mus[a]))
        moved = float((wanted - starts[a]).norm())
        assert float((models[a] - wanted).norm()) <= 1e-10 * moved
        torch.testing.assert_close(
            torch.stack(losses)[:, a], expected, rtol=1e-10, atol=1e-12
        )


def flat_images(task):
    """The same task on images of one colour: every pooling window is a tie."""
    data = []
    for k, one in enumerate(task.clients):
        x = np.broadcast_to(np.float32(0.3 * (k + 1)), one.x.shape).copy()
        x[1::2] *= -1
        data.append(replace(one, x=x))
    return tuple(data)


@pytest.mark.parametrize("model", CONVS)
def test_a_tie_in_a_pooling_window_goes_to_the_first_as_in_torch(model):
    task = task_of(model, (8, 5), lr=0.2)
    task = replace(task, clients=flat_images(task))
    assert_close("fused", task, cohort_of_all(task), of_update=1e-4)


@pytest.mark.parametrize(
    "kernel",
    [name for name in ("fused", "compiled") if "lenet5" in SERVES.get(name, ())],
)
@pytest.mark.parametrize("conv", [0, 1])
def test_of_equal_sums_over_different_patches_the_first_is_hit(kernel, conv):
    """With no weights all sums are equal, and gradients tell whose patch was taken."""
    task = task_of("lenet5", (13, 20), batch_size=20, lr=0.2)
    cohort = cohort_of_all(task)
    layer = stack_of(task.module(), task.layout).convs[conv]
    cohort.starts[:, layer.weight], cohort.starts[:, layer.bias] = 0, 0.5
    assert_close(kernel, task, cohort, of_update=1e-5)


def test_a_tie_of_maxima_in_float64():
    """Input gradients of the layer below tell which member of a window was hit."""
    task = task_of("lenet5, odd")
    start = torch.from_numpy(task.initial_model(1)).double()
    x = torch.full((3, *task.input_shape), 0.5, dtype=torch.float64)
    batches = [(x, torch.tensor([0, 1, 2]))] * 3
    wanted, _ = autograd(task, start, batches, Training(lr=0.1), 0.0)
    weights = start.clone()
    fused_losses(task, Descent.of((weights,), Training(lr=0.1), 0.0), batches)
    assert float((weights - wanted).norm()) <= 1e-10 * float((wanted - start).norm())


# A client's numbers are its own.


def alone(kernel, task, cohort):
    """Every client trained in a cohort of its own."""
    parts = [trained(kernel, task, cohort.part(k, k + 1)) for k in range(len(cohort))]
    models, losses = zip(*parts, strict=True)
    return np.concatenate(models), np.concatenate(losses)


MANY = (13, 4, 20, 0, 6, 33, 6, 1, 21, 40)


@pytest.mark.parametrize(("kernel", "model"), INDEPENDENT)
def test_a_client_alone_gets_the_bits_it_gets_among_others(kernel, model):
    task = task_of(model, MANY, batch_size=16, **ALL)
    cohort = cohort_of_all(task, epochs=1.5, mu=0.3, starts=3)
    assert same_bits(trained(kernel, task, cohort), alone(kernel, task, cohort))


@pytest.mark.parametrize(("kernel", "model"), SOME)
@pytest.mark.parametrize(
    "training",
    # 1 - lr * decay is another float32 if its terms are rounded first.
    [{}, {"weight_decay": 0.3, "lr": 0.3}, {"momentum": 0.9}, ALL],
    ids=["plain", "decay", "momentum", "all"],
)
def test_a_partners_pull_changes_no_bit(kernel, model, training):
    task = task_of(model, (13, 13, 20, 7), **training)
    cohort = cohort_of_all(task, epochs=3, mu=[0.0, 0.4, 0.0, 1.1], starts=2)
    assert same_bits(trained(kernel, task, cohort), alone(kernel, task, cohort))


@pytest.mark.parametrize(("kernel", "model"), SOME)
def test_order_and_neighbours_change_no_bit(kernel, model):
    task = task_of(model, MANY, batch_size=16, momentum=0.5)
    cohort = cohort_of_all(task, mu=0.2, starts=2)
    models, losses = trained(kernel, task, cohort)
    rng = np.random.default_rng(0)
    for _ in range(3):
        chosen = rng.permutation(len(MANY))[: rng.integers(1, len(MANY) + 1)]
        taken = trained(kernel, task, cohort.take(chosen))
        assert same_bits(taken, (models[chosen], losses[chosen]))
    twice = np.array([2, 2, 5, 2])
    assert same_bits(
        trained(kernel, task, cohort.take(twice)), (models[twice], losses[twice])
    )
    for begin, end in [(0, 4), (4, 10), (3, 4), (9, 10)]:
        part = trained(kernel, task, cohort.part(begin, end))
        assert same_bits(part, (models[begin:end], losses[begin:end]))


@pytest.mark.parametrize(("kernel", "model"), [("batched", "mlp"), ("vmap", "mlp")])
def test_the_size_of_groups_changes_no_bit(kernel, model, monkeypatch):
    task = task_of(model, MANY, batch_size=16)
    cohort = cohort_of_all(task)
    whole = trained(kernel, task, cohort)
    for size in (1, 16 * 5 * 4 * 2, 16 * 5 * 4 * 3):
        monkeypatch.setattr(feed, "_GROUP_BYTES", size)
        assert same_bits(trained(kernel, task, cohort), whole)


@pytest.mark.parametrize("kernel", ["batched"])
def test_products_of_any_shape_do_not_mix_clients(kernel):
    """Torch may choose another product for one client than for many."""
    rng = np.random.default_rng(5)
    for _ in range(6):
        hidden = tuple(rng.integers(1, 90, rng.integers(0, 3)).tolist())
        task = replace(
            task_of("mlp", rng.integers(0, 70, 9).tolist()),
            model=Mlp(hidden=hidden) if hidden else Softmax(),
            training=Training(batch_size=int(rng.integers(1, 65)), lr=0.05),
        )
        cohort = cohort_of_all(task, epochs=1)
        assert same_bits(trained(kernel, task, cohort), alone(kernel, task, cohort))


def poisoned(task, client, value):
    data = list(task.clients)
    x = data[client].x.copy()
    x[0] = value
    data[client] = replace(data[client], x=x)
    return data


@pytest.mark.parametrize(("kernel", "model"), SOME)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30], ids=str)
@pytest.mark.parametrize("sick", [2, 3])  # 3, the longest, is the first of its group
def test_a_client_that_diverges_does_so_alone(kernel, model, value, sick):
    task = task_of(model, (13, 4, 13, 20), lr=0.5)
    cohort = cohort_of_all(task, epochs=3, mu=0.1)
    others = np.setdiff1d(np.arange(4), sick)
    clean = trained(kernel, task, cohort.take(others))
    assert np.isfinite(clean[0]).all()
    cohort = replace(cohort, data=poisoned(task, sick, value))
    models, losses = trained(kernel, task, cohort)
    expected, _ = trained("reference", task, cohort)
    assert same_bits((models[others], losses[others]), clean)
    assert np.isfinite(models[sick]).all() == np.isfinite(expected[sick]).all()
    if value != 1e30:
        assert not np.isfinite(models[sick]).all()
        assert not np.isfinite(losses[sick])


def shifted(array, offset):
    """The same numbers, read-only, ``offset`` bytes off what NumPy aligns to."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    at = -memory.ctypes.data % 64 + offset
    view = memory[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
    view[:] = array
    view.setflags(write=False)
    return view


def strided(array, _):
    """The same numbers with gaps between rows."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    view = wide[..., ::2]
    view[:] = array
    view.setflags(write=False)
    return view


def by_column(array, _):
    view = np.asfortranarray(array)
    view.setflags(write=False)
    return view


@pytest.mark.parametrize(("kernel", "model"), [*SOME, ("reference", "lenet5, odd")])
@pytest.mark.parametrize("layout", [shifted, strided, by_column])
def test_where_and_how_inputs_lie_in_memory_changes_no_bit(kernel, model, layout):
    task = task_of(model, (13, 4, 20), **ALL)
    cohort = cohort_of_all(task, mu=0.1, starts=2)
    expected = trained(kernel, task, cohort)
    for offset in (4, 12, 20):
        data = [
            replace(d, x=layout(d.x, offset), y=layout(d.y, 8)) for d in cohort.data
        ]
        moved = replace(cohort, data=data, starts=layout(cohort.starts, offset))
        assert same_bits(trained(kernel, task, moved), expected)


@pytest.mark.parametrize(("kernel", "model"), SOME)
def test_nothing_given_is_written_to(kernel, model):
    task = task_of(model, (13, 0, 20), **ALL)
    cohort = cohort_of_all(task, mu=[0.0, 0.2, 0.3], starts=2)
    arrays = [cohort.starts, cohort.start_of, cohort.proximal_mu]
    arrays += [cohort.batches.rows, cohort.batches.bounds, cohort.batches.first]
    arrays += [array for data in cohort.data for array in (data.x, data.y)]
    before = [array.tobytes() for array in arrays]
    first = trained(kernel, task, cohort)
    assert [array.tobytes() for array in arrays] == before
    for array in arrays:  # torch could write to these as well: hence the bytes above
        array.setflags(write=False)
    assert same_bits(trained(kernel, task, cohort), first)


@pytest.mark.parametrize(("kernel", "model"), SOME)
def test_rows_of_a_larger_matrix_can_be_filled(kernel, model):
    task = task_of(model)
    cohort = cohort_of_all(task)
    expected, _ = trained(kernel, task, cohort)
    out = np.full((7, expected.shape[1]), 3, np.float32)
    make_kernel(kernel, task).train(cohort, out[2:5])
    assert out[2:5].tobytes() == expected.tobytes()
    assert (out[[0, 1, 5, 6]] == 3).all()


# Which kernel.


@pytest.mark.parametrize(
    ("model", "shape", "name"),
    [
        (Softmax(), (5,), "batched"),
        (Mlp(hidden=(8,)), (5,), "batched"),
        (Mlp(hidden=(94,)), (103,), "batched"),  # 9,966 parameters
        (Mlp(hidden=(95,)), (103,), "fused"),  # 10,072 parameters
        (Mlp(hidden=(200,)), (60,), "fused"),
        (LeNet5(), (1, 16, 16), "fused"),
        (LeNet5(), (3, 28, 28), "fused"),
        (Cnn(channels=4), (1, 8, 8), "reference"),
        (Layers(smooth), (4,), "reference"),
        (Layers(smooth), (2000,), "reference"),
    ],
)
def test_the_model_and_its_size_choose_the_kernel(model, shape, name, monkeypatch):
    task = small(model, shape, classes=2)
    assert choose(task, torch.device("cpu"), compiled=False) == name
    monkeypatch.setattr(kernels, "available", lambda: None)
    assert choose(task, torch.device("cpu")) == name
    assert make_kernel("auto", task).name == name


@pytest.mark.skipif("compiled" not in SERVES, reason="it was not built")
@pytest.mark.parametrize("model", MODELS)
def test_the_compiled_kernel_is_chosen_where_it_serves(model):
    task = task_of(model)
    chosen = choose(task, torch.device("cpu"))
    assert (chosen == "compiled") == (model in SERVES["compiled"])


def small(model, shape, classes=3):
    task = task_of("softmax")
    return replace(task, model=model, input_shape=shape, num_classes=classes)


@pytest.mark.parametrize("name", ["reference", *SERVES])
def test_a_kernel_says_its_name(name):
    found = make_kernel(name, task_of("softmax")).name
    assert found.partition("(")[0] == name


def test_an_unknown_kernel_is_refused_with_the_nearest_name():
    with pytest.raises(RequestError, match=r"engine\.kernel 'fuesd'.*'fused'.*batched"):
        make_kernel("fuesd", task_of("softmax"))


@pytest.mark.parametrize(
    ("kernel", "model", "shape", "why"),
    [
        ("batched", LeNet5(), (1, 16, 16), "linear layers only"),
        ("batched", Cnn(channels=4), (1, 8, 8), "Cnn is none: use reference"),
        ("fused", Cnn(channels=4), (1, 8, 8), "Cnn is none: use reference"),
        ("fused", Layers(smooth), (4,), "Layers is none: use reference"),
        ("vmap", LeNet5(), (1, 16, 16), "it has a convolution"),
        ("vmap", Cnn(channels=4), (1, 8, 8), "it has a convolution"),
    ],
)
def test_a_kernel_that_cannot_serve_says_why(kernel, model, shape, why):
    with pytest.raises(ConfigError, match=rf"engine\.kernel={kernel}.*{why}"):
        make_kernel(kernel, small(model, shape))


def with_dropout(shape, classes):
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, classes))


def with_buffers(shape, classes):
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


@pytest.mark.parametrize(
    ("make", "why"), [(with_dropout, "random"), (with_buffers, "buffers")]
)
def test_what_cannot_be_vectorised_is_refused(make, why):
    task = small(Layers(make), (4,))
    assert choose(task, torch.device("cpu")) == "reference"
    with pytest.raises(ConfigError, match=why):
        make_kernel("vmap", task)


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is there")
@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu", ""])
def test_a_device_that_is_not_there_is_refused(kernel, device):
    with pytest.raises(ConfigError, match=rf"engine\.device={device} is not there: ."):
        make_kernel(kernel, task_of("softmax"), device)


def test_the_reference_works_on_the_cpu_only():
    """Torch's ``meta`` device is there on every machine."""
    with pytest.raises(
        ConfigError, match=r"reference works on engine\.device=cpu only"
    ):
        KERNELS["reference"](task_of("softmax"), torch.device("meta"))
    assert find_device("cpu").type == "cpu"


# What looks like a plain stack and is none.


def no_bias(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, classes, bias=False))


def one_relu_twice(shape, classes):
    relu = nn.ReLU()
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 6),
        relu,
        nn.Linear(6, 6),
        relu,
        nn.Linear(6, classes),
    )


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Squaring(nn.Sequential):
    def forward(self, x):
        return super().forward(x) ** 2


def own_linear(shape, classes):
    return nn.Sequential(nn.Flatten(), Doubling(4, classes))


def own_sequential(shape, classes):
    return Squaring(nn.Flatten(), nn.Linear(4, classes))


def no_flatten(shape, classes):
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, classes))


def relu_last(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, classes), nn.ReLU())


@pytest.mark.parametrize(
    "make",
    [no_bias, one_relu_twice, own_linear, own_sequential, no_flatten, relu_last],
    ids=lambda f: f.__name__,
)
def test_a_users_own_model_trains_as_the_reference_does(make):
    """Whatever ``auto`` chooses for it."""
    task = replace(task_of("smooth", (13, 20)), model=Layers(make))
    assert_close("auto", task, cohort_of_all(task, epochs=2), of_update=1e-3)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 2, 3, stride=2),
        nn.Conv2d(1, 2, 3, dilation=2),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(1, 2, 3, bias=False),
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 2, (3, 1)),
        nn.Conv2d(1, 2, 3, padding=(1, 0)),
        nn.Conv2d(1, 2, 3, padding="same"),
    ],
    ids=str,
)
def test_other_convolutions_are_left_to_torch(layer):
    module = nn.Sequential(layer, nn.Flatten(), nn.Linear(8, 2))
    assert stack_of(module, task_of("softmax").layout) is None


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.AvgPool2d(2),
    ],
    ids=str,
)
def test_other_poolings_are_left_to_torch(pool):
    model = Layers(
        lambda shape, classes: nn.Sequential(
            nn.Conv2d(1, 2, 3), pool, nn.Flatten(), nn.Linear(18, classes)
        )
    )
    task = small(model, (1, 8, 8))
    assert stack_of(task.module(), task.layout) is None


def test_tables_agree():
    assert set(MODELS) == {*LINEAR, *CONVS, "smooth"}
