"""The state of any Flower strategy as named arrays, and back.

What counts are the attributes that hold arrays (a momentum, moments, the last model)
and the numbers that have changed since the strategy was made (a step counter). Names
say how a value is to be rebuilt: ``m_t:dict/conv.weight``, ``momentum_vector:list/0``.
"""

from collections.abc import Collection, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedunlearn.errors import HistoryError
from fedunlearn.params import Array as NumpyArray

Numbers = Mapping[str, float]


def numbers_of(strategy: Strategy) -> dict[str, float]:
    """Return the attributes that are plain numbers."""
    return {
        name: value
        for name, value in vars(strategy).items()
        if isinstance(value, int | float)
    }


def state_of(strategy: Strategy, at_first: Numbers) -> dict[str, NumpyArray]:
    """Return the state of a strategy.

    Args:
        strategy: The strategy.
        at_first: Its numbers when it was made.
    """
    out: dict[str, NumpyArray] = {}
    for name, value in vars(strategy).items():
        if isinstance(value, int | float):
            if at_first.get(name) != value:
                out[f"{name}:number"] = np.asarray(value)
        else:
            kind, items = _arrays_in(value)
            out |= {f"{name}:{kind}/{key}": array for key, array in items.items()}
    return out


def restore_state(strategy: Strategy, state: Mapping[str, NumpyArray]) -> None:
    """Give a strategy, made like the one before, the state that one had.

    Raises:
        HistoryError: If the strategy has no such attribute: it is another one.
    """
    groups: dict[tuple[str, str], dict[str, NumpyArray]] = {}
    for label, array in state.items():
        place, _, key = label.partition("/")
        name, _, kind = place.partition(":")
        if not hasattr(strategy, name):
            raise HistoryError(
                f"{type(strategy).__name__} has no {name!r}: the history was recorded "
                "with another strategy"
            )
        groups.setdefault((name, kind), {})[key] = array
    for (name, kind), items in groups.items():
        setattr(strategy, name, _rebuilt(kind, items))


def _arrays_in(value: object) -> tuple[str, dict[str, NumpyArray]]:
    """Return the kind of a value that holds arrays, and these; none for another."""
    if isinstance(value, np.ndarray | np.generic):
        return "array", {"": np.asarray(value)}
    if isinstance(value, ArrayRecord):
        return "record", {key: array.numpy() for key, array in value.items()}
    if isinstance(value, list | tuple) and _all_arrays(value):
        return "list", {str(at): np.asarray(array) for at, array in enumerate(value)}
    if isinstance(value, dict) and _all_arrays(value.values()):
        return "dict", {key: np.asarray(array) for key, array in value.items()}
    return "", {}


def _all_arrays(values: Collection[object]) -> bool:
    """Tell whether all are arrays; arithmetic on a 0-d array gives a NumPy scalar."""
    return bool(values) and all(isinstance(v, np.ndarray | np.generic) for v in values)


def _rebuilt(kind: str, items: dict[str, NumpyArray]) -> object:
    if kind == "number":
        return items[""].item()
    if kind == "array":
        return items[""].copy()
    if kind == "list":
        return [items[str(at)].copy() for at in range(len(items))]
    if kind == "dict":
        return {key: array.copy() for key, array in items.items()}
    return ArrayRecord({key: Array(array) for key, array in items.items()})
