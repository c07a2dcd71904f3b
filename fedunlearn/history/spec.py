"""Settings that are one word and a few numbers, such as ``top_k:0.1``."""

from collections.abc import Callable
from fractions import Fraction
from inspect import signature
from math import ceil
from typing import TypeVar

from fedunlearn.errors import ConfigError, UnknownNameError

_Made = TypeVar("_Made")


def named(kind: str, text: str, table: dict[str, Callable[..., _Made]]) -> _Made:
    """Return what ``name`` or ``name:number,...`` means, or raise as ``codec`` does.

    Args:
        kind: What is looked up, for the errors: "codec".
        text: A name of ``table``, then the fields of its dataclass.
        table: Name -> dataclass.
    """
    name, colon, numbers = text.partition(":")
    if name not in table:
        raise UnknownNameError.of(kind, name, table)
    makes = signature(table[name])
    try:
        given = makes.bind(*(numbers.split(",") if colon else ())).arguments
        values = {key: makes.parameters[key].annotation(n) for key, n in given.items()}
    except (TypeError, ValueError) as error:
        form = ":".join(filter(None, (name, ",".join(makes.parameters).upper())))
        raise ConfigError(f"{kind} {text!r} is not of the form {form}") from error
    return table[name](**values)


def part_of(n: int, fraction: float) -> int:
    """Return ``ceil(fraction n)`` for a fraction in ``(0, 1]`` as it is written.

    0.07 of 100 is 7, although ``0.07 * 100`` is above 7 in floating point. The result
    is 0 for no n and otherwise from 1 to n.
    """
    return ceil(Fraction(repr(float(fraction))) * n)
