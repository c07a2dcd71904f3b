"""MoDe: the model's weights fade into those of a young one that never saw the leaver.

Y. Zhao, P. Wang, H. Qi, J. Huang, Z. Wei, Q. Zhang, "Federated Unlearning With Momentum
Degradation", IEEE Internet of Things Journal, 2023. In every round a second model M_d,
which starts afresh, is trained on the remaining clients. Then::

    M <- lambda M + (1 - lambda) M_d                       momentum degradation
    M <- FedAvg over all clients from M                    memory guidance

where a leaver trains on the classes that M_d predicts for its data, and the others on
their own. The last rounds are guidance only.

Uncertain: the paper is not at hand; this is its abstract and what the port in FedQUIT's
repository does (60 rounds, 56 of them degrading, lambda 0.95). Unknown are the paper's
lambda, whether it is the same in all rounds, the paper's rates, and whether M_d goes on
training in the last rounds (here, as in the port, it does not).

Departures: with few rounds lambda 0.95 leaves most of the old weights; by default
lambda is such that a share ``keep`` of them is left at the end, in the port 0.057.
``momentum`` is the constant. M_d starts from the initial model, or from that with each
array's numbers shuffled. M_d's labels come back to the server and go to the leaver with
M, because one model travels at a time. A leaver takes plain SGD steps at the pace of
training, lr / (1 - momentum), over as many epochs.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedunlearn.history import ClientId
from fedunlearn.local import LocalProblem
from fedunlearn.method import About, Requires, UnlearningContext, continue_training
from fedunlearn.params import Vector
from fedunlearn.updates import Updates
from strategies.forgetting import contributors, descended, leavers_of, pace
from strategies.logit_losses import cross_entropy
from strategies.reference import shuffled


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Returns the classes that a model predicts for a client's examples."""

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return the likeliest class of each example, shape ``(n,)``."""
        return problem.logits(start).argmax(axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """Trains as in a round of training, but on other classes.

    Attributes:
        labels: The class to train each example to.
    """

    labels: tuple[int, ...]

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return the model after training from ``start``, shape ``(P,)``."""
        labels = np.array(self.labels, np.int64)
        return descended(
            start,
            problem,
            problem.batches(),
            lambda rows: lambda scores, _: cross_entropy(scores, labels[rows]),
            lr=pace(problem.training),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MoDe:
    """Momentum degradation towards a young model, with memory guidance.

    Attributes:
        rounds: Rounds in all; None takes half as many as were trained.
        guidance_rounds: How many of them, the last ones, are guidance only.
        keep: Share of the old weights that is left after the degradation.
        momentum: Share that is left after each round of it, lambda; None takes the
            one that leaves ``keep``.
        start: Where the young model starts: ``initial``, or that model ``shuffled``.
    """

    rounds: int | None = None
    guidance_rounds: int = 1
    keep: float = 0.05
    momentum: float | None = None
    start: Literal["initial", "shuffled"] = "initial"
    requires: ClassVar[Requires] = Requires(
        broadcasts="initial", leaver=True, clients=True
    )
    about: ClassVar[About] = About(
        family="distillation",
        cost="2 R K E at clients, R E at the leavers",
        source="Zhao et al., Federated Unlearning With Momentum Degradation, IEEE "
        "Internet of Things Journal 2023",
    )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after degradation and guidance."""
        first, ids = ctx.schedule.rounds + 1, contributors(ctx)
        rounds = first // 2 if self.rounds is None else self.rounds
        fading = max(0, rounds - self.guidance_rounds)
        kept = self.keep ** (1 / max(fading, 1)) if self.momentum is None else self.momentum
        w, young = model.copy(), ctx.initial_model.copy()
        if self.start == "shuffled":
            young = shuffled(young, ctx.layout, ctx.rng)
        apprentice, server = ctx.new_server(), ctx.new_server()
        for index in range(first, first + rounds):
            if index < first + fading:
                young = continue_training(young, ctx, [index], apprentice)
                w = np.float32(kept) * w + np.float32(1 - kept) * young
            cohort = ctx.schedule.cohort(index, ctx.clients.ids)
            updates = ctx.clients.train(w, cohort, round_index=index)
            for client in ids:
                updates = _joined(updates, self._guided(w, young, client, ctx, index))
            w = server.step(updates)
        return w

    def _guided(self, w, young, client, ctx, index):
        who = leavers_of(ctx)
        labels = who.run(Labels(), young, [client], round_index=index).values[0]
        guidance = Guidance(labels=tuple(labels.astype(int).tolist()))
        return who.run(guidance, w, [client], round_index=index)

def _joined(updates, results):
    from dataclasses import replace
    return replace(updates, clients=updates.clients + results.clients, after=np.vstack([updates.after, results.values]), num_examples=np.concatenate([updates.num_examples, results.num_examples]))
