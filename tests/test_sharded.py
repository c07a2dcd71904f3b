"""Shards: a block a shard, a leaver's shard alone is trained again."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedunlearn.client import client_app
from fedunlearn.cost import run_unlearning
from fedunlearn.errors import ConfigError, RequirementError
from fedunlearn.local import Results
from fedunlearn.models import Mlp, Softmax
from fedunlearn.models.ensemble import Ensemble
from fedunlearn.params import norm
from fedunlearn.problem import TorchProblem
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.shards import ShardedMean, mean_within
from fedunlearn.testing.bench import five_clients
from fedunlearn.training import LocalWork
from fedunlearn.updates import MeanServer, Updates
from simulations import compare, load_scenario
from simulations.engine import SimulationGrid
from strategies import FedQuit, FisherReset, LabelMask, NoT, OutputFilter, Pgd
from strategies.fed_osd import Slope
from strategies.forgetting import mean_of
from strategies.rapid_retrain import FisherTraining
from strategies.retrain import Retrain
from strategies.sharded import Sharded
from tests.flower_helpers import small_task
from tests.perturb_helpers import client_context, torch_federation
from tests.test_local import clients_of

SHARDED = ["clients=8", "shards=4", "methods=[sharded,rollback,fine_tune,nothing]"]


def rows(tiny, *overrides):
    found = compare(load_scenario(tiny, [*SHARDED, *overrides]))
    return {row.method: row for row in found.rows}


# --- what a client of a shard computes


def test_a_client_s_gradient_is_that_of_the_block_it_trains():
    spec = Ensemble(member=Softmax(), shards=2)
    task = replace(small_task(epochs=1, lr=0.1, momentum=0.0), model=spec)
    model, work = task.initial_model(0), LocalWork(seed=0, round_index=1)
    for client, own in ((0, 0), (1, 1)):
        data = task.clients[client]
        problem = TorchProblem(task, data, client, work, own)
        walked = model.copy()
        for rows in problem.batches():
            walked -= np.float32(0.1) * problem.gradient(walked, rows)
        trained = task.train(client, model, work).model
        assert walked == pytest.approx(trained, abs=1e-6)
        assert norm(trained - model) > 0.01
        alone = TorchProblem(task.member, data, client, work)
        block = model.reshape(2, -1)[own]
        assert problem.logits(model).tobytes() == alone.logits(block).tobytes()
        mean, squares = problem.gradient_moments(model)
        assert mean.shape == model.shape
        assert squares.reshape(2, -1)[own].any()
        assert not squares.reshape(2, -1)[1 - own].any()


def test_a_client_app_gives_a_procedure_its_own_block():
    spec = Ensemble(member=Softmax(), shards=2)
    task = replace(small_task(), model=spec)
    with SimulationGrid(client_app(task), num_clients=len(task.clients)) as grid:
        found = clients_of(grid, task).run(
            Slope(), task.initial_model(0), [0, 1], round_index=1
        )
    blocks = found.values.reshape(2, 2, -1).any(axis=2)
    assert blocks.tolist() == [[True, False], [False, True]]


def in_shards():
    """Return four clients in two shards, their model and a request of client 1."""
    spec = Ensemble(member=Mlp(hidden=(4,)), shards=2)
    task, model, history = torch_federation(spec, (6,), 3, sizes=(20, 30, 10, 20))
    ctx = client_context(task, history, {1})
    return model, replace(ctx, schedule=replace(ctx.schedule, shards=2))


@pytest.mark.parametrize("layers", ["first", "last", "all"])
def test_negation_is_of_the_layers_of_every_block(layers):
    model, ctx = in_shards()
    found = NoT(layers=layers, recovery_rounds=0).unlearn(model, ctx)
    changed = (found != model).reshape(2, -1)
    assert changed[0].any()
    assert (changed[0] == changed[1]).all()


def test_the_decoys_change_the_last_layer_of_blocks():
    model, ctx = in_shards()
    last = 4 * 3 + 3
    masked = (LabelMask().unlearn(model, ctx) != model).reshape(2, -1)
    assert masked.sum(axis=1).tolist() == [1, 1]
    assert (masked[0] == masked[1]).all()
    filtered = (OutputFilter().unlearn(model, ctx) != model).reshape(2, -1)
    assert not filtered[0].any(), "client 1 trains the second block"
    assert filtered[1, -last:].any()
    assert not filtered[1, :-last].any()


def test_a_share_of_the_model_is_a_share_of_each_block():
    model, ctx = in_shards()
    how = FisherReset(share=0.25, per="model", recovery_rounds=0)
    changed = (how.unlearn(model, ctx) != model).reshape(2, -1)
    assert not changed[0].any()
    assert 0 < changed[1].sum() <= round(0.25 * changed.shape[1])


def test_rapid_retraining_trains_a_block_as_it_would_a_model():
    model, ctx = in_shards()
    settings = {"lr": 0.03, "beta1": 0.9, "beta2": 0.999, "power": 0.5, "damping": 1.0}
    problem = ctx.leavers.problem(1)
    found = FisherTraining(**settings, shards=2).run(model, problem)
    alone = replace(problem, task=problem.task.member, shard=None)
    block = model.reshape(2, -1)[1]
    expected = FisherTraining(**settings).run(block, alone)
    assert found.reshape(2, -1)[1] == pytest.approx(expected, abs=1e-6)
    assert found.reshape(2, -1)[0].tobytes() == model.reshape(2, -1)[0].tobytes()


def test_leavers_of_two_shards_move_each_its_own_block():
    spec = Ensemble(member=Mlp(hidden=(4,)), shards=2)
    task, model, history = torch_federation(spec, (6,), 3, sizes=(20, 30, 10, 20))
    methods = (
        Pgd(reference="model", recovery_rounds=0, stop_distance=1e9),
        FedQuit(recovery_rounds=0),
    )
    for method in methods:
        found = {}
        for gone in ({0}, {1}, {0, 1}):
            ctx = client_context(task, history, gone)
            ctx = replace(ctx, schedule=replace(ctx.schedule, shards=2))
            moved = method.unlearn(model, ctx).reshape(2, -1)
            found[tuple(gone)] = moved
        first, second, both = found.values()
        blocks = model.reshape(2, -1)
        assert first[1].tobytes() == blocks[1].tobytes()
        assert second[0].tobytes() == blocks[0].tobytes()
        assert both[0].tobytes() == first[0].tobytes() != blocks[0].tobytes()
        assert both[1].tobytes() == second[1].tobytes() != blocks[1].tobytes()


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((0, 5, 0), [9, 9, 2, 2]),  # nobody of the first shard has a say
        ((3, 5, 1), [1.5, 1.5, 2, 2]),
        ((0, 0, 0), [2, 2, 2, 2]),
    ],
)
def test_leavers_without_examples_have_no_say_beside_those_with(sizes, wanted):
    found = Results(
        clients=(0, 1, 2),
        values=np.array([[1] * 4, [2] * 4, [3] * 4], np.float32),
        num_examples=np.array(sizes),
        num_steps=np.array(sizes),
        num_samples=np.array(sizes),
    )
    rest = np.full(4, 9, np.float32)
    assert mean_of(found, rest, 2).tolist() == wanted
    whole = np.average([1, 2, 3], weights=sizes if any(sizes) else None)
    np.testing.assert_allclose(mean_of(found, rest, 1), whole, rtol=1e-6)


# --- the algebra


def test_a_block_is_the_mean_of_its_own_shard():
    before = np.array([1, 2, 3, 4, 5, 6], np.float32)
    after = np.array(
        [[10, 20, 0, 0, 0, 0], [0, 0, 7, 9, 0, 0], [40, 50, 0, 0, 0, 0]], np.float32
    )
    updates = Updates(
        clients=(0, 4, 6),  # shards 0, 1 and 0 of three
        before=before,
        after=after,
        num_examples=np.array([1, 5, 2]),
        num_steps=np.zeros(3, np.int64),
        num_samples=np.zeros(3, np.int64),
    )
    assert ShardedMean(3).step(updates) == pytest.approx([30, 40, 7, 9, 5, 6])
    assert before.tolist() == [1, 2, 3, 4, 5, 6]


def test_one_shard_is_the_plain_mean():
    assert isinstance(mean_within(1), MeanServer)


def members(vote):
    spec = Ensemble(member=Softmax(), shards=3, vote=vote)
    module = spec.build((4,), 5)
    numbers = derive(3, "x").standard_normal((6, 4))
    x = torch.from_numpy(numbers.astype(np.float32))
    scores = np.stack([m(x).detach().numpy() for m in module.members]).astype(float)
    return module, x, scores


def test_the_mean_vote_is_the_mean_probability():
    module, x, scores = members("mean")
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    found = module(x).detach().exp().numpy()
    np.testing.assert_allclose(found, shares.mean(0), rtol=1e-5)


def test_the_majority_vote_counts_classes_and_still_has_a_slope():
    module, x, scores = members("majority")
    votes = np.stack([np.eye(5)[s.argmax(-1)] for s in scores]).sum(0)
    found = module(x)
    np.testing.assert_allclose(
        found.detach().exp().numpy(), (votes + 0.2) / 4, rtol=1e-5
    )
    found[:, 0].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


def test_parameters_lie_in_equal_blocks_of_different_values(tiny):
    from simulations.prepare import prepare

    task = prepare(load_scenario(tiny, SHARDED)).task
    blocks = task.initial_model(0).reshape(4, -1)
    assert blocks.shape == (4, task.member.layout.size)
    assert len({block.tobytes() for block in blocks}) == 4
    assert task.layout.names[0].startswith("members.0.")


def test_who_leaves_moves_nobody_in_another_shard():
    schedule = TrainingSchedule(
        seed=1, rounds=9, epochs=1, clients_per_round=4, shards=2
    )
    moved = 0
    for index in range(1, 10):
        full = set(schedule.cohort(index, range(12)))
        less = set(schedule.cohort(index, set(range(12)) - {3}))
        assert len(full) == len(less) == 4
        assert {c for c in full if c % 2 == 0} == {c for c in less if c % 2 == 0}
        moved += full != less
    assert moved


# --- exactness and cost


@pytest.mark.parametrize("leavers", [(1,), (1, 3), (0, 3)])
@pytest.mark.parametrize("asked", [None, 2])
def test_it_is_retraining_in_closed_form(leavers, asked):
    model, context = five_clients(shards=2, clients_per_round=asked)
    found, exact = (
        run_unlearning(method, model, context(leavers))
        for method in (Sharded(), Retrain())
    )
    assert found.model.tobytes() == exact.model.tobytes()
    homes = {leaver % 2 for leaver in leavers}
    if len(homes) == 1:
        assert found.cost.client_rounds < exact.cost.client_rounds


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["clients_per_round=4"],
        ["forget=[1,5]"],
        ["forget=[0,1]"],
        ["vote=majority"],
        ["server={name: fed_prox, proximal_mu: 0.1}"],
        ["forget=[]", "forget_samples={4: 0.5}"],
        ["engine.kernel=reference"],
        ["history.codec=float16"],
    ],
    ids=str,
)
def test_it_is_retraining_on_real_digits(tiny, more):
    found = rows(tiny, *more)
    assert found["sharded"].model_sha256 == found["retrain"].model_sha256
    assert found["sharded"].model_sha256 != found["trained"].model_sha256
    assert found["rollback"].model_sha256 == found["retrain"].model_sha256


def test_it_costs_its_shard_alone(tiny):
    found = rows(tiny)
    # Two clients in each of four shards, three rounds: one of them stays.
    assert found["sharded"].cost.client_rounds == 3
    assert found["retrain"].cost.client_rounds == 3 * 7


def test_a_client_changes_its_own_block_alone(tiny):
    from fedunlearn.training import LocalWork
    from simulations.prepare import prepare

    task = prepare(load_scenario(tiny, SHARDED)).task
    model = task.initial_model(0)
    work = LocalWork(round_index=1, seed=0, epochs=1)
    after = task.train(6, model, work).model
    changed = (after != model).reshape(4, -1).any(1)
    assert changed.tolist() == [False, False, True, False]


def test_kernels_agree(tiny):
    models = {}
    for kernel in ("reference", "batched"):
        found = compare(load_scenario(tiny, [*SHARDED, f"engine.kernel={kernel}"]))
        models[kernel] = {r.method: r.metrics["test_accuracy"] for r in found.rows}
    assert models["reference"] == pytest.approx(models["batched"], abs=0.02)


# --- refused


def test_a_federation_without_shards_is_refused(tiny):
    with pytest.raises(RequirementError, match="'sharded' needs a model in shards"):
        compare(load_scenario(tiny, ["methods=[sharded]"]))


def test_several_requests_are_refused(tiny):
    asked = "requests=[{forget: [1]}, {forget: [2]}]"
    with pytest.raises(RequirementError, match="'sharded' serves one request"):
        compare(load_scenario(tiny, [*SHARDED, "forget=[]", asked]))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("shards=0", "shards must be at least 1"),
        ("shards=9", "shards"),
        ("vote=loudest", "vote must be"),
        ("clients_per_round=3", "clients_per_round"),
        ("server.name=fed_adam", "shards"),
        ("server.name=fed_trimmed_avg", "shards"),
    ],
)
def test_what_makes_no_shards_is_refused(tiny, wrong, says):
    with pytest.raises(ConfigError, match=says):
        compare(load_scenario(tiny, [*SHARDED, wrong]))
