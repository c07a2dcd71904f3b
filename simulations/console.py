"""What a person sees: progress on stderr, tables on stdout."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fedunlearn.report import BRIEF, tabulate
from simulations.comparison import Comparison
from simulations.events import Event, Listener
from simulations.scenario import Scenario

_PIPE_WIDTH = 1000
"""Characters: a pipe has no edge, so that no cell is cut there."""
_NUMBER_STARTS = "-+0123456789\N{MINUS SIGN}\N{EN DASH}"


def default_out(scenario: Scenario) -> Path:
    """Return a folder nobody has used: ``runs/NAME-DATE-TIME``."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = "".join(
        c if c.isalnum() or c in "-_" else "-" for c in scenario.outline.name
    )
    return Path("runs") / f"{name}-{stamp}"


def show(comparison: Comparison, folder: Path) -> None:
    """Print the table and where the rest is."""
    table = tabulate(comparison.results(), BRIEF)
    titles = [f"gap {h.title}" if "Gap" in h.group else h.title for h in table.heads]
    units = [h.unit for h in table.heads]
    heads = [f"{t}\n{u}" if u else t for t, u in zip(titles, units, strict=True)]
    names = [
        f"{line.method} ({line.reference})" if line.reference else line.method
        for line in table.lines
    ]
    rows = [(n, *line.cells) for n, line in zip(names, table.lines, strict=True)]
    seeds = comparison.scenario["seeds"]
    print_table(("method", *heads), rows)
    out = Console()
    if len(seeds) > 1:
        out.print(f"mean ± half of the 95 % interval over {len(seeds)} seeds")
    if comparison.noise_floor is not None:
        out.print(
            f"noise  {comparison.noise_floor:.1e} of the way trained: what one bit of "
            "the start makes"
        )
    out.print(f"run    {folder}", soft_wrap=True, highlight=False, markup=False)
    out.print(
        f"report {folder / 'report.html'}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is names, numbers stand to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for at, head in enumerate(heads):
        numeric = at > 0 and all(row[at][:1] in _NUMBER_STARTS for row in rows)
        table.add_column(head, justify="right" if numeric else "left", no_wrap=at == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    console.print(table)


@contextmanager
def progress() -> Iterator[Listener]:
    """Show a live bar on a terminal, plain lines elsewhere; on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("phases"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        yield Bar(bar, console)


class Bar:
    """Moves a progress bar; a phase is one training or one method of one seed."""

    def __init__(self, bar: Progress, console: Console) -> None:
        self._bar = bar
        self._console = console
        self._task = bar.add_task("preparing", total=None)
        self._begun = self._whole = 0

    def __call__(self, event: Event) -> None:
        """Follow one event."""
        facts = event.facts
        if event.kind == "run":
            self._bar.update(self._task, total=facts["phases"])
        elif event.kind in ("train", "method"):
            what = facts.get("method", "training")
            self._begun += 1
            self._bar.update(self._task, description=f"seed {facts['seed']}: {what}")
        elif event.kind in ("round", "tick"):
            done = self._bar.tasks[self._task].completed + 1 / facts["rounds"]
            self._bar.update(self._task, completed=min(done, self._begun - 0.01))
        elif event.kind == "done":
            self._whole += 1
            done = max(self._whole, self._bar.tasks[self._task].completed)
            self._bar.update(self._task, completed=done)
        elif event.kind in _NOTES:
            self._console.print(_NOTES[event.kind](event), style="yellow", markup=False)


def _lines(console: Console) -> Listener:
    def listen(event: Event) -> None:
        if event.kind in _NOTES:
            line = _NOTES[event.kind](event)
        elif event.kind == "done":
            line = f"seed {event.facts['seed']}: {event.facts['phase']} done"
        else:
            return
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    return listen


def _refusal(event: Event) -> str:
    facts = event.facts
    return (
        f"seed {facts['seed']}, round {facts['round']}: reply of client "
        f"{facts['client']} set aside: {facts['reason']}"
    )


def _resumed(event: Event) -> str:
    changed = event.facts["changed"]
    if not changed:
        return "going on where the run stopped"
    return (
        f"going on where the run stopped, but {'; '.join(changed)}: the numbers may "
        "differ from those of an uninterrupted run"
    )


def _slower(event: Event) -> str:
    return (
        "the compiled kernel was not built, because there was no C++ compiler when "
        f"fedunlearn was installed: training goes on with {event.facts['kernel']}"
    )


_NOTES = {"set_aside": _refusal, "resume": _resumed, "no_compiler": _slower}
"""Events that are told in a sentence."""
