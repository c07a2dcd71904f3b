"""One seed of a comparison: history, training, every method, its row."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from fedunlearn.client import VIEW
from fedunlearn.cost import UnlearningOutcome
from fedunlearn.errors import FedUnlearnError, RequirementError, RunError
from fedunlearn.history import ClientId, DiskHistory, InMemoryHistory, UpdateHistory
from fedunlearn.method import (
    Clients,
    UnlearningContext,
    UnlearningMethod,
    unmet_requirements,
)
from fedunlearn.params import sha256
from fedunlearn.report import RETRAIN, TRAINED
from fedunlearn.rng import derive
from simulations.comparison import Row
from simulations.engine import SimulationGrid
from simulations.evaluate import Evaluator
from simulations.events import Listener, tell
from simulations.journal import JournaledClients, close_journal
from simulations.patient_files import PatientFiles
from simulations.prepare import Prepared
from simulations.run_folder import RunFolder
from simulations.sequence import Removal, run_removals
from simulations.train import Curve, Trained, clock_of, quiet_flower, train
from simulations.watched import WatchedClients
from strategies import METHODS
from strategies.directory import Directory
from strategies.flower_server import client_config
from strategies.grid_clients import GridClients
from strategies.server_rules import server_of

JOINT = "+joint"
"""Ends the label of a method that is asked all requests at once."""


@dataclass(frozen=True, slots=True)
class Runs:
    """What all seeds of a comparison share."""

    prepared: Prepared
    evaluator: Evaluator
    grid: SimulationGrid
    directory: Directory
    listeners: tuple[Listener, ...]
    folder: RunFolder | None

    @contextmanager
    def history(self, seed: int) -> Iterator[InMemoryHistory | DiskHistory]:
        """Return a seed's history: a new one, or the one a stopped run left."""
        layout, how = self.prepared.task.layout, self.prepared.scenario.history
        plain = (how.codec, how.retention) == ("float32", "all")
        if self.folder is None and plain:
            yield InMemoryHistory(layout)
            return
        with ExitStack() as stack:
            if self.folder is None:
                path = Path(stack.enter_context(TemporaryDirectory())) / "history"
            else:
                path = self.folder.history(seed)
            history = DiskHistory.create(
                path,
                layout,
                sealed=how.sealed,
                codec=how.codec,
                retention=how.retention,
                names=self._names(),
                exist_ok=True,
                files=PatientFiles(self.grid),
            )
            yield stack.enter_context(history)

    def _names(self) -> dict[ClientId, str]:
        """Return the clients' names where they say more than the id."""
        names = enumerate(self.prepared.federation.names)
        return {client: name for client, name in names if name != str(client)}

    def train(self, seed: int, history: InMemoryHistory | DiskHistory) -> Trained:
        """Train one seed."""
        tell(self.listeners, "train", seed=seed)
        trained = train(
            self.prepared,
            seed,
            self.grid,
            history,
            directory=self.directory,
            curve=self._curve(seed),
            listeners=self.listeners,
        )
        tell(self.listeners, "done", phase="train", seed=seed)
        return trained

    def _curve(self, seed: int) -> Curve:
        layout = self.prepared.task.layout
        if self.folder is None:
            return Curve(self.evaluator, layout)
        known = self.folder.curve(seed)
        return Curve(self.evaluator, layout, list(known.values), known.add)

    def rows(
        self, seed: int, trained: Trained, methods: Mapping[str, UnlearningMethod]
    ) -> Iterator[Row]:
        """Yield a seed's rows: the trained model, retraining, every other method."""
        context = self.context(trained, trained.history)
        _check_all(methods, context)
        retrained = self._known(seed, RETRAIN) or self._unlearn(
            RETRAIN, methods[RETRAIN], trained, context
        )
        outcomes: dict[str, Callable[[], UnlearningOutcome]] = {
            TRAINED: lambda: UnlearningOutcome(trained.model, trained.cost),
            RETRAIN: lambda: retrained,
        }
        for label, method in methods.items():
            if label != RETRAIN:
                run = partial(self._unlearn, label, method, trained, context)
                outcomes[label] = run
        for label, outcome in outcomes.items():
            row = None if self.folder is None else self.folder.row(seed, label)
            yield row or self._row(label, seed, outcome(), retrained, trained)
            if self.folder is not None:
                close_journal(self.folder.journal(seed, label))

    def _known(self, seed: int, label: str) -> UnlearningOutcome | None:
        """Return what a method came to before the run was stopped."""
        row = None if self.folder is None else self.folder.row(seed, label)
        if row is None or self.folder is None:
            return None
        layout = self.prepared.task.layout
        return UnlearningOutcome(self.folder.model(seed, label, layout), row.cost)

    def context(self, trained: Trained, history: UpdateHistory) -> UnlearningContext:
        """Return what a method of one seed may look at."""
        prepared = self.prepared
        seed, rule, layout = (
            trained.schedule.seed,
            prepared.scenario.server,
            prepared.task.layout,
        )
        remaining, leavers = _parted(self._everybody(trained), prepared.shrunk)
        online = prepared.scenario.outline.leavers_online
        return UnlearningContext(
            history=history,
            forget=prepared.forget,
            clients=remaining,
            leavers=leavers if online else None,
            request=prepared.request,
            shrunk=prepared.shrunk,
            server_data=prepared.server_problem(seed),
            schedule=trained.schedule,
            new_server=partial(server_of, rule, layout, prepared.task.shards),
            layout=layout,
            rng=derive(seed, "method"),
        )

    def without_request(self, trained: Trained) -> UnlearningContext:
        """Return the context of a seed in which nobody leaves."""
        return replace(
            self.context(trained, trained.history),
            forget=frozenset(),
            shrunk=frozenset(),
            clients=self._everybody(trained),
        )

    def _everybody(self, trained: Trained) -> GridClients:
        """Return all clients with all their data."""
        layout = self.prepared.task.layout
        with quiet_flower():
            rule = self.prepared.scenario.server.strategy()
            extra = client_config(rule, trained.initial, layout)
        return GridClients(
            grid=self.grid,
            layout=layout,
            config={**extra, "seed": trained.schedule.seed},
            directory=self.directory,
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
        with self._journaled(seed, label, context.clients) as (clients, saved):
            watched = WatchedClients(clients, self.listeners, rounds)
            own = replace(context, clients=watched, rng=derive(seed, f"method {label}"))
            with quiet_flower(), _named(label):
                clock = clock_of(self.prepared, seed)
                removals = self._removals(label)
                outcome = run_removals(
                    method, trained.model, own, removals, label, clock
                )
        seconds = outcome.cost.wall_seconds + saved()
        outcome = replace(outcome, cost=replace(outcome.cost, wall_seconds=seconds))
        tell(
            self.listeners,
            "done",
            phase=label,
            seed=seed,
            seconds=outcome.cost.wall_seconds,
        )
        return outcome

    def _removals(self, label: str) -> tuple[Removal, ...]:
        """Return what a row's method is asked, one after another or all at once."""
        prepared = self.prepared
        if not label.endswith(JOINT):
            return prepared.removals
        rounds = prepared.scenario.outline.rounds
        return (Removal(prepared.request, prepared.forget, rounds),)

    @contextmanager
    def _journaled(
        self, seed: int, label: str, clients: Clients
    ) -> Iterator[tuple[Clients, Callable[[], float]]]:
        """Yield clients whose answers are kept, and the seconds that this saved."""
        if self.folder is None:
            yield clients, lambda: 0.0
            return
        path, layout = self.folder.journal(seed, label), self.prepared.task.layout
        with JournaledClients(clients, path, layout) as kept:
            yield kept, lambda: kept.saved_seconds

    def _row(
        self,
        label: str,
        seed: int,
        outcome: UnlearningOutcome,
        retrained: UnlearningOutcome,
        trained: Trained,
    ) -> Row:
        row = Row(
            method=label,
            seed=seed,
            metrics=self.evaluator.measure(
                outcome.model, retrained.model, trained.initial
            ),
            cost=outcome.cost,
            ratio_to_retrain=outcome.cost.ratio_to(retrained.cost),
            model_sha256=sha256(outcome.model),
        )
        if self.folder is not None:
            self.folder.save_row(row, trained.history.layout, outcome.model)
        return row


def _parted(
    everybody: GridClients, shrunk: frozenset[ClientId]
) -> tuple[GridClients, GridClients]:
    """Return the clients with what remains, and with what is to be forgotten.

    Where whole clients leave, all of one's data is of one kind and orders say nothing.
    """
    if not shrunk:
        return everybody, everybody
    views = ("remaining", "forgotten")
    remaining, forgotten = (
        replace(everybody, config={**everybody.config, VIEW: view}) for view in views
    )
    return remaining, forgotten


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
