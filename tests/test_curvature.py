"""Hessian products and conjugate gradients against dense linear algebra."""

import numpy as np
import pytest
import torch
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional

from fedunlearn.models import Softmax
from strategies.curvature import ClientsLoss, conjugate_gradients
from tests.bowl_helpers import bowls
from tests.perturb_helpers import (
    TorchClients,
    torch_federation,
)


@pytest.fixture(scope="module")
def federation():
    return torch_federation(Softmax(), (4,), 3, rounds=10, lr=0.3)


def test_who_does_not_answer_twice_is_left_out_of_a_product():
    clients = bowls()
    clients.silent = {2: (5,)}
    loss = ClientsLoss(clients=clients, round_index=1)
    model, v = np.ones(4, np.float32), np.array([1.0, 2, -1, 0])
    loss.gradient(model)
    found = loss.hessian_product(model, v, 0.5)
    two = (10 * clients.bowls[0].a + 30 * clients.bowls[2].a) / 40
    assert found == pytest.approx(two @ v, abs=1e-5)


def test_a_first_direction_of_negative_curvature_is_followed_once():
    h, b = np.diag([-2.0, -2.0]), np.array([3.0, 4.0])
    assert conjugate_gradients(lambda v: h @ v, b, 5) == pytest.approx(b / 2)


@pytest.mark.parametrize("damping", [0.1, 0.9, 1.0, 1.5, 2.0])
def test_that_step_is_as_long_as_for_the_same_curvature_upwards(damping):
    h, b = np.diag([-2.0, -2.0]), np.array([3.0, 4.0])
    down = conjugate_gradients(lambda v: h @ v, b, 5, damping=damping)
    up = conjugate_gradients(lambda v: -h @ v, b, 1, damping=damping)
    assert down == pytest.approx(up)
    assert up == pytest.approx(b / 2 / (1 + damping))


def test_conjugate_gradients_against_a_dense_solver():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(9, 9))
    h, b = root @ root.T + np.eye(9), rng.normal(size=9)
    exact = conjugate_gradients(lambda v: h @ v, b, 9)
    assert exact == pytest.approx(np.linalg.solve(h, b), rel=1e-6)
    steps = [conjugate_gradients(lambda v: h @ v, b, n) for n in range(1, 10)]
    left = [np.linalg.norm(h @ s - b) / np.linalg.norm(b) for s in steps]
    for tolerance in (0.5, 0.2, 0.05, 0.01):
        first = next(s for s, r in zip(steps, left, strict=True) if r <= tolerance)
        found = conjugate_gradients(lambda v: h @ v, b, 9, tolerance=tolerance)
        assert found == pytest.approx(first)
    assert not conjugate_gradients(lambda v: h @ v, np.zeros(9), 9).any()


def test_a_product_is_autograd_s_hessian_times_the_vector(federation):
    task, model, _ = federation
    loss = ClientsLoss(clients=TorchClients(task, frozenset([0, 2])), round_index=1)
    x, y = (
        np.concatenate([getattr(task.clients[k], name) for k in (0, 2)])
        for name in ("x", "y")
    )
    module = task.new_module()

    def mean_loss(vector):
        parts = task.layout.slices.items()
        named = {
            name: vector[part].reshape(shape)
            for (name, part), shape in zip(parts, task.layout.shapes, strict=True)
        }
        scores = functional_call(module, named, (torch.from_numpy(x),))
        return functional.cross_entropy(scores, torch.from_numpy(y))

    dense = hessian(mean_loss, torch.from_numpy(model)).numpy()
    v = np.random.default_rng(2).normal(size=len(model))
    found = loss.hessian_product(model, v, 0.01)
    assert found == pytest.approx(dense @ v, abs=2e-3 * np.linalg.norm(dense @ v))
