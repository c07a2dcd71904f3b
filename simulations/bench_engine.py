"""``fedunlearn bench engine``: this engine against others, side by side."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from fedunlearn.errors import ConfigError, RunError, UnknownNameError
from simulations.cores import usable_cores
from simulations.engine_bench.child import Child, Command
from simulations.engine_bench.contestant import (
    CONTESTANTS,
    Measured,
    agreement,
    command_of,
    race,
)
from simulations.engine_bench.serve import Entry
from simulations.engine_bench.workloads import WORKLOADS

OURS, TORCH, RAY, FLOOR = "ours", "ours_torch", "ours_torch_ray", "floor"
"""Our kernel on threads; without a compiler on threads, and on Ray actors; no rival."""
LOCKSTEP = "W4"
AGREEMENT = {"W2": 0.02}
"""How far final models may lie apart, relative to the way the first one went, where it
is not 0.001: a pooling that flips moves the path of a convolutional network."""
NAMES = (*WORKLOADS, LOCKSTEP)
QUICKSTART = Path("configs/scenario/quickstart.yaml")
_SEEDS = 32


def measure(
    workload: str,
    against: Sequence[str],
    *,
    rounds: int,
    scale: float = 1.0,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Race on one workload.

    Args:
        workload: One of ``NAMES``.
        against: Names of other contestants; ``floor`` is the time of the workload's
            matrix products alone.
        rounds: Timed rounds of each.
        scale: Fraction of the workload's clients, for a quick look.
        tell: Told what happens, in a sentence.

    Returns:
        The JSON of ``fedunlearn bench engine``.

    Raises:
        UnknownNameError: If nobody knows the workload or a contestant.
        RunError: If a contestant fails or computes another model.
    """
    if workload == LOCKSTEP:
        return lockstep(runs=max(1, rounds // 3), scale=scale, tell=tell)
    if workload not in WORKLOADS:
        raise UnknownNameError.of("workload", workload, NAMES)
    entry = Entry(workload=workload, scale=scale, cpus=usable_cores())
    commands, missing = _commands(entry, against)
    for name, reason in missing.items():
        tell(f"{name}: {reason}")
    tell(f"{workload}: {', '.join(commands)}, {rounds} rounds each by turns")
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(Child(command))
            for name, command in commands.items()
        }
        measured = race(children, rounds=rounds, warmup=1)
    spread = _agreement(entry, measured)
    return _results(workload, measured, missing, spread)


def _commands(
    entry: Entry, against: Sequence[str]
) -> tuple[dict[str, Command], dict[str, str]]:
    """Return how contestants are started, and why others cannot race."""
    found = {
        OURS: ours(entry, "auto"),
        TORCH: ours(entry, _torch_kernel(entry)),
        RAY: ours(entry, _torch_kernel(entry), workers=entry.cpus),
    }
    missing = {}
    for name in against:
        if name not in CONTESTANTS:
            raise UnknownNameError.of("contestant", name, CONTESTANTS)
        made = CONTESTANTS[name](entry)
        if isinstance(made, Command):
            found[name] = made
        else:
            missing[name] = made
    return found, missing


def ours(entry: Entry, kernel: str, workers: int = 0) -> Command:
    """Return how our own engine is started with a kernel."""
    command = command_of("run_ours", entry)
    return replace(command, argv=(*command.argv, kernel, str(workers)))


def _torch_kernel(entry: Entry) -> str:
    """Return the kernel that is chosen where no compiler was."""
    from simulations.engine.kernels import choose, find_device

    task = entry.load().scaled(1 / entry.load().clients).task()
    return choose(task, find_device("cpu"), compiled=False)


def _agreement(entry: Entry, measured: Mapping[str, Measured]) -> float:
    task = entry.load().scaled(1 / entry.load().clients).task()
    models = [m.model for name, m in measured.items() if name != FLOOR]
    spread = agreement(task.initial_model(entry.seed), models)
    if not spread <= AGREEMENT.get(entry.workload, 1e-3):
        raise RunError(
            f"the contestants did not compute the same: their models lie {spread:.2%} "
            "of the way apart"
        )
    return spread


def _results(
    workload: str,
    measured: Mapping[str, Measured],
    missing: Mapping[str, str],
    spread: float,
) -> dict[str, Any]:
    medians = {name: median(m.seconds) for name, m in measured.items()}
    rivals = [name for name in medians if name not in (OURS, TORCH, RAY, FLOOR)]
    torch = min(medians[TORCH], medians[RAY])
    floor = medians.get(FLOOR)
    return {
        "workload": workload,
        "contestants": {
            name: {
                "median_s": medians[name],
                "kernel_s": median(m.kernel_seconds) if m.kernel_seconds else None,
                "runs": len(m.seconds),
                "peak_mb": m.peak_mb,
                "first_round_s": m.first_round_seconds,
            }
            for name, m in measured.items()
        },
        "missing": dict(missing),
        "ratios": {name: medians[name] / medians[OURS] for name in rivals},
        "torch_ratios": {name: medians[name] / torch for name in rivals},
        "floor_fraction": None if floor is None else floor / medians[OURS],
        "torch_floor_fraction": None if floor is None else floor / torch,
        "agreement": spread,
    }


# Lockstep of seeds -------------------------------------------------------------------


def lockstep(
    *, runs: int, scale: float = 1.0, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Time the quickstart with one seed and with many in lockstep, as commands.

    Raises:
        ConfigError: If it is not run in the project's folder.
        RunError: If a run fails.
    """
    seeds = max(2, round(_SEEDS * scale))
    many = str(list(range(seeds))).replace(" ", "")
    commands = {
        "one_seed": ("seeds=[0]",),
        "lockstep": (f"seeds={many}", f"engine.lockstep={seeds}"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    tell(f"{LOCKSTEP}: the quickstart with 1 and with {seeds} seeds, {runs} times each")
    for _ in range(runs):
        for name, overrides in commands.items():
            seconds[name].append(_quickstart(overrides))
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "workload": LOCKSTEP,
        "seeds": seeds,
        "contestants": {
            name: {"median_s": medians[name], "kernel_s": None, "runs": runs}
            for name in commands
        },
        "ratios": {"one_seed": medians["lockstep"] / medians["one_seed"]},
        "floor_fraction": None,
    }


def _quickstart(overrides: Sequence[str]) -> float:
    """Return the seconds the command takes, from its start to its end."""
    if not QUICKSTART.is_file():
        raise ConfigError(f"{LOCKSTEP} runs {QUICKSTART}: call it where that file is")
    with TemporaryDirectory(prefix="fedunlearn-") as folder:
        run = (sys.executable, "-m", "simulations", "run", str(QUICKSTART))
        out = ("--out", str(Path(folder) / "run"))
        begin = time.perf_counter()
        done = subprocess.run(  # noqa: S603 - this interpreter, our own words
            (*run, *overrides, *out), capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - begin
    if done.returncode:
        raise RunError(f"the quickstart failed: {done.stderr.strip()[-300:]}")
    return seconds


# What people see ---------------------------------------------------------------------


def table(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return heads and rows for a person."""
    heads = ("", "round\ns", "kernel\ns", "over\nours", "first round\ns", "MB")
    if results["workload"] == LOCKSTEP:
        heads = ("", "command\ns", "", "times\none seed", "", "")
    base = "one_seed" if results["workload"] == LOCKSTEP else OURS
    own = results["contestants"][base]["median_s"]
    rows: list[tuple[str, ...]] = []
    for name, found in results["contestants"].items():
        rows.append(
            (
                str(name),
                f"{found['median_s']:.4g}",
                _cell(found.get("kernel_s"), ".4g"),
                f"{found['median_s'] / own:.3g}",
                _cell(found.get("first_round_s"), ".1f"),
                _cell(found.get("peak_mb"), ".0f"),
            )
        )
    return heads, rows


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
