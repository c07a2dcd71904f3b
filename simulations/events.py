"""What happens during a comparison, told to whoever listens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Literal

Kind = Literal[
    "run",
    "train",
    "round",
    "set_aside",
    "method",
    "tick",
    "done",
    "resume",
    "no_compiler",
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: ``run`` starts everything, ``train`` a seed, ``method`` a method;
            ``round`` ends a training round, ``tick`` a part of a phase, ``done`` a
            phase; ``set_aside`` names a refused reply; ``resume`` goes on with a run
            and names packages that changed since it began; ``no_compiler`` says that
            the compiled kernel was not built.
        facts: Plain values.
    """

    kind: Kind
    facts: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]
_TELLING = RLock()
"""Runs in lockstep tell from threads of their own."""


def tell(listeners: tuple[Listener, ...], kind: Kind, **facts: object) -> None:
    """Tell every listener, one event at a time."""
    with _TELLING:
        for listener in listeners:
            listener(Event(kind, facts))
