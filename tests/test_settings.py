"""What is checked of every method's settings, however it is made."""

from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from strategies import METHODS

CHOICES = [
    (cls, name)
    for cls in METHODS.values()
    for name, hint in get_type_hints(cls).items()
    if get_origin(hint) is Literal
]


def test_many_methods_have_choices():
    assert len(CHOICES) > 12


@pytest.mark.parametrize(("method", "name"), CHOICES)
def test_a_choice_nobody_knows_is_refused_from_python_too(method, name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'nosuch'"):
        method(**{name: "nosuch"})


@pytest.mark.parametrize(("method", "name"), CHOICES)
def test_every_choice_it_names_is_taken(method, name):
    for choice in get_args(get_type_hints(method)[name]):
        assert getattr(method(**{name: choice}), name) == choice


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS.values() if "recovery_rounds" in get_type_hints(m)],
)
def test_recovery_takes_no_negative_number_of_rounds(method):
    with pytest.raises(ValueError, match="recovery_rounds must not be negative"):
        method(recovery_rounds=-1)
    assert method(recovery_rounds=0).recovery_rounds == 0
