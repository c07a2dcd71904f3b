"""The kernels on a CUDA device, if there is one."""

import numpy as np
import pytest
import torch

from fedunlearn.history import InMemoryHistory
from simulations import load_scenario
from simulations.evaluate import Evaluator
from simulations.prepare import open_grid, prepare
from simulations.train import Curve, train
from strategies.directory import Directory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def trained(tiny, *overrides):
    """Return the initial and the trained model of a scenario."""
    prepared = prepare(load_scenario(tiny, overrides))
    layout = prepared.task.layout
    with open_grid(prepared) as grid:
        found = train(
            prepared,
            0,
            grid,
            InMemoryHistory(layout),
            directory=Directory(),
            curve=Curve(Evaluator(prepared), layout),
        )
    return found.initial, found.model


@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("kernel", ["batched", "fused", "vmap", "auto"])
def test_a_kernel_trains_there_as_on_the_processor(tiny, kernel, momentum):
    common = ["model.name=mlp", "rounds=2", f"training.momentum={momentum}"]
    start, expected = trained(tiny, *common, "engine.kernel=reference")
    _, found = trained(tiny, *common, "engine.device=cuda", f"engine.kernel={kernel}")
    way = np.linalg.norm(expected - start)
    assert np.linalg.norm(found - expected) < 1e-3 * way


def test_it_gives_the_same_bits_twice(tiny):
    first, second = (trained(tiny, "engine.device=cuda")[1] for _ in range(2))
    assert first.tobytes() == second.tobytes()
