"""Rapid retraining against slow recursions, closed forms and plain retraining."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.cost import run_unlearning
from fedunlearn.data import ClientData
from fedunlearn.errors import EmptyRoundError
from fedunlearn.local import Results, decode, encode
from fedunlearn.method import Requires, UnlearningRequest, unmet_requirements
from fedunlearn.models import Softmax
from fedunlearn.params import norm
from fedunlearn.problem import TorchProblem
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.task import LocalTask
from fedunlearn.testing import (
    QuadraticClients,
    check_method,
    keeps_a_model_the_leaver_never_touched,
    make_context,
    quadratic_federation,
)
from fedunlearn.testing.problem import QuadraticProblem
from fedunlearn.training import LocalWork, Training
from fedunlearn.updates import MeanServer
from strategies import Retrain
from strategies.rapid_retrain import FisherTraining, RapidRetrain

PAPER = RapidRetrain(lr=1e-3, power=1.0, damping=0.0)
PLAIN = RapidRetrain(lr=0.3, beta1=0.0, power=0.0)


@pytest.mark.parametrize(
    "method",
    [RapidRetrain(), RapidRetrain(rounds=0), RapidRetrain(rounds=2), PAPER, PLAIN],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)


def slow(start, centre, steps, how):
    """The recursion in Python's floats, one coordinate after the other."""
    w, m, v = list(map(float, start)), [0.0] * len(start), [0.0] * len(start)
    for i in range(1, steps + 1):
        g = [a - float(c) for a, c in zip(w, centre, strict=True)]
        m = [how.beta1 * a + (1 - how.beta1) * b for a, b in zip(m, g, strict=True)]
        v = [how.beta2 * a + (1 - how.beta2) * b**4 for a, b in zip(v, g, strict=True)]
        gamma = [(a / (1 - how.beta2**i)) ** 0.5 for a in v]
        shift = how.damping * sum(gamma) / len(gamma)
        for j, size in enumerate(gamma):
            slope = m[j] / (1 - how.beta1**i)
            w[j] -= how.lr * slope / (size + shift) ** how.power
    return w


@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.9, 0.999]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.3, 1.0]),
)
def test_a_round_is_the_slow_recursion(seed, steps, beta1, beta2, power, damping):
    start, centre = derive(seed, "quadratic").normal(size=(2, 3)).astype(np.float32)
    how = FisherTraining(
        lr=0.05, beta1=beta1, beta2=beta2, power=power, damping=damping
    )
    problem = QuadraticProblem(centre, 10, Training(epochs=steps, batch_size=10))
    expected = slow(start, centre, steps, how)
    assert how.run(start, problem) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert (problem.num_steps, problem.num_samples) == (steps, 10 * steps)


def test_the_papers_step_divides_by_the_fisher_diagonal():
    # g = (2, -4, 0), F = (4, 16, 0): the step is lr (1/2, -1/4, nothing).
    start, centre = np.float32([3, -3, 1]), np.float32([1, 1, 1])
    how = FisherTraining(lr=0.4, beta1=0.9, beta2=0.999, power=1.0, damping=0.0)
    problem = QuadraticProblem(centre, 5, Training(epochs=1))
    assert how.run(start, problem) == pytest.approx([2.8, -2.9, 1])
    # The mean curvature is 20/3; with all of it added: 2/(32/3), -4/(68/3), 0.
    damped = replace(how, damping=1.0).run(start, problem)
    assert damped == pytest.approx([3 - 0.075, -3 + 4.8 / 68, 1])
    root = replace(how, power=0.5).run(start, problem)
    assert root == pytest.approx([2.6, -2.6, 1])


def test_a_step_of_a_softmax_model_uses_the_examples_own_gradients():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4)).astype(np.float32), np.array([0, 2, 1, 1, 0, 2])
    data = ClientData("one", x, y, x[:0], y[:0])
    how = Training(epochs=1, batch_size=6)
    task = LocalTask(
        model=Softmax(),
        training=how,
        clients=[data],
        input_shape=(4,),
        num_classes=3,
    )
    start = rng.normal(size=task.layout.size).astype(np.float32)
    arrays = {n: a.astype(np.float64) for n, a in task.layout.unflatten(start).items()}
    weight, bias = (arrays[name] for name in task.layout.names)
    scores = data.x @ weight.T + bias
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    errors = p - np.eye(3)[data.y]
    own = np.concatenate(
        [(errors[:, :, None] * data.x[:, None]).reshape(6, -1), errors], axis=1
    )
    fisher, gradient = np.square(own).mean(0), own.mean(0)
    expected = start - 0.1 * gradient / np.sqrt(fisher + 0.5 * fisher.mean())
    training = FisherTraining(lr=0.1, beta1=0.9, beta2=0.999, power=0.5, damping=0.5)
    problem = TorchProblem(task, data, 0, LocalWork(seed=0, round_index=1))
    assert training.run(start, problem) == pytest.approx(expected, abs=1e-5)


def federation(clients_per_round=None, **settings):
    centres = derive(1, "centres").standard_normal((5, 4)).astype(np.float32)
    schedule = TrainingSchedule(
        seed=3, rounds=6, epochs=2, clients_per_round=clients_per_round
    )
    clients = QuadraticClients(
        centres=tuple(centres),
        schedule=schedule,
        lr=0.3,
        num_examples=(10, 20, 30, 40, 50),
    )
    return quadratic_federation(clients, **settings)


@pytest.mark.parametrize("clients_per_round", [None, 2])
def test_without_curvature_and_momentum_it_is_retraining(clients_per_round):
    model, make = federation(clients_per_round)
    retrained = Retrain().unlearn(model, make((1, 3)))
    assert PLAIN.unlearn(model, make((1, 3))) == pytest.approx(retrained, abs=1e-6)
    assert norm(retrained - model) > 0.05


def test_it_starts_from_the_initial_model_and_knows_nothing_else():
    model, make = federation(initial=np.float32([5, -5, 5, -5]))
    assert RapidRetrain(rounds=0).unlearn(model, make((1,))).tolist() == [5, -5, 5, -5]
    results = [RapidRetrain().unlearn(m, make((1,))) for m in (model, 9 * model)]
    assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize(("rounds", "done"), [(None, 6), (3, 3), (9, 9)])
def test_a_step_takes_one_gradient(rounds, done):
    model, make = federation()
    ctx = make((1,))
    cost = run_unlearning(RapidRetrain(rounds=rounds), model, ctx).cost
    retrain = run_unlearning(Retrain(), model, make((1,))).cost
    assert [call.round_index for call in ctx.clients.calls] == [*range(1, done + 1)]
    assert cost.client_rounds * 6 == retrain.client_rounds * done
    assert cost.local_steps * 6 == retrain.local_steps * done
    assert cost.history_bytes == model.nbytes


def test_unlike_clients_meet_elsewhere_than_in_retraining():
    # A client's steps are scaled by its own curvature: who is far off pulls no harder
    # than who is near, and the cohort settles beside the mean of the centres.
    model, make = federation()
    sizes = np.array([10, 30, 40, 50])
    centres = np.stack([make(()).clients.centres[k] for k in (0, 2, 3, 4)])
    best = sizes @ centres / sizes.sum()
    plain = replace(PLAIN, rounds=200, lr=0.05).unlearn(model, make((1,)))
    scaled = RapidRetrain(rounds=200, lr=0.05).unlearn(model, make((1,)))
    assert norm(plain - best) < 1e-4
    assert 0.1 < norm(scaled - best) < 0.5


def test_only_the_data_that_remains_is_used():
    # Client 2 stays and loses data: its loss has another minimum from then on.
    model, make = federation()
    before = make(())
    centres = list(before.clients.centres)
    centres[2] = -centres[2]
    remaining = replace(before.clients, centres=tuple(centres), calls=[])
    ctx = make_context(before.history, remaining)
    request = UnlearningRequest(samples={2: (0, 1)})
    ctx = replace(ctx, request=request, shrunk=frozenset({2}))
    assert unmet_requirements(RapidRetrain(), ctx) == ()
    _, fresh = quadratic_federation(remaining)
    expected = RapidRetrain().unlearn(model, fresh(()))
    assert RapidRetrain().unlearn(model, ctx).tobytes() == expected.tobytes()
    assert norm(RapidRetrain().unlearn(model, make(())) - expected) > 1e-3
    classes = replace(ctx, request=UnlearningRequest(classes=frozenset({1})))
    assert "level client or sample" in unmet_requirements(RapidRetrain(), classes)[0]


def test_who_has_no_example_has_no_say():
    model, make = federation()
    ctx = make((1,))
    sizes = (0, *ctx.clients.num_examples[1:])
    poor = replace(ctx, clients=replace(ctx.clients, num_examples=sizes))
    median = replace(poor, new_server=Median)
    without = replace(ctx.clients, num_examples=sizes, gone=frozenset({0, 1}))
    found = RapidRetrain(rounds=1).unlearn(model, median)
    alone = RapidRetrain(rounds=1).unlearn(model, replace(median, clients=without))
    assert found.tobytes() == alone.tobytes()
    nobody = replace(poor, clients=replace(ctx.clients, num_examples=(0,) * 5))
    with pytest.raises(EmptyRoundError, match="in round 1 has an example"):
        RapidRetrain().unlearn(model, nobody)


class Median(MeanServer):
    def step(self, updates):
        return np.median(updates.after, axis=0).astype(np.float32)


def test_a_round_names_who_was_asked():
    found = Results(
        clients=(0, 2),
        values=np.ones((2, 3), np.float32),
        num_examples=np.array([0, 5]),
        num_steps=np.array([0, 1]),
        num_samples=np.array([0, 5]),
    )
    updates = found.as_updates(np.zeros(3, np.float32), 7, [3, 0, 2])
    assert (updates.clients, updates.asked, updates.round_index) == ((2,), (0, 2, 3), 7)
    assert updates.num_samples.tolist() == [5]


def test_one_client_left_trains_alone():
    model, make = federation()
    result = RapidRetrain(rounds=200, lr=0.05).unlearn(model, make((0, 1, 2, 3)))
    assert result == pytest.approx(make(()).clients.centres[4], abs=0.2)


def test_a_client_at_its_minimum_stays_there():
    problem = QuadraticProblem(np.float32([1, 2]), 5, Training(epochs=3))
    how = FisherTraining(lr=0.1, beta1=0.9, beta2=0.999, power=1.0, damping=0.0)
    assert how.run(np.float32([1, 2]), problem).tolist() == [1, 2]


def test_the_start_is_not_written_to():
    start = np.float32([1, 2])
    problem = QuadraticProblem(np.float32([0, 0]), 5, Training(epochs=3))
    FisherTraining(lr=0.1, beta1=0.9, beta2=0.9, power=0.5, damping=1.0).run(
        start, problem
    )
    assert start.tolist() == [1, 2]


def test_a_model_that_diverges_warns_nobody():
    problem = QuadraticProblem(np.float32([0, 0]), 5, Training(epochs=9))
    how = FisherTraining(lr=1e25, beta1=0.9, beta2=0.9, power=0.0, damping=0.0)
    with np.errstate(over="ignore"):  # of the quadratic loss
        assert not np.isfinite(how.run(np.float32([1, 2]), problem)).all()


def test_the_procedure_travels():
    how = FisherTraining(lr=0.1, beta1=0.9, beta2=0.999, power=0.5, damping=1.0)
    assert decode(encode(how)) == how


def test_a_leaver_that_never_took_part_is_no_reason_to_give_the_same_model_back():
    with pytest.raises(AssertionError, match="the model moved"):
        keeps_a_model_the_leaver_never_touched(RapidRetrain())


def test_it_needs_the_initial_model_and_clients():
    assert RapidRetrain().requires == Requires(
        broadcasts="initial", clients=True, levels=("client", "sample")
    )


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"rounds": -1}, "rounds must not be negative, got -1"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"beta1": 1.0}, r"beta1 must lie in \[0, 1\), got 1.0"),
        ({"beta2": -0.1}, r"beta2 must lie in \[0, 1\), got -0.1"),
        ({"power": 1.5}, r"power must lie in \[0, 1\], got 1.5"),
        ({"damping": -1.0}, "damping must not be negative, got -1.0"),
    ],
)
def test_settings_outside_their_range_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        RapidRetrain(**wrong)
