"""Rollback to just before the leavers first took part, then training without them.

The scheme of Plato's ``fedunlearning`` example (N. Su, B. Li, "Asynchronous Federated
Unlearning", INFOCOM 2023, baseline). With as many rounds as remained it is exact: every
model before the first participation owes nothing to the leavers, and cohorts and batch
orders do not depend on them.

The state of a server rule such as FedAvgM at the point of return is taken from the
history. Where it was not recorded it is rebuilt by replaying the recorded rounds before
it, which is exact up to float32 rounding.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedunlearn.history import first_round_of
from fedunlearn.method import About, Requires, UnlearningContext, continue_training
from fedunlearn.params import Vector
from fedunlearn.updates import Server, Updates


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Returns to the model the leavers first received and trains on from there.

    Attributes:
        rounds: Rounds to train after the return; None takes as many as remained.
    """

    rounds: int | None = None
    about: ClassVar[About] = About(
        family="exact",
        guarantee="exact, if no round before t depends on the leavers",
        cost="(T - t) K E at clients, t the first participation",
        source="Su and Li, Asynchronous Federated Unlearning, INFOCOM 2023 (baseline)",
    )
    requires: ClassVar[Requires] = Requires(broadcasts="first", clients=True)

    def __post_init__(self) -> None:
        """Refuse a negative number of rounds."""
        if self.rounds is not None and self.rounds < 0:
            raise ValueError(f"rounds must not be negative, got {self.rounds}")

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the rolled-back model, or ``model`` if the leavers never took part."""
        first = first_round_of(ctx.history, ctx.forget)
        if first is None:
            return model.copy()
        last = ctx.schedule.rounds
        if self.rounds is not None:
            last = first + self.rounds - 1
        return continue_training(
            ctx.history.round(first).broadcast.copy(),
            ctx,
            range(first, last + 1),
            server_before(first, ctx),
        )


def server_before(first: int, ctx: UnlearningContext) -> Server:
    """Return the server rule with the state it had when round ``first`` began."""
    server = ctx.new_server()
    if not server.stateful:
        return server
    state = ctx.history.round(first).arrays.state()
    if state.rule:
        server.restore(state, first)
        return server
    for index in (i for i in ctx.history.rounds if i < first):
        record = ctx.history.round(index)
        server.step(
            Updates.of_deltas(
                record.broadcast, record.updates, record.clients, record.num_examples
            )
        )
    return server
