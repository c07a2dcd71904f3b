"""Batches of cohorts: every way to cut and join them says the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedunlearn.cohort import Batches, Cohort, CohortResult
from fedunlearn.rng import Streams, derive
from fedunlearn.training import LocalWork, Training, batch_order, plan, samples_of
from tests.engine_helpers import batches_of, cohort_of_all, task_of

STEPS = st.lists(st.integers(0, 90), max_size=5)
CLIENTS = st.lists(st.lists(STEPS, max_size=4), max_size=6)
"""Row numbers of each step of each client; a step may be empty."""


def listed(batches):
    """All there is to batches, as lists."""
    return [
        [step.tolist() for step in batches.of_client(k)]
        for k in range(len(batches.steps))
    ]


def assert_sound(batches, expected):
    assert listed(batches) == expected
    assert batches.steps.tolist() == [len(c) for c in expected]
    assert batches.samples.tolist() == [sum(map(len, c)) for c in expected]
    for array in (batches.rows, batches.bounds, batches.first):
        assert array.dtype == np.int64
        assert array.ndim == 1
    assert len(batches.bounds) == sum(map(len, expected)) + 1
    assert len(batches.first) == len(expected) + 1
    assert batches.bounds[0] == batches.first[0] == 0


@settings(max_examples=60, deadline=None)
@given(CLIENTS, st.data())
def test_a_part_is_a_stretch_of_clients(clients, data):
    batches = batches_of(clients)
    assert_sound(batches, clients)
    begin = data.draw(st.integers(0, len(clients)))
    end = data.draw(st.integers(begin, len(clients)))
    assert_sound(batches.part(begin, end), clients[begin:end])


@settings(max_examples=60, deadline=None)
@given(CLIENTS, st.data())
def test_taking_gives_clients_in_the_order_asked_for(clients, data):
    places = st.integers(0, max(0, len(clients) - 1))
    chosen = data.draw(st.lists(places, max_size=6 if clients else 0))
    taken = batches_of(clients).take(np.asarray(chosen, np.int64))
    assert_sound(taken, [clients[k] for k in chosen])


@settings(max_examples=60, deadline=None)
@given(CLIENTS, st.lists(st.integers(0, 6), max_size=4))
def test_what_was_cut_can_be_joined(clients, cuts):
    batches = batches_of(clients)
    ends = sorted({0, *(min(c, len(clients)) for c in cuts), len(clients)})
    pairs = list(zip(ends, [*ends[1:], len(clients)], strict=True))
    parts = [batches.part(begin, end) for begin, end in pairs]
    assert_sound(Batches.joined(parts), clients)


@settings(max_examples=60, deadline=None)
@given(CLIENTS)
def test_the_place_of_a_row_leads_back_to_it(clients):
    batches = batches_of(clients)
    client, step, position = batches.place()
    assert len(client) == len(step) == len(position) == len(batches.rows)
    found = [clients[c][s][p] for c, s, p in zip(client, step, position, strict=True)]
    assert found == batches.rows.tolist()
    # Each place once, and in order.
    places = list(zip(client.tolist(), step.tolist(), position.tolist(), strict=True))
    assert places == sorted(set(places))


SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    sizes=SIZES,
    batch_size=st.integers(1, 50),
    epochs=st.sampled_from([0.1, 0.5, 1, 1.1, 2, 3.7]),
    seed=st.integers(0, 2**63 - 1),
    data=st.data(),
)
def test_a_plan_gives_every_client_the_order_it_gets_alone(
    sizes, batch_size, epochs, seed, data
):
    training = Training(batch_size=batch_size, epochs=epochs)
    work = LocalWork(seed=seed, round_index=4)
    clients = data.draw(st.permutations(range(100, 100 + len(sizes))))
    batches = plan(clients, sizes, training, work)
    alone = [
        [step.tolist() for step in batch_order(size, training, client, work)]
        for client, size in zip(clients, sizes, strict=True)
    ]
    assert_sound(batches, alone)
    assert batches.samples.tolist() == samples_of(sizes, training, work).tolist()
    # A kernel pads a client to its first batch.
    assert all(len(s) <= len(client[0]) for client in alone for s in client)


def test_a_plan_of_nobody_is_empty():
    batches = plan([], [], Training(), LocalWork(seed=0, round_index=1))
    assert_sound(batches, [])
    assert [a.tolist() for a in batches.place()] == [[], [], []]


def test_epochs_of_the_order_win():
    work = LocalWork(seed=0, round_index=1, epochs=3)
    batches = plan([0], [10], Training(batch_size=4, epochs=1), work)
    assert batches.steps.tolist() == [9]
    assert samples_of([10, 0], Training(batch_size=4), work).tolist() == [30, 0]


def test_two_passes_of_a_client_differ():
    work = LocalWork(seed=0, round_index=1, epochs=2)
    ((first, second),) = listed(plan([0], [30], Training(batch_size=30), work))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second


# Random streams of a purpose.


def draws(rng):
    return tuple(rng.integers(0, 2**63, 4).tolist())


NUMBERS = st.integers(0, 2**64 - 1)
NAMES = st.tuples(
    st.integers(0, 2**63 - 1),
    st.sampled_from(["batch order", "noise"]),
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=100, deadline=None)
@given(NAMES, NUMBERS, st.lists(st.tuples(NUMBERS, st.integers(0, 50)), max_size=4))
def test_a_stream_does_not_depend_on_those_asked_before(name, number, earlier):
    alone = draws(Streams(*name).of(number))
    streams = Streams(*name)
    for other, count in earlier:
        rng = streams.of(other)
        rng.permutation(count)
        rng.integers(0, 7, count, dtype=np.uint32)  # leaves half a word behind
        rng.normal(size=count)
    assert draws(streams.of(number)) == alone
    assert draws(streams.of(number)) == alone


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAMES, NUMBERS), min_size=2, max_size=2, unique=True))
def test_streams_of_other_names_differ(pair):
    (one, first), (other, second) = pair
    assert draws(Streams(*one).of(first)) != draws(Streams(*other).of(second))


def test_no_two_clients_rounds_seeds_or_purposes_share_a_stream():
    found = [
        draws(streams.of(client))
        for seed in (0, 1, 2**32)
        for purpose in ("batch order", "other")
        for round_index in (1, 2, 3)
        for streams in [Streams(seed, purpose, round_index)]
        for client in (0, 1, 2, 255, 256, 2**32, 2**63, 2**64 - 1)
    ]
    assert len(set(found)) == len(found) == 3 * 2 * 3 * 8


def test_long_streams_do_not_run_into_each_other():
    """The next client's stream begins 2**192 blocks further on."""
    count = 100_000
    streams = Streams(0, "batch order", 1)
    drawn = [streams.of(k).integers(0, 2**64, count, dtype=np.uint64) for k in range(3)]
    assert len(np.unique(np.concatenate(drawn))) == 3 * count


def test_a_stream_has_the_same_numbers_for_ever():
    """Recorded histories are replayed by them."""
    found = Streams(3, "batch order", 2).of(5).permutation(10).tolist()
    words = (3, 0, _crc("batch order"), 2)
    key = np.random.SeedSequence(words).generate_state(2, np.uint64)
    counter = [0, 0, 0, 5]
    rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
    assert rng.permutation(10).tolist() == found


def _crc(text):
    """CRC-32 by its definition."""
    crc = 0xFFFFFFFF
    for byte in text.encode():
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 * (crc & 1))
    return crc ^ 0xFFFFFFFF


def test_streams_of_a_purpose_are_not_those_derived_from_other_names():
    alone = draws(Streams(3, "batch order", 2).of(5))
    assert alone != draws(derive(3, "batch order", 2))
    assert alone != draws(derive(3, "batch order", 2, 5))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="does not lie in"):
        Streams(seed, "batch order", 1)


# Cohorts.


def test_a_part_shares_and_taking_orders():
    task = task_of("softmax", (5, 0, 9, 3))
    cohort = cohort_of_all(task, mu=[0.0, 0.1, 0.2, 0.3], starts=2)
    part, taken = cohort.part(1, 3), cohort.take(np.array([3, 0, 2]))
    for found, clients in [(part, [1, 2]), (taken, [3, 0, 2])]:
        assert len(found) == len(clients)
        for at, k in enumerate(clients):
            assert found.data[at] is cohort.data[k]
            assert found.start(at).tobytes() == cohort.start(k).tobytes()
            assert found.proximal_mu[at] == cohort.proximal_mu[k]
            assert listed(found.batches)[at] == listed(cohort.batches)[k]
    assert np.shares_memory(part.starts, cohort.starts)
    assert isinstance(part, Cohort)
    assert cohort.start(0).tobytes() != cohort.start(1).tobytes()


def result(models, examples):
    zeros = np.zeros(len(examples))
    counts = np.asarray(examples, np.int64)
    return CohortResult(
        models=np.asarray(models, np.float32),
        num_examples=counts,
        num_steps=counts,
        num_samples=counts,
        losses=zeros,
    )


@pytest.mark.parametrize(
    ("models", "examples", "faultless"),
    [
        ([[1, 2], [3, 4]], [1, 2], True),
        ([[1, 2], [3, np.nan]], [1, 2], False),
        ([[1, 2], [np.inf, -np.inf]], [1, 2], False),
        ([[-np.inf, 2], [3, 4]], [1, 2], False),
        ([[1, 2], [3, 4]], [1, 0], False),
        ([[0, 0]], [1], True),
    ],
)
def test_faultless_means_finite_and_with_examples(models, examples, faultless):
    assert result(models, examples).faultless is faultless


def test_a_sum_that_overflows_is_looked_at_model_by_model():
    """Allowed: it says no where it is not sure, never yes where it should not."""
    assert result([[3e38, 3e38]], [1]).faultless is False
