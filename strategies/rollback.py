"""Rollback to before the leavers' influence, then training on without them.

``until="first"``: to just before they first took part. The scheme of Plato's
``fedunlearning`` example (N. Su, B. Li, "Asynchronous Federated Unlearning", INFOCOM
2023, baseline). With as many rounds as remained it is exact: every model before the
first participation owes nothing to the leavers, and cohorts and batch orders do not
depend on them; but where a leaver was asked earlier and stayed silent, it had taken
somebody's place.

``until="budget"``: to the newest model in which their accumulated influence is a share
of at most ``budget`` of the way that training went. W are the leavers, S the others::

    sum_{s < n} ||mean of I_s - mean of I_s in S||  <=  budget sum_s ||mean of I_s||

A rule of ours, after SIFU's bounded sensitivity without its noise: cheaper the smaller
the leavers' weight, and not exact. A budget of 0 is ``first`` to the bit. A round of
leavers alone counts with its whole step.

The state of a server rule such as FedAvgM at the point of return is taken from the
history. Where it was not recorded it is rebuilt by replaying the recorded rounds before
it, which is exact up to float32 rounding. Where clients stay and lose a part of their
data, the first round is theirs as well, and their influence that of all they hold.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedunlearn.history import first_round_of, records
from fedunlearn.method import About, Requires, UnlearningContext, continue_training
from fedunlearn.params import Vector, norm
from fedunlearn.updates import Server, Updates
from strategies.leave_out import mean_update, shift_without
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Returns to a model before the leavers' influence and trains on from there.

    Attributes:
        rounds: Rounds to train after the return; None takes as many as remained.
        until: Whether to return to the model the leavers ``first`` received, or to the
            newest one with their influence within ``budget``.
        budget: Their influence over the length of the way of training, in [0, 1].
    """

    rounds: int | None = None
    until: Literal["first", "budget"] = "first"
    budget: float = 0.05
    about: ClassVar[About] = About(
        family="exact",
        guarantee="exact until first, if no round before t depends on the leavers",
        cost="(T - t) K E at clients, t the return",
        source="Su and Li, Asynchronous Federated Unlearning, INFOCOM 2023 (baseline)",
    )

    def __post_init__(self) -> None:
        """Refuse a negative number of rounds and a budget outside [0, 1]."""
        check_settings(self)
        if self.rounds is not None and self.rounds < 0:
            raise ValueError(f"rounds must not be negative, got {self.rounds}")
        if not 0 <= self.budget <= 1:
            raise ValueError(f"budget must lie in [0, 1], got {self.budget}")

    @property
    def requires(self) -> Requires:
        """The model of the return; all updates to tell which one that is."""
        some = self.until == "budget" and self.budget > 0
        return Requires(
            updates="all" if some else "none",
            broadcasts="all" if some else "first",
            clients=True,
            levels=("client", "sample", "class"),
        )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the rolled-back model, or ``model`` if nothing is to be undone."""
        first = first_round_of(ctx.history, ctx.touched)
        if self.until == "budget" and self.budget > 0:
            first = first_over(self.budget, ctx)
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


def first_over(budget: float, ctx: UnlearningContext) -> int | None:
    """Return the round in which the leavers' influence passes the budget, or None."""
    way, influence = 0.0, {}
    for record in records(ctx.history):
        mean = mean_update(record)
        way += norm(mean)
        if not ctx.touched.isdisjoint(record.clients):
            influence[record.index] = norm(shift_without(record, ctx.touched, mean))
    total = 0.0
    for index, felt in influence.items():
        total += felt
        if total > budget * way:
            return index
    return None


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
