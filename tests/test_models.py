"""Models: what they are, on which shapes they build, and what they refuse."""

import numpy as np
import pytest
import torch
from torch import nn

from fedunlearn.errors import ConfigError
from fedunlearn.models import MODELS, Cnn, LeNet5, Mlp, Softmax
from fedunlearn.models.modules import Halving
from fedunlearn.models.state import arrays_of, load
from fedunlearn.params import Layout

IMAGES = [(1, 16, 16), (1, 28, 28), (3, 32, 32), (2, 17, 30), (3, 16, 64)]


def logits(model, shape, classes=7):
    module = model.build(shape, classes)
    return module, module(torch.zeros(5, *shape))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", IMAGES)
def test_every_model_builds_on_images(name, shape):
    _, out = logits(MODELS[name](), shape)
    assert out.shape == (5, 7)


@pytest.mark.parametrize(
    "model", [Softmax(), Mlp(), Mlp(hidden=()), Mlp(hidden=(3, 4))]
)
@pytest.mark.parametrize("shape", [(1,), (13,), (2, 3), (8, 8)])
def test_softmax_and_mlp_take_any_shape(model, shape):
    _, out = logits(model, shape)
    assert out.shape == (5, 7)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 8), (1, 7, 5)])
def test_the_cnn_takes_small_images(shape):
    _, out = logits(Cnn(channels=4), shape)
    assert out.shape == (5, 7)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet5", (64,)),
        ("lenet5", (28, 28)),
        ("lenet5", (1, 15, 16)),
        ("lenet5", (1, 16, 15)),
        ("lenet5", (1, 8, 8)),
        ("lenet5", ()),
        ("cnn", (64,)),
        ("cnn", (8, 8)),
        ("cnn", (1, 3, 4)),
        ("cnn", (1, 4, 3)),
        ("cnn", (1, 1, 28, 28)),
    ],
)
def test_data_that_a_model_cannot_take_is_a_config_error_with_both_shapes(name, shape):
    with pytest.raises(ConfigError, match=f"model.name={name} needs images") as caught:
        MODELS[name]().build(shape, 10)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("hidden", [(0,), (8, -1)])
def test_layers_without_units_are_refused(hidden):
    with pytest.raises(ValueError, match="hidden widths must be positive"):
        Mlp(hidden=hidden)


@pytest.mark.parametrize("channels", [0, -4, 2, 6])
def test_channels_that_do_not_split_into_groups_are_refused(channels):
    with pytest.raises(ValueError, match="channels must be a positive multiple of 4"):
        Cnn(channels=channels)


def parameters(module):
    return sum(w.numel() for w in module.parameters())


def test_the_models_have_the_parameters_of_their_papers():
    assert parameters(logits(Softmax(), (64,), 10)[0]) == 64 * 10 + 10
    assert parameters(logits(Mlp(), (64,), 10)[0]) == 64 * 64 + 64 + 64 * 10 + 10
    # LeCun et al. 1998 on 32x32, which is 28x28 padded by two: 61,706 with full C3.
    assert parameters(logits(LeNet5(), (1, 28, 28), 10)[0]) == 61706


@pytest.mark.parametrize("name", MODELS)
def test_no_model_keeps_statistics_or_integers_beside_its_parameters(name):
    module, _ = logits(MODELS[name](), (1, 16, 16))
    assert not list(module.buffers())
    assert not any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()
    )
    arrays = arrays_of(module)
    assert Layout.of(arrays).names == tuple(arrays)


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_vector_comes_back_bit_for_bit(name):
    module, _ = logits(MODELS[name](), (1, 16, 16))
    layout = Layout.of(arrays_of(module))
    vector = layout.flatten(arrays_of(module))
    vector[:] = torch.arange(layout.size).numpy()
    vector.setflags(write=False)
    load(module, layout, vector)
    assert layout.flatten(arrays_of(module)).tobytes() == vector.tobytes()


def test_specifications_are_frozen_and_compare_by_value():
    assert Mlp(hidden=(3,)) == Mlp(hidden=(3,))
    assert hash(Mlp(hidden=(3,))) == hash(Mlp(hidden=(3,)))
    assert len({Softmax(), Softmax(), Cnn(), Cnn(channels=8)}) == 3


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (1, 2, 7, 5), (3, 1, 2, 2)])
def test_halving_is_max_pooling_with_and_without_gradients(shape):
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=shape).round(1).astype(np.float32))
    expected = nn.MaxPool2d(2)(x)
    assert torch.equal(Halving()(x), expected)
    with torch.no_grad():
        assert torch.equal(Halving()(x), expected)
    slopes = []
    for pool in (Halving(), nn.MaxPool2d(2)):
        leaf = x.clone().requires_grad_()
        slopes += torch.autograd.grad(pool(leaf).square().sum(), leaf)
    assert torch.equal(*slopes)
