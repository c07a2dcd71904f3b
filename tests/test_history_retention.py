"""What each retention policy keeps, against closed forms and slow references."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.special import softmax
from scipy.stats import entropy

from fedunlearn.errors import ConfigError, HistoryError, UnknownNameError
from fedunlearn.history.record import RoundRecord, ServerState
from fedunlearn.history.retention import (
    RETENTIONS,
    All,
    Crab,
    Every,
    Keep,
    Last,
    Sensitivities,
    Sums,
    divergence,
    retention,
    similarities,
)
from fedunlearn.history.update_history import Holdings
from fedunlearn.params import Layout

LAYOUT = Layout(("w", "b", "s", "e"), ((2, 3), (3,), (), (0,)))
NOTHING = Keep(broadcast=False, updates=frozenset())
POLICIES = [All(), Every(1), Every(3), Last(2), Sums(), Sensitivities(), Crab()]


@dataclass
class Arrays:
    """A round's arrays, of which some can be thrown away; counts what is read."""

    model: np.ndarray | None
    matrix: np.ndarray
    reads: list = field(default_factory=list)

    def broadcast(self):
        if self.model is None:
            raise HistoryError("the broadcast is not held")
        self.reads.append("broadcast")
        return self.model

    def updates(self):
        raise HistoryError("a policy reads only what it needs")

    def rows(self, positions):
        self.reads.append("rows")
        return self.matrix[list(positions)]

    def state(self):
        return ServerState()


@dataclass
class History:
    """Rounds in a dict, thinned by a policy."""

    layout: Layout = LAYOUT
    by_index: dict = field(default_factory=dict)

    @property
    def rounds(self):
        return tuple(self.by_index)

    @property
    def holds(self):
        some = {t for t, r in self.by_index.items() if r.kept}
        whole = {t for t, r in self.by_index.items() if not r.dropped}
        sent = {t for t, r in self.by_index.items() if r.arrays.model is not None}
        return Holdings(
            updates=frozenset(whole),
            some_updates=frozenset(some),
            broadcasts=frozenset(sent),
        )

    def round(self, index):
        return self.by_index[index]

    def add(self, record, policy):
        index = record.index
        self.by_index[index] = record
        self.keep_less(index, policy.at_append(index, self.rounds[0]))

    def keep_less(self, index, keep):
        record = self.by_index[index]
        assert keep.broadcast or index != self.rounds[0], "the first broadcast stays"
        if keep.updates is not None:
            gone = frozenset(c for c in record.clients if c not in keep.updates)
            record = replace(record, dropped=record.dropped | gone)
        if not keep.broadcast:
            record = replace(record, arrays=replace(record.arrays, model=None))
        self.by_index[index] = record

    def held(self):
        """Return round -> (whether its broadcast is held, whose updates are)."""
        return {
            t: (r.arrays.model is not None, r.kept) for t, r in self.by_index.items()
        }

    def reads(self):
        return sum(len(r.arrays.reads) for r in self.by_index.values())


def record(index, model=None, updates=None, clients=(0, 1, 2), loss=1.0):
    count = len(clients)
    if model is None:
        model = np.zeros(LAYOUT.size, np.float32)
    if updates is None:
        updates = np.zeros((count, LAYOUT.size), np.float32)
    ones = np.ones(count, np.int64)
    return RoundRecord(
        index=index,
        clients=tuple(clients),
        num_examples=ones,
        num_steps=ones,
        num_samples=ones,
        asked=tuple(clients),
        loss=loss,
        arrays=Arrays(np.float32(model), np.float32(updates)),
    )


def recorded(policy, rounds, stop=None):
    """Return what a policy makes of some rounds, ``later`` applied after each.

    With ``stop`` only that many of the rounds it names are thinned at first, then it is
    asked again: a process that died halfway and came back.
    """
    history = History()
    for one in rounds:
        history.add(one, policy)
        if stop is not None:
            for index, keep in list(policy.later(history).items())[:stop]:
                history.keep_less(index, keep)
        for index, keep in policy.later(history).items():
            history.keep_less(index, keep)
        assert policy.later(history) == {}
    return history


WHOLE = (True, (0, 1, 2))
NONE = (False, ())
MODEL = (True, ())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (All(), [WHOLE] * 6),
        (Every(1), [WHOLE] * 6),
        (Every(2), [WHOLE, NONE] * 3),
        (Every(3), [WHOLE, NONE, NONE] * 2),
        (Every(9), [WHOLE] + [NONE] * 5),
        (Last(1), [MODEL] + [NONE] * 4 + [WHOLE]),
        (Last(2), [MODEL] + [NONE] * 3 + [WHOLE] * 2),
        (Last(9), [WHOLE] * 6),
        (Sums(), [MODEL] + [NONE] * 5),
        (Sensitivities(), [MODEL] * 6),
        (Crab(), [WHOLE] * 6),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("start", [1, 4])
def test_what_stays_of_six_rounds(policy, expected, start):
    rounds = range(start, start + 6)
    history = recorded(policy, [record(t) for t in rounds])
    assert history.held() == dict(zip(rounds, expected, strict=True))


def test_every_counts_from_the_first_round_and_last_counts_rounds_not_indices():
    gaps = [2, 3, 6, 7, 8]
    every = recorded(Every(2), [record(t) for t in gaps])
    assert [t for t, held in every.held().items() if held == WHOLE] == [2, 6, 8]
    last = recorded(Last(3), [record(t) for t in gaps])
    assert [t for t, held in last.held().items() if held == WHOLE] == [6, 7, 8]
    assert last.held()[2] == MODEL


def test_last_names_each_round_once_and_says_what_stays_of_it():
    history = History()
    for t in (1, 2, 3):
        history.add(record(t), Last(1))
    assert Last(1).later(history) == {1: Keep(updates=frozenset()), 2: NOTHING}
    history.keep_less(1, Keep(updates=frozenset()))
    history.keep_less(2, Keep(updates=frozenset()))
    assert Last(1).later(history) == {2: NOTHING}


@pytest.mark.parametrize(
    ("policy", "sums", "sensitivities"),
    [
        (All(), False, False),
        (Every(2), False, False),
        (Last(2), False, False),
        (Sums(), True, False),
        (Sensitivities(), False, True),
        (Crab(), False, False),
    ],
)
def test_what_else_a_policy_records(policy, sums, sensitivities):
    assert policy.sums is sums
    assert policy.sensitivities is sensitivities


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_a_history_without_rounds_has_nothing_to_lose(policy):
    assert policy.later(History()) == {}


# Crab


def slow_divergence(before, after):
    total = 0.0
    for old, new in zip(
        LAYOUT.unflatten(before).values(), LAYOUT.unflatten(after).values(), strict=True
    ):
        if old.size:
            p = softmax(np.atleast_1d(np.float64(old)), axis=-1)
            q = softmax(np.atleast_1d(np.float64(new)), axis=-1)
            total += np.sum(entropy(p, q, axis=-1))
    return total


def slow_similarity(model, target):
    parts = LAYOUT.unflatten(np.float64(model)), LAYOUT.unflatten(np.float64(target))
    return np.mean(
        [
            1 - cosine(a.ravel(), b.ravel()) if a.any() and b.any() else 0.0
            for a, b in zip(parts[0].values(), parts[1].values(), strict=True)
            if a.size
        ]
    )


@given(st.integers(0, 999), st.sampled_from([0.01, 1, 30]))
@settings(max_examples=30)
def test_divergence_is_scipys_relative_entropy(seed, scale):
    rng = np.random.default_rng(seed)
    before, after = scale * rng.normal(size=(2, LAYOUT.size)).astype(np.float32)
    expected = slow_divergence(before, after)
    assert divergence(before, after, LAYOUT) == pytest.approx(expected, 1e-6, 1e-12)
    assert divergence(before, before, LAYOUT) == 0


def test_divergence_by_hand_and_of_large_weights():
    pair = Layout(("w", "s"), ((2,), ()))
    before, after = np.float32([0, np.log(3), 5]), np.float32([0, 0, -5])
    expected = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)  # p = (1/4, 3/4), q = (1/2, 1/2)
    assert divergence(before, after, pair) == pytest.approx(expected, abs=1e-7)
    far = divergence(np.float32([1e30, 0, 0]), np.float32([0, 1e30, 0]), pair)
    assert far == pytest.approx(1e30)


@given(st.integers(0, 999))
@settings(max_examples=30)
def test_similarity_is_scipys_cosine_averaged_over_tensors(seed):
    rng = np.random.default_rng(seed)
    models = rng.normal(size=(4, LAYOUT.size)).astype(np.float32)
    models[1, 6:9] = 0
    target = rng.normal(size=LAYOUT.size).astype(np.float32)
    expected = [slow_similarity(model, target) for model in models]
    assert similarities(models, target, LAYOUT) == pytest.approx(expected, abs=1e-7)


def test_similarity_by_hand():
    pair = Layout(("w", "s", "e"), ((2,), (), (0, 2)))
    models = np.float32([[3, 4, 1], [-2, 0, 9], [0, 0, -1]])
    found = similarities(models, np.float32([1, 0, 2]), pair)
    assert found == pytest.approx([0.8, 0, -0.5], abs=1e-7)
    nothing = Layout((), ())
    assert similarities(
        np.zeros((2, 0), np.float32), np.float32([]), nothing
    ).tolist() == [
        0,
        0,
    ]


def training(seed, count, most_clients=5):
    """Return rounds of a made-up training, indices with gaps, whose loss wanders."""
    rng = np.random.default_rng(seed)
    loss, index, rounds = 2.0, int(rng.integers(1, 4)), []
    for _ in range(count):
        size = int(rng.integers(1, most_clients + 1))
        clients = sorted(rng.choice(9, size, replace=False).tolist())
        model, updates = rng.normal(size=LAYOUT.size), rng.normal(size=(size, 10))
        rounds.append(record(index, model, updates, clients, loss))
        loss *= float(rng.choice([0.8, 0.93, 0.97, 1.02]))
        index += int(rng.integers(1, 3))
    return rounds


def slow_crab(policy, rounds):
    """Return round -> (broadcast held, updates held) from the unthinned rounds."""
    windows, start = [[]], None
    for one in rounds:
        if start is not None and one.loss < (1 - policy.alpha) * start:
            windows.append([])
            start = None
        start = one.loss if start is None else start
        windows[-1].append(one)
    held = {one.index: (True, one.clients) for one in rounds}
    after = {a.index: b for a, b in pairwise(rounds)}
    for window in windows[:-1]:
        moved = {
            r.index: slow_divergence(r.broadcast, after[r.index].broadcast)
            for r in window
        }
        best = sorted(moved, key=lambda t: (-moved[t], t))
        best = best[: ceil(round(policy.rounds * len(window), 9))]
        for r in window:
            quota = ceil(round(policy.clients * len(r.clients), 9))
            models = r.broadcast + r.arrays.matrix
            target = after[r.index].broadcast
            alike = [slow_similarity(model, target) for model in models]
            order = sorted(range(len(models)), key=lambda k: (-alike[k], r.clients[k]))
            ids = tuple(sorted(r.clients[k] for k in order[:quota]))
            whole = r.index in best
            held[r.index] = (
                whole or r.index == rounds[0].index,
                ids if whole else (),
            )
    return held


crabs = st.builds(
    Crab,
    alpha=st.sampled_from([0.1, 0.05, 0.3]),
    rounds=st.sampled_from([0.2, 0.5, 0.6, 1.0]),
    clients=st.sampled_from([0.25, 0.5, 0.7, 1.0]),
)


@given(st.integers(0, 10**6), st.integers(1, 12), crabs)
@settings(max_examples=60, deadline=None)
def test_crab_keeps_what_the_slow_reference_keeps(seed, count, policy):
    history = recorded(policy, training(seed, count))
    assert history.held() == slow_crab(policy, training(seed, count))


@given(st.integers(0, 10**6), st.integers(2, 12), crabs, st.integers(0, 7))
@settings(max_examples=80, deadline=None)
def test_crab_goes_on_after_a_stop_halfway(seed, count, policy, stop):
    history = recorded(policy, training(seed, count), stop)
    assert history.held() == slow_crab(policy, training(seed, count))


@given(st.integers(0, 10**6), st.integers(2, 12), crabs)
@settings(max_examples=30, deadline=None)
def test_crab_makes_the_same_of_rounds_that_were_all_there_before(seed, count, policy):
    history = recorded(All(), training(seed, count))
    for index, keep in policy.later(history).items():
        history.keep_less(index, keep)
    assert policy.later(history) == {}
    assert history.held() == slow_crab(policy, training(seed, count))


def moving(*lengths, losses, first=1):
    """Return rounds whose steps lie along one entry; the longer diverges the more."""
    models = np.zeros((len(lengths) + 1, LAYOUT.size))
    models[1:, 0] = 0.01 * np.cumsum(lengths)
    return [
        record(first + i, model, loss=loss)
        for i, (model, loss) in enumerate(zip(models, losses, strict=False))
    ]


def test_a_window_closes_when_the_loss_fell_by_more_than_alpha():
    losses = [1, 0.95, 0.91, 0.899, 0.85, 0.8]
    rounds = moving(1, 2, 3, 2, 1, losses=losses)
    policy = Crab(rounds=0.01)
    assert recorded(policy, rounds[:3]).held() == dict.fromkeys((1, 2, 3), WHOLE)
    closed = {1: MODEL, 2: NONE, 3: (True, (0, 1, 2)), 4: WHOLE}
    history = recorded(replace(policy, clients=1.0), rounds[:4])
    assert history.held() == closed
    # 0.85 and 0.81 are within a tenth of 0.899, where the second window began: 0.8 not.
    assert recorded(replace(policy, clients=1.0), rounds[:5]).held()[4] == WHOLE
    history = recorded(replace(policy, clients=1.0), rounds)
    assert history.held() == closed | {4: WHOLE, 5: NONE, 6: WHOLE}


def test_a_fall_by_exactly_alpha_or_of_no_loss_closes_nothing():
    for losses in ([2, 1], [0, 0], [-1, -1.5]):
        history = recorded(Crab(0.5, 0.1, 0.1), moving(1, losses=losses))
        assert history.held() == {1: WHOLE, 2: WHOLE}
    history = recorded(Crab(0.5, 0.1, 0.1), moving(1, losses=[-1, -1.6]))
    assert history.held() == {1: (True, (0,)), 2: WHOLE}


def test_among_rounds_and_clients_that_tie_the_lower_number_stays():
    rounds = [record(t, loss=loss) for t, loss in ((1, 1), (2, 1), (3, 1), (4, 0.5))]
    history = recorded(Crab(rounds=0.5, clients=0.6), rounds)
    assert history.held() == {1: (True, (0, 1)), 2: (True, (0, 1)), 3: NONE, 4: WHOLE}


def test_an_update_that_is_gone_leaves_its_place_to_the_next():
    rng = np.random.default_rng(5)
    updates, model = rng.normal(size=(4, 10)), rng.normal(size=10)
    rounds = [
        record(1, model, updates, (2, 3, 5, 7)),
        record(2, model + 1, updates, (2, 3, 5, 7), loss=0.1),
    ]
    alike = [slow_similarity(model + row, model + 1) for row in updates]
    first, second, third, _ = np.array([2, 3, 5, 7])[np.argsort(alike)[::-1]].tolist()
    before = recorded(Crab(clients=0.5), rounds)
    assert before.held()[1] == (True, tuple(sorted((first, second))))
    rounds[0] = replace(rounds[0], dropped=frozenset({first}))
    after = recorded(Crab(clients=0.5), rounds)
    assert after.held()[1] == (True, tuple(sorted((second, third))))


def test_a_thinned_window_is_not_read_again():
    # The last number is the step into the round that closes the window.
    for lengths in ([3, 2, 1], [1, 2, 3]):
        rounds = moving(*lengths, 1, 1, losses=[1, 1, 1, 0.5, 0.5, 0.5])
        history = recorded(Crab(), rounds[:4])
        assert (history.held()[1] == MODEL) == (lengths[0] == 1)
        reads = history.reads()
        assert reads
        for one in rounds[4:]:
            history.add(one, Crab())
            assert Crab().later(history) == {}
        assert history.reads() == reads


def test_two_whole_windows_that_closed_long_ago_cost_nothing():
    rounds = moving(1, 1, 1, 1, losses=[1, 1, 0.5, 0.5, 0.2])
    history = recorded(Crab(rounds=1.0, clients=1.0), rounds)
    assert history.held() == dict.fromkeys(range(1, 6), WHOLE)
    assert not history.reads()


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("bad", [1, 2])
def test_crab_asks_for_the_training_loss(loss, bad):
    history = History()
    for t in (1, 2):
        history.add(record(t, loss=loss if t == bad else 1.0), Crab())
    with pytest.raises(HistoryError, match=f"round {bad}, got .*'train-loss'"):
        Crab().later(history)


@pytest.mark.parametrize(
    ("policy", "count"),
    [(Crab(rounds=0.5, clients=1.0), 5), (Crab(rounds=0.1, clients=0.1), 4)],
)
def test_crab_leaves_what_it_cannot_score_for_want_of_a_broadcast(policy, count):
    rounds = moving(*[1] * count, losses=[1] * (count - 1) + [0.5])
    history = recorded(Every(2), rounds)
    assert policy.later(history) == {}


def test_crab_keeps_none_of_the_rest_of_a_window_that_holds_too_much_already():
    rounds = moving(1, 1, 1, 1, 1, losses=[1, 1, 1, 1, 1, 0.5])
    history = recorded(All(), rounds)
    history.keep_less(3, NOTHING)
    assert Crab(rounds=0.1, clients=1.0).later(history) == {4: NOTHING, 5: NOTHING}


# Names


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_a_name_reads_back(policy):
    assert retention(policy.name) == policy


shares = st.floats(0, 1, exclude_min=True)


@given(st.floats(0, 1, exclude_min=True, exclude_max=True), shares, shares)
def test_any_crab_reads_back(alpha, rounds, clients):
    policy = Crab(alpha, rounds, clients)
    assert retention(policy.name) == policy


def test_names_are_what_people_write():
    for name in ("all", "every:2", "last:5", "sums", "crab", "crab:0.1,0.6,0.8"):
        assert retention(name).name == name
    assert retention("crab:0.1,0.6,0.7").name == "crab"
    assert retention("crab:0.2") == Crab(alpha=0.2)


@pytest.mark.parametrize("name", ["most", "Every:2", "", ":2"])
def test_an_unknown_policy_is_answered_with_the_known_ones(name):
    with pytest.raises(UnknownNameError, match=f"known: {', '.join(RETENTIONS)}"):
        retention(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("every", "of the form every:K"),
        ("every:two", "of the form every:K"),
        ("every:1.5", "of the form every:K"),
        ("last:1,2", "of the form last:K"),
        ("sums:1", "of the form sums$"),
        ("all:", "of the form all$"),
        ("crab:0.1,0.2,0.3,0.4", "of the form crab:ALPHA,ROUNDS,CLIENTS"),
        ("every:0", "every:K needs a number of at least 1, got 0"),
        ("last:-1", "last:K needs a number of at least 1, got -1"),
        ("crab:0,0.6,0.7", r"got 0.0, 0.6, 0.7"),
        ("crab:1,0.6,0.7", r"\(0, 1\), \(0, 1\] and \(0, 1\]"),
        ("crab:0.1,0,0.7", "got 0.1, 0.0, 0.7"),
        ("crab:0.1,1.1,0.7", "got 0.1, 1.1, 0.7"),
        ("crab:0.1,0.6,0", "got 0.1, 0.6, 0.0"),
        ("crab:0.1,0.6,nan", "got 0.1, 0.6, nan"),
    ],
)
def test_a_bad_number_is_answered_with_the_allowed_ones(name, said):
    with pytest.raises(ConfigError, match=said):
        retention(name)
