"""FedRecover against retraining, against hand-made rounds, and its cost."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import EmptyRoundError, RequirementError
from fedunlearn.history import ArraysInMemory, InMemoryHistory, RoundRecord
from fedunlearn.method import Requires, UnlearningContext
from fedunlearn.params import Layout, norm
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import QuadraticClients, check_method, quadratic_federation
from fedunlearn.testing.bench import LEAVER, five_clients
from fedunlearn.updates import MeanServer, Updates
from strategies import Retrain
from strategies.estimates import merged
from strategies.fed_recover import FedRecover

SETTINGS = [
    FedRecover(),
    FedRecover(correct_every=1),
    FedRecover(warm_up=2, buffer=1, correct_every=2, final=0),
    FedRecover(warm_up=2, buffer=1, correct_every=9, final=0, tolerance=None),
    FedRecover(tolerance=0.2),
    FedRecover(buffer=9),
]


@pytest.mark.parametrize("method", SETTINGS, ids=str)
def test_it_obeys_the_laws(method):
    check_method(method)


@dataclass
class Momentum:
    """A server rule with a state, as FedAvgM has."""

    velocity: np.ndarray | float = 0.0
    stateful: bool = True
    mean: bool = False

    def step(self, updates):
        mean = MeanServer().step(updates)
        self.velocity = np.float32(0.5) * self.velocity + (mean - updates.before)
        return np.float32(updates.before + self.velocity)

    def restore(self, state, next_round):
        raise NotImplementedError


def federation(new_server=MeanServer, attendance=None, **settings):
    """Six clients with Hessian ``c I``: local training is affine with slope ``a I``."""
    centres = derive(1, "centres").standard_normal((6, 5)).astype(np.float32)
    schedule = TrainingSchedule(
        seed=3,
        rounds=settings.pop("rounds", 12),
        epochs=settings.pop("epochs", 2),
        clients_per_round=settings.pop("clients_per_round", None),
    )
    clients = QuadraticClients(
        centres=tuple(centres),
        schedule=schedule,
        lr=0.2,
        num_examples=(10, 20, 30, 40, 50, 60),
        **settings,
    )
    return quadratic_federation(clients, new_server=new_server, attendance=attendance)


@pytest.mark.parametrize("new_server", [MeanServer, Momentum])
@pytest.mark.parametrize("clients_per_round", [None, 3])
@pytest.mark.parametrize("attendance", [None, {1: (2, 5)}, dict.fromkeys((0, 2), (1,))])
def test_with_every_round_exact_it_is_retraining_bit_for_bit(
    clients_per_round, new_server, attendance
):
    model, make = federation(
        new_server, attendance, clients_per_round=clients_per_round, noise=0.1
    )
    for method in (FedRecover(correct_every=1), FedRecover(warm_up=12)):
        recovered = method.unlearn(model, make((1, 4)))
        assert recovered.tobytes() == Retrain().unlearn(model, make((1, 4))).tobytes()


@pytest.mark.parametrize("new_server", [MeanServer, Momentum])
@pytest.mark.parametrize("clients_per_round", [None, 3])
@pytest.mark.parametrize("buffer", [1, 3])
def test_where_hessians_are_multiples_of_the_identity_it_is_retraining_to_rounding(
    clients_per_round, new_server, buffer
):
    model, make = federation(new_server, clients_per_round=clients_per_round)
    method = FedRecover(buffer=buffer, correct_every=100, final=0, tolerance=None)
    ctx, retrained = make((1,)), Retrain().unlearn(model, make((1,)))
    assert method.unlearn(model, ctx) == pytest.approx(retrained, abs=2e-6)
    assert norm(retrained - model) > 0.05
    asked = sum(len(call.clients) for call in ctx.clients.calls)
    assert asked < (12 * 5 if clients_per_round is None else 12 * 3)


@given(
    st.integers(1, 25),
    st.integers(2, 30),
    st.integers(1, 12),
    st.integers(0, 30),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_the_cost_is_warm_up_corrections_and_final_tuning(rounds, tw, tc, tf, s):
    tw = max(tw, s + 1)
    model, make = federation(rounds=rounds)
    method = FedRecover(
        warm_up=tw, correct_every=tc, final=tf, buffer=s, tolerance=None
    )
    ctx = make((0,))
    cost = run_unlearning(method, model, ctx).cost
    exact = rounds if tw + tf >= rounds else tw + tf + (rounds - tw - tf) // tc
    assert cost.client_rounds == 5 * exact
    asked = [call.round_index for call in ctx.clients.calls]
    first, last = range(1, tw + 1), range(rounds - tf + 1, rounds + 1)
    wanted = {*first, *last, *range(tw + tc, rounds + 1, tc)}
    assert asked == [t for t in range(1, rounds + 1) if t in wanted]


@pytest.mark.parametrize(("rounds", "exact"), [(3, 3), (20, 6), (100, 23)])
def test_the_defaults_follow_from_the_number_of_rounds(rounds, exact):
    # Tw = 3, 3, 10 and Tf = 1, 2, 5: (20 - 5) // 10 = 1 and (100 - 15) // 10 = 8.
    model, make = federation(rounds=rounds)
    cost = run_unlearning(FedRecover(tolerance=None), model, make((0,))).cost
    assert cost.client_rounds == 5 * exact


def test_a_client_is_asked_until_it_gave_an_exact_update_apart_from_the_record():
    model, make = federation(clients_per_round=2, rounds=30)
    method = FedRecover(warm_up=2, buffer=1, correct_every=99, final=0, tolerance=None)
    ctx = make((0,))
    method.unlearn(model, ctx)
    asked = {(call.round_index, c) for call in ctx.clients.calls for c in call.clients}
    expected, paired, touched = set(), set(), False
    for t in range(1, 31):
        recorded = ctx.history.round(t).clients
        for client in ctx.schedule.cohort(t, {1, 2, 3, 4, 5}):
            known = client in recorded and (client in paired or not touched)
            if t <= 2 or not known:
                expected.add((t, client))
        if touched:
            paired |= {c for at, c in expected if at == t and c in recorded}
        touched = touched or 0 in recorded
    assert asked == expected
    assert len(asked) < 60


@dataclass
class Affine:
    """Clients whose update is the recorded one less ``slope (w - recorded model)``."""

    history: InMemoryHistory
    slopes: dict
    calls: list = field(default_factory=list)

    @property
    def ids(self):
        return frozenset(self.slopes)

    def train(self, model, ids, *, round_index, epochs=None):
        ids, one = tuple(sorted(ids)), self.history.round(round_index)
        self.calls.append((round_index, ids))
        rows = np.array([self.update(c, model, one) for c in ids], np.float32)
        return Updates.of_deltas(model, rows, ids, np.ones(len(ids), np.int64))

    def update(self, client, model, one):
        stored = one.updates_of([client])[0] if client in one.clients else 0
        return stored - self.slopes[client] @ (model - one.broadcast)


def by_hand(slopes, rounds=4, attends=None, scales=(1, 1, 1, 1, 1)):
    """Client 2, of large updates, leaves; the others recorded (1/2, 0) and (0, 1).

    Round t's are those times ``scales[t - 1]``; a slope is a matrix or a number.
    """
    stored = {0: (0.5, 0), 1: (0, 1), 2: (100, -100)}
    history = InMemoryHistory(Layout(("w",), ((2,),)))
    for t in range(1, rounds + 1):
        ids = (attends or {}).get(t, (0, 1, 2))
        rows = scales[t - 1] * np.array([stored[c] for c in ids], np.float32)
        arrays = ArraysInMemory(np.zeros(2, np.float32), rows)
        counts = np.zeros(len(ids), np.int64)
        one = RoundRecord(
            index=t,
            clients=ids,
            num_examples=counts + 1,
            num_steps=counts,
            num_samples=counts,
            asked=ids,
            arrays=arrays,
        )
        history.append_round(one)
    return UnlearningContext(
        history=history,
        forget=frozenset({2}),
        clients=Affine(history, {c: m * np.eye(2) for c, m in slopes.items()}),
        schedule=TrainingSchedule(seed=0, rounds=rounds, epochs=1),
        new_server=MeanServer,
        layout=history.layout,
        rng=derive(0, "method"),
    )


def exact_model(ctx):
    """Retraining of affine clients in float64."""
    w = np.zeros(2)
    for t in ctx.history.rounds:
        one = ctx.history.round(t)
        w = w + np.mean([ctx.clients.update(c, w, one) for c in (0, 1)], axis=0)
    return w


ONE_PAIR = FedRecover(warm_up=2, buffer=1, correct_every=99, final=0, tolerance=0)


@pytest.mark.parametrize(
    ("tolerance", "asked"),
    [
        # Round 3 starts from (-.2875, -.2875); the estimates are (.52875, .02875) and
        # (1.4375, 2.4375), the recorded coordinates of those that stay 0, 0, .5 and 1.
        (None, [(1, (0, 1)), (2, (0, 1))]),
        (0.0, [(1, (0, 1)), (2, (0, 1)), (3, (1,))]),
        (0.24, [(1, (0, 1)), (2, (0, 1)), (3, (1,))]),
        (0.25, [(1, (0, 1)), (2, (0, 1)), (3, (0, 1))]),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_abnormal_estimate_is_asked_for_and_the_others_are_not(
    tolerance, asked, sign
):
    ctx = by_hand({0: 0.1, 1: 5.0}, rounds=3, scales=[sign] * 3)
    result = replace(ONE_PAIR, tolerance=tolerance).unlearn(np.zeros(2), ctx)
    assert ctx.clients.calls == asked
    assert result == pytest.approx(exact_model(ctx), abs=1e-5)


@pytest.mark.parametrize(
    ("scales", "asked"),
    [
        ((-1, -1, 1, 1), [1]),
        ((-3, -1, 1, 1), []),
        ((-1, -3, 1, 1), []),
        ((-1, -1, 1, 3), []),
    ],
)
def test_the_threshold_is_that_of_the_round_with_the_largest_updates(scales, asked):
    # The model is negative by round 3, which lifts the estimate of (0, 1) above 1.
    ctx = by_hand({0: 0.1, 1: 0.1}, scales=scales)
    ONE_PAIR.unlearn(np.zeros(2), ctx)
    assert [c for t, ids in ctx.clients.calls if t == 3 for c in ids] == asked


def dense_product(steps, differences, v):
    """The textbook BFGS recursion."""
    s, y = steps[-1], differences[-1]
    hessian = np.eye(len(s)) * (y @ s) / (s @ s)
    for s, y in zip(steps, differences, strict=True):
        towards = hessian @ s
        hessian = hessian - np.outer(towards, towards) / (s @ towards)
        hessian = hessian + np.outer(y, y) / (y @ s)
    return hessian @ v


@pytest.mark.parametrize("buffer", [1, 2, 3])
def test_the_newest_pairs_make_the_estimate(buffer):
    slopes = {0: np.array([[0.1, 0.05], [0.05, 0.4]]), 1: np.diag([0.3, 0.02])}
    ctx = by_hand(slopes, rounds=5)
    ctx.clients.slopes.update(slopes)
    one = np.array([[0.5, 0], [0, 1]])
    stored = [one, [[0, -1], [2, 0]], [[1, 3], [0, 1]], [[-3, 0], [0, 0.5]], one]
    for t, rows in enumerate(stored, 1):
        ctx.history.round(t).arrays.matrix[:2] = rows
    method = FedRecover(
        warm_up=4, buffer=buffer, correct_every=9, final=0, tolerance=None
    )
    result = method.unlearn(np.zeros(2), ctx)
    w, models = np.zeros(2), []
    for rows in stored[:4]:
        models.append(w)
        w = w + np.mean([rows[c] - slopes[c] @ w for c in (0, 1)], axis=0)
    steps = models[1:][-buffer:]  # the first round's two models are equal
    updates = [
        one[c] - dense_product(steps, [slopes[c] @ s for s in steps], w) for c in (0, 1)
    ]
    assert result == pytest.approx(w + np.mean(updates, axis=0), abs=1e-5)
    assert len(ctx.clients.calls) == 4


def test_a_leaver_of_little_weight_is_not_taken_for_rounding():
    schedule = TrainingSchedule(seed=0, rounds=8, epochs=1)
    clients = QuadraticClients(
        centres=tuple(np.float32([[1, 0], [0, 2], [9, -9]])),
        schedule=schedule,
        num_examples=(10_000, 20_000, 1),
        lr=0.2,
    )
    model, make = quadratic_federation(clients)
    retrained = Retrain().unlearn(model, make((2,)))
    assert norm(model - retrained) > 1e-4
    assert norm(ONE_PAIR.unlearn(model, make((2,))) - retrained) < 1e-6


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_an_estimate_that_is_not_finite_is_asked_for(value):
    ctx = by_hand({0: 0.1, 1: 0.1}, rounds=3)
    ctx.history.round(3).arrays.matrix[0, 0] = value
    ctx.clients.train = lambda model, ids, **_: Updates.of_deltas(
        model,
        np.full((len(ids), 2), 0.1, np.float32),
        tuple(sorted(ids)),
        np.ones(len(ids), np.int64),
    )
    result = replace(ONE_PAIR, tolerance=None).unlearn(np.zeros(2), ctx)
    assert np.isfinite(result).all()


def test_a_client_of_negative_curvature_is_asked_in_every_round():
    ctx = by_hand({0: -0.1, 1: 0.1})
    result = replace(ONE_PAIR, tolerance=None).unlearn(np.zeros(2), ctx)
    assert ctx.clients.calls == [(1, (0, 1)), (2, (0, 1)), (3, (0,)), (4, (0,))]
    assert result == pytest.approx(exact_model(ctx), abs=1e-6)


def test_whoever_the_recorded_round_lacks_is_asked():
    ctx = by_hand({0: 0.1, 1: 0.1}, rounds=5, attends={3: (0, 2), 4: (2,)})
    result = replace(ONE_PAIR, tolerance=None).unlearn(np.zeros(2), ctx)
    assert ctx.clients.calls == [(1, (0, 1)), (2, (0, 1)), (3, (1,)), (4, (0, 1))]
    assert result == pytest.approx(exact_model(ctx), abs=1e-6)


@dataclass
class Absent(Affine):
    """Clients of whom some do not answer in some rounds."""

    away: dict = field(default_factory=dict)

    def train(self, model, ids, *, round_index, epochs=None):
        there = set(ids) - self.away.get(round_index, set())
        if not there:
            raise EmptyRoundError("nobody answered")
        return super().train(model, there, round_index=round_index)


def test_a_round_with_estimates_can_do_without_an_answer():
    ctx = by_hand({0: -0.1, 1: 0.1}, rounds=3)
    history, slopes = ctx.history, ctx.clients.slopes
    absent = Absent(history, slopes, away={3: {0}})
    method = replace(ONE_PAIR, tolerance=None)
    result = method.unlearn(np.zeros(2), replace(ctx, clients=absent))
    w = exact_model(by_hand({0: -0.1, 1: 0.1}, rounds=2))
    assert result == pytest.approx(0.9 * w + np.array([0, 1]), abs=1e-6)
    nobody = Absent(history, slopes, away={2: {0, 1}})
    with pytest.raises(EmptyRoundError):
        method.unlearn(np.zeros(2), replace(ctx, clients=nobody))


def test_before_the_leavers_first_round_the_record_is_taken_as_it_is():
    model, make = federation(attendance={1: range(6, 13)}, noise=0.1)
    ctx = make((1,))
    method = FedRecover(warm_up=2, buffer=1, correct_every=99, final=0, tolerance=None)
    result = method.unlearn(model, ctx)
    # Round 7 is the first whose model differs: nobody has a pair before it.
    assert [call.round_index for call in ctx.clients.calls] == [1, 2, 7]
    retrained = Retrain().unlearn(model, make((1,)))
    assert result == pytest.approx(retrained, abs=5e-6)


def test_a_leaver_that_never_took_part_leaves_the_same_model_up_to_rounding():
    model, make = five_clients(clients_per_round=3, attendance={LEAVER: ()})
    ctx = make((LEAVER,))
    method = FedRecover(warm_up=2, buffer=1, final=0)
    assert norm(method.unlearn(model, ctx) - model) < 1e-6
    assert [call.round_index for call in ctx.clients.calls] == [1, 2]


def test_one_client_left_is_retrained():
    model, make = federation()
    result = FedRecover().unlearn(model, make((0, 1, 2, 3, 5)))
    retrained = Retrain().unlearn(model, make((0, 1, 2, 3, 5)))
    assert result == pytest.approx(retrained, abs=2e-6)


def test_merging_sorts_by_client_and_leaves_one_cohort_alone():
    def cohort(*ids):
        rows = np.array([[c, -c] for c in ids], np.float32)
        return Updates.of_deltas(np.zeros(2, np.float32), rows, ids, np.array(ids) * 10)

    both = merged((cohort(2, 5), cohort(1, 3)))
    assert both.clients == (1, 2, 3, 5)
    assert both.after.tolist() == [[1, -1], [2, -2], [3, -3], [5, -5]]
    assert both.num_examples.tolist() == [10, 20, 30, 50]
    alone = cohort(4)
    assert merged((alone,)) is alone


def test_it_needs_everything_that_was_recorded():
    assert FedRecover().requires == Requires(
        updates="all", broadcasts="all", clients=True
    )
    ctx = by_hand({0: 1.0, 1: 1.0})
    empty = replace(ctx, history=InMemoryHistory(ctx.layout))
    with pytest.raises(RequirementError, match="at least one recorded round"):
        run_unlearning(FedRecover(), np.zeros(2, np.float32), empty)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"correct_every": 0}, "correct_every must be at least 1, got 0"),
        ({"buffer": 0}, "buffer must be at least 1, got 0"),
        ({"warm_up": 2}, "warm_up must exceed buffer, got 2 and 2"),
        ({"final": -1}, "final must not be negative, got -1"),
        ({"tolerance": 1.0}, r"tolerance must lie in \[0, 1\), got 1.0"),
        ({"tolerance": -0.1}, r"tolerance must lie in \[0, 1\), got -0.1"),
    ],
)
def test_settings_outside_their_range_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        FedRecover(**wrong)
