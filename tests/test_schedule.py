"""Cohorts: a leaver's absence moves one place and nobody else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.schedule import TrainingSchedule


def schedule(size, seed=0):
    return TrainingSchedule(seed=seed, rounds=10, epochs=1, clients_per_round=size)


IDS = st.sets(st.integers(0, 60), min_size=2, max_size=30)
INDEX = st.integers(1, 1000)


@given(IDS, st.integers(1, 30), INDEX, st.data())
def test_a_leavers_absence_changes_a_cohort_in_at_most_one_place(
    ids, size, index, data
):
    leaver = data.draw(st.sampled_from(sorted(ids)))
    with_it = set(schedule(size).cohort(index, ids))
    without = set(schedule(size).cohort(index, ids - {leaver}))
    assert leaver not in without
    assert with_it - without <= {leaver}
    assert len(without - with_it) <= 1
    if leaver not in with_it:
        assert without == with_it


@given(IDS, st.integers(1, 30), INDEX)
def test_a_cohort_is_ascending_and_of_the_right_size(ids, size, index):
    cohort = schedule(size).cohort(index, ids)
    assert list(cohort) == sorted(set(cohort))
    assert set(cohort) <= ids
    assert len(cohort) == min(size, len(ids))


@given(IDS, INDEX)
def test_without_a_size_everybody_is_asked(ids, index):
    assert schedule(None).cohort(index, ids) == tuple(sorted(ids))


@given(IDS, st.integers(1, 5), INDEX)
def test_the_order_of_candidates_does_not_matter(ids, size, index):
    ordered = sorted(ids)
    assert schedule(size).cohort(index, ordered) == schedule(size).cohort(
        index, tuple(reversed(ordered))
    )


def test_a_newcomer_takes_at_most_one_place():
    for index in range(1, 50):
        before = set(schedule(3).cohort(index, range(10)))
        after = set(schedule(3).cohort(index, [*range(10), 500]))
        assert before - after <= before
        assert len(before - after) == int(500 in after)


def test_rounds_and_seeds_draw_different_cohorts():
    by_round = {schedule(5).cohort(i, range(50)) for i in range(1, 21)}
    by_seed = {schedule(5, seed).cohort(1, range(50)) for seed in range(20)}
    assert len(by_round) == len(by_seed) == 20


def test_nobody_to_ask_gives_an_empty_cohort():
    assert schedule(3).cohort(1, ()) == ()
    assert schedule(None).cohort(1, ()) == ()


def test_every_client_is_asked_about_equally_often():
    rounds, size, clients = 3000, 3, 12
    counts = np.zeros(clients)
    for index in range(1, rounds + 1):
        counts[list(schedule(size).cohort(index, range(clients)))] += 1
    share = size / clients
    spread = np.sqrt(rounds * share * (1 - share))
    assert counts.sum() == rounds * size
    assert abs(counts - rounds * share).max() < 4 * spread


def test_pairs_of_clients_meet_about_equally_often():
    rounds = 2000
    met = sum({0, 1} <= set(schedule(2).cohort(i, range(4))) for i in range(rounds))
    assert met == pytest.approx(rounds / 6, abs=4 * np.sqrt(rounds * 5 / 36))


def test_the_cohorts_are_pinned():
    """They may not change between versions: retraining an old run depends on them."""
    assert [schedule(3).cohort(i, range(10)) for i in (1, 2)] == PINNED


PINNED = [(3, 5, 6), (2, 6, 7)]
