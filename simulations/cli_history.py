"""``fedunlearn history``: look at, check, repair and erase a recorded history."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli_common import Debug, Format, FormatOption, echo_json, errors

DAMAGED = 3
"""Exit code of a check that found damage."""

history = typer.Typer(
    no_args_is_help=True, help="Recorded histories: look, check, repair, erase."
)
log = typer.Typer(no_args_is_help=True, help="The log of a history: verify, show.")
history.add_typer(log, name="log")

HistoryFolder = Annotated[
    Path,
    typer.Argument(
        metavar="PATH", help="Folder of a history, such as RUN/history/seed-0."
    ),
]


@history.command("stats")
def history_stats(
    path: HistoryFolder,
    format: FormatOption = Format.text,  # noqa: A002 - the option's name is fixed
    debug: Debug = False,
) -> None:
    """Show rounds, clients, bytes by kind, and what each method can still use."""
    with errors(debug):
        from simulations.console import print_table
        from simulations.history_view import open_history, stats_view

        with open_history(path) as opened:
            view = stats_view(opened)
        if format is Format.json:
            echo_json(view)
            return
        lines = [(k, str(v)) for k, v in view.items() if not isinstance(v, dict | list)]
        print_table(("history", ""), lines)
        typer.echo()
        nbytes = [(kind, f"{size:,}") for kind, size in view["bytes"].items()]
        print_table(("bytes", ""), nbytes)
        typer.echo()
        methods = [(m["method"], m["serves"]) for m in view["methods"]]
        print_table(("method", "can forget"), methods)


@history.command("check")
def history_check(
    path: HistoryFolder,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Read and authenticate every byte.")
    ] = False,
    format: FormatOption = Format.text,  # noqa: A002
    debug: Debug = False,
) -> None:
    """Look for damage. Exit code 0: whole; 3: damaged."""
    with errors(debug):
        from simulations.history_view import findings_of

        findings = findings_of(path, read_data=read_data)
        damaged = any(finding["damage"] for finding in findings)
        if format is Format.json:
            echo_json(findings)
        else:
            for finding in findings:
                kind = "damage" if finding["damage"] else "leftover"
                typer.echo(f"{kind}: {finding['what']}")
            if not damaged:
                typer.echo(f"{path} is whole")
        if damaged:
            raise typer.Exit(DAMAGED)


@history.command("repair")
def history_repair(
    path: HistoryFolder,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be lost.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make a damaged history readable again; list what is lost."""
    with errors(debug):
        from fedunlearn.history.repair import repair

        losses = repair(path, dry_run=dry_run)
        for loss in losses:
            typer.echo(f"{'would be lost' if dry_run else 'lost'}: {loss.what}")
        if not losses:
            typer.echo("nothing is lost")
        elif not dry_run:
            typer.echo(f"damaged files are kept in {path / 'quarantine'}")


@history.command("map")
def history_map(
    path: HistoryFolder,
    client: Annotated[str, typer.Argument(help="Name or id of a client.")],
    format: FormatOption = Format.text,  # noqa: A002
    debug: Debug = False,
) -> None:
    """List every byte derived from a client, by kind and place."""
    with errors(debug):
        from simulations.console import print_table
        from simulations.history_view import map_rows, open_history

        with open_history(path) as opened:
            rows = map_rows(opened, client)
        if format is Format.json:
            echo_json(rows)
            return
        heads = ("kind", "place", "round", "offset", "bytes", "erased with")
        print_table(heads, [tuple(str(row[h]) for h in heads) for row in rows])


@history.command("erase")
def history_erase(
    path: HistoryFolder,
    clients: Annotated[list[str], typer.Argument(help="Names or ids of clients.")],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The unlearned model, as safetensors. It is committed first; then all "
            "rounds since the clients' first one are destroyed.",
        ),
    ] = None,
    updates_only: Annotated[
        bool,
        typer.Option(
            "--updates-only",
            help="Destroy the clients' own updates and keep everything else.",
        ),
    ] = False,
    reason: Annotated[str, typer.Option(help="For the log.")] = "withdrawal",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    debug: Debug = False,
) -> None:
    """Destroy what is recorded of clients, after unlearning. It cannot be undone."""
    with errors(debug):
        from simulations.history_view import Removal, open_history

        removal = Removal.of(path, clients, model, updates_only, reason)
        for line in removal.warning():
            typer.echo(line)
        if not yes and not typer.confirm("Destroy it?"):
            raise typer.Exit(1)
        with open_history(path, write=True) as opened:
            for line in removal.carry_out(opened):
                typer.echo(line)


@history.command("export")
def history_export(
    path: HistoryFolder,
    round_index: Annotated[int, typer.Option("--round", help="Which round.")],
    out: Annotated[Path, typer.Option("--out", help="A new safetensors file.")],
    debug: Debug = False,
) -> None:
    """Write one round, in the clear, as safetensors."""
    with errors(debug):
        from simulations.history_view import export_round, open_history

        with open_history(path) as opened:
            typer.echo(export_round(opened, round_index, out))


@history.command("migrate")
def history_migrate(
    path: HistoryFolder,
    unsealed: Annotated[
        bool, typer.Option("--unsealed", help="Do not encrypt the new one.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Rewrite a history of an older format; the old one is kept beside it."""
    with errors(debug):
        from fedunlearn.history.migrate import migrate

        old = migrate(path, sealed=not unsealed)
        typer.echo(f"the old history is in {old}: remove it before an erasure")


@log.command("verify")
def log_verify(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A history, or a saved log.")
    ],
    head: Annotated[
        str | None,
        typer.Option(help="An older head, SIZE:ROOT: the log must continue it."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Verify the log from itself alone. Exit code 0: whole; 3: not."""
    with errors(debug):
        from simulations.history_view import verify_log

        faults, newest = verify_log(path, head)
        for fault in faults:
            typer.echo(f"fault: {fault}")
        typer.echo(f"head {newest}")
        if faults:
            raise typer.Exit(DAMAGED)


@log.command("show")
def log_show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A history, or a saved log.")
    ],
    debug: Debug = False,
) -> None:
    """Print the log, a line an entry, to be kept or given away."""
    with errors(debug):
        from fedunlearn.history.log import to_jsonl
        from simulations.history_view import read_log

        typer.echo(to_jsonl(read_log(path)), nl=False)
