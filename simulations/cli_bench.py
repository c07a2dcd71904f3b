"""``fedunlearn bench``: measure what a scenario does not answer by one run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from fedunlearn.errors import ConfigError
from simulations.cli_common import Debug, Format, FormatOption, echo_json, errors

bench = typer.Typer(no_args_is_help=True, help="Measurements over many settings.")

SMOKE = """\
name: smoke
seeds: [0]
rounds: 6
clients: 4
forget: [3]
data: {name: digits}
model: {name: softmax}
training: {epochs: 1, batch_size: 64, lr: 0.2}
backdoor: {fraction: 0.5, target: 0, size: 2}
methods: [rollback, fed_eraser, fed_eraser@kept, subtract, subtract@recover]
fed_eraser@kept: {interval: 1, select: kept}
subtract@recover: {recovery_rounds: 1}
"""
"""The scenario of ``--smoke``: says nothing about the methods, runs in seconds."""
SMOKE_SCALE = 0.04
"""Fraction of a workload's clients with ``--smoke``."""


@bench.command("history")
def bench_history(  # noqa: PLR0913, PLR0917 - one argument an option
    scenario: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SCENARIO.yaml]",
            help="A scenario file; not needed with --smoke or to go on in --out.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings that win over the file."
        ),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="How updates are stored; repeat it for several."
        ),
    ] = None,
    retention: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What is kept; repeat it for several."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the sweep; a stopped one goes on. runs/NAME-TIME if not "
            "given."
        ),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Handwritten digits, in seconds.")
    ] = False,
    format: FormatOption = Format.text,  # noqa: A002 - the option's name is fixed
    debug: Debug = False,
) -> None:
    """Unlearn from histories that keep less: every method, codec and retention.

    Each seed is trained once and recorded exactly. The scenario's methods then
    unlearn from copies that keep less; one retraining a seed is the reference.
    Without --codec or --retention all usual ones are tried.
    """
    with errors(debug):
        from simulations import load_scenario
        from simulations.bench_history import EXACT, sweep
        from simulations.bench_plot import write_sweep
        from simulations.bench_rows import CODECS, RETENTIONS, cells
        from simulations.console import default_out, progress

        file, settings = _split(scenario, overrides or [])
        chosen = cells(codec or CODECS, retention or RETENTIONS)
        with _scenario_file(file, out, smoke=smoke) as path:
            loaded = load_scenario(path, [*settings, *EXACT])
        folder = out or default_out(loaded)
        with progress() as listener:
            results = sweep(loaded, chosen, folder, (listener,))
        write_sweep(folder, results)
        if format is Format.json:
            echo_json(results)
        else:
            _show(folder, results)


@bench.command("engine")
def bench_engine(
    workload: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="W1: MLP, W2: LeNet-5, W3: tiny clients, W4: seeds in lockstep; "
            "repeat it for several, all if not given.",
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Contestants, by commas: flower, pfl, eager, floor.",
        ),
    ] = "flower,pfl,eager,floor",
    rounds: Annotated[
        int, typer.Option(min=1, help="Timed rounds of each contestant.")
    ] = 7,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A few clients and one round, in seconds.")
    ] = False,
    format: FormatOption = Format.text,  # noqa: A002 - the option's name is fixed
    debug: Debug = False,
) -> None:
    """Race this engine against others on the same federation, round by round.

    All contestants run in processes of their own and take turns; they must come to the
    same model. Medians and ratios count strategy, messages and aggregation too.
    """
    with errors(debug):
        from simulations.bench_engine import NAMES, measure, table
        from simulations.console import print_table

        found = []
        for name in workload or NAMES:
            results = measure(
                name,
                [part for part in against.split(",") if part],
                rounds=1 if smoke else rounds,
                scale=SMOKE_SCALE if smoke else 1.0,
                tell=lambda line: typer.echo(line, err=True),
            )
            found.append(results)
            if format is Format.text:
                print_table(*table(results))
        if format is Format.json:
            echo_json(found[0] if len(found) == 1 else found)


def _split(
    scenario: Path | None, overrides: list[str]
) -> tuple[Path | None, list[str]]:
    """Return the file and the settings: without a file, the first is one of them."""
    if scenario is not None and "=" in str(scenario):
        scenario, overrides = None, [str(scenario), *overrides]
    for setting in overrides:
        if setting.startswith("history"):
            raise ConfigError(
                f"{setting!r} plays no part: everything is recorded, then kept as "
                "--codec and --retention say"
            )
    return scenario, overrides


@contextmanager
def _scenario_file(
    scenario: Path | None, out: Path | None, *, smoke: bool
) -> Iterator[Path]:
    """Lend the scenario to read: the given one, the smoke's or the stopped sweep's."""
    if smoke and scenario is not None:
        raise ConfigError("--smoke has its own scenario: leave SCENARIO.yaml away")
    if not smoke and scenario is None and not (out and (out / "config.yaml").exists()):
        raise ConfigError(
            "a sweep needs a scenario file, or --smoke, or the --out of a stopped one"
        )
    with TemporaryDirectory(prefix="fedunlearn-") as folder:
        own = Path(folder) / "scenario" / "smoke.yaml"
        if smoke:
            own.parent.mkdir()
            own.write_text(SMOKE, encoding="utf-8")
        yield own if smoke else scenario or (out or Path()) / "config.yaml"


def _show(folder: Path, results: Mapping[str, Any]) -> None:
    from simulations.bench_plot import table
    from simulations.bench_rows import points
    from simulations.console import print_table

    heads, rows = table(results, points(results))
    print_table(heads, rows)
    seeds = results["scenario"]["seeds"]
    if len(seeds) > 1:
        typer.echo(f"mean ± half of the 95 % interval over {len(seeds)} seeds")
    typer.echo(f"sweep   {folder}")
    typer.echo(f"picture {folder / 'sweep.svg'}")
