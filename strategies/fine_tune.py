"""Plain continued training on the remaining clients: what any method has to beat.

Ordinary training forgets by itself what it no longer sees ("natural" or "catastrophic"
forgetting). A method that needs the same budget and does no better adds nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedunlearn.method import (
    ALL_LEVELS,
    About,
    Requires,
    UnlearningContext,
    continue_training,
)
from fedunlearn.params import Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """Trains the final model further without the leavers.

    Attributes:
        rounds: How many rounds; None takes as many as were trained, the budget of
            retraining.
    """

    rounds: int | None = None
    about: ClassVar[About] = About(
        family="control",
        cost="R K E at clients",
        source="natural forgetting; the baseline at equal budget",
    )
    requires: ClassVar[Requires] = Requires(clients=True, levels=ALL_LEVELS)

    def __post_init__(self) -> None:
        """Refuse a negative number of rounds."""
        if self.rounds is not None and self.rounds < 0:
            raise ValueError(f"rounds must not be negative, got {self.rounds}")

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return ``model`` after rounds T + 1, T + 2, ..."""
        trained = ctx.schedule.rounds
        more = trained if self.rounds is None else self.rounds
        rounds = range(trained + 1, trained + more + 1)
        return continue_training(model.copy(), ctx, rounds)
