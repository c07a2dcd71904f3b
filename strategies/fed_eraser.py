"""FedEraser: calibrated retraining from stored updates.

G. Liu, X. Ma, Y. Yang, C. Wang, J. Liu, "FedEraser: Enabling Efficient Client-Level
Data Removal from Federated Learning Models", IWQoS 2021, Algorithm 1.

In every retained round t_j the remaining clients train briefly from the model being
rebuilt, M_j. Their fresh update U^_k gives the direction, the stored one the length::

    U~_k    = ||U_k|| * U^_k / ||U^_k||                  (per client, whole vector)
    M_{j+1} = M_j + sum_k n_k U~_k / sum_k n_k           (k over remaining clients)

The first round starts from the initial model, which has no trace of the leavers: its
stored updates are used as they are.

Departures: the printed prefactor 1/((K-1) sum w) is read as a weighted mean, as in the
paper's text. The mean is taken by the server rule that trained the model, with fresh
state. A round in which only leavers took part is skipped. The released code takes other
steps, about ten times shorter; ``variant="official"`` takes them too (see
``fed_eraser_official.py``). The server rule then gets the same step from every client,
which a mean or a median leaves as it is. The released code retains the last round of
each interval, this the first.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Matrix, Vector, norm
from fedunlearn.updates import Updates
from strategies.fed_eraser_official import model_after, official_step
from strategies.settings import check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class FedEraser:
    """Replays every ``interval``-th round with calibrated updates.

    Attributes:
        interval: Rounds between two retained rounds, the paper's Delta t.
        calibration_ratio: Local epochs of a calibration over those of training, r.
        norm_scale: ``stored`` keeps the length of one stored round, as in the paper;
            ``interval`` multiplies it by ``interval`` to make up for skipped rounds.
        select: ``kept`` replays what the history kept, such as Crab's selection of
            rounds and clients, and asks for nothing more.
        variant: ``paper``, or ``official`` for the step of the released code.
    """

    interval: int = 2
    calibration_ratio: float = 0.5
    norm_scale: Literal["stored", "interval"] = "stored"
    select: Literal["all", "kept"] = "all"
    variant: Literal["paper", "official"] = "paper"
    about: ClassVar[About] = About(
        family="calibrated retraining",
        cost="T K E r / dt at clients",
        source="Liu et al., FedEraser, IWQoS 2021",
    )

    def __post_init__(self) -> None:
        """Refuse an interval below 1 and a ratio outside (0, 1]."""
        check_settings(self)
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1, got {self.interval}")
        if not 0 < self.calibration_ratio <= 1:
            raise ValueError(
                f"calibration_ratio must lie in (0, 1], got {self.calibration_ratio}"
            )

    @property
    def requires(self) -> Requires:
        """All updates of the replayed rounds, or whatever is kept.

        The official step needs every broadcast: that of the next recorded round is the
        model after a round.
        """
        kept = self.select == "kept"
        return Requires(
            updates="some" if kept else "all",
            interval=1 if kept else self.interval,
            broadcasts="initial" if self.variant == "paper" else "all",
            clients=True,
        )

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the rebuilt model."""
        rebuilt, server = ctx.initial_model.copy(), ctx.new_server()
        first = ctx.history.rounds[0]
        factor = self.interval if self.norm_scale == "interval" else 1
        for index in ctx.history.rounds:
            if (index - first) % self.requires.interval:
                continue
            record = ctx.history.round(index)
            ids = ctx.staying(record.kept)
            if not ids:
                continue
            if index == first:
                updates = Updates.of_deltas(
                    rebuilt, record.updates_of(ids), ids, record.examples_of(ids), index
                )
                rebuilt = server.step(updates)
                continue
            epochs = self.calibration_ratio * ctx.schedule.epochs
            fresh = ctx.clients.train(rebuilt, ids, round_index=index, epochs=epochs)
            stored = record.updates_of(fresh.clients)
            if self.variant == "official":
                after = model_after(ctx.history, index, model)
                models = record.broadcast + stored
                step = official_step(fresh.deltas, models, after, ctx.layout)
                steps = np.tile(step, (len(models), 1))
            else:
                steps = rescaled(fresh.deltas, stored)
            rebuilt = server.step(replace(fresh, after=rebuilt + factor * steps))
        return rebuilt


def rescaled(direction: Matrix, length: Matrix) -> Matrix:
    """Return each row of ``direction`` with the L2 norm of that row of ``length``.

    Args:
        direction: Shape ``(K, P)``; a row of zeros stays zero.
        length: Shape ``(K, P)``.
    """
    factors = [
        norm(stored) / size if (size := norm(fresh)) else 0.0
        for fresh, stored in zip(direction, length, strict=True)
    ]
    return direction * np.array(factors, np.float32)[:, None]
