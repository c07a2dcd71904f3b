"""Crab: calibrated retraining over selected rounds and clients, from a later model.

Y. Jiang, J. Shen, Z. Liu, C. W. Tan, K.-Y. Lam, "Towards Efficient and Certified
Recovery from Poisoning Attacks in Federated Learning", 2024, arXiv 2401.08216.

1. Selection. Windows of training close when the loss has dropped by the share alpha. In
a closed window the share ``rounds`` of the rounds stays, by the divergence of
successive global models, and in each of those the share ``clients`` of the updates, by
their likeness to the new global model. The history's retention policy ``crab`` does
this while training goes on; here the same code selects from whatever was recorded, and
has nothing left to do on a history that was thinned by it.

2. Rollback, to the newest stored model that the leavers W did not affect much. With
``p_k`` the share of client k in the mean of round s and ``w_s`` the model sent out::

    c_s = || sum_{k in W} p_k U_k^s ||            A_t = sum_{s < t} c_s
    t*  = the newest t of a stored w_t with A_t <= tolerance A_{T+1}

3. Calibrated retraining from ``w_{t*}`` over the selected rounds from t* on, as in
FedEraser: the fresh update gives the direction, the stored one the length. Round t* is
used as it was stored, for its updates were made from that model.

Departures: the paper's text was not at hand; its rule for "not significantly affected"
is replaced by the one above. A leaver's update that is not held counts as ``p_k`` times
the step of the global model, that of a typical client. ``tolerance=0`` goes back to the
model the leavers first received. The released code has no rollback: it starts at the
first stored round; and it trains twice a round before it calibrates. Selection departs
from that code as the retention policy does. Without recorded training losses there are
no windows and everything is selected. The server rule has fresh state.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fedunlearn.history import ClientId, UpdateHistory, records
from fedunlearn.history.retention import Crab as Selection
from fedunlearn.history.retention import Keep
from fedunlearn.method import About, Requires, UnlearningContext
from fedunlearn.params import Vector
from fedunlearn.updates import Updates
from strategies.crab_influence import influence_before
from strategies.fed_eraser import rescaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Crab:
    """Rolls back a little and calibrates selected rounds of selected clients.

    Attributes:
        alpha: Share of the loss by which it drops in a window, in (0, 1).
        rounds: Share of a window's rounds that are replayed, in (0, 1].
        clients: Share of the updates of such a round that are, in (0, 1].
        tolerance: Share of the leavers' influence that may stay in the model from which
            the replay starts, in [0, 1).
        calibration_ratio: Local epochs of a calibration over those of training, r.
    """

    alpha: float = 0.1
    rounds: float = 0.6
    clients: float = 0.7
    tolerance: float = 0.1
    calibration_ratio: float = 0.5
    about: ClassVar[About] = About(
        family="calibrated retraining",
        cost="rounds clients (T - t) K E r at clients",
        source="Jiang et al., Crab, 2024, arXiv 2401.08216",
    )
    requires: ClassVar[Requires] = Requires(
        updates="some", broadcasts="initial", clients=True
    )

    def __post_init__(self) -> None:
        """Refuse shares outside their range."""
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie in (0, 1), got {self.alpha}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must lie in [0, 1), got {self.tolerance}")
        shares = {
            "rounds": self.rounds,
            "clients": self.clients,
            "calibration_ratio": self.calibration_ratio,
        }
        for name, share in shares.items():
            if not 0 < share <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {share}")

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return the recovered model, or ``model`` if the leavers never took part."""
        influence, total = influence_before(ctx.history, ctx.forget, model)
        if not total:
            return model.copy()
        selected = self._selected(ctx.history)
        little = [t for t in selected if influence[t] <= self.tolerance * total]
        w, server = ctx.history.round(little[-1]).broadcast.copy(), ctx.new_server()
        for t in (t for t in selected if t >= little[-1]):
            record = ctx.history.round(t)
            if not (ids := ctx.staying(selected[t])):
                continue
            if t == little[-1]:
                stored = record.updates_of(ids)
                sizes = record.examples_of(ids)
                updates = Updates.of_deltas(w, stored, ids, sizes, round_index=t)
            else:
                epochs = self.calibration_ratio * ctx.schedule.epochs
                fresh = ctx.clients.train(w, ids, round_index=t, epochs=epochs)
                stored = record.updates_of(fresh.clients)
                updates = replace(fresh, after=w + rescaled(fresh.deltas, stored))
            w = server.step(updates)
        return w

    def _selected(self, history: UpdateHistory) -> dict[int, tuple[ClientId, ...]]:
        """Return round -> whose updates; the first round is there in any case."""
        losses = [record.loss for record in records(history)]
        plan: Mapping[int, Keep] = {}
        if None not in losses:
            plan = Selection(self.alpha, self.rounds, self.clients).later(history)
        held, selected = history.holds.broadcasts, {}
        for t in (t for t in history.rounds if t in held):
            keep, kept = plan.get(t, Keep()), history.round(t).kept
            if keep.broadcast:
                whose = kept if keep.updates is None else keep.updates
                selected[t] = tuple(c for c in kept if c in whose)
        return selected
