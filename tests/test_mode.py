"""MoDe: rounds written out, guidance against torch, what it does to a leaver."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from torch.nn import functional

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import RequirementError
from fedunlearn.history import records
from fedunlearn.local import Results, decode, encode
from fedunlearn.method import Requires, check_requirements
from fedunlearn.models.state import load, tensor_view
from fedunlearn.params import norm, weighted_mean
from fedunlearn.problem import TorchProblem
from fedunlearn.rewrite import RewrittenHistory, Steps
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import (
    QuadraticClients,
    check_method,
    keeps_a_model_the_leaver_never_touched,
    quadratic_federation,
)
from fedunlearn.training import LocalWork
from fedunlearn.updates import Updates
from simulations import compare, load_scenario
from strategies import FineTune
from strategies.mode import Guidance, Labels, MoDe, joined
from tests.flower_helpers import small_task


@pytest.mark.parametrize(
    "method",
    [
        MoDe(),
        MoDe(rounds=3, start="initial"),
        MoDe(rounds=4, guidance_rounds=2, momentum=0.95),
        MoDe(rounds=1, guidance_rounds=9, keep=0.5),
    ],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)


def test_a_leaver_that_never_took_part_leaves_the_model_as_it_is():
    keeps_a_model_the_leaver_never_touched(MoDe(rounds=3))


SIZES, LR, EPOCHS, TRAINED = (10, 20, 30, 40), 0.2, 2, 6
PULL = 1 - (1 - LR) ** EPOCHS
CENTRES = derive(3, "centres").standard_normal((4, 5)).astype(np.float32)
INITIAL = derive(3, "initial").standard_normal(5).astype(np.float32)


def federation(**settings):
    clients = QuadraticClients(
        centres=tuple(CENTRES),
        num_examples=SIZES,
        schedule=TrainingSchedule(seed=1, rounds=TRAINED, epochs=EPOCHS, **settings),
        lr=LR,
    )
    return quadratic_federation(clients, initial=INITIAL)


def guided(w, centre):
    """Steps towards class 1, which is likelier than class 0 wherever the loss is."""
    for _ in range(EPOCHS):
        p = 1 / (1 + np.exp((w - centre) @ (w - centre) / 2))
        w = w + LR * p * (w - centre)
    return w


def written_out(model, young, leavers, kept, fading, guidance):
    staying = [c for c in range(4) if c not in leavers]
    w, young = model.astype(float), young.astype(float)
    for index in range(fading + guidance):
        if index < fading:
            each = [young + PULL * (CENTRES[c] - young) for c in staying]
            young = np.average(each, axis=0, weights=[SIZES[c] for c in staying])
            w = kept * w + (1 - kept) * young
        each = [
            guided(w, CENTRES[c]) if c in leavers else w + PULL * (CENTRES[c] - w)
            for c in range(4)
        ]
        w = np.average(each, axis=0, weights=SIZES)
    return w


@pytest.mark.parametrize("leavers", [(3,), (0, 2)])
def test_it_is_degradation_and_guidance_written_out(leavers):
    model, make = federation()
    method = MoDe(rounds=5, guidance_rounds=2, momentum=0.8, start="initial")
    expected = written_out(model, INITIAL, leavers, 0.8, 3, 2)
    assert norm(expected - model) > 0.1
    found = method.unlearn(model, make(leavers))
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("rounds", "guidance", "fading"), [(4, 1, 3), (3, 9, 1), (2, 0, 2)]
)
def test_lambda_leaves_the_share_that_is_to_be_kept(rounds, guidance, fading):
    model, make = federation()
    settings = {"rounds": rounds, "guidance_rounds": guidance, "start": "initial"}
    by_rule = MoDe(**settings, keep=0.2).unlearn(model, make((3,)))
    by_hand = MoDe(**settings, momentum=0.2 ** (1 / fading)).unlearn(model, make((3,)))
    assert by_rule == pytest.approx(by_hand, abs=1e-6)
    expected = written_out(
        model, INITIAL, (3,), 0.2 ** (1 / fading), fading, rounds - fading
    )
    assert by_rule == pytest.approx(expected, abs=1e-5)


def test_without_a_number_it_takes_a_quarter_of_the_rounds():
    model, make = federation()
    two = MoDe(rounds=2).unlearn(model, make((3,)))
    assert MoDe().unlearn(model, make((3,))).tobytes() == two.tobytes()


def test_the_young_model_is_drawn_from_the_method_s_own_stream():
    model, make = federation()
    method = MoDe(rounds=2, guidance_rounds=1)
    first, other = (method.unlearn(model, make((3,), rng_seed=s)) for s in (0, 1))
    assert norm(first - other) > 1e-3
    bias_apart = INITIAL.copy()
    bias_apart[:4] = derive(0, "method").permutation(INITIAL[:4])
    expected = written_out(model, bias_apart, (3,), 0.95, 1, 1)
    assert first == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("per_round", [None, 2])
def test_who_is_asked_when(per_round):
    model, make = federation(clients_per_round=per_round)
    there = make(()).history.round(2).clients[0]
    ctx = make((there,))
    MoDe(rounds=3, guidance_rounds=1).unlearn(model, ctx)
    others = [c for c in range(4) if c != there]
    cohorts = [(i, ctx.schedule.cohort(i, others)) for i in (7, 7, 8, 8, 9)]
    assert [(c.round_index, c.clients) for c in ctx.clients.calls] == cohorts
    labels_and_guidance = [(7, there), (7, there), (8, there), (8, there)]
    labels_and_guidance += [(9, there), (9, there)]
    calls = [(c.round_index, *c.clients) for c in ctx.leavers.calls]
    assert calls == labels_and_guidance


def test_its_rounds_stand_for_the_model_and_not_for_the_young_one():
    model, make = federation()
    ctx, steps = make((3,)), Steps()
    watched = replace(ctx, new_server=steps.watch(ctx.new_server))
    method = MoDe(rounds=4, guidance_rounds=2, start="initial")
    found = run_unlearning(method, model, watched).model
    history = RewrittenHistory(ctx.history, ctx.forget, steps.rounds)
    assert history.rounds == (*range(1, TRAINED + 1), 7, 8, 9, 10)
    assert all(3 not in r.clients and 3 not in r.asked for r in records(history))
    guided_alone = history.round(9).broadcast
    assert norm(guided_alone - model) < norm(guided_alone - INITIAL)
    last = steps.rounds[10]
    everybody = weighted_mean(last.updates, last.num_examples.tolist())
    assert last.broadcast + everybody == pytest.approx(found, abs=1e-6)
    assert history.round(10).updates.tobytes() == last.updates[:3].tobytes()


def torch_problem():
    task = small_task(epochs=2, lr=0.2, momentum=0.5)
    work = LocalWork(seed=3, round_index=2)
    return TorchProblem(task, task.clients[0], 0, work), task.initial_model(0)


def test_labels_are_what_the_model_predicts():
    problem, start = torch_problem()
    module = deepcopy(problem.task.module())
    load(module, problem.task.layout, start)
    with torch.no_grad():
        expected = module(tensor_view(problem.data.x)).argmax(1)
    found = Labels().run(start, problem)
    assert found.dtype == np.float32
    assert found.tolist() == expected.tolist()
    assert len(set(found.tolist())) > 1


def test_guidance_is_torch_s_training_on_the_given_classes():
    problem, start = torch_problem()
    labels = tuple(derive(6, "labels").integers(0, 3, len(problem.labels)).tolist())
    module = deepcopy(problem.task.module())
    load(module, problem.task.layout, start)
    steps = torch.optim.SGD(module.parameters(), 0.2, momentum=0.5)
    x, y = tensor_view(problem.data.x), torch.tensor(labels)
    for rows in problem.batches():
        chosen = torch.from_numpy(rows)
        steps.zero_grad()
        functional.cross_entropy(module(x[chosen]), y[chosen]).backward()
        steps.step()
    arrays = {n: a.detach().numpy() for n, a in module.state_dict().items()}
    expected = problem.task.layout.flatten(arrays)
    assert np.abs(expected - start).max() > 0.1
    found = Guidance(labels=labels).run(start, problem)
    assert found == pytest.approx(expected, abs=5e-6)


class Overheard:
    """Leavers of whom one hears what they were sent."""

    def __init__(self, inner):
        self.inner, self.ids, self.sent = inner, inner.ids, []

    def run(self, procedure, model, ids, *, round_index):
        self.sent.append((type(procedure), model.copy()))
        return self.inner.run(procedure, model, ids, round_index=round_index)


def test_the_young_model_labels_and_the_fading_one_is_guided():
    model, make = federation()
    ctx = make((3,))
    ctx = replace(ctx, leavers=Overheard(ctx.leavers))
    MoDe(rounds=1, momentum=0.7, start="initial").unlearn(model, ctx)
    each = [INITIAL + PULL * (CENTRES[c] - INITIAL) for c in range(3)]
    young = np.average(each, axis=0, weights=SIZES[:3])
    (first, labelling), (second, guided_one) = ctx.leavers.sent
    assert (first, second) == (Labels, Guidance)
    assert labelling == pytest.approx(young, abs=1e-6)
    assert guided_one == pytest.approx(0.7 * model + 0.3 * young, abs=1e-6)


@pytest.mark.parametrize("labels", [(), (2, 0, 1)])
def test_the_classes_travel_with_the_order(labels):
    sent = ConfigRecord(encode(Guidance(labels=labels)))
    assert decode(sent) == Guidance(labels=labels)


def test_a_cohort_and_others_are_joined_by_id():
    def results(client, value, size):
        one = np.array([size])
        values = np.array([[value, value]], np.float32)
        return Results(
            clients=(client,),
            values=values,
            num_examples=one,
            num_steps=one,
            num_samples=one,
        )

    updates = Updates.of_deltas(
        np.array([1, 1], np.float32),
        np.array([[1, 0], [4, 0]], np.float32),
        (2, 5),
        np.array([20, 50]),
    )
    found = joined(updates, [results(7, 3, 70), results(3, 9, 30)])
    assert found.clients == (2, 3, 5, 7)
    assert found.num_examples.tolist() == [20, 30, 50, 70]
    assert found.after.tolist() == [[2, 1], [9, 9], [5, 1], [3, 3]]


def test_only_one_client_may_be_left():
    model, make = federation()
    found = MoDe(rounds=2, momentum=0.5, start="initial").unlearn(
        model, make((0, 1, 2))
    )
    expected = written_out(model, INITIAL, (0, 1, 2), 0.5, 1, 1)
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_it_requires():
    expected = Requires(broadcasts="initial", leaver=True, clients=True)
    assert MoDe().requires == expected
    _, make = federation()
    with pytest.raises(RequirementError, match="the leaver to answer"):
        check_requirements(MoDe(), replace(make((3,)), leavers=None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0},
        {"guidance_rounds": -1},
        {"keep": 0.0},
        {"keep": 1.0},
        {"momentum": 1.0},
    ],
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must"):
        MoDe(**wrong)


def test_on_digits_the_leaver_s_classes_go():
    scenario = load_scenario(
        "configs/scenario/quickstart.yaml",
        [
            "seeds=[0]",
            "methods=[retrain,fine_tune]",
            "fine_tune.rounds=5",
            "engine.noise_floor=false",
        ],
    )
    methods = {"mode": MoDe(), "fine_tune": FineTune(rounds=5)}
    rows = {row.method: row.metrics for row in compare(scenario, methods).rows}
    forget = {name: metrics["forget_accuracy"] for name, metrics in rows.items()}
    assert forget["trained"] > 0.9
    assert abs(forget["mode"] - forget["retrain"]) < 0.1 < forget["fine_tune"] - 0.5
    assert rows["mode"]["test_accuracy"] > rows["retrain"]["test_accuracy"] - 0.1
