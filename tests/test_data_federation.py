"""Federations: what each client holds and holds out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedunlearn.data import Dataset, Digits, Dirichlet, Iid, Natural, federate
from fedunlearn.errors import ConfigError, UnknownNameError


def numbered(n, clients=None):
    """A data set in which ``x`` is the number of the row and ``y`` is ``x mod 3``."""
    x = np.arange(n, dtype=np.float32)[:, None]
    keys = None if clients is None else np.asarray(clients)
    return Dataset("numbered", x, np.arange(n) % 3, x[:1] - 1, np.array([4]), keys)


def rows(client):
    return client.x[:, 0].tolist(), client.x_holdout[:, 0].tolist()


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 60),
    clients=st.integers(1, 10),
    holdout=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**40),
)
def test_every_example_is_trained_on_or_held_out_once(n, clients, holdout, seed):
    clients = min(n, clients)
    fed = federate(numbered(n), Iid(), clients, holdout=holdout, seed=seed)
    assert sorted(r for c in fed.clients for part in rows(c) for r in part) == list(
        range(n)
    )
    for client in fed.clients:
        kept, held = len(client.y), len(client.y_holdout)
        assert kept >= 1
        assert (held >= 1) == (holdout > 0 and kept + held >= 2)
        assert np.array_equal(client.y, client.x[:, 0] % 3)
        assert np.array_equal(client.y_holdout, client.x_holdout[:, 0] % 3)
        assert client.x.flags.writeable


def test_the_same_seed_gives_the_same_federation():
    deals = [
        [rows(c) for c in federate(numbered(50), Iid(), 5, holdout=0.3, seed=s).clients]
        for s in (7, 7, 8)
    ]
    assert deals[0] == deals[1]
    assert deals[0] != deals[2]


def test_a_holdout_depends_on_the_client_alone():
    """Another client's data may change or go: mine is held out as before."""
    keys = np.repeat(["a", "b", "c"], (10, 20, 30))
    both = [numbered(60, keys), numbered(30, keys[:30])]
    full, less = (
        federate(d, Natural(), k, holdout=0.2, seed=1)
        for d, k in zip(both, (3, 2), strict=True)
    )
    assert [rows(c) for c in full.clients[:2]] == [rows(c) for c in less.clients]


def test_holdout_has_the_size_asked_for():
    fed = federate(numbered(100), Iid(), 5, holdout=0.25, seed=0)
    assert [(len(c.y), len(c.y_holdout)) for c in fed.clients] == [(15, 5)] * 5


def test_a_client_of_one_trains_on_it():
    fed = federate(numbered(3), Iid(), 3, holdout=0.9, seed=0)
    assert [(len(c.y), len(c.y_holdout)) for c in fed.clients] == [(1, 0)] * 3


def test_a_client_may_have_nothing():
    rule = Dirichlet(alpha=1e-6, min_size=0)
    fed = federate(numbered(30), rule, 20, holdout=0.2, seed=0)
    empty = [c for c in fed.clients if not len(c.y)]
    assert empty
    assert all(c.x.shape == c.x_holdout.shape == (0, 1) for c in empty)
    assert fed.label_counts().shape == (20, 5)
    assert fed.label_counts().dtype == np.int64


def test_label_counts_include_the_holdout():
    data = numbered(9, ["a"] * 4 + ["b"] * 5)
    counts = [
        federate(data, Natural(), 2, holdout=h, seed=0).label_counts().tolist()
        for h in (0, 0.5)
    ]
    assert counts[0] == counts[1] == [[2, 1, 1, 0, 0], [1, 2, 2, 0, 0]]


def test_clients_are_named_by_key_or_number():
    natural = federate(numbered(4, list("ybya")), Natural(), 3, holdout=0, seed=0)
    assert natural.names == ("a", "b", "y")
    assert federate(numbered(4), Iid(), 2, holdout=0, seed=0).names == (
        "client-0",
        "client-1",
    )


def test_a_client_is_found_by_name_and_by_id():
    fed = federate(numbered(12), Iid(), 11, holdout=0, seed=0)
    assert [fed.client_id(c) for c in (3, "3", "client-3", "10")] == [3, 3, 3, 10]


def test_a_name_wins_over_an_id():
    fed = federate(numbered(3, ["1", "2", "7"]), Natural(), 3, holdout=0, seed=0)
    assert [fed.client_id(c) for c in ("1", "2", "7", "0")] == [0, 1, 2, 0]
    assert fed.client_id(1) == 1


@pytest.mark.parametrize("client", ["clint-1", "2", "-1", "", "1.0", 2, -1])
def test_an_unknown_client_is_refused(client):
    fed = federate(numbered(4), Iid(), 2, holdout=0, seed=0)
    with pytest.raises(
        UnknownNameError, match=r"unknown client.*known: client-0, client-1"
    ):
        fed.client_id(client)


@pytest.mark.parametrize("holdout", [1, 1.5, -0.1, float("nan")])
def test_a_holdout_outside_its_range_is_refused(holdout):
    with pytest.raises(ConfigError, match=r"holdout must lie in \[0, 1\), got"):
        federate(numbered(4), Iid(), 2, holdout=holdout, seed=0)


def test_too_many_clients_are_refused():
    with pytest.raises(ConfigError, match="between 1 and 4"):
        federate(numbered(4), Iid(), 5, holdout=0, seed=0)


def test_a_federation_of_digits_is_whole():
    data = Digits().load()
    fed = federate(data, Dirichlet(alpha=0.1), 10, holdout=0.2, seed=3)
    assert fed.dataset_name == "digits"
    assert fed.input_shape == (1, 8, 8)
    assert fed.num_classes == 10
    assert np.array_equal(fed.label_counts().sum(axis=0), np.bincount(data.y_train))
    assert np.array_equal(fed.x_test, data.x_test)
