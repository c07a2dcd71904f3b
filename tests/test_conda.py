"""ConDa by hand: which parameters are damped and by how much."""

import numpy as np
import pytest

from fedunlearn.method import Requires
from fedunlearn.testing import (
    check_method,
    keeps_a_model_the_leaver_never_touched,
)
from strategies.conda import Conda
from tests.small_rounds import context, record


@pytest.mark.parametrize(
    "method",
    [
        Conda(),
        Conda(cutoff=0.5),
        Conda(cutoff=10.0, dampening=3.0, upper=1.0),
        Conda(against="broadcast", share=0.5),
    ],
    ids=str,
)
def test_it_obeys_the_laws(method):
    check_method(method)
    keeps_a_model_the_leaver_never_touched(method)


MODEL = np.array([10, 10, 10, 10, 10], np.float32)
# Of one round from zeros: the leaver 0 and two others.
ROUND = record(
    1, {0: (4, -4, 4, 0, 2), 1: (1, 3, 6, 1, 2), 2: (1, 1, 2, 1, 0)}, broadcast=[0] * 5
)
# C_f 4 4 4 0 2, C_r 1 2 4 1 1: ratios 1/4, 1/2, 1, infinite, 1/2.


def test_the_papers_constants_by_hand():
    method = Conda(cutoff=0.5, dampening=0.5, upper=0.5)
    result = method.unlearn(MODEL, context([ROUND], {0}))
    assert result == pytest.approx([10 / 8, 10 / 4, 10, 10, 10 / 4])


def test_a_cutoff_between_two_ratios_damps_the_smaller_only():
    result = Conda(cutoff=0.4).unlearn(MODEL, context([ROUND], {0}))
    assert result == pytest.approx([10 / 8, 10, 10, 10, 10])


def test_the_damping_is_at_least_upper():
    method = Conda(cutoff=2.0, dampening=1.0, upper=0.7)
    result = method.unlearn(MODEL, context([ROUND], {0}))
    assert result == pytest.approx([2.5, 5, 7, 10, 5])


@pytest.mark.parametrize(
    ("share", "damped"), [(0.01, 1), (0.2, 1), (0.5, 3), (0.9, 4), (1.0, 4)]
)
def test_the_share_of_the_parameters_with_the_smallest_ratios_is_damped(share, damped):
    result = Conda(share=share).unlearn(MODEL, context([ROUND], {0}))
    # Never what the others moved more: the fourth.
    assert (result < 10).sum() == damped
    assert result[3] == 10


def test_what_the_leaver_moved_most_is_damped_not_what_it_moved_least():
    rounds = [record(1, {0: (9, 1), 1: (1, 9)}, broadcast=[0, 0])]
    result = Conda(cutoff=0.5).unlearn(MODEL[:2], context(rounds, {0}))
    assert result[0] < 1
    assert result[1] == 10


def test_contributions_are_means_over_a_clients_rounds_and_over_clients():
    rounds = [
        record(1, {0: (1,), 1: (2,)}, broadcast=[0]),  # |w_0 - w|: 1 and 2
        record(3, {0: (1,), 2: (-3,)}, broadcast=[2]),  # 3 and |2 - 3| = 1
        record(4, {2: (4,)}, broadcast=[3]),  # 7
    ]
    # C_f = (1 + 3) / 2 = 2; C_r = (2 + (1 + 7) / 2) / 2 = 3; ratio 3/2.
    method = Conda(cutoff=1.6, dampening=0.2, upper=1.0)
    result = method.unlearn(MODEL[:1], context(rounds, {0}))
    assert result == pytest.approx([10 * 0.2 * 1.5])
    # Against the broadcasts: C_f = 1, C_r = (2 + 3.5) / 2 = 2.75.
    method = Conda(cutoff=3, dampening=0.2, upper=1.0, against="broadcast")
    result = method.unlearn(MODEL[:1], context(rounds, {0}))
    assert result == pytest.approx([10 * 0.2 * 2.75])


def test_several_leavers_count_as_their_mean():
    result = Conda(cutoff=0.9, dampening=1, upper=1).unlearn(
        MODEL, context([ROUND], {0, 1})
    )
    # C_f 2.5 3.5 5 .5 2, C_r 1 1 2 1 0
    assert result == pytest.approx([4, 10 / 3.5, 4, 10, 0])


def test_against_the_broadcast_it_does_not_matter_when_a_client_took_part():
    early = record(1, {0: (1, 2), 1: (2, 1)}, broadcast=[0, 0])
    late = record(2, {0: (1, 2), 1: (2, 1)}, broadcast=[50, -50])
    method = Conda(against="broadcast")
    one = method.unlearn(MODEL[:2], context([early], {0}))
    both = method.unlearn(MODEL[:2], context([early, late], {0}))
    assert one.tobytes() == both.tobytes()


def test_nobody_else_took_part_so_all_the_leaver_moved_goes():
    rounds = [record(1, {0: (1, 0)}, broadcast=[0, 0])]
    assert Conda().unlearn(MODEL[:2], context(rounds, {0})).tolist() == [0, 10]


def test_updates_of_zero_damp_nothing():
    rounds = [record(1, {0: (0, 0), 1: (0, 0)}, broadcast=[3, 3])]
    result = Conda().unlearn(MODEL[:2], context(rounds, {0}))
    assert result.tolist() == [10, 10]


def test_what_it_requires_follows_its_settings():
    assert Conda().requires == Requires(updates="all", broadcasts="all")
    assert Conda(against="broadcast").requires == Requires(updates="all")


@pytest.mark.parametrize(
    "wrong",
    [
        {"dampening": 0.0},
        {"cutoff": 0.0},
        {"cutoff": float("nan")},
        {"upper": -0.1},
        {"upper": 1.1},
        {"share": 0.0},
        {"share": 1.1},
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Conda(**wrong)


def test_a_share_never_reaches_what_the_others_moved_more():
    rounds = [record(1, {0: (1, 1, 1), 1: (0.5, 1.5, 3)}, broadcast=[0, 0, 0])]
    result = Conda(share=1.0).unlearn(MODEL[:3], context(rounds, {0}))
    assert result.tolist() == [2.5, 10, 10]
