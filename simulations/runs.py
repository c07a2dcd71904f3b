"""One seed of a comparison: history, training, every method, its row."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace

from flwr.serverapp import Grid

from fedunlearn.cost import UnlearningOutcome, run_unlearning
from fedunlearn.errors import FedUnlearnError, RequirementError, RunError
from fedunlearn.history import ClientId, DiskHistory, InMemoryHistory
from fedunlearn.method import (
    RemainingClients,
    UnlearningContext,
    UnlearningMethod,
    unmet_requirements,
)
from fedunlearn.params import Vector, sha256
from fedunlearn.report import RETRAIN, TRAINED
from fedunlearn.rng import derive
from fedunlearn.updates import Updates
from simulations.comparison import Row
from simulations.evaluate import Evaluator
from simulations.events import Listener, tell
from simulations.prepare import Prepared
from simulations.run_folder import RunFolder
from simulations.train import Trained, quiet_flower, train
from strategies import METHODS
from strategies.directory import Directory
from strategies.flower_server import FlowerServer, client_config
from strategies.remaining import GridClients


@dataclass(frozen=True, slots=True)
class Runs:
    """What all seeds of a comparison share."""

    prepared: Prepared
    evaluator: Evaluator
    grid: Grid
    directory: Directory
    listeners: tuple[Listener, ...]
    folder: RunFolder | None

    def history(self, seed: int) -> closing[DiskHistory] | nullcontext[InMemoryHistory]:
        """Return an empty history for a seed."""
        layout = self.prepared.task.layout
        if self.folder is None:
            return nullcontext(InMemoryHistory(layout))
        return closing(DiskHistory.create(self.folder.history(seed), layout))

    def train(self, seed: int, history: InMemoryHistory | DiskHistory) -> Trained:
        """Train one seed."""
        tell(self.listeners, "train", seed=seed)
        trained = train(
            self.prepared,
            seed,
            self.grid,
            history,
            directory=self.directory,
            evaluator=self.evaluator,
            listeners=self.listeners,
        )
        tell(self.listeners, "done", phase="train", seed=seed)
        return trained

    def rows(
        self, seed: int, trained: Trained, methods: Mapping[str, UnlearningMethod]
    ) -> Iterator[Row]:
        """Yield a seed's rows: the trained model, retraining, every other method."""
        context = self._context(seed, trained)
        _check_all(methods, context)
        retrained = self._unlearn(RETRAIN, methods[RETRAIN], trained, context)
        before = UnlearningOutcome(trained.model, trained.cost)
        yield self._row(TRAINED, seed, before, retrained, trained)
        yield self._row(RETRAIN, seed, retrained, retrained, trained)
        for label, method in methods.items():
            if label != RETRAIN:
                outcome = self._unlearn(label, method, trained, context)
                yield self._row(label, seed, outcome, retrained, trained)

    def _context(self, seed: int, trained: Trained) -> UnlearningContext:
        task, rule = self.prepared.task, self.prepared.scenario.server
        layout = task.layout
        with quiet_flower():
            extra = client_config(rule.strategy(), trained.initial, layout)

        def new_server() -> FlowerServer:
            return FlowerServer(rule.strategy(), layout, rule.stateful)

        return UnlearningContext(
            history=trained.history,
            forget=self.prepared.forget,
            clients=GridClients(
                grid=self.grid,
                layout=layout,
                config={**extra, "seed": seed},
                directory=self.directory,
            ),
            schedule=trained.schedule,
            new_server=new_server,
            layout=layout,
            rng=derive(seed, "method"),
        )

    def _unlearn(
        self,
        label: str,
        method: UnlearningMethod,
        trained: Trained,
        context: UnlearningContext,
    ) -> UnlearningOutcome:
        seed, rounds = trained.schedule.seed, trained.schedule.rounds
        tell(self.listeners, "method", method=label, seed=seed)
        watched = WatchedClients(context.clients, self.listeners, rounds)
        own = replace(context, clients=watched, rng=derive(seed, f"method {label}"))
        with quiet_flower(), _named(label):
            outcome = run_unlearning(method, trained.model, own)
        tell(
            self.listeners,
            "done",
            phase=label,
            seed=seed,
            seconds=outcome.cost.wall_seconds,
        )
        return outcome

    def _row(
        self,
        label: str,
        seed: int,
        outcome: UnlearningOutcome,
        retrained: UnlearningOutcome,
        trained: Trained,
    ) -> Row:
        if self.folder is not None:
            self.folder.save_model(seed, label, outcome.model, trained.history.layout)
        return Row(
            method=label,
            seed=seed,
            metrics=self.evaluator.measure(
                outcome.model, retrained.model, trained.initial
            ),
            cost=outcome.cost,
            ratio_to_retrain=outcome.cost.ratio_to(retrained.cost),
            model_sha256=sha256(outcome.model),
        )


@dataclass(frozen=True, slots=True)
class WatchedClients:
    """Remaining clients whose trainings move a progress bar.

    Attributes:
        inner: The clients.
        listeners: Told of every training.
        rounds: Trainings a phase takes at most, for the size of a step.
    """

    inner: RemainingClients
    listeners: tuple[Listener, ...]
    rounds: int

    @property
    def ids(self) -> frozenset[ClientId]:
        """Everybody who is there."""
        return self.inner.ids

    def train(
        self,
        model: Vector,
        ids: Collection[ClientId],
        *,
        round_index: int,
        epochs: float | None = None,
    ) -> Updates:
        """Train through ``inner``."""
        updates = self.inner.train(model, ids, round_index=round_index, epochs=epochs)
        tell(self.listeners, "tick", rounds=self.rounds)
        return updates


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Say which method an error comes from; a fault of its code fails the run."""
    try:
        yield
    except FedUnlearnError as error:
        raise type(error)(f"method {label!r}: {error}") from error
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
        raise RunError(f"method {label!r} failed: {fault}") from error


def _check_all(
    methods: Mapping[str, UnlearningMethod], context: UnlearningContext
) -> None:
    """Raise RequirementError before any unlearning if a method cannot be served."""
    for label, method in methods.items():
        if unmet := unmet_requirements(method, context):
            able = [
                name
                for name, known in METHODS.items()
                if not unmet_requirements(known(), context)
            ]
            raise RequirementError(
                f"method {label!r} needs {' and '.join(unmet)}; what works here: "
                f"{', '.join(able) or 'no method'}"
            )
