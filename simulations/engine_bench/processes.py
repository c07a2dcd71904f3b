"""The tree of processes a child makes: found, weighed and ended by process id."""

import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PARENT, _START = 1, 19
"""Fields of ``/proc/<pid>/stat`` after the command: parent, start in clock ticks."""
_USER, _SYSTEM = 11, 12


@dataclass(frozen=True, slots=True)
class Process:
    """One process; the start time tells it from a later one with the same id."""

    pid: int
    start: int


def tree(root: int, token: str | None = None) -> frozenset[Process]:
    """Return a process and all its descendants.

    Args:
        root: Process id at the top of the tree.
        token: Text in the environment of the tree's processes; it finds those whose
            parent has ended.
    """
    table = _table()
    members = {root} & table.keys()
    if token is not None:
        members |= {pid for pid in table if _carries(pid, token)}
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in table.items() if parent in members}
        grown = not more <= members
        members |= more
    return frozenset(Process(pid, table[pid][1]) for pid in members)


def alive(processes: Iterable[Process]) -> frozenset[Process]:
    """Return those processes that still run."""
    table = _table()
    return frozenset(p for p in processes if table.get(p.pid, (0, -1))[1] == p.start)


def kill(processes: Iterable[Process], timeout: float = 10.0) -> None:
    """Kill processes and wait until they are gone, at most ``timeout`` seconds."""
    left, end = alive(processes), time.monotonic() + timeout
    for process in left:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    while left and time.monotonic() < end:
        time.sleep(0.01)
        left = alive(left)


def pss_mb(processes: Iterable[Process]) -> float:
    """Return the memory of processes in MB of 10^6 bytes, shared pages counted once.

    The sum of their proportional set sizes (PSS), from ``/proc/<pid>/smaps_rollup``.
    """
    return sum(_pss_kib(process.pid) for process in processes) * 1024 / 1e6


def cpu_seconds(processes: Iterable[Process]) -> float:
    """Return the processor time that processes have taken."""
    ticks = 0
    for process in processes:
        fields = _stat(process.pid)
        if fields:
            ticks += int(fields[_USER]) + int(fields[_SYSTEM])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Return the time that this machine's processors have been busy, all together."""
    first = (_PROC / "stat").read_text(encoding="utf-8").splitlines()[0]
    user, nice, system = map(int, first.split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _table() -> Mapping[int, tuple[int, int]]:
    """Return process id -> parent and start, of all that run (no zombies)."""
    found = {}
    for entry in _PROC.iterdir():
        pid = int(entry.name) if entry.name.isdigit() else 0
        if pid and (fields := _stat(pid)) and fields[0] != "Z":
            found[pid] = (int(fields[_PARENT]), int(fields[_START]))
    return found


def _stat(pid: int) -> list[str]:
    # The command's name may hold spaces and brackets: what follows the last one counts.
    return _read(pid, "stat").rpartition(")")[2].split()


def _carries(pid: int, token: str) -> bool:
    return token in _read(pid, "environ")


def _pss_kib(pid: int) -> int:
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _read(pid: int, name: str) -> str:
    """Return a file about a process, or nothing if it is gone or someone else's."""
    try:
        data = (_PROC / str(pid) / name).read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
    return data.decode("utf-8", "replace")
