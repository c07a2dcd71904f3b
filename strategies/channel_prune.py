"""Class-discriminative channel pruning.

J. Wang, S. Guo, X. Xie, H. Qi, "Federated Unlearning via Class-Discriminative Pruning",
WWW 2022 (arXiv 2110.11794). Clients send the mean activation of each channel j over
their examples of each class u; the server averages them to A[u, j]. A channel is a word
and a class a document; what tells the forgotten class u' from the others is pruned::

    TF_j  = A[u', j] / sum_i A[u', i]                                  per layer
    IDF_j = log((1 + |U|) / (1 + #{u: A[u, j] >= mean_v A[v, j]}))
    prune j if TF_j * IDF_j is above the R-th percentile               per layer

Then the pruned model is trained on without the class. A channel is pruned by setting
the weights and the bias that make it to zero, and its scale and shift in a norm that
follows. It is 0 then whatever comes in, and before a ReLU neither bias, scale nor shift
get a gradient: it stays 0 in training, as if it were gone. A norm that looks at several
channels, such as GroupNorm, still counts the zeros in its means and variances, so that
the other channels of the group change at once, and training may move the weights of the
pruned one for their sake. A shortcut around the layer is left as it is.

Departures: the highest score counts if several classes go. Classes that nobody holds
are not among U. The percentile is taken in each layer, for a layer of few channels has
larger TF. The forgotten examples are looked at for the last time: without them A[u'] is
unknown. In the copies of the code that are public (the authors' own was not found) a
mask taken over from model compression keeps the channels above the threshold and
prunes the least discriminative ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedunlearn.errors import RequirementError
from fedunlearn.local import LocalProblem, Rows
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Layout, Vector
from strategies.curvature import Float64
from strategies.forgetting import leavers_of
from strategies.layers import Layer, Mask, convolutions, norm_after
from strategies.recovery import recovered
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Takes class counts and the mean activations of each class."""

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return C counts, then C rows of channels, as one vector, after C itself."""
        means = problem.class_activations(start)
        counts = np.bincount(problem.labels, minlength=len(means))
        parts = ([len(means)], counts, means.reshape(-1))
        return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelPrune:
    """Prunes the channels that are typical of the forgotten classes, then trains on.

    Attributes:
        percentile: Channels of a layer with a score above it are pruned, R.
        recovery_rounds: Rounds of training on the remaining data afterwards; None takes
            half as many as were trained.
    """

    percentile: float = 50.0
    recovery_rounds: int | None = None
    about: ClassVar[About] = About(
        family="perturbation",
        cost="one pass over all data and R K E at clients, C P at the server",
        source="Wang et al., Class-Discriminative Pruning, WWW 2022",
    )
    requires: ClassVar[Requires] = Requires(
        clients=True, leaver=True, levels=("class",)
    )

    def __post_init__(self) -> None:
        """Refuse a percentile that is none and negative rounds."""
        if not 0 <= self.percentile <= 100:  # noqa: PLR2004 - per cent
            raise ValueError(f"percentile must lie in [0, 100], got {self.percentile}")
        check_settings(self)

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the model after pruning and recovery."""
        if not (layers := convolutions(ctx.layout)):
            raise RequirementError("ChannelPrune needs a model with convolutions")
        classes = () if ctx.request is None else sorted(ctx.request.classes)
        means, held = class_means(model, ctx, sum(layer.outputs for layer in layers))
        forgotten = np.isin(held, classes)
        pruned, begin = model.copy(), 0
        for layer in layers:
            score = tf_idf(means[:, begin : begin + layer.outputs], forgotten)
            above = score > np.percentile(score, self.percentile)
            for part in parts_of(layer, np.flatnonzero(above), ctx.layout):
                pruned[part] = 0
            begin += layer.outputs
        return recovered(pruned, ctx, self.recovery_rounds)


def class_means(
    model: Vector, ctx: UnlearningContext, channels: int
) -> tuple[Float64, Rows]:
    """Return the mean activations of every class somebody holds, and these classes.

    Shapes ``(U, channels)`` and ``(U,)``.

    Raises:
        RequirementError: If the clients see another number of channels.
    """
    index, sums = ctx.schedule.rounds + 1, []
    for clients in (ctx.clients, leavers_of(ctx)):
        found = clients.run(Activations(), model, clients.ids, round_index=index).values
        classes = int(found[0, 0])
        if found.shape[1] != 1 + classes * (1 + channels):
            raise RequirementError(
                f"the arrays have {channels} channels, the clients' convolutions not"
            )
        counts = found[:, 1 : 1 + classes, None].astype(np.float64)
        own = found[:, 1 + classes :].reshape(len(found), classes, channels)
        sums.append(np.concatenate([counts, counts * own], axis=2).sum(axis=0))
    total = np.sum(sums, axis=0)
    held = np.flatnonzero(total[:, 0])
    return total[held, 1:] / total[held, :1], held


def tf_idf(means: Float64, forgotten: Mask) -> Float64:
    """Return how much each channel tells the forgotten classes from others, ``(J,)``.

    Args:
        means: Mean activation of J channels for U classes, not negative, ``(U, J)``.
        forgotten: Which of the classes are to be forgotten, ``(U,)``.
    """
    sums = means.sum(axis=1, keepdims=True)
    tf = np.divide(means, sums, out=np.zeros_like(means), where=sums > 0)
    active = (means >= means.mean(axis=0)).sum(axis=0)
    score = tf * np.log((1 + len(means)) / (1 + active))
    highest: Float64 = score[forgotten].max(axis=0, initial=0.0)
    return highest


def parts_of(layer: Layer, channels: Rows, layout: Layout) -> Iterator[slice]:
    """Yield where the weights, bias, scale and shift of some channels lie."""
    single = [s for s in (layer.bias, *norm_after(layout, layer)) if s is not None]
    for channel in channels.tolist():
        yield layer.row(channel)
        for array in single:
            yield slice(array.start + channel, array.start + channel + 1)
