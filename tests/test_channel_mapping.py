"""Which numbers of a model a pruned channel is, on real torch modules."""

import numpy as np
import pytest
import torch
from torch import nn

from fedunlearn.method import continue_training
from fedunlearn.models import Cnn, LeNet5
from fedunlearn.models.state import load
from strategies.channel_prune import (
    ChannelPrune,
    class_means,
    parts_of,
)
from strategies.layers import convolutions
from tests.engine_helpers import Layers
from tests.perturb_helpers import (
    class_context,
    torch_federation,
)


def with_batch_norm(shape, classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


MODELS = {
    "lenet5": (LeNet5(), (1, 16, 16), 0.1),
    "cnn": (Cnn(channels=8), (1, 8, 8), 0.1),
    "batch norm": (Layers(with_batch_norm), (1, 8, 8), 0.1),
}


@pytest.fixture(scope="module", params=MODELS)
def any_federation(request):
    model, shape, lr = MODELS[request.param]
    return torch_federation(model, shape, 4, rounds=1, lr=lr)


def outputs(task, model, x, *, after_norm):
    """What each convolution, or the norm after it, gives, ``(n, C, h, w)``."""
    module, seen = task.new_module(), []
    load(module, task.layout, model)
    layers = [m for m in module.modules() if not isinstance(m, nn.Sequential)]
    for here, after in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(here, nn.Conv2d):
            norms = (nn.GroupNorm, nn.BatchNorm2d)
            last = after if after_norm and isinstance(after, norms) else here
            last.register_forward_hook(lambda _, __, out: seen.append(out.numpy()))
    with torch.no_grad():
        module(torch.from_numpy(x))
    return seen


def test_a_pruned_channel_is_zero_and_no_other_of_its_layer_changes(any_federation):
    task, model, _ = any_federation
    x = task.clients[0].x[:5]
    before = outputs(task, model, x, after_norm=False)
    for at, layer in enumerate(convolutions(task.layout)):
        for channel in {0, 1, layer.outputs - 1}:
            pruned = model.copy()
            for part in parts_of(layer, np.array([channel]), task.layout):
                pruned[part] = 0
            now = outputs(task, pruned, x, after_norm=False)
            others = np.arange(layer.outputs) != channel
            assert not now[at][:, channel].any()
            assert (now[at][:, others] == before[at][:, others]).all()
            for earlier in range(at):
                assert (now[earlier] == before[earlier]).all()
            assert not outputs(task, pruned, x, after_norm=True)[at][:, channel].any()


def test_the_parts_of_a_channel_are_its_weights_bias_scale_and_shift():
    task, _, _ = torch_federation(Cnn(channels=4), (1, 8, 8), 3, rounds=1)
    second = convolutions(task.layout)[1]
    touched = np.zeros(task.layout.size)
    for part in parts_of(second, np.array([1, 5]), task.layout):
        touched[part] += 1
    named = task.layout.unflatten(touched)
    counts = {name: array.sum() for name, array in named.items() if array.any()}
    assert counts == {"4.weight": 72, "4.bias": 2, "5.weight": 2, "5.bias": 2}
    assert named["4.weight"][[1, 5]].all()
    assert named["5.bias"].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]


def test_group_norm_spreads_the_change_over_the_group_and_no_further():
    task, model, _ = torch_federation(Cnn(channels=8), (1, 8, 8), 3, rounds=1)
    x, first = task.clients[0].x[:5], convolutions(task.layout)[0]
    before = outputs(task, model, x, after_norm=True)[0]
    for part in parts_of(first, np.array([2]), task.layout):
        model[part] = 0
    now = outputs(task, model, x, after_norm=True)[0]
    changed = [bool((now[:, j] != before[:, j]).any()) for j in range(8)]
    # Four groups of two: the neighbour of channel 2 is 3.
    assert changed == [False, False, True, True, False, False, False, False]


def test_a_pruned_channel_stays_dead_in_training(any_federation):
    task, model, history = any_federation
    ctx = class_context(task, history, {2})
    pruned = ChannelPrune(recovery_rounds=0).unlearn(model, ctx)
    after = continue_training(pruned, ctx, [2, 3])
    assert (after != pruned).any()
    x = task.clients[0].x
    for then, now in zip(
        outputs(task, pruned, x, after_norm=True),
        outputs(task, after, x, after_norm=True),
        strict=True,
    ):
        dead = ~then.any(axis=(0, 2, 3))
        assert dead.any()
        assert (now[:, dead] == 0).all()
    if isinstance(task.model, Cnn):
        return  # there the weights steer the statistics of the channel's group
    gone = (pruned == 0) & (model != 0)
    assert gone.any()
    assert not after[gone].any()


def test_means_of_classes_are_averaged_by_their_examples(any_federation):
    task, model, history = any_federation
    ctx = class_context(task, history, {2})
    channels = sum(layer.outputs for layer in convolutions(task.layout))
    means, held = class_means(model, ctx, channels)
    assert held.tolist() == [0, 1, 2, 3]
    x = np.concatenate([d.x for d in task.clients])
    y = np.concatenate([d.y for d in task.clients])
    seen = outputs(task, model, x, after_norm=False)
    each = np.concatenate([np.maximum(s, 0).mean((2, 3)) for s in seen], axis=1)
    for label in range(4):
        assert means[label] == pytest.approx(each[y == label].mean(0), abs=1e-5)
