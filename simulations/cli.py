"""The command line. Exit codes: 0 done, 1 the run failed, 2 the request was wrong."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedunlearn import __version__
from fedunlearn.errors import ConfigError
from simulations.cli_bench import bench
from simulations.cli_common import Debug, Format, FormatOption, echo_json, errors
from simulations.cli_history import history

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated unlearning: train, let a client leave, unlearn, compare.",
)
data = typer.Typer(no_args_is_help=True, help="Data sets: what there is, fetch one.")
config = typer.Typer(no_args_is_help=True, help="Scenarios: show one resolved.")
app.add_typer(data, name="data")
app.add_typer(config, name="config")
app.add_typer(history, name="history")
app.add_typer(bench, name="bench")


class TableFormat(StrEnum):
    """What a table is pasted into."""

    markdown = "markdown"
    latex = "latex"


ScenarioFile = Annotated[
    Path, typer.Argument(metavar="SCENARIO.yaml", help="A scenario file.")
]
OptionalScenarioFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[SCENARIO.yaml]", help="A scenario file; not needed with --resume."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that win over the file, such as rounds=10 "
        "partition.alpha=0.1 'methods=[retrain,fed_eraser]' fed_eraser.interval=2.",
    ),
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.")
    ] = False,
) -> None:
    """Answer what concerns no command."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    scenario: OptionalScenarioFile = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; runs/NAME-TIME if not given."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Go on with a run that was stopped, to the same bits."
        ),
    ] = None,
    format: FormatOption = Format.text,  # noqa: A002 - the option's name is fixed
    debug: Debug = False,
) -> None:
    """Run a scenario: train, unlearn by every method, retrain, compare."""
    with errors(debug):
        from simulations import compare, load_scenario
        from simulations.console import default_out, progress, show

        file = _scenario_file(scenario, out, resume)
        loaded = load_scenario(file, overrides or [])
        folder = resume or out or default_out(loaded)
        with progress() as listener:
            comparison = compare(
                loaded,
                out=folder,
                listeners=(listener,),
                resume=resume is not None,
            )
        if format is Format.json:
            echo_json(comparison.results())
        else:
            show(comparison, folder)


@app.command()
def methods(
    format: FormatOption = Format.text,  # noqa: A002
    debug: Debug = False,
) -> None:
    """List the unlearning methods and what each needs."""
    with errors(debug):
        from simulations.console import print_table
        from simulations.listing import method_rows

        rows = method_rows()
        if format is Format.json:
            echo_json(rows)
        else:
            heads = ("name", "family", "forgets", "needs", "settings", "summary")
            for row in rows:
                row["forgets"] = ", ".join(row["levels"])
            print_table(heads, [tuple(str(r[h]) for h in heads) for r in rows])


@app.command()
def table(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a run, or its results.json."),
    ],
    format: Annotated[  # noqa: A002
        TableFormat, typer.Option("--format", help="Where it will be pasted.")
    ] = TableFormat.markdown,
    debug: Debug = False,
) -> None:
    """Print a finished run's table for a page or a paper."""
    with errors(debug):
        from fedunlearn.report import latex_table, markdown_table
        from simulations.run_folder import read_results

        results = read_results(folder)
        write = markdown_table if format is TableFormat.markdown else latex_table
        typer.echo(write(results).rstrip("\n"))


@data.command("list")
def data_list(
    format: FormatOption = Format.text,  # noqa: A002
    debug: Debug = False,
) -> None:
    """List the data sets: size, clients, licence, whether each is there."""
    with errors(debug):
        from dataclasses import asdict

        from fedunlearn.data import catalogue
        from simulations.console import print_table

        infos = catalogue()
        if format is Format.json:
            echo_json([asdict(info) for info in infos])
        else:
            print_table(
                ("name", "what", "examples", "shape", "clients", "licence", "there"),
                [
                    (
                        i.name,
                        i.title,
                        "-" if i.examples is None else f"{i.examples:,}",
                        i.features,
                        "-" if i.clients is None else str(i.clients),
                        i.licence,
                        "yes" if i.available else i.how_to_get,
                    )
                    for i in infos
                ],
            )


@data.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A data set of `fedunlearn data list`.")],
    debug: Debug = False,
) -> None:
    """Download a data set, verify it and convert it once."""
    with errors(debug):
        from fedunlearn.data import fetch

        typer.echo(f"{name} is in {fetch(name)}")


@config.command("show")
def config_show(
    scenario: ScenarioFile,
    overrides: Overrides = None,
    format: FormatOption = Format.text,  # noqa: A002
    debug: Debug = False,
) -> None:
    """Show a scenario with every default filled in."""
    with errors(debug):
        from simulations import load_scenario
        from simulations.run_folder import config_yaml

        loaded = load_scenario(scenario, overrides or [])
        if format is Format.json:
            echo_json(loaded.resolved)
        else:
            typer.echo(config_yaml(loaded), nl=False)


def main() -> None:
    """Run the command line."""
    app(prog_name="fedunlearn")


def _scenario_file(
    scenario: Path | None, out: Path | None, resume: Path | None
) -> Path:
    """Return the scenario to read: the given one, or that of the run to go on with."""
    if resume is None and scenario is None:
        raise ConfigError("a run needs a scenario file, or --resume RUN")
    if resume is not None and out is not None:
        raise ConfigError("--resume goes on in its own folder: leave --out away")
    return scenario or (resume or Path()) / "config.yaml"
