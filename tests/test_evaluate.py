"""Every metric against an independent computation on the real arrays."""

import numpy as np
import pytest
from scipy.spatial.distance import cosine
from sklearn.metrics import accuracy_score, log_loss

from simulations import load_scenario
from simulations.engine import SimulationGrid
from simulations.evaluate import Evaluator
from simulations.prepare import prepare

METRICS = {
    *(f"{s}_{m}" for s in ("test", "retain", "forget", "forget_holdout")
      for m in ("accuracy", "loss")),
    "l2_to_retrain",
    "cosine_to_retrain",
    "disagreement_with_retrain",
    "backdoor_success",
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tiny):
    return prepare(load_scenario(tiny, ["forget=[1,4]", "backdoor.target=3"]))


@pytest.fixture(scope="module")
def models(prepared):
    """Return three softmax models: measured, reference, origin."""
    rng = np.random.default_rng(5)
    size = prepared.task.layout.size
    return tuple(rng.normal(0, s, size).astype(np.float32) for s in (0.4, 0.5, 0.1))


@pytest.fixture(scope="module")
def measured(prepared, models):
    return Evaluator(prepared).measure(*models)


def scores(model, x):
    """Return softmax regression's scores, by NumPy alone."""
    weight, bias = model[:640].reshape(10, 64), model[640:]
    return x.reshape(len(x), -1).astype(np.float64) @ weight.T + bias


def probabilities(model, x):
    e = np.exp(scores(model, x) - scores(model, x).max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def data_of(prepared, name):
    """Return a set's examples, assembled from the clean federation."""
    federation = prepared.federation
    gone = [federation.clients[c] for c in (1, 4)]
    stay = [federation.clients[c] for c in (0, 2, 3)]
    return {
        "test": (federation.x_test, federation.y_test),
        "retain": (
            np.concatenate([c.x for c in stay]),
            np.concatenate([c.y for c in stay]),
        ),
        "forget": (
            np.concatenate([c.x for c in gone]),
            np.concatenate([c.y for c in gone]),
        ),
        "forget_holdout": (
            np.concatenate([c.x_holdout for c in gone]),
            np.concatenate([c.y_holdout for c in gone]),
        ),
    }[name]


def test_there_are_the_metrics_of_the_issue_and_no_others(measured):
    assert set(measured) == METRICS
    assert all(type(value) is float for value in measured.values())


@pytest.mark.parametrize("name", ["test", "retain", "forget", "forget_holdout"])
def test_accuracy_is_scikit_learns(name, prepared, models, measured):
    x, y = data_of(prepared, name)
    expected = accuracy_score(y, scores(models[0], x).argmax(axis=1))
    assert measured[f"{name}_accuracy"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["test", "retain", "forget", "forget_holdout"])
def test_loss_is_scikit_learns(name, prepared, models, measured):
    x, y = data_of(prepared, name)
    expected = log_loss(y, probabilities(models[0], x), labels=range(10))
    assert measured[f"{name}_loss"] == pytest.approx(expected, rel=1e-6)


def test_distances_are_scipys(models, measured):
    model, reference, origin = (m.astype(np.float64) for m in models)
    assert measured["l2_to_retrain"] == pytest.approx(
        np.linalg.norm(model - reference), rel=1e-6
    )
    assert measured["cosine_to_retrain"] == pytest.approx(
        cosine(model - origin, reference - origin), rel=1e-5
    )


def test_disagreement_is_one_minus_the_accuracy_against_the_reference(
    prepared, models, measured
):
    x, _ = data_of(prepared, "test")
    ours, theirs = (scores(m, x).argmax(axis=1) for m in models[:2])
    expected = 1 - accuracy_score(theirs, ours)
    assert measured["disagreement_with_retrain"] == pytest.approx(expected)


def test_backdoor_success_is_measured_on_stamped_images_of_other_classes(
    prepared, models, measured
):
    x, y = data_of(prepared, "test")
    stamped = x[y != 3].copy()
    stamped[:, :, 5:, 5:] = x.max()
    expected = np.mean(scores(models[0], stamped).argmax(axis=1) == 3)
    assert measured["backdoor_success"] == pytest.approx(expected)


def test_a_model_compared_with_itself_is_at_no_distance(prepared, models):
    metrics = Evaluator(prepared).measure(models[0], models[0], models[2])
    assert metrics["l2_to_retrain"] == 0
    assert metrics["disagreement_with_retrain"] == 0
    assert metrics["cosine_to_retrain"] == pytest.approx(0, abs=1e-7)


def test_measuring_writes_to_no_model_and_gives_the_same_again(prepared, models):
    copies = tuple(m.copy() for m in models)
    evaluator = Evaluator(prepared)
    first, second = evaluator.measure(*models), evaluator.measure(*models)
    assert first == second
    for model, copy in zip(models, copies, strict=True):
        np.testing.assert_array_equal(model, copy)


def test_without_a_holdout_its_metrics_have_no_value(tiny, models):
    prepared = prepare(load_scenario(tiny, ["holdout=0"]))
    metrics = Evaluator(prepared).measure(*models)
    assert metrics["forget_holdout_accuracy"] is None
    assert metrics["forget_holdout_loss"] is None
    assert metrics["forget_accuracy"] is not None


def test_logits_of_many_examples_are_those_of_each_alone(prepared, models):
    evaluator = Evaluator(prepared)
    x = np.concatenate([prepared.federation.x_test] * 8)  # more than one batch
    assert len(x) > 2048
    found = evaluator.logits(models[0], x)
    np.testing.assert_allclose(found, scores(models[0], x), rtol=1e-4, atol=1e-5)


def test_the_curve_starts_with_the_initial_model(prepared):
    from fedunlearn.client import client_app
    from fedunlearn.history import InMemoryHistory
    from simulations.train import Curve, train
    from strategies.directory import Directory

    evaluator = Evaluator(prepared)
    with SimulationGrid(client_app(prepared.task), num_clients=5) as grid:
        trained = train(
            prepared,
            0,
            grid,
            InMemoryHistory(prepared.task.layout),
            directory=Directory(),
            curve=Curve(evaluator, prepared.task.layout),
        )
    x, y = data_of(prepared, "test")
    curve = trained.accuracy_by_round
    assert len(curve) == 4
    for value, model in ((curve[0], trained.initial), (curve[-1], trained.model)):
        assert value == pytest.approx(
            accuracy_score(y, scores(model, x).argmax(axis=1)), abs=1e-12
        )
    sent = [trained.history.round(i).broadcast for i in (1, 2, 3)]
    np.testing.assert_array_equal(sent[0], trained.initial)
    for value, model in zip(curve, sent, strict=False):
        assert value == evaluator.test_accuracy(model)
