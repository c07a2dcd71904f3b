"""How well does each method unlearn when less of the history is kept?

One training a seed is recorded exactly. Its rounds are then copied, record by record,
into histories that keep less of them, and every method that such a history can still
serve unlearns from it. The reference is one retraining a seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedunlearn.cost import run_unlearning
from fedunlearn.errors import ConfigError
from fedunlearn.history import DiskHistory, UpdateHistory, records
from fedunlearn.metered_history import MeteredHistory
from fedunlearn.method import UnlearningContext, UnlearningMethod, unmet_requirements
from fedunlearn.params import Vector, sha256
from fedunlearn.report import RETRAIN, TRAINED
from fedunlearn.rng import derive
from simulations.bench_rows import Cell, Key, RowFile, SweepRow, gaps
from simulations.comparison import Row
from simulations.engine import identify
from simulations.evaluate import Evaluator
from simulations.events import Listener, tell
from simulations.prepare import open_grid, prepare
from simulations.run_folder import RunFolder, environment
from simulations.runs import Runs
from simulations.scenario import Scenario
from simulations.train import Trained, quiet_flower
from simulations.watched import WatchedClients
from strategies import Retrain
from strategies.directory import Directory

SCHEMA = "fedunlearn-history-sweep/v1"
EXACT = ("history.codec=float32", "history.retention=all", "history.sealed=false")
"""Overrides with which a scenario is recorded, so that it can be thinned later."""


def sweep(
    scenario: Scenario,
    chosen: Sequence[Cell],
    out: Path,
    listeners: tuple[Listener, ...] = (),
) -> dict[str, Any]:
    """Train each seed once, unlearn from every thinned history; return all results.

    Args:
        scenario: Loaded with the overrides ``EXACT``.
        chosen: How to keep the history.
        out: Folder of the sweep. What it holds of the same sweep is not done again.
        listeners: Told what happens.

    Raises:
        RequestError: If the scenario cannot be served or ``out`` is another run's.
    """
    methods, prepared = readers(scenario), prepare(scenario)
    make = RunFolder.reopen if (out / "config.yaml").exists() else RunFolder.create
    scenario = prepared.scenario
    folder = make(out, scenario)
    listeners, seeds = (*listeners, folder.log), scenario.outline.seeds
    number = len(prepared.task.clients)
    tell(listeners, "run", seeds=list(seeds), phases=len(seeds) * (2 + len(chosen)))
    references: list[Row] = []
    rows: list[SweepRow] = []
    with folder.locked(), open_grid(prepared) as grid:
        done = RowFile(out / "rows.jsonl")
        runs = Runs(
            prepared, Evaluator(prepared), grid, Directory(identify), listeners, folder
        )
        for seed in seeds:
            with runs.history(seed) as history:
                bench = Bench.of(runs, done, runs.train(seed, history), folder)
                references += bench.references.values()
                for cell in chosen:
                    rows += bench.rows(cell, methods)
    return {
        "schema": SCHEMA,
        "scenario": {**scenario.resolved, "clients": number},
        "environment": environment(),
        "full_bytes": references[0].cost.history_bytes,
        "references": [row.as_dict() for row in references],
        "rows": [asdict(row) for row in rows],
    }


def readers(scenario: Scenario) -> dict[str, UnlearningMethod]:
    """Return the scenario's methods that need something of a history.

    Raises:
        ConfigError: If there is none.
    """
    needs = {label: method.requires for label, method in scenario.methods.items()}
    found = {
        label: method
        for label, method in scenario.methods.items()
        if not isinstance(method, Retrain)
        and (needs[label].updates, needs[label].broadcasts) != ("none", "none")
    }
    if not found:
        raise ConfigError(
            "none of the scenario's methods reads a history: name some, such as "
            "methods=[rollback,fed_eraser,subtract]"
        )
    return found


@contextmanager
def thinned(exact: UpdateHistory, cell: Cell) -> Iterator[DiskHistory]:
    """Lend a copy that keeps less of a history that holds everything."""
    with (
        TemporaryDirectory(prefix="fedunlearn-") as folder,
        DiskHistory.create(
            Path(folder) / "history",
            exact.layout,
            sealed=False,
            codec=cell.codec,
            retention=cell.retention,
        ) as copy,
    ):
        tip = exact.tip
        for record in records(exact):
            at_tip = tip is not None and tip.round == record.index
            copy.append_round(record, tip.state if tip and at_tip else None)
        yield copy


@dataclass(frozen=True, slots=True)
class Bench:
    """One seed of a sweep.

    Attributes:
        runs: What all seeds share.
        done: The finished rows of all seeds.
        trained: The seed's training, recorded exactly.
        references: The rows of its trained and its retrained model.
        retrained: The latter, shape ``(P,)``.
    """

    runs: Runs
    done: RowFile
    trained: Trained
    references: Mapping[str, Row]
    retrained: Vector

    @classmethod
    def of(
        cls, runs: Runs, done: RowFile, trained: Trained, folder: RunFolder
    ) -> "Bench":
        """Retrain, unless a stopped sweep did, and measure both models."""
        seed = trained.schedule.seed
        both = runs.rows(seed, trained, {RETRAIN: Retrain()})
        references = {row.method: row for row in both}
        retrained = folder.model(seed, RETRAIN, trained.history.layout)
        return cls(runs, done, trained, references, retrained)

    def rows(
        self, cell: Cell, methods: Mapping[str, UnlearningMethod]
    ) -> list[SweepRow]:
        """Return the rows of all methods on one thinned history."""
        seed = self.trained.schedule.seed
        keys = {label: (seed, label, cell) for label in methods}
        if not self.done.rows.keys() >= set(keys.values()):
            with thinned(self.trained.history, cell) as history:
                for label, key in keys.items():
                    if key not in self.done.rows:
                        self.done.add(self._row(key, methods[label], history))
        tell(self.runs.listeners, "done", phase=str(cell), seed=seed)
        return [self.done.rows[key] for key in keys.values()]

    def _row(
        self, key: Key, method: UnlearningMethod, history: DiskHistory
    ) -> SweepRow:
        seed, label, cell = key
        base = self.references[RETRAIN].metrics
        row = SweepRow(
            seed=seed,
            method=label,
            codec=cell.codec,
            retention=cell.retention,
            stored_bytes=history.holds.nbytes,
            peak_bytes=history.holds.peak_bytes,
            nothing=gaps(self.references[TRAINED].metrics, base),
        )
        context = self._context(label, history)
        if unmet := unmet_requirements(method, context):
            return replace(row, needs=" and ".join(unmet))
        if twin := self.done.twin(key):
            return replace(
                twin,
                codec=cell.codec,
                stored_bytes=row.stored_bytes,
                peak_bytes=row.peak_bytes,
                same_as=twin.codec,
            )
        tell(self.runs.listeners, "method", method=f"{label}, {cell}", seed=seed)
        return self._ran(row, method, context)

    def _ran(
        self, row: SweepRow, method: UnlearningMethod, context: UnlearningContext
    ) -> SweepRow:
        read = MeteredHistory(context.history)
        with quiet_flower():
            outcome = run_unlearning(
                method, self.trained.model, replace(context, history=read)
            )
        metrics = self.runs.evaluator.measure(
            outcome.model, self.retrained, self.trained.initial
        )
        return replace(
            row,
            reads_updates=any(index > 0 and at >= 0 for index, at in read.read),
            read_bytes=outcome.cost.history_bytes,
            client_rounds=outcome.cost.client_rounds,
            seconds=outcome.cost.wall_seconds,
            metrics=metrics,
            gaps=gaps(metrics, self.references[RETRAIN].metrics),
            model_sha256=sha256(outcome.model),
        )

    def _context(self, label: str, history: UpdateHistory) -> UnlearningContext:
        """Return what a comparison gives its methods, with another history."""
        context = self.runs.context(self.trained, history)
        seed, rounds = self.trained.schedule.seed, self.trained.schedule.rounds
        watched = WatchedClients(context.clients, self.runs.listeners, rounds)
        return replace(context, clients=watched, rng=derive(seed, f"method {label}"))
