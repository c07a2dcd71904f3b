"""Channel pruning: scores, what is pruned, what comes back, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from fedunlearn.cost import run_unlearning
from fedunlearn.data import ClientData
from fedunlearn.errors import RequirementError
from fedunlearn.method import Requires
from fedunlearn.models import Cnn, Mlp
from fedunlearn.testing.bench import LEAVER, five_clients
from strategies.channel_prune import (
    Activations,
    ChannelPrune,
    class_means,
    tf_idf,
)
from tests.engine_helpers import Layers
from tests.perturb_helpers import (
    accuracy,
    class_context,
    client_context,
    torch_federation,
    torch_federation_of,
)


@pytest.fixture(scope="module")
def federation():
    """Classes are textures: stripes along, across, a chessboard, none."""
    data = []
    for client, size in enumerate((60, 40, 50)):
        rng = np.random.default_rng(client)
        y, phase = rng.integers(0, 4, size), rng.integers(0, 2, size)
        high, wide = np.mgrid[:8, :8]
        steps = np.stack([high, wide, high + wide, 0 * high])[y]
        x = np.where(y == 3, 0, 1)[:, None, None] * np.cos(
            np.pi * (steps + phase[:, None, None])
        )
        x = (x + 0.3 * rng.normal(size=x.shape))[:, None].astype(np.float32)
        data.append(ClientData(f"c{client}", x, y, x[:4], y[:4]))
    return torch_federation_of(tuple(data), Cnn(channels=8), (1, 8, 8), 4, rounds=10)


def by_hand(means, forgotten):
    """The definition, in loops."""
    count, channels = len(means), len(means[0])
    scores = []
    for j in range(channels):
        average = sum(means[u][j] for u in range(count)) / count
        active = sum(means[u][j] >= average for u in range(count))
        idf = np.log((1 + count) / (1 + active))
        own = [means[u][j] / sum(means[u]) * idf for u in forgotten if sum(means[u])]
        scores.append(max(own, default=0.0))
    return scores


@pytest.mark.parametrize("forgotten", [(0,), (2,), (1, 3), ()])
def test_scores_are_those_of_the_definition(forgotten):
    means = np.random.default_rng(0).random((4, 9)) ** 3
    means[3] = 0
    which = np.isin(np.arange(4), forgotten)
    expected = by_hand(means.tolist(), forgotten)
    assert tf_idf(means, which) == pytest.approx(expected)


def test_a_score_worked_out_by_hand():
    # Channel 0 answers to class 0 alone, channel 1 to all alike, 2 to the others.
    means = np.array([[6.0, 2, 0], [0, 2, 2], [0, 2, 4]])
    found = tf_idf(means, np.array([True, False, False]))
    # Class 0 has 6 of 8 in channel 0, where 1 of 3 classes is active; channel 1 has 2
    # of 8 but all 3 classes are active, so it tells nothing.
    assert found == pytest.approx([6 / 8 * np.log(4 / 2), 2 / 8 * np.log(4 / 4), 0])


def test_a_class_that_nobody_holds_is_none(federation):
    task, model, history = federation
    some = replace(
        task,
        clients=tuple(
            replace(d, x=d.x[d.y != 1], y=d.y[d.y != 1]) for d in task.clients
        ),
    )
    means, held = class_means(model, class_context(some, history, {2}), 24)
    assert held.tolist() == [0, 2, 3]
    assert means.shape == (3, 24)


@pytest.mark.parametrize(
    ("percentile", "pruned"), [(0, (7, 15)), (50, (4, 8)), (90, (1, 2)), (100, (0, 0))]
)
def test_channels_above_the_percentile_of_their_layer_are_pruned(
    percentile, pruned, federation
):
    task, model, history = federation
    ctx = class_context(task, history, {2})
    method = ChannelPrune(percentile=percentile, recovery_rounds=0)
    after = task.layout.unflatten(method.unlearn(model, ctx))
    dead = [~after[f"{name}.weight"].any(axis=(1, 2, 3)) for name in ("0", "4")]
    means, held = class_means(model, ctx, 24)
    scores = tf_idf(means[:, :8], held == 2), tf_idf(means[:, 8:], held == 2)
    for score, gone, count in zip(scores, dead, pruned, strict=True):
        # Channels without any score stay, even below the lowest percentile.
        assert gone.sum() <= count
        assert gone.tolist() == (score > np.percentile(score, percentile)).tolist()
    assert (percentile == 100) == (not np.concatenate(dead).any())


def test_a_class_is_forgotten_and_the_others_come_back(federation):
    task, model, history = federation
    ctx = class_context(task, history, {2})
    after = ChannelPrune(recovery_rounds=8).unlearn(model, ctx)
    forgotten, kept = ctx.leavers.task, ctx.clients.task
    assert min(accuracy(forgotten, k, model) for k in range(3)) > 0.9
    assert max(accuracy(forgotten, k, after) for k in range(3)) < 0.1
    assert min(accuracy(kept, k, after) for k in range(3)) > 0.9


def test_pruning_alone_hits_the_forgotten_class_more_than_the_others(federation):
    task, model, history = federation
    ctx = class_context(task, history, {2})
    after = ChannelPrune(percentile=70, recovery_rounds=0).unlearn(model, ctx)

    def lost(part):
        return np.mean(
            [accuracy(part, k, model) - accuracy(part, k, after) for k in range(3)]
        )

    assert lost(ctx.leavers.task) > lost(ctx.clients.task) + 0.2


def test_a_client_left_without_examples_counts_for_nothing(federation):
    task, model, history = federation
    only = task.clients[1]
    own = replace(only, x=only.x[only.y == 2], y=only.y[only.y == 2])
    some = replace(task, clients=(task.clients[0], own, task.clients[2]))
    ctx = class_context(some, history, {2})
    assert not len(ctx.clients.task.clients[1].y)
    after = ChannelPrune(recovery_rounds=0).unlearn(model, ctx)
    assert np.isfinite(after).all()
    there = replace(ctx, clients=replace(ctx.clients, ids=frozenset({0, 2})))
    assert (ChannelPrune(recovery_rounds=0).unlearn(model, there) == after).all()


def test_arguments_are_left_alone_and_runs_repeat(federation):
    task, model, history = federation
    before = model.tobytes()
    first, second = (
        ChannelPrune().unlearn(model, class_context(task, history, {2}))
        for _ in range(2)
    )
    assert first.tobytes() == second.tobytes()
    assert model.tobytes() == before
    assert not np.shares_memory(first, model)


def test_its_cost_is_metered(federation):
    task, model, history = federation
    ctx = class_context(task, history, {2})
    cost = run_unlearning(ChannelPrune(recovery_rounds=2), model, ctx).cost
    assert cost.client_rounds == 3 + 3 + 2 * 3
    sizes = sum(len(d.y) for d in task.clients)
    kept = sum(len(d.y) for d in ctx.clients.task.clients)
    assert cost.examples == sizes + 2 * kept
    assert cost.bytes_up == 6 * 4 * (1 + 4 * 25) + 6 * model.nbytes


def test_a_model_without_convolutions_is_refused():
    task, model, history = torch_federation(Mlp(hidden=(4,)), (5,), 3, rounds=1)
    ctx = class_context(task, history, {2})
    with pytest.raises(RequirementError, match="needs a model with convolutions"):
        run_unlearning(ChannelPrune(), model, ctx)
    assert ctx.clients.calls == []


def test_convolutions_that_are_no_images_convolutions_are_refused():
    def transposed(shape, classes):
        return nn.Sequential(
            nn.Conv2d(1, 2, 3),
            nn.ConvTranspose2d(2, 5, 3),
            nn.Flatten(),
            nn.Linear(5 * 64, classes),
        )

    task, model, history = torch_federation(Layers(transposed), (1, 8, 8), 3, rounds=1)
    with pytest.raises(RequirementError, match="the arrays have 4 channels"):
        ChannelPrune().unlearn(model, class_context(task, history, {2}))


def test_whole_clients_are_refused(federation):
    task, model, history = federation
    with pytest.raises(RequirementError, match="a request of level class"):
        run_unlearning(ChannelPrune(), model, client_context(task, history, {1}))
    model, make = five_clients()
    with pytest.raises(RequirementError, match="a request of level class"):
        run_unlearning(ChannelPrune(), model, make((LEAVER,)))


def test_the_answer_of_a_client_can_be_read_without_knowing_the_classes(federation):
    task, model, history = federation
    problem = class_context(task, history, {2}).leavers.problem(0)
    answer = Activations().run(model, problem)
    assert answer[0] == 4
    assert answer[1:5].tolist() == [0, 0, len(problem.labels), 0]
    means = answer[5:].reshape(4, 24)
    assert (means.any(axis=1)).tolist() == [False, False, True, False]


def test_what_it_requires():
    needs = Requires(clients=True, leaver=True, levels=("class",))
    assert ChannelPrune().requires == needs


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"percentile": -1.0}, r"percentile must lie in \[0, 100\]"),
        ({"percentile": 101.0}, r"percentile must lie in \[0, 100\]"),
        ({"percentile": float("nan")}, r"percentile must lie in \[0, 100\]"),
        ({"recovery_rounds": -1}, "recovery_rounds must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        ChannelPrune(**settings)
