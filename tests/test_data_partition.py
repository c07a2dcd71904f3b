"""Partitions: exact covers, whatever the data."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedunlearn.data import (
    PARTITIONERS,
    Dataset,
    Dirichlet,
    Iid,
    Natural,
    Quantity,
    Shards,
    clients_of,
)
from fedunlearn.data.shards import _apportion
from fedunlearn.errors import ConfigError
from fedunlearn.rng import derive


def labelled(labels, clients=None):
    y = np.asarray(labels, np.int64)
    x = np.zeros((len(y), 1), np.float32)
    keys = None if clients is None else np.asarray(clients).astype(str)
    return Dataset("made-up", x, y, x[:1], y[:1], keys)


def stream(seed=0):
    return derive(seed, "partition")


def assert_cover(parts, examples):
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(examples))
    for part in parts:
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)


ANY_LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80)
ALPHAS = st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 100.0, 1e12])


@st.composite
def deals(draw):
    """A data set, a number of clients and a partitioner that can serve them."""
    labels = draw(ANY_LABELS)
    clients = draw(st.integers(1, min(len(labels), 12)))
    alpha, least = draw(ALPHAS), draw(st.integers(0, len(labels) // clients))
    held = draw(st.integers(1, len(labels) // clients))
    kind = draw(st.sampled_from(["iid", "dirichlet", "quantity", "shards"]))
    assume(kind != "shards" or held * clients >= len(set(labels)))
    partitioner = {
        "iid": Iid(),
        "dirichlet": Dirichlet(alpha=alpha, min_size=least),
        "quantity": Quantity(alpha=alpha, min_size=least),
        "shards": Shards(classes_per_client=held),
    }[kind]
    return labelled(labels), clients, partitioner


@settings(max_examples=300, deadline=None)
@given(deal=deals(), seed=st.integers(0, 5))
def test_every_example_goes_to_exactly_one_client(deal, seed):
    data, clients, partitioner = deal
    parts = partitioner.split(data, clients, stream(seed))
    assert len(parts) == clients
    assert_cover(parts, len(data.y_train))
    again = partitioner.split(data, clients, stream(seed))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    sizes = [len(part) for part in parts]
    if isinstance(partitioner, Dirichlet | Quantity):
        assert min(sizes) >= partitioner.min_size
    if isinstance(partitioner, Iid):
        assert max(sizes) - min(sizes) <= 1
    if isinstance(partitioner, Shards):
        held = [len(set(data.y_train[part])) for part in parts]
        assert min(held) >= 1
        assert max(held) <= partitioner.classes_per_client


@pytest.mark.parametrize("partitioner", [Iid(), Dirichlet(), Quantity(), Shards()])
def test_another_seed_deals_differently(partitioner):
    data = labelled(np.arange(200) % 4)
    one, two = (partitioner.split(data, 5, stream(seed)) for seed in (1, 2))
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_data_are_not_written_to():
    data = labelled(np.arange(200) % 4)
    for array in (data.x_train, data.y_train):
        array.flags.writeable = False
    for partitioner in (Iid(), Dirichlet(), Quantity(), Shards()):
        partitioner.split(data, 5, stream())


# --- What each rule is for -----------------------------------------------------------


def skew(parts, labels):
    """Mean total-variation distance of the clients' class shares from all data's."""
    overall = np.bincount(labels) / len(labels)
    own = [np.bincount(labels[p], minlength=len(overall)) / len(p) for p in parts]
    return np.abs(np.array(own) - overall).sum(axis=1).mean() / 2


def test_a_small_alpha_skews_classes_and_a_large_one_does_not():
    data = labelled(np.arange(4000) % 10)
    skews = [
        skew(Dirichlet(alpha=a).split(data, 10, stream()), data.y_train)
        for a in (1e-6, 0.1, 1.0, 1e6)
    ]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.7
    assert skews[-1] < 0.02


def test_dirichlet_shares_have_the_variance_of_a_dirichlet():
    """Closed form: Var = (1/K)(1 - 1/K) / (K alpha + 1), for each client and class."""
    clients, alpha = 5, 0.5
    data = labelled(np.zeros(2000))
    rule = Dirichlet(alpha=alpha, min_size=0)
    shares = np.array(
        [
            [len(p) / 2000 for p in rule.split(data, clients, stream(s))]
            for s in range(400)
        ]
    )
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert shares.mean(axis=0) == pytest.approx(np.full(clients, 0.2), abs=0.04)
    assert shares.var() == pytest.approx(expected, rel=0.12)


def test_at_alpha_zero_each_class_stays_whole_but_for_the_repair():
    data = labelled(np.arange(100) % 4)
    parts = Dirichlet(alpha=1e-6, min_size=3).split(data, 8, stream())
    assert_cover(parts, 100)
    assert min(map(len, parts)) == 3
    unrepaired = Dirichlet(alpha=1e-6, min_size=0).split(data, 8, stream())
    for label in range(4):
        assert sum(label in data.y_train[p] for p in unrepaired) == 1


def test_quantity_skews_sizes_and_not_classes():
    data = labelled(np.arange(20_000) % 4)
    parts = Quantity(alpha=0.5, min_size=500).split(data, 8, stream())
    sizes = [len(p) for p in parts]
    assert max(sizes) > 3 * min(sizes)
    assert skew(parts, data.y_train) < 0.04


def test_min_size_can_take_everything():
    data = labelled(np.arange(60) % 3)
    for rule in (Dirichlet, Quantity):
        parts = rule(alpha=0.01, min_size=6).split(data, 10, stream())
        assert [len(p) for p in parts] == [6] * 10


def test_shards_reach_over_one_class_only():
    labels = np.repeat([0, 1, 2, 3], (997, 3, 50, 1))
    parts = Shards(classes_per_client=1).split(labelled(labels), 20, stream())
    assert all(len(set(labels[p])) == 1 for p in parts)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), extra=st.integers(0, 99)
)
def test_apportion_gives_all_and_no_class_more_than_it_has(sizes, extra):
    total = min(len(sizes) + extra, sum(sizes))
    counts = _apportion(np.array(sizes), total)
    assert sum(counts) == total
    assert all(1 <= c <= s for c, s in zip(counts, sizes, strict=True))


def test_apportion_is_in_proportion():
    assert _apportion(np.array([600, 300, 100]), 10) == [6, 3, 1]


# --- Natural clients -----------------------------------------------------------------


def test_natural_clients_keep_what_is_theirs():
    data = labelled(np.zeros(6), clients=["b", "a", "b", "10", "2", "a"])
    parts = Natural().split(data, 4, stream())
    assert [p.tolist() for p in parts] == [[3], [4], [1, 5], [0, 2]]
    assert_cover(parts, 6)


def test_natural_says_how_many_clients_there_are():
    data = labelled(np.zeros(3), clients=["a", "b", "b"])
    assert clients_of(data, Natural()) == 2
    assert clients_of(data, Iid()) is None
    with pytest.raises(ConfigError, match="has 2 natural clients: set clients to 2"):
        Natural().split(data, 3, stream())


def test_natural_needs_natural_clients_and_names_what_works():
    with pytest.raises(ConfigError, match="iid, dirichlet, shards or quantity"):
        Natural().split(labelled(np.zeros(3)), 3, stream())
    with pytest.raises(ConfigError, match="made-up"):
        clients_of(labelled(np.zeros(3)), Natural())


# --- What is refused -----------------------------------------------------------------


@pytest.mark.parametrize("clients", [0, -1, 21])
@pytest.mark.parametrize(
    "rule", [Iid(), Dirichlet(min_size=0), Quantity(min_size=0), Shards()]
)
def test_the_number_of_clients_must_fit(rule, clients):
    with pytest.raises(ConfigError, match=f"between 1 and 20.*got {clients}"):
        rule.split(labelled(np.arange(20) % 2), clients, stream())


@pytest.mark.parametrize("rule", [Dirichlet(), Quantity()])
def test_a_min_size_nobody_can_have_says_which_can_be_had(rule):
    with pytest.raises(ConfigError, match="set min_size to at most 6"):
        rule.split(labelled(np.arange(20) % 2), 3, stream())


@pytest.mark.parametrize(("clients", "held"), [(3, 1), (10, 3)])
def test_shards_too_few_or_too_many_are_refused(clients, held):
    with pytest.raises(ConfigError, match=f"make {clients * held} shards"):
        Shards(classes_per_client=held).split(
            labelled(np.arange(20) % 4), clients, stream()
        )


@pytest.mark.parametrize("rule", [Dirichlet, Quantity])
@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"alpha": 0}, "alpha must be positive, got 0"),
        ({"alpha": -1.5}, "alpha must be positive, got -1.5"),
        ({"alpha": float("nan")}, "alpha must be positive, got nan"),
        ({"alpha": float("inf")}, "alpha must be at most 1e[+]12, got inf"),
        ({"min_size": -1}, "min_size must not be negative, got -1"),
    ],
)
def test_bad_dirichlets_are_refused(rule, field, said):
    with pytest.raises(ValueError, match=said):
        rule(**field)


def test_bad_shards_are_refused():
    with pytest.raises(
        ValueError, match="classes_per_client must be at least 1, got 0"
    ):
        Shards(classes_per_client=0)


@pytest.mark.parametrize("rule", PARTITIONERS.values(), ids=PARTITIONERS)
def test_every_partitioner_is_a_schema(rule):
    assert OmegaConf.to_object(OmegaConf.structured(rule)) == rule()
