"""FedEraser against the fixture of the paper's notebook, and what follows from it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import RequirementError
from fedunlearn.history import ArraysInMemory, InMemoryHistory, RoundRecord
from fedunlearn.method import Requires, UnlearningContext
from fedunlearn.params import Layout, norm
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import QuadraticClients, check_method, quadratic_federation
from fedunlearn.testing.bench import LEAVER, five_clients
from fedunlearn.updates import MeanServer, Updates
from strategies import FedEraser, Subtract
from strategies.fed_eraser import rescaled
from strategies.fed_eraser_official import model_after, official_step

LAYOUT = Layout(("w",), ((2,),))


class Scripted:
    """Clients that answer with given updates, whatever model they get."""

    def __init__(self, answers, sizes):
        self.answers, self.sizes, self.calls = answers, sizes, []

    @property
    def ids(self):
        return frozenset(self.sizes)

    def train(self, model, ids, *, round_index, epochs=None):
        ids = tuple(sorted(ids))
        self.calls.append((round_index, ids, epochs))
        deltas = np.array([self.answers[c] for c in ids], np.float32)
        return Updates.of_deltas(model, deltas, ids, counts(self.sizes, ids))


def counts(sizes, ids):
    return np.array([sizes[c] for c in ids], np.int64)


def record(index, updates, sizes, broadcast=(0.0, 0.0)):
    """One round from client -> update."""
    ids = tuple(sorted(updates))
    matrix = np.array([updates[c] for c in ids], np.float32)
    nothing = np.zeros(len(ids), np.int64)
    return RoundRecord(
        index=index,
        clients=ids,
        num_examples=counts(sizes, ids),
        num_steps=nothing,
        num_samples=nothing,
        asked=ids,
        arrays=ArraysInMemory(np.array(broadcast, np.float32), matrix),
    )


def context(rounds, clients, forget, epochs=4.0):
    history = InMemoryHistory(LAYOUT)
    for one in rounds:
        history.append_round(one)
    return UnlearningContext(
        history=history,
        forget=frozenset(forget),
        clients=clients,
        schedule=TrainingSchedule(seed=0, rounds=len(rounds), epochs=epochs),
        new_server=MeanServer,
        layout=LAYOUT,
        rng=derive(0, "method"),
    )


SIZES = {1: 40, 2: 25, 3: 60}
STORED = {1: (2, 1), 2: (100, 100), 3: (-1, 2)}
MODEL = np.zeros(2, np.float32)


def fixture_context(rounds=2):
    """Client 2 leaves. The first round brings the remaining ones to (10, -2)."""
    start = record(1, {1: (10, -2), 2: (5, 5), 3: (10, -2)}, SIZES)
    later = [record(i, STORED, SIZES) for i in range(2, rounds + 1)]
    clients = Scripted({1: (3, 4), 3: (0, 6)}, SIZES)
    return context([start, *later], clients, {2})


def test_the_hand_fixture_of_the_paper_is_met():
    result = FedEraser(interval=1).unlearn(MODEL, fixture_context())
    # ||(2,1)|| (3,4)/5 = (1.3416, 1.7889); ||(-1,2)|| (0,6)/6 = (0, 2.2361).
    first = np.sqrt(5) * np.array([0.6, 0.8])
    second = np.sqrt(5) * np.array([0.0, 1.0])
    mean = 0.4 * first + 0.6 * second
    assert mean == pytest.approx([0.53665631, 2.05718254], abs=1e-8)
    assert result == pytest.approx(np.array([10, -2]) + mean, abs=1e-6)
    assert result == pytest.approx([10.5366563, 0.0571825], abs=1e-6)


def test_the_first_round_is_used_as_it_was_stored():
    ctx = fixture_context(rounds=1)
    result = FedEraser(interval=1).unlearn(MODEL, ctx)
    assert result.tolist() == [10, -2]
    assert ctx.clients.calls == []


def test_the_first_round_starts_from_the_initial_model():
    first = record(1, {1: (1, 2), 2: (9, 9)}, SIZES, broadcast=(5, 7))
    ctx = context([first], Scripted({}, SIZES), {2})
    assert FedEraser().unlearn(MODEL, ctx).tolist() == [6, 9]


@pytest.mark.parametrize(
    ("interval", "asked"),
    [(1, [2, 3, 4, 5, 6]), (2, [3, 5]), (3, [4]), (4, [5]), (6, []), (60, [])],
)
def test_every_interval_th_round_is_replayed_from_the_first(interval, asked):
    ctx = fixture_context(rounds=6)
    FedEraser(interval=interval).unlearn(MODEL, ctx)
    assert [index for index, _, _ in ctx.clients.calls] == asked


def test_only_remaining_participants_of_a_round_calibrate_it():
    rounds = [record(1, STORED, SIZES), record(2, {2: (1, 1), 3: (1, 0)}, SIZES)]
    ctx = context(rounds, Scripted({1: (1, 0), 3: (0, 1)}, SIZES), {2})
    FedEraser(interval=1).unlearn(MODEL, ctx)
    assert ctx.clients.calls == [(2, (3,), 2.0)]


def test_the_calibration_is_a_fraction_of_the_recorded_epochs():
    ctx = fixture_context(rounds=3)
    FedEraser(interval=1, calibration_ratio=0.25).unlearn(MODEL, ctx)
    assert [epochs for _, _, epochs in ctx.clients.calls] == [1.0, 1.0]


def test_norm_scale_interval_multiplies_a_calibrated_step_by_the_interval():
    start = np.array([10, -2])
    stored = FedEraser(interval=2).unlearn(MODEL, fixture_context(rounds=3)) - start
    longer = FedEraser(interval=2, norm_scale="interval").unlearn(
        MODEL, fixture_context(rounds=3)
    )
    assert longer - start == pytest.approx(2 * stored, abs=1e-6)


def test_a_calibration_that_does_not_move_counts_as_no_step():
    ctx = fixture_context()
    ctx.clients.answers[1] = (0, 0)
    result = FedEraser(interval=1).unlearn(MODEL, ctx)
    assert result == pytest.approx([10, -2 + 0.6 * np.sqrt(5)], abs=1e-6)


def test_a_stored_update_of_zero_gives_no_step():
    rounds = [record(1, {1: (0, 0)}, SIZES), record(2, {1: (0, 0)}, SIZES)]
    ctx = context(rounds, Scripted({1: (3, 4)}, SIZES), {2})
    assert FedEraser(interval=1).unlearn(MODEL, ctx).tolist() == [0, 0]


def test_the_first_retained_round_is_the_first_recorded_one_whatever_its_number():
    rounds = [record(2, {1: (1, 0)}, SIZES), record(3, {1: (2, 0)}, SIZES)]
    ctx = context(rounds, Scripted({1: (0, 3)}, SIZES), {2})
    assert FedEraser(interval=1).unlearn(MODEL, ctx) == pytest.approx([1, 2])
    assert [index for index, _, _ in ctx.clients.calls] == [3]


def test_a_round_of_the_leaver_alone_is_skipped():
    rounds = [
        record(1, {1: (1, 0)}, SIZES),
        record(2, {2: (7, 7)}, SIZES),
        record(3, {1: (2, 0)}, SIZES),
    ]
    ctx = context(rounds, Scripted({1: (0, 3)}, SIZES), {2})
    assert FedEraser(interval=1).unlearn(MODEL, ctx) == pytest.approx([1, 2])
    assert [index for index, _, _ in ctx.clients.calls] == [3]


def test_after_a_first_round_of_the_leaver_alone_the_next_one_is_calibrated():
    rounds = [
        record(1, {2: (7, 7)}, SIZES, broadcast=(1, 1)),
        record(2, {1: (2, 0)}, SIZES, broadcast=(8, 8)),
    ]
    ctx = context(rounds, Scripted({1: (0, 3)}, SIZES), {2})
    assert FedEraser(interval=1).unlearn(MODEL, ctx) == pytest.approx([1, 3])


def test_the_server_weighs_by_example_counts():
    sizes = {1: 1, 2: 5, 3: 3}
    ctx = context(
        [record(1, {1: (4, 0), 2: (9, 9), 3: (0, 4)}, sizes)], Scripted({}, sizes), {2}
    )
    assert FedEraser().unlearn(MODEL, ctx) == pytest.approx([1, 3])


class Stubborn(Scripted):
    """Clients whose fresh update of a round is their stored one."""

    def __init__(self, history, clients):
        super().__init__({}, dict.fromkeys(clients, 1))
        self.history = history

    def train(self, model, ids, *, round_index, epochs=None):
        stored, ids = self.history.round(round_index), tuple(sorted(ids))
        deltas = stored.updates_of(ids)
        return Updates.of_deltas(model, deltas, ids, stored.examples_of(ids))


def federation(**settings):
    centres = derive(1, "centres").standard_normal((6, 5)).astype(np.float32)
    schedule = TrainingSchedule(
        seed=3,
        rounds=settings.pop("rounds", 6),
        epochs=settings.pop("epochs", 2),
        clients_per_round=settings.pop("clients_per_round", None),
    )
    clients = QuadraticClients(
        centres=tuple(centres), schedule=schedule, lr=0.2, noise=0.05, **settings
    )
    return quadratic_federation(clients)


@pytest.mark.parametrize("clients_per_round", [None, 3])
def test_calibrating_with_the_stored_direction_is_fed_accum(clients_per_round):
    model, make = federation(clients_per_round=clients_per_round)
    ctx = make((2,))
    ctx = replace(ctx, clients=Stubborn(ctx.history, ctx.clients.ids))
    replayed = FedEraser(interval=1).unlearn(model, ctx)
    accum = Subtract(weighting="renormalised").unlearn(model, make((2,)))
    assert replayed == pytest.approx(accum, abs=2e-6)


@pytest.mark.parametrize("clients_per_round", [None, 3])
def test_full_calibration_without_a_weightless_leaver_is_the_original_run(
    clients_per_round,
):
    sizes = (40, 50, 0, 30, 20, 60)
    model, make = federation(num_examples=sizes, clients_per_round=clients_per_round)
    method = FedEraser(interval=1, calibration_ratio=1.0)
    assert method.unlearn(model, make((2,))) == pytest.approx(model, abs=3e-6)


@pytest.mark.parametrize(
    ("interval", "ratio", "rounds"), [(2, 0.5, 8), (1, 0.5, 8), (4, 0.25, 8), (2, 1, 9)]
)
def test_the_cost_is_the_ratio_over_the_interval_less_the_free_first_round(
    interval, ratio, rounds
):
    model, make = federation(rounds=rounds, epochs=4)
    method = FedEraser(interval=interval, calibration_ratio=ratio)
    ctx = make((0,))
    outcome = run_unlearning(method, model, ctx)
    replayed = -(-rounds // interval) - 1
    client_epochs = sum(len(c.clients) * c.epochs for c in ctx.clients.calls)
    assert outcome.cost.client_rounds == 5 * replayed
    assert client_epochs == 5 * replayed * ratio * 4
    # The first retained round costs its clients nothing: with it the paper's r/dt.
    retrain = 5 * rounds * 4
    with_first = client_epochs + 5 * ratio * 4
    exact = -(-rounds // interval) * ratio / rounds
    assert with_first / retrain == pytest.approx(exact)


def test_an_interval_of_two_and_half_the_epochs_make_retraining_four_times_dearer():
    model, make = federation(rounds=40, epochs=4)
    ctx = make((0,))
    run_unlearning(FedEraser(), model, ctx)
    spent = sum(len(c.clients) * c.epochs for c in ctx.clients.calls)
    assert 5 * 40 * 4 / spent == pytest.approx(4 * 20 / 19)


def test_it_reads_the_retained_rounds_and_the_initial_model_only():
    model, make = federation(rounds=6)
    cost = run_unlearning(FedEraser(interval=2), model, make((0,))).cost
    assert cost.history_bytes == (1 + 3 * 5) * model.nbytes


VECTORS = arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=16))


@given(VECTORS, VECTORS)
def test_rescaling_keeps_the_direction_and_takes_the_other_length(direction, length):
    result = rescaled(direction, length)
    assert result.dtype == np.float32
    for row, fresh, stored in zip(result, direction, length, strict=True):
        if not norm(fresh):
            assert not row.any()
            continue
        assert norm(row) == pytest.approx(norm(stored), rel=1e-5, abs=1e-6)
        product = row.astype(np.float64) @ fresh.astype(np.float64)
        assert product == pytest.approx(norm(row) * norm(fresh), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"calibration_ratio": 0}])
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FedEraser(**wrong)


def test_a_calibration_longer_than_training_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 1\], got 1.5"):
        FedEraser(calibration_ratio=1.5)


# The step of the released code

OFFICIAL = FedEraser(interval=1, variant="official")


@pytest.mark.parametrize(
    "method",
    [
        OFFICIAL,
        FedEraser(variant="official"),
        FedEraser(variant="official", norm_scale="interval", calibration_ratio=1.0),
        FedEraser(variant="official", select="kept"),
    ],
    ids=str,
)
def test_the_official_variant_obeys_the_laws(method):
    check_method(method)


def two_rounds(updates, layout, leaver=0):
    """A first round in which nothing moves, then one with ``updates`` ``(K, P)``."""
    still, start = np.zeros_like(updates), np.zeros(layout.size, np.float32)
    history, sizes = InMemoryHistory(layout), dict.fromkeys(range(len(updates)), 1)
    for index, rows in enumerate((still, updates), 1):
        one = record(index, dict(enumerate(rows)), sizes, broadcast=start)
        history.append_round(one)
    ids = set(range(len(updates))) - {leaver}
    ctx = context([], Scripted({}, dict.fromkeys(ids, 1)), {leaver})
    clients = Stubborn(history, ids)
    ctx = replace(ctx, history=history, clients=clients, layout=layout)
    return updates.mean(0), ctx


def ratio_of_steps(clients, size):
    """Length of the official step over the paper's, by the methods themselves.

    Every update is a unit vector that all share plus one of its own at right angles;
    the leaver's is ``size`` times that. Fresh updates point as the stored ones do.
    """
    axes = np.linalg.qr(derive(0, "axes").standard_normal((64, clients + 1)))[0].T
    updates = axes[:-1] + axes[-1]
    updates[0] *= size
    layout = Layout(("w",), ((64,),))
    final, ctx = two_rounds(np.float32(updates), layout)
    steps = [FedEraser(interval=1, variant=v).unlearn(final, ctx) for v in VARIANTS]
    return norm(steps[0]) / norm(steps[1])


VARIANTS = ("official", "paper")


@pytest.mark.parametrize(
    ("clients", "size", "ratio"),
    [(10, 1, 0.1), (10, 3, 0.344), (10, 0, 0.1), (5, 1, 0.2), (20, 1, 0.05)],
)
def test_the_official_step_is_much_too_short(clients, size, ratio):
    # Random updates of ten clients, reported elsewhere: 0.099, and 0.35 for size 3.
    # With u shared and v_k own, both of length 1: the official length is
    # || mean_k U_k - a U || / K = || (1 - a) u + mean_k v_k - a v || / K.
    own = 1 / (clients - 1)
    exact = np.sqrt(((1 - size) ** 2 + own + size**2) / (1 + own)) / clients
    assert exact == pytest.approx(ratio, abs=5e-4)
    assert ratio_of_steps(clients, size) == pytest.approx(exact, rel=1e-4)


def test_the_official_step_is_calibrated_layer_by_layer():
    layout = Layout(("a", "b", "c"), ((2,), (), (1,)))
    fresh = np.float32([[2, 4, 3, 1], [4, 4, -1, -1]])  # mean (3, 4 | 1 | 0)
    models = np.float32([[1, 1, 5, 9], [3, 1, 1, 9]])  # mean (2, 1 | 3 | 9)
    after = np.float32([2, -9, 1, 7])  # lengths 10, 2 and 2
    step = official_step(fresh, models, after, layout)
    assert step.tolist() == [6, 8, 2, 0]
    assert step.dtype == np.float32


@given(VECTORS, VECTORS)
def test_each_layer_gets_the_length_of_the_stored_one(fresh, models):
    layout = Layout(("a", "b"), ((3,), ()))
    step = official_step(fresh, models, np.ones(4, np.float32), layout)
    for part in (slice(0, 3), slice(3, 4)):
        old, new = models[:, part].mean(0) - 1, fresh[:, part].mean(0)
        if norm(new) > 1e-3:
            assert norm(step[part]) == pytest.approx(norm(old), rel=1e-3, abs=1e-3)
            assert step[part] @ new >= 0


def test_the_official_variant_replays_a_round_by_hand():
    # Clients 1 and 3 stay; round 2 starts at (1, 1) and ends at (1, 2).
    first = record(1, {1: (1, 0), 2: (9, 9), 3: (0, 1)}, SIZES)
    second = record(2, STORED, SIZES, broadcast=(1, 1))
    third = record(3, {2: (1, 1)}, SIZES, broadcast=(1, 2))
    ctx = context([first, second, third], Scripted({1: (3, 4), 3: (0, 6)}, SIZES), {2})
    result = OFFICIAL.unlearn(MODEL, ctx)
    # Round 1, weighted: (.4, .6). Then the direction (1.5, 5), unweighted, and the
    # length || (1, 1) + (.5, 1.5) - (1, 2) || = || (.5, .5) ||.
    step = np.array([1.5, 5]) / np.hypot(1.5, 5) * np.sqrt(0.5)
    assert result == pytest.approx([0.4 + step[0], 0.6 + step[1]], abs=1e-6)


def test_after_the_last_round_stands_the_final_model():
    final = np.float32([5, 5])
    rounds = [record(t, STORED, SIZES, broadcast=(t, t)) for t in (1, 4, 6)]
    ctx = context(rounds, Scripted({}, SIZES), {2})
    found = [model_after(ctx.history, t, final).tolist() for t in (1, 4, 6)]
    assert found == [[4, 4], [6, 6], [5, 5]]


def test_leaving_nobody_out_makes_official_steps_of_nothing():
    updates = np.float32([[1, 2], [3, 4], [5, 0]])
    final, ctx = two_rounds(updates, LAYOUT, leaver=7)
    assert OFFICIAL.unlearn(final, ctx) == pytest.approx([0, 0], abs=1e-6)


def test_official_steps_are_multiplied_by_the_interval_where_asked():
    rounds = [record(t, STORED, SIZES, broadcast=(t, 0)) for t in (1, 2, 3)]
    ctx = context(rounds, Scripted({1: (3, 4), 3: (0, 6)}, SIZES), {2})
    once, twice = (
        FedEraser(interval=2, variant="official", norm_scale=scale).unlearn(MODEL, ctx)
        for scale in ("stored", "interval")
    )
    start = FedEraser(interval=9).unlearn(MODEL, ctx)
    assert norm(once - start) > 0.1
    assert twice - start == pytest.approx(2 * (once - start), abs=1e-5)


def test_the_official_variant_needs_every_broadcast():
    assert OFFICIAL.requires == Requires(updates="all", broadcasts="all", clients=True)
    assert FedEraser(variant="official", select="kept").requires == Requires(
        updates="some", broadcasts="all", clients=True
    )
    assert FedEraser().requires == Requires(
        updates="all", interval=2, broadcasts="initial", clients=True
    )
    empty = context([], Scripted({}, SIZES), {2})
    with pytest.raises(RequirementError, match="at least one recorded round"):
        run_unlearning(OFFICIAL, MODEL, empty)


def test_what_is_kept_is_replayed_whatever_the_interval():
    model, context = five_clients()
    kept, every = (
        FedEraser(**how).unlearn(model, context((LEAVER,)))
        for how in ({"select": "kept"}, {"interval": 1})
    )
    assert kept.tobytes() == every.tobytes()
