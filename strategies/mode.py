"""MoDe: the weights fade into those of a young model that never saw the leaver.

Y. Zhao, P. Wang, H. Qi, J. Huang, Z. Wei, Q. Zhang, "Federated Unlearning With Momentum
Degradation", IEEE Internet of Things Journal, 2023. A second model M_d starts afresh
and is trained on the remaining clients, a round at a time. After each::

    M <- lambda M + (1 - lambda) M_d            momentum degradation
    M <- the server's mean over all clients     memory guidance

where a leaver trains M to the classes that M_d predicts for its data, and the others to
their own. The last rounds are guidance only.

Uncertain: the paper could not be read; this is its abstract and what the port in
FedQUIT's repository does (lambda 0.95 in 56 of 60 rounds, 5e-4 as one of two rates).
Not known are the paper's lambda, whether it changes over the rounds, the rates, and
whether M_d is trained in the last rounds (here, as in the port, it is not).

Departures: M_d starts from the initial model with the numbers of each array shuffled.
Over few rounds lambda 0.95 leaves most of the old weights; ``keep`` sets the share that
is left in the end, in the port 0.057. M_d's labels come back to the server and go out
again with M, because one model travels at a time. A leaver trains at the rate and
momentum and in the batches of training, without weight decay and a proximal term. If
no leaver ever took part the model is returned as it is.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from fedunlearn.local import LocalProblem, LogitGradient, Results, Rows
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector
from fedunlearn.updates import Updates
from strategies.forgetting import contributors, descended, leavers_of
from strategies.logit_losses import cross_entropy
from strategies.reference import shuffled
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Returns the classes that a model predicts for a client's examples."""

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return the likeliest class of each example, shape ``(n,)``."""
        likeliest: Vector = problem.logits(start).argmax(axis=1).astype(np.float32)
        return likeliest


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """Trains for a round, but to other classes.

    Attributes:
        labels: The class of each example.
    """

    labels: tuple[int, ...]

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return the model after training from ``start``, shape ``(P,)``."""
        labels, how = np.array(self.labels, np.int64), problem.training

        def to_labels(rows: Rows) -> LogitGradient:
            return lambda scores, _: cross_entropy(scores, labels[rows])

        batches, rate = problem.batches(), {"lr": how.lr, "momentum": how.momentum}
        return descended(start, problem, batches, to_labels, **rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoDe:
    """Momentum degradation towards a young model, with memory guidance.

    Attributes:
        rounds: Rounds in all; None takes a quarter of those that were trained.
        guidance_rounds: How many of them, the last ones, are guidance only; at least
            one round is not.
        momentum: Share of the old weights that is left after a round of degradation,
            lambda.
        keep: If given, the share that is left after all of it instead.
        start: Where the young model starts: the ``initial`` one, or that ``shuffled``.
    """

    rounds: int | None = None
    guidance_rounds: int = 1
    momentum: float = 0.95
    keep: float | None = None
    start: Literal["shuffled", "initial"] = "shuffled"
    requires: ClassVar[Requires] = Requires(
        broadcasts="initial", leaver=True, clients=True
    )
    about: ClassVar[About] = About(
        family="distillation",
        cost="2 R K E at clients, R E at the leavers",
        source="Zhao et al., Federated Unlearning With Momentum Degradation, 2023",
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_settings(self)
        for name, least in (("rounds", 1), ("guidance_rounds", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("momentum", "keep"):
            if (share := getattr(self, name)) is not None and not 0 < share < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {share}")

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after degradation and guidance."""
        w, first, ids = model.copy(), ctx.schedule.rounds + 1, contributors(ctx)
        rounds = self.rounds or (first + 2) // 4
        fading = max(1, rounds - self.guidance_rounds)
        kept = self.keep ** (1 / fading) if self.keep else self.momentum
        young, server, nursery = ctx.initial_model, ctx.new_server(), ctx.new_server()
        if self.start == "shuffled":
            young = shuffled(young, ctx.layout, ctx.rng)
        for index in range(first, first + rounds) if ids else ():
            cohort = ctx.cohort(index)
            if index < first + fading:
                own = ctx.clients.train(young, cohort, round_index=index)
                young = nursery.step(replace(own, round_index=None))  # not of this w
                w = np.float32(kept) * w + np.float32(1 - kept) * young
            updates = ctx.clients.train(w, cohort, round_index=index)
            w = server.step(joined(updates, guided(w, young, ctx, index)))
        return w


def guided(w: Vector, young: Vector, ctx: UnlearningContext, t: int) -> list[Results]:
    """Return what memory guidance makes of ``w`` at each leaver."""
    leavers, found = leavers_of(ctx), []
    for client in contributors(ctx):
        labels = leavers.run(Labels(), young, [client], round_index=t).values[0]
        order = Guidance(labels=tuple(int(label) for label in labels))
        found.append(leavers.run(order, w, [client], round_index=t))
    return found


def joined(updates: Updates, others: list[Results]) -> Updates:
    """Return a cohort's updates together with models of other clients."""
    clients = [*updates.clients, *(c for one in others for c in one.clients)]
    after = np.concatenate([updates.after, *(one.values for one in others)])
    sizes = [updates.num_examples, *(one.num_examples for one in others)]
    order, asked = np.argsort(clients), sorted({*clients, *(updates.asked or ())})
    deltas, counts = (after - updates.before)[order], np.concatenate(sizes)[order]
    everybody = Updates.of_deltas(updates.before, deltas, sorted(clients), counts)
    return replace(everybody, round_index=updates.round_index, asked=tuple(asked))
