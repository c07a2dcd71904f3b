"""The main job: train, let somebody leave, unlearn by every method, compare."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedunlearn.errors import ConfigError, RequirementError
from fedunlearn.method import UnlearningMethod
from fedunlearn.report import RETRAIN, TRAINED
from simulations.comparison import Comparison, HistoryStats, Row
from simulations.engine import SimulationGrid, identify
from simulations.engine.kernels import AUTO
from simulations.engine.kernels.compiled import available
from simulations.evaluate import Evaluator
from simulations.events import Listener, tell
from simulations.noise import noise_floor
from simulations.prepare import Prepared, open_grid, prepare
from simulations.run_folder import RunFolder
from simulations.runs import JOINT, Runs
from simulations.scenario import Scenario
from simulations.train import Trained
from strategies import Retrain
from strategies.directory import Directory

_LABEL = re.compile(r"[A-Za-z0-9_.@+-]{1,64}")


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What one seed came to.

    Attributes:
        rows: One a method.
        history: What was recorded.
        curve: Test accuracy after round 0, 1, ...
        noise: Its numerical noise floor, if it was measured.
    """

    rows: tuple[Row, ...]
    history: HistoryStats
    curve: tuple[float, ...]
    noise: float | None


def compare(
    scenario: Scenario,
    methods: Mapping[str, UnlearningMethod] | None = None,
    out: str | Path | None = None,
    listeners: tuple[Listener, ...] = (),
    *,
    resume: bool = False,
) -> Comparison:
    """Run a scenario.

    Args:
        scenario: What to train and who leaves.
        methods: Label -> method; None takes the scenario's own. ``trained`` and
            ``retrain`` are always compared.
        out: Folder for the run's files and its history; None keeps all in memory.
        listeners: Told what happens.
        resume: Whether ``out`` holds a run of this scenario that was stopped, to be
            continued to the same bits.

    Raises:
        RequestError: If the scenario or a method cannot be served; nothing was trained.
        RunError: If the run failed.
    """
    chosen = _chosen(scenario.methods if methods is None else methods)
    prepared = prepare(scenario)
    _check_requests(prepared, chosen)
    chosen |= _jointly(prepared, chosen)
    if scenario.engine.kernel == AUTO and available() is None:
        tell(listeners, "no_compiler", kernel=prepared.scenario.engine.kernel)
    if out is None:
        return _compared(prepared, chosen, None, listeners)
    make = RunFolder.reopen if resume else RunFolder.create
    folder = make(Path(out), prepared.scenario)
    listeners = (*listeners, folder.log)
    with folder.locked():
        if resume:
            tell(listeners, "resume", changed=list(folder.changed_packages()))
        comparison = _compared(prepared, chosen, folder, listeners)
        folder.write(comparison)
    return comparison


def _compared(
    prepared: Prepared,
    chosen: Mapping[str, UnlearningMethod],
    folder: RunFolder | None,
    listeners: tuple[Listener, ...],
) -> Comparison:
    scenario = prepared.scenario
    seeds = scenario.outline.seeds
    tell(
        listeners,
        "run",
        seeds=list(seeds),
        phases=len(seeds) * (1 + len(chosen)),
        kernel=scenario.engine.kernel,
    )
    number = len(prepared.task.clients)
    evaluator, directory = Evaluator(prepared), Directory(identify)

    def run(seed: int, grid: SimulationGrid) -> SeedResult:
        runs = Runs(prepared, evaluator, grid, directory, listeners, folder)
        with runs.history(seed) as history:
            trained = runs.train(seed, history)
            rows = tuple(runs.rows(seed, trained, chosen))
            noise = _noise(runs, trained) if seed == seeds[0] else None
            curve = trained.accuracy_by_round
            return SeedResult(rows, _stats(trained), curve, noise)

    with open_grid(prepared) as grid:
        calls = [partial(run, seed) for seed in seeds]
        if scenario.engine.lockstep > 1:
            results = grid.in_lockstep(scenario.engine.lockstep, calls)
        else:
            results = [call(grid) for call in calls]
    return Comparison(
        scenario={**scenario.resolved, "clients": number},
        rows=tuple(row for result in results for row in result.rows),
        history=results[0].history,
        noise_floor=results[0].noise,
        accuracy_by_round={
            seed: result.curve for seed, result in zip(seeds, results, strict=True)
        },
        client_names=prepared.federation.names,
        label_counts=prepared.federation.label_counts(),
        forget=tuple(sorted(prepared.request.clients)),
    )


def _noise(runs: Runs, trained: Trained) -> float | None:
    """Return the noise floor, measured now or before the run was stopped."""
    if not runs.prepared.scenario.engine.noise_floor:
        return None
    folder, seed = runs.folder, trained.schedule.seed
    noise = None if folder is None else folder.noise(seed)
    if noise is None:
        noise = noise_floor(runs, trained)
        if folder is not None:
            folder.save_noise(seed, noise)
    return noise


def _check_requests(prepared: Prepared, chosen: Mapping[str, UnlearningMethod]) -> None:
    """Refuse several requests to a method that trains some shards again.

    Its rounds hold those shards alone: the next request would miss the others.
    """
    some = [label for label, method in chosen.items() if method.requires.shards]
    if some and len(prepared.removals) > 1:
        raise RequirementError(
            f"method {some[0]!r} serves one request, the scenario has "
            f"{len(prepared.removals)}: its history would lack the shards it leaves"
        )


def _jointly(
    prepared: Prepared, chosen: Mapping[str, UnlearningMethod]
) -> dict[str, UnlearningMethod]:
    """Return the methods once more, to be asked everything at once, where that differs.

    That needs several requests and all of them after training.
    """
    total = prepared.scenario.outline.rounds
    if len(prepared.removals) == 1 or any(r.after < total for r in prepared.removals):
        return {}
    return {f"{label}{JOINT}": method for label, method in chosen.items()}


def _chosen(methods: Mapping[str, UnlearningMethod]) -> dict[str, UnlearningMethod]:
    """Return the methods with retraining first; refuse labels no file can bear."""
    for label in methods:
        if not _LABEL.fullmatch(label) or label == TRAINED:
            raise ConfigError(
                f"a method cannot be labelled {label!r}: use up to 64 letters, digits "
                f"and _.@+-, and not {TRAINED!r}"
            )
    if not isinstance(methods.get(RETRAIN, Retrain()), Retrain):
        raise ConfigError(
            f"{RETRAIN!r} is the reference all others are compared with: give your "
            "method another label"
        )
    return {RETRAIN: Retrain(), **methods}


def _stats(trained: Trained) -> HistoryStats:
    history = trained.history
    contributors = {c for i in history.rounds for c in history.round(i).clients}
    return HistoryStats(
        rounds=len(history.rounds),
        clients=len(contributors),
        bytes=trained.cost.history_bytes,
    )
