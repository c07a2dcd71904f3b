"""Gradients of single examples, by layers and by examples."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedunlearn.models import Cnn, LeNet5, Mlp, Softmax
from fedunlearn.moments import _plain, gradient_moments
from fedunlearn.problem import _mean_gradient

IMAGE = (1, 28, 28)
SEQUENCES = {
    "softmax": Softmax().build((5,), 3),
    "mlp": Mlp(hidden=(7,)).build((5,), 3),
    "lenet5": LeNet5().build(IMAGE, 10),
    "of_places": nn.Sequential(
        nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2, bias=False), nn.Flatten()
    ),
    "no_bias": nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)),
    "strided": nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    ),
}
OTHERS = {
    "cnn": Cnn().build(IMAGE, 10),
    "grouped": nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten()),
    "padded": nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.Flatten()),
    "reflected": nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.Flatten()
    ),
    "in_place": nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
    "normed": nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)),
}
SHAPES = {"lenet5": IMAGE, "cnn": IMAGE, "strided": (2, 8, 7), "of_places": (2, 3, 5)}
SHAPES |= dict.fromkeys(("grouped", "padded", "reflected"), (2, 5, 5))


def examples(name, module, count):
    rng = np.random.default_rng(3)
    shape = SHAPES.get(name, (5,))
    x = torch.from_numpy(rng.normal(size=(count, *shape)).astype(np.float32))
    with torch.no_grad():
        classes = module(x[:2]).shape[1]
    return x, torch.from_numpy(rng.integers(classes, size=count))


def one_by_one(module, x, y):
    weights = list(module.parameters())
    total = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    for row in range(len(x)):
        loss = functional.cross_entropy(module(x[row : row + 1]), y[row : row + 1])
        own = torch.autograd.grad(loss, weights)
        pairs = zip(total, own, strict=True)
        total = [(s + g, t + g.square()) for (s, t), g in pairs]
    return total


@pytest.mark.parametrize("name", [*SEQUENCES, *OTHERS])
def test_moments_are_those_of_each_example_s_own_gradient(name):
    module = (SEQUENCES | OTHERS)[name]
    x, y = examples(name, module, 70)
    found, right = gradient_moments(module, x, y), one_by_one(module, x, y)
    shapes = [w.shape for w in module.parameters()]
    for moment in (0, 1):
        assert [pair[moment].shape for pair in found] == shapes
        for own, wanted in zip(found, right, strict=True):
            far = (own[moment] - wanted[moment]).norm()
            assert far <= 1e-5 * wanted[moment].norm()


@pytest.mark.parametrize("name", [*SEQUENCES, *OTHERS])
def test_only_plain_sequences_go_by_layers(name):
    assert _plain((SEQUENCES | OTHERS)[name]) == (name in SEQUENCES)


def test_a_layer_used_twice_is_no_plain_sequence():
    layer = nn.Linear(4, 4)
    assert not _plain(nn.Sequential(layer, nn.Tanh(), layer))
    assert not _plain(nn.Sequential(layer, nn.Tanh(), nn.Sequential(layer)))


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


@pytest.mark.parametrize("name", ["mlp", "lenet5", "cnn"])
def test_a_gradient_in_parts_is_the_gradient_of_the_whole(name):
    module = (SEQUENCES | OTHERS)[name]
    x, y = examples(name, module, 600)
    loss = functional.cross_entropy(module(x), y)
    whole = torch.autograd.grad(loss, list(module.parameters()))
    found, wanted = flat(_mean_gradient(module, x, y)), flat(whole)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_module_with_statistics_of_its_batch_sees_all_of_it():
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    x, y = examples("batch_norm", module, 600)
    loss = functional.cross_entropy(module(x), y)
    whole = torch.autograd.grad(loss, list(module.parameters()))
    found = _mean_gradient(module, x, y)
    assert all(map(torch.equal, found, whole))
