"""Layers read off names and shapes, against torch's own modules."""

import numpy as np
import pytest
import torch
from torch import nn

from fedunlearn.models import Cnn, LeNet5, Mlp, Softmax
from fedunlearn.models.state import arrays_of
from fedunlearn.params import Layout
from strategies.layers import convolutions, layers_of, mask_of, norm_after


def layout_of(module):
    return Layout.of(arrays_of(module))


MODELS = [
    Softmax().build((5,), 3),
    Mlp(hidden=(4, 6)).build((5,), 3),
    LeNet5().build((1, 16, 16), 4),
    Cnn(channels=4).build((3, 8, 8), 5),
]


@pytest.mark.parametrize("module", MODELS, ids=range(len(MODELS)))
def test_layers_are_torch_s_linear_and_convolutional_modules(module):
    layout = layout_of(module)
    own = [(n, m) for n, m in module.named_modules() if isinstance(m, KINDS)]
    found = layers_of(layout)
    assert [layer.home for layer in found] == [name for name, _ in own]
    for layer, (name, one) in zip(found, own, strict=True):
        slices = layout.slices
        assert layer.weight == slices[f"{name}.weight"]
        assert layer.bias == slices[f"{name}.bias"]
        assert layer.outputs == one.weight.shape[0] == one.bias.shape[0]
        assert layer.whole == slice(layer.weight.start, layer.bias.stop)
    assert [layer.home for layer in convolutions(layout)] == [
        name for name, m in own if isinstance(m, nn.Conv2d)
    ]


KINDS = (nn.Linear, nn.Conv2d)


def test_a_row_holds_the_weights_of_one_output():
    module = Cnn(channels=4).build((3, 8, 8), 5)
    layout = layout_of(module)
    model = layout.flatten(arrays_of(module))
    second = convolutions(layout)[1]
    weights = module[4].weight.detach().numpy()
    for output in (0, 3, 7):
        assert (model[second.row(output)] == weights[output].reshape(-1)).all()


def test_a_norm_is_no_layer_and_follows_its_convolution():
    layout = layout_of(Cnn(channels=4).build((1, 8, 8), 3))
    first, second = convolutions(layout)
    slices = layout.slices
    assert norm_after(layout, first) == (slices["1.weight"], slices["1.bias"])
    assert norm_after(layout, second) == (slices["5.weight"], slices["5.bias"])
    assert norm_after(layout, layers_of(layout)[-1]) == ()
    plain = layout_of(LeNet5().build((1, 16, 16), 4))
    assert all(norm_after(plain, layer) == () for layer in layers_of(plain))


def test_a_batch_norm_s_statistics_are_not_its_scale_and_shift():
    layout = layout_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    (layer,) = convolutions(layout)
    slices = layout.slices
    assert "1.running_var" in slices
    assert norm_after(layout, layer) == (slices["1.weight"], slices["1.bias"])


def test_a_layer_without_bias_owns_its_weights_only():
    layout = layout_of(nn.Sequential(nn.Linear(3, 2, bias=False), nn.LayerNorm(2)))
    (layer,) = layers_of(layout)
    assert layer.bias is None
    assert layer.whole == slice(0, 6)


def test_arrays_with_bare_numbers_as_names_are_told_apart_by_their_shapes():
    shapes = ((4, 3), (4,), (2, 4), (2,))
    first, last = layers_of(Layout(("0", "1", "2", "3"), shapes))
    assert (first.whole, last.whole) == (slice(0, 16), slice(16, 26))
    assert last.bias == slice(24, 26)


def test_a_smaller_array_after_a_stranger_belongs_to_nobody():
    layout = Layout(("a.weight", "b.scale", "a.late"), ((2, 2), (2,), (2,)))
    (layer,) = layers_of(layout)
    assert layer.whole == slice(0, 4)


def test_a_model_without_matrices_is_one_layer():
    layout = Layout(("weight", "bias"), ((6,), ()))
    (layer,) = layers_of(layout)
    assert layer.whole == slice(0, 7)
    assert (layer.outputs, layer.row(0), layer.bias) == (1, slice(0, 6), slice(6, 7))
    assert convolutions(layout) == ()


def test_a_mask_names_the_parameters_of_its_layers():
    layout = layout_of(Cnn(channels=4).build((1, 8, 8), 3))
    layers = layers_of(layout)
    mask = mask_of(layout, layers[:1])
    model = np.arange(layout.size)
    assert (model[mask] == np.arange(4 * 9 + 4)).all()
    # Everything but the two norms' scales and shifts.
    assert (~mask_of(layout, layers)).sum() == 2 * 4 + 2 * 8
    assert not mask_of(layout, ()).any()


def test_order_is_the_layout_s():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor):
            return self.head(self.body(x))

    assert [la.home for la in layers_of(layout_of(Backwards()))] == ["head", "body"]
