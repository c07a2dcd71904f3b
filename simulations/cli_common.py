"""What all commands share: how they answer and how they fail."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from fedunlearn.errors import FedUnlearnError, RequestError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class Format(StrEnum):
    """How a command answers."""

    text = "text"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="How to answer.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def errors(debug: bool) -> Iterator[None]:
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


def echo_json(value: object) -> None:
    """Print a value as JSON."""
    import json

    typer.echo(json.dumps(value, indent=2))
