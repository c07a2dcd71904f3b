"""One exception tree, and messages that help."""

import inspect

import pytest

from fedunlearn import errors
from fedunlearn.errors import (
    FedUnlearnError,
    RequestError,
    RunError,
    UnknownNameError,
    did_you_mean,
)
from fedunlearn.method import UnlearningRequest

ALL = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, Exception)
]


def test_every_error_has_the_one_root():
    assert all(issubclass(error, FedUnlearnError) for error in ALL)


def test_every_error_is_either_a_wrong_request_or_a_failed_run():
    branches = (RequestError, RunError)
    for error in ALL:
        if error is not FedUnlearnError:
            assert sum(issubclass(error, branch) for branch in branches) == 1


def test_every_error_stands_in_the_tree_of_the_docstring():
    for error in ALL:
        assert error.__name__ in errors.__doc__


def test_an_unknown_name_comes_with_the_nearest_and_all_known_ones():
    error = UnknownNameError.of("method", "retrian", ["retrain", "rollback"])
    assert str(error) == (
        "unknown method 'retrian'; did you mean 'retrain'? (known: retrain, rollback)"
    )


def test_a_name_far_from_all_others_gets_no_suggestion():
    assert did_you_mean("xyzzy", ["retrain"]) == ""
    assert str(UnknownNameError.of("client", 12, [])) == (
        "unknown client '12' (known: none)"
    )


@pytest.mark.parametrize(
    ("leavers", "message"),
    [
        (set(), "nobody is to be forgotten"),
        ({7, 9}, "client 7 is not one of the 3 known clients"),
        ({0, 1, 2}, "all 3 clients are leaving"),
        ({0, 1, 2, 7}, "client 7 is not one of"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(leavers, message):
    with pytest.raises(RequestError, match=message):
        UnlearningRequest(clients=frozenset(leavers)).check(range(3))


def test_a_sensible_request_passes():
    UnlearningRequest(clients=frozenset({0, 2})).check(range(3))


def test_an_unknown_name_lists_the_first_names_and_counts_the_others():
    error = UnknownNameError.of("client", "x", [f"client-{i}" for i in range(100)])

    assert "client-39 and 60 more" in str(error)
    assert "client-40" not in str(error)
