"""What ``fedunlearn history`` shows and does."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedunlearn.errors import (
    ConfigError,
    DamagedError,
    DataError,
    RequestError,
)
from fedunlearn.history import ClientId, DiskHistory, ServerState
from fedunlearn.history.check import Finding
from fedunlearn.history.index import Index
from fedunlearn.history.log import Entry, faults, from_jsonl
from fedunlearn.history.merkle import Head, head_of
from fedunlearn.history.names import find_client, printable
from fedunlearn.params import Layout
from strategies import METHODS

_FEW = 6
"""Clients that are named before a list says how many more there are."""


def open_history(path: Path, *, write: bool = False) -> DiskHistory:
    """Open a history; where a run's folder is named, say where its histories are."""
    if not (path / "index.db").exists() and (path / "history").is_dir():
        inner = sorted(str(p) for p in (path / "history").iterdir())
        raise DataError(f"{path} is a run; its histories are {', '.join(inner)}")
    return DiskHistory.open(path, write=write)


def stats_view(history: DiskHistory) -> dict[str, Any]:
    """Return everything ``stats`` shows, as plain values."""
    stats, tip = history.stats(), history.tip
    return {
        "rounds": stats.rounds,
        "clients": stats.clients,
        "withdrawn": stats.withdrawn,
        "parameters": stats.parameters,
        "codec": stats.codec,
        "retention": stats.retention,
        "sealed": stats.sealed,
        "generation": stats.generation,
        "goes on after round": tip.round if tip and tip.state.arrays else None,
        "total bytes": stats.total_bytes,
        "peak bytes": stats.peak_bytes,
        "log head": str(stats.head),
        "bytes": stats.nbytes,
        "methods": [_served(history, name) for name in METHODS],
    }


def _served(history: DiskHistory, name: str) -> dict[str, Any]:
    """Return which clients a method, with its defaults, can forget here."""
    requires, clients = METHODS[name]().requires, history.clients
    unmet = {c: requires.unmet_by(history, {c}) for c in clients}
    able = [c for c in clients if not unmet[c]]
    if clients and len(able) == len(clients):
        serves = "any client"
    elif able:
        shown = ", ".join(map(str, able[:_FEW]))
        more = f" and {len(able) - _FEW} more" if len(able) > _FEW else ""
        serves = f"clients {shown}{more}"
    else:
        why = next(iter(unmet.values()), ("at least one recorded round",))
        serves = f"nobody: it needs {' and '.join(why)}"
    return {"method": name, "serves": serves, "clients": able}


def findings_of(path: Path, *, read_data: bool) -> list[dict[str, Any]]:
    """Return what is wrong with a history, as plain values."""
    try:
        with open_history(path) as history:
            findings = history.check(read_data=read_data)
    except DamagedError as error:
        findings = [Finding.of(error)]
    return [{**asdict(f), "file": str(f.file)} for f in findings]


def map_rows(history: DiskHistory, text: str) -> list[dict[str, Any]]:
    """Return every trace of a client, in the history and beside it."""
    client = find_client(text, history.clients, history.names)
    rows = [
        {
            "kind": trace.kind,
            "place": trace.place,
            "round": "-" if trace.round is None else trace.round,
            "offset": "-" if trace.offset is None else trace.offset,
            "bytes": trace.nbytes,
            "erased with": "the client's updates" if trace.own else "a clean model",
        }
        for trace in history.traces_of(client)
    ]
    rows += [
        {
            "kind": "file of the run",
            "place": str(path),
            "round": "-",
            "offset": "-",
            "bytes": path.stat().st_size,
            "erased with": "not by erase: remove it yourself",
        }
        for path in _beside(history.folder)
    ]
    return rows


def _beside(folder: Path) -> Iterator[Path]:
    """Yield files outside the history that may hold something of its clients."""
    backup = folder.with_name(folder.name + ".format-1")
    if backup.exists():
        yield from (p for p in sorted(backup.rglob("*")) if p.is_file())
    run = folder.parent.parent
    if (run / "config.yaml").is_file() and folder.parent.name == "history":
        places = ("models", "parts", "unfinished", "results.*", "report.html")
        for place in (*places, "events.jsonl"):
            for found in sorted(run.glob(place)):
                inner = found.rglob("*") if found.is_dir() else [found]
                yield from (p for p in sorted(inner) if p.is_file())


@dataclass(frozen=True, slots=True)
class Removal:
    """An erasure somebody asks for on the command line."""

    path: Path
    clients: tuple[ClientId, ...]
    names: tuple[str, ...]
    state: ServerState | None
    reason: str

    @classmethod
    def of(
        cls,
        path: Path,
        texts: Sequence[str],
        model: Path | None,
        updates_only: bool,
        reason: str,
    ) -> "Removal":
        """Return what is asked for, checked against the history.

        Raises:
            RequestError: If it cannot be done as asked.
        """
        if (model is None) == (not updates_only):
            raise ConfigError(
                "give the unlearned model (--model FILE), so that what was computed "
                "from the old one can be destroyed too, or choose --updates-only"
            )
        with open_history(path) as history:
            known = tuple(sorted({*history.clients, *history.withdrawn}))
            clients = [find_client(text, known, history.names) for text in texts]
            state = None if model is None else read_model(model, history.layout)
            if not history.stats().sealed:
                raise RequestError(f"{path} is not sealed: remove the folder instead")
            names = history.names
        shown = [printable(names.get(c, str(c))) for c in clients]
        return cls(path, tuple(clients), tuple(shown), state, reason)

    def warning(self) -> Iterator[str]:
        """Yield what is about to happen."""
        who = ", ".join(self.names)
        if self.state is None:
            yield f"About to destroy the updates of {who} in {self.path}."
            yield "Models and updates computed from theirs are kept."
        else:
            yield f"About to destroy in {self.path}: the updates of {who}, and all"
            yield "rounds since their first one. The given model takes their place."
        yield "This cannot be undone."

    def carry_out(self, history: DiskHistory) -> Iterator[str]:
        """Erase; yield what was destroyed and what is left to do."""
        done = history.erase(self.clients, self.state, self.reason)
        if not done.clients:
            yield "nothing to do: they were erased before"
            return
        yield f"destroyed the keys of {', '.join(self.names)}: {done.updates} updates"
        if done.rounds:
            spans = f"{done.rounds[0]} to {done.rounds[-1]}"
            yield f"destroyed {len(done.rounds)} rounds ({spans})"
        yield f"freed {done.nbytes:,} bytes; log head {history.stats().head}"
        if done.contaminated:
            yield (
                f"kept {len(done.contaminated)} rounds whose models the clients had "
                "contributed to"
            )
        if others := list(_beside(history.folder)):
            yield (
                f"not touched: {len(others)} files of the run beside the history "
                "(models, results, report); `fedunlearn history map` lists them"
            )


def read_model(path: Path, layout: Layout) -> ServerState:
    """Return a model from a safetensors file.

    Raises:
        DataError: If it is not a model of this layout.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
        layout.flatten(arrays)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path} is not a model of this history: {error}") from error
    return ServerState(arrays=arrays)


def export_round(history: DiskHistory, index: int, out: Path) -> str:
    """Write what is held of a round as safetensors; return one sentence."""
    from safetensors.numpy import save_file

    if out.exists():
        raise ConfigError(f"{out} exists already")
    record, holds = history.round(index), history.holds
    arrays = {
        "clients": np.array(record.kept, np.int64),
        "num_examples": record.examples_of(record.kept),
    }
    if index in holds.broadcasts:
        arrays["broadcast"] = np.array(record.broadcast)
    if record.kept:
        arrays["updates"] = np.array(record.updates_of(record.kept))
    try:
        save_file(arrays, out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    return f"{out}: round {index}, {', '.join(sorted(arrays))}"


def read_log(path: Path) -> list[Entry]:
    """Return a log, from a history or from a file; no key is needed."""
    if path.is_file():
        try:
            return from_jsonl(path.read_bytes().decode("ascii"))
        except ValueError as error:
            raise DamagedError.of(str(error), path) from error
    index = Index(path / "index.db", write=False)
    try:
        return index.log()
    finally:
        index.close()


def verify_log(path: Path, head: str | None) -> tuple[list[str], Head]:
    """Return the log's faults and its head."""
    older = None if head is None else Head.parse(head)
    try:
        entries = read_log(path)
    except DataError as error:
        return [str(error)], head_of([])
    return list(faults(entries, older)), head_of([e.body for e in entries])
