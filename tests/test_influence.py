"""The Newton step against closed forms and dense linear algebra."""

from dataclasses import replace

import numpy as np
import pytest

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import RequirementError
from fedunlearn.method import Requires
from fedunlearn.models import Softmax
from fedunlearn.testing import check_method
from fedunlearn.testing.bench import LEAVER, SIZES, five_clients
from fedunlearn.testing.federation import QuadraticClients, quadratic_federation
from strategies.curvature import ClientsLoss
from strategies.influence import Influence
from tests.bowl_helpers import Bowl, Bowls, bowl_context, bowls, joint
from tests.perturb_helpers import (
    TorchClients,
    class_context,
    client_context,
    torch_federation,
)

EXACT = {"damping": 0.0, "reach": float("inf"), "probe": 1.0}


@pytest.mark.parametrize(
    "method",
    [
        Influence(gradient="remaining"),
        Influence(gradient="leaver"),
        Influence(gradient="remaining", **EXACT),
        Influence(gradient="remaining", reach=0.1, damping=1.0, iterations=1),
    ],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)


def centres_of(ctx):
    return np.stack(ctx.clients.centres).astype(np.float64)


def mean_centre(ctx, clients):
    weights = [SIZES[c] for c in clients]
    return np.average(centres_of(ctx)[list(clients)], axis=0, weights=weights)


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("leavers", [(LEAVER,), (0, LEAVER, 4)])
def test_it_is_exact_on_quadratics_after_any_training(size, leavers):
    model, make = five_clients(clients_per_round=size, noise=0.0)
    ctx = make(leavers)
    ends = {index: ctx.history.round(index).broadcast for index in ctx.history.rounds}
    staying = [c for c in range(5) if c not in leavers]
    for start in (model, *ends.values()):
        found = Influence(gradient="remaining", **EXACT).unlearn(start, make(leavers))
        assert found == pytest.approx(mean_centre(ctx, staying), abs=2e-6)


def test_the_leaver_s_gradient_is_exact_at_the_joint_minimum_only():
    _, make = five_clients(noise=0.0)
    ctx = make((LEAVER,))
    best, staying = mean_centre(ctx, range(5)), [0, 2, 3, 4]
    method = Influence(gradient="leaver", **EXACT)
    there = method.unlearn(best.astype(np.float32), ctx)
    assert there == pytest.approx(mean_centre(ctx, staying), abs=2e-6)
    off = np.linspace(-1, 1, 7)
    elsewhere = method.unlearn((best + off).astype(np.float32), make((LEAVER,)))
    # It misses by the gradient of the joint loss, N off / N_r.
    missed = off * sum(SIZES) / sum(SIZES[c] for c in staying)
    assert elsewhere - mean_centre(ctx, staying) == pytest.approx(missed, abs=5e-6)


def test_its_defaults_go_most_of_the_way_on_quadratics():
    model, make = five_clients(noise=0.0)
    ctx = make((LEAVER,))
    goal = mean_centre(ctx, [0, 2, 3, 4])
    found = Influence(gradient="remaining").unlearn(model, ctx)
    # H = I and L = 0.1: the step is 1 / 1.1 of what is missing.
    assert found - model == pytest.approx((goal - model) / 1.1, abs=1e-4)


def test_bowls_of_different_shapes_take_as_many_iterations_as_parameters():
    clients = bowls()
    ctx, (_, minimum) = bowl_context(clients), joint(bowls())
    start = np.array([3, -2, 1, 5], np.float32)
    method = Influence(gradient="remaining", **EXACT, iterations=4, tolerance=0.0)
    assert method.unlearn(start, ctx) == pytest.approx(minimum, abs=1e-4)
    assert clients.calls == [6] * (1 + 2 * 4)
    fewer = replace(method, iterations=2).unlearn(start, bowl_context(bowls()))
    assert np.linalg.norm(fewer - minimum) > 0.01


def test_the_damped_step_solves_the_damped_system():
    clients = bowls()
    h, minimum = joint(clients)
    start = np.array([3, -2, 1, 5], np.float32)
    b = -h @ (start - minimum)
    added = 0.5 * (b @ h @ b) / (b @ b)
    expected = start + np.linalg.solve(h + added * np.eye(4), b)
    method = Influence(
        gradient="remaining", **EXACT | {"damping": 0.5}, iterations=4, tolerance=0.0
    )
    assert method.unlearn(start, bowl_context(clients)) == pytest.approx(
        expected, abs=1e-4
    )


def test_when_nobody_answers_twice_there_is_no_step():
    clients = bowls()
    clients.silent = {2: (0, 2), 3: (5,)}
    ctx, start = bowl_context(clients), np.ones(4, np.float32)
    assert (Influence(gradient="remaining", **EXACT).unlearn(start, ctx) == start).all()


def test_the_step_is_no_longer_than_its_reach():
    model, make = five_clients(noise=0.0)
    ctx = make((LEAVER,))
    travelled = np.linalg.norm(model.astype(np.float64) - ctx.initial_model)
    free = Influence(gradient="remaining", damping=0.0, reach=float("inf")).unlearn(
        model, ctx
    )
    short = Influence(gradient="remaining", damping=0.0, reach=0.01).unlearn(
        model, make((LEAVER,))
    )
    assert np.linalg.norm(short - model) == pytest.approx(0.01 * travelled, rel=1e-4)
    along = (free - model) / np.linalg.norm(free - model)
    assert (short - model) @ along == pytest.approx(0.01 * travelled, rel=1e-4)


def test_at_the_minimum_it_stays():
    clients = bowls()
    _, minimum = joint(clients)
    found = Influence(gradient="remaining", **EXACT).unlearn(
        minimum.astype(np.float32), bowl_context(clients)
    )
    assert found == pytest.approx(minimum, abs=1e-5)
    flat = Bowls({0: Bowl(np.zeros((4, 4)), np.zeros(4))}, {0: 3})
    start = np.ones(4, np.float32)
    assert (
        Influence(gradient="remaining", **EXACT).unlearn(start, bowl_context(flat))
        == start
    ).all()


def test_a_saddle_does_not_make_the_step_long():
    clients = bowls((1, -1, 1, -1))
    start = np.array([3, -2, 1, 5], np.float32)
    for damping in (0.05, 0.5):
        method = Influence(
            gradient="remaining",
            **EXACT | {"damping": damping},
            iterations=4,
            tolerance=0.0,
        )
        step = method.unlearn(start, bowl_context(clients)) - start
        g = sum(n * clients.bowls[c].gradient(start) for c, n in clients.sizes.items())
        g, h = g / 55, joint(clients)[0]
        added = damping * abs(g @ h @ g) / (g @ g)
        assert 0 < np.linalg.norm(step) <= np.linalg.norm(g) / (0.5 * added) * 1.001
        assert step @ g < 0


@pytest.fixture(scope="module")
def federation():
    return torch_federation(Softmax(), (4,), 3, rounds=10, lr=0.3)


def test_many_iterations_bring_softmax_regression_to_its_minimum(federation):
    task, model, history = federation
    ctx = client_context(task, history, {1})

    def slope(at):
        loss = ClientsLoss(clients=ctx.clients, round_index=1)
        return np.linalg.norm(loss.gradient(at)[0])

    found, before = model, slope(model)
    for _ in range(3):
        found = Influence(gradient="remaining", damping=0.01, iterations=15).unlearn(
            found, ctx
        )
    assert slope(found) < 0.2 * before


def test_a_class_is_forgotten_by_the_gradient_of_its_examples(federation):
    task, model, history = federation
    ctx = class_context(task, history, {2})
    found = Influence(gradient="leaver", damping=0.3).unlearn(model, ctx)
    y = task.clients[0].y

    def right(vector, classes):
        problem = TorchClients(task, frozenset([0])).problem(0)
        hits = problem.logits(vector).argmax(1) == y
        return hits[np.isin(y, classes)].mean()

    assert right(model, [2]) > 0.8
    assert right(found, [2]) < 0.5
    assert right(found, [0, 1]) > right(model, [0, 1]) - 0.1


def test_a_leaver_that_never_took_part_is_taken_out_all_the_same():
    model, make = five_clients(attendance={LEAVER: ()}, noise=0.0)
    found = Influence(gradient="remaining", **EXACT).unlearn(model, make((LEAVER,)))
    assert found == pytest.approx(mean_centre(make((LEAVER,)), [0, 2, 3, 4]), abs=2e-6)


def test_one_client_is_enough():
    model, make = five_clients(noise=0.0)
    found = Influence(gradient="remaining", **EXACT).unlearn(model, make((0, 1, 2, 3)))
    assert found == pytest.approx(mean_centre(make((0,)), [4]), abs=2e-6)


def test_a_model_of_zeros_is_probed_too():
    clients = QuadraticClients(
        centres=(np.array([1, 2], np.float32), np.array([3, -2], np.float32)),
        schedule=five_clients()[1]((LEAVER,)).schedule,
    )
    _, make = quadratic_federation(clients)
    found = Influence(gradient="remaining", **EXACT).unlearn(
        np.zeros(2, np.float32), make((0,))
    )
    assert found == pytest.approx([3, -2], abs=1e-5)


def test_the_leaver_is_asked_only_if_it_is_followed():
    model, make = five_clients()
    cost = run_unlearning(Influence(gradient="remaining"), model, make((LEAVER,))).cost
    # One gradient, and two for the only direction that identity curvature has.
    assert cost.client_rounds == 4 * 3
    followed = run_unlearning(Influence(gradient="leaver"), model, make((LEAVER,)))
    assert followed.cost.client_rounds == 4 * 3 + 1
    with pytest.raises(RequirementError, match="the leaver to answer"):
        run_unlearning(
            Influence(gradient="leaver"), model, replace(make((LEAVER,)), leavers=None)
        )


def test_what_it_requires_follows_its_settings():
    levels = ("client", "sample", "class")
    assert Influence(gradient="remaining").requires == Requires(
        broadcasts="initial", clients=True, levels=levels
    )
    free = Influence(gradient="leaver", reach=float("inf"))
    assert free.requires == Requires(clients=True, leaver=True, levels=levels)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"gradient": "both"}, "gradient must be one of remaining, leaver, got 'both'"),
        ({"damping": -0.1}, "damping must be from 0 up"),
        ({"damping": float("inf")}, "damping must be from 0 up"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"tolerance": -1.0}, r"tolerance must be in \[0, 1\)"),
        ({"tolerance": 1.0}, r"tolerance must be in \[0, 1\)"),
        ({"probe": 0.0}, "probe must be positive and finite"),
        ({"probe": float("inf")}, "probe must be positive and finite"),
        ({"reach": 0.0}, "reach must be positive"),
        ({"reach": float("nan")}, "reach must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        Influence(**settings)
