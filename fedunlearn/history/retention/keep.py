"""What a retention policy is, and what they share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from fedunlearn.history.record import ClientId
from fedunlearn.history.update_history import UpdateHistory


@dataclass(frozen=True, slots=True)
class Keep:
    """What of one round stays.

    Attributes:
        broadcast: Whether the model sent out stays.
        updates: Whose updates stay, as far as they are held; None for everybody's.
    """

    broadcast: bool = True
    updates: frozenset[ClientId] | None = None


NOTHING: Final = Keep(broadcast=False, updates=frozenset())


class Retention(Protocol):
    """A policy; it reads nothing but the history and remembers nothing."""

    @property
    def name(self) -> str:
        """Text that ``retention`` reads back."""

    @property
    def sums(self) -> bool:
        """Whether the history maintains a running sum per client."""

    @property
    def sensitivities(self) -> bool:
        """Whether the scalar sensitivities of each round are recorded."""

    @property
    def losses(self) -> bool:
        """Whether every round must come with its training loss."""

    def at_append(self, index: int, first: int) -> Keep:
        """Return what is written of round ``index``; ``first`` is the first recorded.

        (They are equal when a history begins.)
        """

    def later(self, history: UpdateHistory) -> Mapping[int, Keep]:
        """Return the recorded rounds of which less is to stay, with what stays.

        To be applied in the order given; after a stop halfway, call again. Once all is
        applied, it returns nothing until the next round is appended.
        """


def everything(self: Retention, index: int, first: int) -> Keep:
    """Write the whole round."""
    del self, index, first
    return Keep()


def no_less(self: Retention, history: UpdateHistory) -> Mapping[int, Keep]:
    """Leave what is recorded: what does not stay was never written."""
    del self, history
    return {}


def less(history: UpdateHistory, plan: Mapping[int, Keep]) -> dict[int, Keep]:
    """Return what of a plan changes something; the first broadcast always stays."""
    holds, out = history.holds, {}
    for t, keep in plan.items():
        model, whose = keep.broadcast or t == history.rounds[0], keep.updates
        held = history.round(t).kept if t in holds.some_updates else ()
        excess = whose is not None and not whose.issuperset(held)
        if excess or (t in holds.broadcasts and not model):
            out[t] = Keep(model, whose)
    return out
