"""Crab against FedEraser on the same rounds, a slow selection and hand numbers."""

from dataclasses import replace
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from fedunlearn.history import (
    ArraysInMemory,
    DiskHistory,
    InMemoryHistory,
    RoundRecord,
    records,
)
from fedunlearn.method import Requires
from fedunlearn.params import Layout, norm
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import (
    QuadraticClients,
    check_method,
    keeps_a_model_the_leaver_never_touched,
    quadratic_federation,
)
from strategies import FedEraser
from strategies.crab import Crab
from strategies.crab_influence import influence_before

WHOLE = Crab(rounds=1.0, clients=1.0, tolerance=0.0)
LOSSES = (2.0, 1.9, 1.85, 1.7, 1.6, 1.5, 1.49, 1.48, 1.3, 1.29)
"""Close windows with rounds 4, 6 and 9: (1, 2, 3), (4, 5), (6, 7, 8)."""


@pytest.mark.parametrize(
    "method",
    [Crab(), WHOLE, Crab(tolerance=0.5), Crab(calibration_ratio=1.0, rounds=0.2)],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)


def test_a_leaver_that_never_took_part_leaves_the_same_bits():
    keeps_a_model_the_leaver_never_touched(Crab())


def federation(seed=1, attendance=None, **settings):
    """Eight clients, ten rounds."""
    centres = derive(seed, "centres").standard_normal((8, 6)).astype(np.float32)
    schedule = TrainingSchedule(seed=seed, rounds=10, epochs=2, **settings)
    clients = QuadraticClients(
        centres=tuple(centres),
        schedule=schedule,
        lr=0.2,
        num_examples=(10, 20, 30, 40, 50, 60, 70, 80),
        noise=0.3,
    )
    return quadratic_federation(clients, attendance=attendance)


def with_losses(ctx, losses=LOSSES, rounds=None):
    """The same context with a loss for each round, and only some rounds."""
    history = InMemoryHistory(ctx.layout)
    for record, loss in zip(records(ctx.history), losses, strict=False):
        if rounds is None or record.index in rounds:
            history.append_round(replace(record, loss=loss))
    return replace(ctx, history=history)


def asked(ctx):
    return {call.round_index: call.clients for call in ctx.clients.calls}


def slow_selection(history, alpha, rounds, clients):
    """Round -> the clients whose updates are selected."""
    every = list(records(history))
    chosen, window, start = {r.index: set(r.clients) for r in every}, [], every[0].loss
    layout = history.layout.unflatten
    for now, after in pairwise(every):
        window.append((now, after))
        if after.loss >= start * (1 - alpha):
            continue
        moved = {
            a.index: sum(
                rel_entr(softmax(old), softmax(new)).sum()
                for old, new in zip(
                    map(np.float64, layout(a.broadcast).values()),
                    map(np.float64, layout(b.broadcast).values()),
                    strict=True,
                )
            )
            for a, b in window
        }
        best = sorted(moved, key=moved.__getitem__)[-ceil(rounds * len(window)) :]
        for a, b in window:
            alike = {}
            for client, update in zip(a.clients, a.updates, strict=True):
                cosines = [
                    np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y))
                    for x, y in zip(
                        map(np.float64, layout(a.broadcast + update).values()),
                        map(np.float64, layout(b.broadcast).values()),
                        strict=True,
                    )
                ]
                alike[client] = np.mean(cosines)
            quota = ceil(clients * len(alike))
            ranked = sorted(alike, key=alike.__getitem__)[-quota:]
            chosen[a.index] = set(ranked) if a.index in best else set()
        window, start = [], after.loss
    return chosen


@given(
    st.integers(0, 50),
    st.sampled_from([0.3, 0.6]),
    st.sampled_from([0.5, 0.7]),
    st.sampled_from([0.0, 0.2, 0.4, 0.6]),
)
@settings(max_examples=40, deadline=None)
def test_the_slow_selection_is_replayed_without_the_leaver(
    seed, rounds, clients, share
):
    model, make = federation(seed=seed)
    ctx = with_losses(make((3,)))
    chosen = slow_selection(ctx.history, 0.1, rounds, clients)
    method = Crab(rounds=rounds, clients=clients, tolerance=share)
    result = method.unlearn(model, ctx)
    before, total = influence_before(ctx.history, {3}, model)
    stored = [t for t, ids in chosen.items() if ids or t == 1]
    start = max(t for t in stored if before[t] <= share * total)
    expected = {t: tuple(sorted(chosen[t] - {3})) for t in stored if t > start}
    assert asked(ctx) == {t: ids for t, ids in expected.items() if ids}
    assert len(asked(ctx)) < 9
    history = InMemoryHistory(ctx.layout)
    for record in (ctx.history.round(t) for t in stored if t >= start):
        gone = frozenset(record.clients) - chosen[record.index]
        history.append_round(replace(record, dropped=gone))
    eraser = FedEraser(interval=1, select="kept")
    again = eraser.unlearn(model, replace(make((3,)), history=history))
    assert result.tobytes() == again.tobytes()


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("losses", [LOSSES, (None,) * 10, (*LOSSES[:9], None)])
def test_all_of_it_is_fed_eraser(size, losses):
    model, make = federation(clients_per_round=size)
    method = WHOLE if all(losses) else Crab(tolerance=0.0)
    result = method.unlearn(model, with_losses(make((3,)), losses))
    first = make(()).history.rounds_of(3)[0]
    same = with_losses(make((3,)), losses, rounds=range(first, 11))
    eraser = FedEraser(interval=1).unlearn(model, same)
    assert result.tobytes() == eraser.tobytes()
    assert norm(result - model) > 1e-2


def test_without_tolerance_it_starts_where_the_leaver_came_in():
    model, make = federation(attendance={3: range(5, 11)})
    ctx = with_losses(make((3,)))
    later = with_losses(make((3,)), rounds=range(5, 11))
    eraser = FedEraser(interval=1).unlearn(model, later)
    assert WHOLE.unlearn(model, ctx).tobytes() == eraser.tobytes()
    assert min(asked(ctx)) == 6


def on_disk(ctx, folder, retention):
    """The context with its rounds recorded anew."""
    disk = DiskHistory.create(folder, ctx.layout, retention=retention)
    for record in records(ctx.history):
        disk.append_round(record)
    return replace(ctx, history=disk)


@pytest.mark.parametrize("size", [None, 5])
def test_a_thinned_history_gives_the_same_bits_as_a_whole_one(tmp_path, size):
    model, make = federation(clients_per_round=size)
    whole, method = with_losses(make((3, 6))), Crab(tolerance=0.0)
    thin = on_disk(with_losses(make((3, 6))), tmp_path, "crab")
    result = method.unlearn(model, whole)
    assert method.unlearn(model, thin).tobytes() == result.tobytes()
    kept = FedEraser(interval=1, select="kept")
    assert kept.unlearn(model, thin).tobytes() == result.tobytes()
    assert len(thin.history.holds.broadcasts) < 10
    thin.history.close()


@pytest.mark.parametrize("retention", ["crab:0.1,0.4,0.5", "every:3", "last:4"])
@pytest.mark.parametrize("tolerance", [0.0, 0.4])
def test_it_works_on_histories_thinned_in_other_ways(tmp_path, retention, tolerance):
    model, make = federation(clients_per_round=5)
    ctx = on_disk(with_losses(make((3, 6))), tmp_path, retention)
    result = Crab(tolerance=tolerance).unlearn(model, ctx)
    assert np.isfinite(result).all()
    assert norm(result - model) > 1e-3
    ctx.history.close()


LAYOUT = Layout(("w",), ((2,),))


def by_hand(rounds):
    """A history from round -> (broadcast, {client: update}, dropped)."""
    history = InMemoryHistory(LAYOUT)
    for t, (broadcast, updates, dropped) in rounds.items():
        counts = np.array([10 * c for c in updates], np.int64)
        rows = np.array(list(updates.values()), np.float32)
        one = RoundRecord(
            index=t,
            clients=tuple(updates),
            num_examples=counts,
            num_steps=counts,
            num_samples=counts,
            asked=tuple(updates),
            dropped=frozenset(dropped),
            arrays=ArraysInMemory(np.array(broadcast, np.float32), rows),
        )
        history.append_round(one)
    return history


HAND = {
    1: ((0, 0), {1: (1, 0), 4: (1, 1)}, ()),
    2: ((3, 4), {1: (5, 0), 2: (0, 6), 7: (9, 9)}, ()),
    4: ((3, 5), {1: (3, 4), 3: (1, 1)}, {1}),
    5: ((6, 9), {1: (0, 4), 2: (9, 0), 5: (0, 0)}, {2}),
}
"""Clients k = 1, 2, ... of 10 k examples, in a history with a gap."""


def test_the_influence_of_leavers_by_hand():
    before, total = influence_before(by_hand(HAND), {1, 2}, np.float32([6, 15]))
    # 1: a fifth of (1, 0). 2: (.1 (5, 0) + .2 (0, 6)) = (.5, 1.2). 4: a quarter of the
    # step (3, 4). 5: an eighth of (0, 4) and a quarter of the step (0, 6).
    expected = {1: 0.0, 2: 0.2, 4: 1.5, 5: 2.75}
    assert before == pytest.approx(expected, abs=1e-6)
    assert total == pytest.approx(4.75, abs=1e-6)
    nobody = influence_before(by_hand(HAND), {8}, np.float32([6, 15]))
    assert nobody == ({1: 0.0, 2: 0.0, 4: 0.0, 5: 0.0}, 0.0)


def test_models_that_are_not_stored_share_a_step(tmp_path):
    # Rounds 2, 3 and 5, 6 go; the steps from 1 to 4 and from 4 to the end are split.
    model, make = federation()
    ctx = make((3,))
    whole, thin = ctx.history, on_disk(ctx, tmp_path, "every:3").history
    last = whole.round(7).broadcast
    before, total = influence_before(thin, {3}, model)
    part = 40 / 360
    own = [part * norm(whole.round(t).updates_of([3])[0]) for t in (1, 4, 7, 10)]
    steps = [
        norm(whole.round(t + 3).broadcast - whole.round(t).broadcast) / 3
        for t in (1, 4, 7)
    ]
    sums = np.cumsum([own[i] + 2 * part * steps[i] for i in range(3)])
    expected = {1: 0.0, 4: sums[0], 7: sums[1], 10: sums[2]}
    assert before == pytest.approx(expected, rel=1e-5)
    assert total == pytest.approx(sums[2] + own[3], rel=1e-5)
    assert last.any()
    thin.close()


def test_it_starts_from_the_newest_model_that_bears_little_of_the_leaver():
    model, make = federation()
    ctx = with_losses(make((3,)))
    before, total = influence_before(ctx.history, {3}, model)
    assert sorted(before.values()) == list(before.values())
    for tolerance in (0.0, 0.2, 0.5, 0.9):
        start = max(t for t in before if before[t] <= tolerance * total)
        own = with_losses(make((3,)))
        result = replace(WHOLE, tolerance=tolerance).unlearn(model, own)
        assert min(asked(own), default=11) == start + 1
        later = with_losses(make((3,)), rounds=range(start, 11))
        eraser = FedEraser(interval=1).unlearn(model, later)
        assert result.tobytes() == eraser.tobytes()
    assert start > 5


def test_one_client_left_is_calibrated_alone():
    model, make = federation()
    ctx = with_losses(make((0, 1, 2, 3, 4, 5, 6)))
    WHOLE.unlearn(model, ctx)
    assert asked(ctx) == dict.fromkeys(range(2, 11), (7,))


def test_a_calibration_is_a_part_of_the_recorded_epochs():
    model, make = federation()
    ctx = with_losses(make((3,)))
    Crab(calibration_ratio=0.25).unlearn(model, ctx)
    assert {call.epochs for call in ctx.clients.calls} == {0.5}


def test_it_needs_some_updates_and_the_initial_model():
    assert Crab().requires == Requires(
        updates="some", broadcasts="initial", clients=True
    )


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"alpha": 0.0}, r"alpha must lie in \(0, 1\), got 0.0"),
        ({"alpha": 1.0}, r"alpha must lie in \(0, 1\), got 1.0"),
        ({"rounds": 0.0}, r"rounds must lie in \(0, 1\], got 0.0"),
        ({"clients": 1.1}, r"clients must lie in \(0, 1\], got 1.1"),
        ({"tolerance": 1.0}, r"tolerance must lie in \[0, 1\), got 1.0"),
        ({"tolerance": -0.1}, r"tolerance must lie in \[0, 1\), got -0.1"),
        ({"calibration_ratio": 0.0}, r"calibration_ratio must lie in \(0, 1\], got"),
    ],
)
def test_settings_outside_their_range_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Crab(**wrong)
