"""What the laws share: five clients, a fingerprint, and how a law is broken."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fedunlearn.history import ClientId, ServerState, records
from fedunlearn.method import UnlearningContext, UnlearningMethod
from fedunlearn.params import Vector
from fedunlearn.rng import derive
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.shards import mean_within
from fedunlearn.testing.clients import QuadraticClients
from fedunlearn.testing.federation import ContextFactory, quadratic_federation
from fedunlearn.updates import Server, Updates

Law = Callable[[UnlearningMethod], None]

SIZES = (10, 30, 20, 40, 50)
"""Examples of the five clients."""
LEAVER = 1
"""Who leaves."""


def five_clients(
    *,
    clients_per_round: int | None = None,
    attendance: Mapping[ClientId, Collection[int]] | None = None,
    noise: float = 0.1,
    order: tuple[int, ...] = (0, 1, 2, 3, 4),
    shards: int = 1,
) -> tuple[Vector, ContextFactory]:
    """Train five clients with seven parameters a shard for five rounds of two epochs.

    Args:
        clients_per_round: Clients asked a round; None asks all.
        attendance: Client -> the rounds in which it is there; who is not named always.
        noise: Standard deviation of what is added to a trained model.
        order: ``order[j]`` is the place in ``SIZES`` of client j.
        shards: Shards of the federation.
    """
    numbers = derive(0, "centres").standard_normal((len(SIZES), 7 * shards))
    centres = numbers.astype(np.float32)
    clients = QuadraticClients(
        centres=tuple(centres[k] for k in order),
        num_examples=tuple(SIZES[k] for k in order),
        schedule=TrainingSchedule(
            seed=4,  # of three clients a round, LEAVER is one in rounds 2 and 3
            rounds=5,
            epochs=2,
            clients_per_round=clients_per_round,
            shards=shards,
        ),
        lr=0.3,
        noise=noise,
    )
    rule = partial(mean_within, shards)
    return quadratic_federation(clients, attendance=attendance, new_server=rule)


def trained_for(
    method: UnlearningMethod,
    *,
    clients_per_round: int | None = None,
    attendance: Mapping[ClientId, Collection[int]] | None = None,
    noise: float = 0.1,
    order: tuple[int, ...] = (0, 1, 2, 3, 4),
) -> tuple[Vector, ContextFactory]:
    """Return the five clients, in two shards for a method that needs shards."""
    return five_clients(
        clients_per_round=clients_per_round,
        attendance=attendance,
        noise=noise,
        order=order,
        shards=2 if method.requires.shards else 1,
    )


@dataclass(slots=True)
class CountingServer:
    """Counts the steps of a server rule.

    Attributes:
        inner: The rule.
        named: Steps that stand for a round.
        nameless: The model of the last step if that stood for none.
    """

    inner: Server
    named: int = 0
    nameless: Vector | None = None

    @property
    def stateful(self) -> bool:
        """Whether a step depends on the steps before it."""
        return self.inner.stateful

    @property
    def mean(self) -> bool:
        """Whether a step is the weighted mean of the clients' models."""
        return self.inner.mean

    def step(self, updates: Updates) -> Vector:
        """Step and count."""
        model, named = self.inner.step(updates), updates.round_index is not None
        self.named += named
        self.nameless = None if named else model
        return model

    def restore(self, state: ServerState, next_round: int) -> None:
        """Go on from a recorded state."""
        self.inner.restore(state, next_round)


def require(holds: bool, law: Law, otherwise: str) -> None:
    """Raise AssertionError naming ``law`` unless it holds."""
    if not holds:
        raise AssertionError(f"{law.__name__}: {otherwise}")


def require_model(
    law: Law, method: UnlearningMethod, trained: tuple[Vector, ContextFactory]
) -> None:
    """Require that ``LEAVER`` can leave and a proper model comes back."""
    model, context = trained
    require_like(law, method.unlearn(model, context((LEAVER,))), model)


def require_like(law: Law, result: Vector, model: Vector) -> None:
    """Require a finite result of the model's shape and dtype."""
    require(
        (result.shape, result.dtype) == (model.shape, model.dtype),
        law,
        f"{result.dtype} {result.shape} came back, not {model.dtype} {model.shape}",
    )
    require(bool(np.isfinite(result).all()), law, "the result is not finite")


def watched(
    context: ContextFactory, leavers: Collection[ClientId]
) -> tuple[UnlearningContext, QuadraticClients, QuadraticClients]:
    """Return a context and those that stay and leave; their ``calls`` can be read."""
    ctx = context(leavers)
    stay, leave = ctx.clients, ctx.leavers
    if not (isinstance(stay, QuadraticClients) and isinstance(leave, QuadraticClients)):
        raise TypeError("the laws need a context of quadratic_federation")
    stay, leave = replace(stay, calls=[]), replace(leave, calls=[])
    return replace(ctx, clients=stay, leavers=leave), stay, leave


def fingerprint(ctx: UnlearningContext) -> tuple[object, ...]:
    """Return every recorded byte and who leaves."""
    rounds = (
        (
            r.index,
            r.clients,
            r.asked,
            r.broadcast.tobytes(),
            r.updates.tobytes(),
            r.num_examples.tobytes(),
            r.num_steps.tobytes(),
            r.num_samples.tobytes(),
        )
        for r in records(ctx.history)
    )
    return (ctx.forget, ctx.layout, ctx.schedule, *rounds)
