"""The command line. Exit codes: 0 done, 1 the run failed, 2 the request was wrong."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedunlearn import __version__
from fedunlearn.errors import FedUnlearnError, RequestError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

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


class Format(StrEnum):
    """How a command answers."""

    text = "text"
    json = "json"


class TableFormat(StrEnum):
    """What a table is pasted into."""

    markdown = "markdown"
    latex = "latex"


ScenarioFile = Annotated[
    Path, typer.Argument(metavar="SCENARIO.yaml", help="A scenario file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that win over the file, such as rounds=10 "
        "partition.alpha=0.1 'methods=[retrain,fed_eraser]' fed_eraser.interval=2.",
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to answer.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


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
    scenario: ScenarioFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; runs/NAME-TIME if not given."),
    ] = None,
    format: FormatOption = Format.text,  # noqa: A002 - the option's name is fixed
    debug: Debug = False,
) -> None:
    """Run a scenario: train, unlearn by every method, retrain, compare."""
    with _errors(debug):
        from simulations import compare, load_scenario
        from simulations.console import default_out, progress, show

        loaded = load_scenario(scenario, overrides or [])
        folder = default_out(loaded) if out is None else out
        with progress() as listener:
            comparison = compare(loaded, out=folder, listeners=(listener,))
        if format is Format.json:
            _echo_json(comparison.results())
        else:
            show(comparison, folder)


@app.command()
def methods(
    format: FormatOption = Format.text,  # noqa: A002
    debug: Debug = False,
) -> None:
    """List the unlearning methods and what each needs."""
    with _errors(debug):
        from simulations.console import print_table
        from simulations.listing import method_rows

        rows = method_rows()
        if format is Format.json:
            _echo_json(rows)
        else:
            print_table(
                (
                    "name",
                    "updates",
                    "broadcasts",
                    "clients",
                    "settings",
                    "what it does",
                ),
                [
                    (
                        str(r["name"]),
                        str(r["updates"]),
                        str(r["broadcasts"]),
                        "yes" if r["clients"] else "no",
                        str(r["settings"]),
                        str(r["summary"]),
                    )
                    for r in rows
                ],
            )


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
    with _errors(debug):
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
    with _errors(debug):
        from dataclasses import asdict

        from fedunlearn.data import catalogue
        from simulations.console import print_table

        infos = catalogue()
        if format is Format.json:
            _echo_json([asdict(info) for info in infos])
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
    with _errors(debug):
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
    with _errors(debug):
        from simulations import load_scenario
        from simulations.run_folder import config_yaml

        loaded = load_scenario(scenario, overrides or [])
        if format is Format.json:
            _echo_json(loaded.resolved)
        else:
            typer.echo(config_yaml(loaded), nl=False)


def main() -> None:
    """Run the command line."""
    app(prog_name="fedunlearn")


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    """Turn an error into one sentence and an exit code; trace it if ``debug``."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except FedUnlearnError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, RequestError) else 1) from None
    except BrokenPipeError:
        # The reader of a pipe went away: nobody is left to tell.
        sys.stderr.close()
        raise typer.Exit(1) from None
    except Exception as error:
        if isinstance(error, typer.Exit):
            raise
        if debug:
            traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        typer.echo(f"error: {text} (--debug shows where)", err=True)
        raise typer.Exit(1) from None


def _echo_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))
