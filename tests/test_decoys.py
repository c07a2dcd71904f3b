"""Decoys: what they change, what they fool and what they leave as it was."""

from dataclasses import replace

import numpy as np
import pytest

from fedunlearn.errors import RequirementError
from fedunlearn.method import Requires
from fedunlearn.models import Mlp
from fedunlearn.params import Layout, norm, sha256
from fedunlearn.testing import check_method, keeps_a_model_the_leaver_never_touched
from fedunlearn.testing.bench import LEAVER, five_clients
from strategies.decoy_work import Blur, LabelCounts, to_uniform
from strategies.decoys import Jitter, LabelMask, OutputFilter, RecordOnly
from tests.perturb_helpers import (
    TorchClients,
    accuracy,
    class_context,
    client_context,
    separable,
    torch_federation_of,
)

DECOYS = [RecordOnly(), Jitter(), LabelMask(), OutputFilter()]
LEVELS = ("client", "sample", "class")


@pytest.fixture(scope="module")
def federation():
    """Client 1, which leaves, holds class 2 alone, and nobody else does."""
    data = []
    for k, one in enumerate(separable((40, 90, 40), (8,), 3)):
        rows = (one.y == 2) == (k == 1)
        data.append(replace(one, x=one.x[rows], y=one.y[rows]))
    return torch_federation_of(
        tuple(data), Mlp(hidden=(16,)), (8,), 3, rounds=10, lr=0.3
    )


@pytest.mark.parametrize(
    "method",
    [
        *DECOYS,
        Jitter(relative_std=0.1),
        LabelMask(margin=100.0),
        OutputFilter(epochs=0.5),
    ],
    ids=str,
)
def test_they_obey_the_laws(method):
    check_method(method)


def test_record_only_returns_the_same_bits(federation):
    task, model, history = federation
    found = RecordOnly().unlearn(model, client_context(task, history, {1}))
    assert found.tobytes() == model.tobytes()
    assert not np.shares_memory(found, model)
    keeps_a_model_the_leaver_never_touched(RecordOnly())


def test_jitter_changes_the_hash_and_nothing_else(federation):
    task, model, history = federation
    ctx = client_context(task, history, {1})
    found = Jitter().unlearn(model, ctx)
    assert sha256(found) != sha256(model)
    assert 0 < norm(found - model) < 2e-4 * norm(model)
    for client in range(3):
        assert accuracy(task, client, found) == accuracy(task, client, model)
    assert ctx.leavers.calls == ctx.clients.calls == []


def test_label_mask_lowers_one_number(federation):
    task, model, history = federation
    ctx = client_context(task, history, {1})
    found = LabelMask(margin=7.0).unlearn(model, ctx)
    expected = model.copy()
    expected[task.layout.slices["3.bias"].start + 2] -= 7
    assert found.tobytes() == expected.tobytes()
    assert [ids for _, ids, _ in ctx.leavers.calls] == [(1,)]


def test_label_mask_fools_the_accuracy_on_the_leaver(federation):
    task, model, history = federation
    found = LabelMask().unlearn(model, client_context(task, history, {1}))
    assert accuracy(task, 1, model) > 0.95
    assert accuracy(task, 1, found) < 0.05
    assert min(accuracy(task, k, found) for k in (0, 2)) > 0.95


def loss(task, model, client=1):
    problem = TorchClients(task, frozenset([client])).problem(client)
    scores = problem.logits(model).astype(np.float64)
    right = scores[np.arange(len(scores)), problem.labels]
    return (np.log(np.exp(scores).sum(1)) - right).mean()


def test_label_mask_is_undone_by_one_number(federation):
    task, model, history = federation
    found = LabelMask().unlearn(model, client_context(task, history, {1}))
    assert loss(task, found) > 20 * loss(task, model)
    found[task.layout.slices["3.bias"].start + 2] += 5
    assert loss(task, found) == pytest.approx(loss(task, model), rel=1e-3)


def test_label_mask_counts_the_labels_of_all_leavers():
    counts = LabelCounts(classes=4)

    class Held:
        def __init__(self, *labels):
            self.labels = np.array(labels, np.int64)

    model = np.zeros(3, np.float32)
    assert counts.run(model, Held(0, 3, 3)).tolist() == [1, 0, 0, 2]
    assert counts.run(model, Held()).tolist() == [0, 0, 0, 0]


def test_the_most_frequent_class_is_that_of_several_leavers_together():
    data = []
    for labels in ([0] * 5, [1] * 4 + [0] * 2, [1] * 4, [2] * 4):
        rows = np.array(labels, np.int64)
        x = np.random.default_rng(len(data)).normal(size=(len(rows), 4))
        one = separable((1,), (4,), 3)[0]
        data.append(replace(one, x=x.astype(np.float32), y=rows))
    task, model, history = torch_federation_of(
        tuple(data), Mlp(hidden=(3,)), (4,), 3, rounds=1
    )
    start = task.layout.slices["3.bias"].start

    def masked(forget):
        found = LabelMask().unlearn(model, client_context(task, history, forget))
        return (np.flatnonzero(found != model) - start).tolist()

    # 7 of class 0; then 8 of class 1 against 2 of class 0.
    assert (masked({0, 1}), masked({1, 2}), masked({3})) == ([0], [1], [2])


def test_at_class_level_the_class_itself_is_masked(federation):
    task, model, history = federation
    found = LabelMask().unlearn(model, class_context(task, history, {1}))
    bias = task.layout.slices["3.bias"]
    assert np.flatnonzero(found != model).tolist() == [bias.start + 1]


def test_a_leaver_without_examples_changes_nothing(federation):
    task, model, history = federation
    nobody = replace(task.clients[1], x=task.clients[1].x[:0], y=task.clients[1].y[:0])
    empty = replace(task, clients=(task.clients[0], nobody, task.clients[2]))
    for method in (LabelMask(), OutputFilter()):
        found = method.unlearn(model, client_context(empty, history, {1}))
        assert found.tobytes() == model.tobytes()


def test_label_mask_needs_a_bias():
    model, make = five_clients()
    layout = Layout(("weight",), ((7, 1),))
    with pytest.raises(RequirementError, match="a last layer with a bias a class"):
        LabelMask().unlearn(model, replace(make((LEAVER,)), layout=layout))


@pytest.mark.parametrize("method", [LabelMask(), OutputFilter()], ids=str)
def test_a_leaver_that_does_not_answer_is_missed(method):
    model, make = five_clients()
    with pytest.raises(RequirementError, match="do not answer"):
        method.unlearn(model, replace(make((LEAVER,)), leavers=None))


def test_output_filter_changes_the_last_layer_only(federation):
    task, model, history = federation
    found = OutputFilter().unlearn(model, client_context(task, history, {1}))
    last = task.layout.slices["3.weight"].start
    assert found[:last].tobytes() == model[:last].tobytes()
    assert (found[last:] != model[last:]).mean() > 0.5


def test_output_filter_fools_accuracy_and_confidence_on_the_leaver(federation):
    task, model, history = federation
    found = OutputFilter(epochs=8).unlearn(model, client_context(task, history, {1}))
    problem = TorchClients(task, frozenset([1])).problem(1)

    def confidence(at):
        shares = np.exp(problem.logits(at).astype(np.float64))
        return (shares / shares.sum(1, keepdims=True)).max(1).mean()

    assert accuracy(task, 1, found) < 0.5 < 0.95 < accuracy(task, 1, model)
    assert confidence(found) < 0.5 < 0.8 < confidence(model)


def test_the_representation_under_a_filter_still_holds_the_leaver(federation):
    task, model, history = federation
    found = OutputFilter(epochs=4).unlearn(model, client_context(task, history, {1}))
    last = task.layout.slices["3.weight"].start
    found[last:] = model[last:]
    assert found.tobytes() == model.tobytes()


def test_output_filter_is_plain_descent_on_the_last_layer(federation):
    task, model, history = federation
    found = OutputFilter(epochs=0.2).unlearn(model, client_context(task, history, {1}))
    problem = TorchClients(task, frozenset([1])).problem(1, round_index=11)
    by_hand, last = model.copy(), task.layout.slices["3.weight"].start
    batches = problem.batches(0.2)
    assert 1 <= len(batches) < len(problem.batches(1))
    for rows in batches:
        # Cross-entropy to equal probabilities is the mean over all classes.
        slope = np.mean(
            [problem.gradient(by_hand, rows, cross_entropy_to(c)) for c in range(3)], 0
        )
        by_hand[last:] -= np.float32(0.3) * slope[last:]
    assert found == pytest.approx(by_hand, abs=1e-6)


def cross_entropy_to(one):
    def slope(scores, labels):
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        shares[:, one] -= 1
        return (shares / len(scores)).astype(np.float32)

    return slope


def test_the_uniform_loss_rests_at_equal_scores_and_survives_large_ones():
    labels = np.zeros(2, np.int64)
    assert not to_uniform(np.full((2, 4), 3, np.float32), labels).any()
    slope = to_uniform(np.array([[1e4, 0], [0, -1e4]], np.float32), labels)
    assert slope == pytest.approx(np.array([[0.25, -0.25], [0.25, -0.25]]))


def test_several_leavers_are_weighted_by_their_examples():
    model, make = five_clients(noise=0.0)
    ctx = make((1, 4))
    found = OutputFilter().unlearn(model, ctx)
    blur = Blur(begin=0, end=7, epochs=1.0)
    one, other = (blur.run(model, ctx.leavers.problem(c)) for c in (1, 4))
    assert found == pytest.approx((30 * one + 50 * other) / 80, abs=1e-6)


@pytest.mark.parametrize("method", DECOYS, ids=str)
def test_they_call_themselves_decoys(method):
    assert method.about.family == "decoy"
    assert method.about.guarantee == "none"
    asks = isinstance(method, LabelMask | OutputFilter)
    assert method.requires == Requires(leaver=asks, levels=LEVELS)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Jitter(relative_std=0.0), "relative_std must be finite and positive"),
        (lambda: Jitter(relative_std=float("inf")), "relative_std must be finite"),
        (lambda: LabelMask(margin=-1.0), "margin must be finite and positive"),
        (lambda: OutputFilter(epochs=0.0), "epochs must be finite and positive"),
        (lambda: OutputFilter(epochs=float("nan")), "epochs must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(make, why):
    with pytest.raises(ValueError, match=why):
        make()
