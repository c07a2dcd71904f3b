"""How fast a history on disk is, as ratios measured side by side in one run.

    python benchmarks/history.py                     all parts, about five minutes
    python benchmarks/history.py --part stream --gigabytes 4
    python benchmarks/history.py --write             puts the table into a page of docs
    python benchmarks/history.py --smoke             seconds, small

append: one round of 100 clients, fsync included, against writing the same bytes raw.
read:   all updates of a round, from a warm and from a cold page cache.
stream: a weighted sum over a long history, against reading a memory map of its files,
        and how much memory that takes whatever the length.
"""

import argparse
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedunlearn.history import (
    ArraysInMemory,
    DiskHistory,
    RoundRecord,
    ServerState,
)
from fedunlearn.history.stream import weighted_sum
from fedunlearn.params import Layout

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
CLIENTS, PARAMETERS, SMOKE_PARAMETERS = 100, 160_000, 4_000
Run = Callable[[Path], None]
_WRITE_BYTES = 1 << 20


def make_record(index: int, clients: int, parameters: int) -> RoundRecord:
    """Return a round of noise."""
    rng = np.random.default_rng(index)
    ones = np.ones(clients, np.int64)
    ids = tuple(range(clients))
    return RoundRecord(
        index=index,
        clients=ids,
        num_examples=ones,
        num_steps=ones,
        num_samples=ones,
        asked=ids,
        arrays=ArraysInMemory(
            rng.standard_normal(parameters, np.float32),
            rng.standard_normal((clients, parameters), np.float32),
        ),
    )


def layout_of(parameters: int) -> Layout:
    """Return a layout of one array."""
    return Layout(("weight",), ((parameters,),))


def interleaved(
    runs: dict[str, Run], folder: Path, repeats: int, cold: bool = False
) -> dict[str, float]:
    """Return the median seconds of each run, taken in turns; the first is warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            if cold:
                forget_cache(folder)
            start = time.perf_counter()
            run(folder)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def forget_cache(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fsynced(path: Path) -> None:
    """Sync a file and its folder."""
    for place in (path, path.parent):
        handle = os.open(place, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


# --- append


def append_part(folder: Path, repeats: int, parameters: int) -> list[str]:
    """Compare appending a round with writing the same bytes in other ways."""
    from safetensors.numpy import save_file

    record = make_record(1, CLIENTS, parameters)
    state = ServerState({"weight": record.broadcast})
    payload = np.concatenate([record.broadcast[None], record.updates])

    number = itertools.count()

    def raw(place: Path) -> None:
        path = place / f"raw-{next(number)}"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        rest = memoryview(payload).cast("B")
        while rest:  # a call with all 64 MB is several times slower here
            rest = rest[os.write(handle, rest[:_WRITE_BYTES]) :]
        os.close(handle)
        fsynced(path)

    def numpy_save(place: Path) -> None:
        path = place / f"{next(number)}.npy"
        np.save(path, payload)
        fsynced(path)

    def safetensors(place: Path) -> None:
        path = place / f"{next(number)}.safetensors"
        save_file({"payload": payload}, path)
        fsynced(path)

    histories = {
        sealed: DiskHistory.create(
            folder / f"sealed-{sealed}", layout_of(parameters), sealed=sealed
        )
        for sealed in (False, True)
    }

    def append(sealed: bool) -> Run:
        def run(place: Path) -> None:
            del place
            history = histories[sealed]
            index = (history.rounds or (0,))[-1] + 1
            history.append_round(make_indexed(record, index), state)

        return run

    seconds = interleaved(
        {
            "raw write, fsync": raw,
            "numpy.save, fsync": numpy_save,
            "safetensors, fsync": safetensors,
            "history, unsealed": append(sealed=False),
            "history, sealed": append(sealed=True),
        },
        folder,
        repeats,
    )
    for history in histories.values():
        history.close()
    return table("append", payload.nbytes, seconds, "raw write, fsync")


def make_indexed(record: RoundRecord, index: int) -> RoundRecord:
    """Return the record as another round."""
    from dataclasses import replace

    return replace(record, index=index)


# --- read


def read_part(folder: Path, repeats: int, parameters: int) -> list[str]:
    """Compare reading all updates of a round."""
    from safetensors.numpy import load_file, save_file

    record = make_record(1, CLIENTS, parameters)
    np.save(folder / "x.npy", record.updates)
    save_file({"updates": np.array(record.updates)}, folder / "x.safetensors")
    for sealed in (False, True):
        with DiskHistory.create(
            folder / f"read-{sealed}", layout_of(parameters), sealed=sealed
        ) as history:
            history.append_round(record)
    opened = {s: DiskHistory.open(folder / f"read-{s}") for s in (False, True)}
    runs: dict[str, Run] = {
        "numpy memory map": lambda f: touch(np.load(f / "x.npy", mmap_mode="r")),
        "numpy.load": lambda f: touch(np.load(f / "x.npy")),
        "safetensors": lambda f: touch(load_file(f / "x.safetensors")["updates"]),
        "history, unsealed": lambda _: touch(opened[False].round(1).updates),
        "history, sealed": lambda _: touch(opened[True].round(1).updates),
    }
    lines = []
    for cold in (False, True):
        seconds = interleaved(runs, folder, repeats, cold)
        what = "read, cold cache" if cold else "read, warm cache"
        lines += table(what, record.updates.nbytes, seconds, "numpy memory map")
    for history in opened.values():
        history.close()
    return lines


def touch(array: np.ndarray) -> float:
    """Read every byte once."""
    return float(array.view(np.uint32).max())


# --- stream


def stream_part(folder: Path, gigabytes: float, parameters: int) -> list[str]:
    """Compare a weighted sum over a history with reading maps of its files."""
    lines = []
    for sealed in (False, True):
        place = folder / f"stream-{sealed}"
        rounds = max(2, round(gigabytes * 1e9 / (4 * CLIENTS * parameters)))
        fill(place, rounds, parameters, sealed)
        runs: dict[str, Run] = {"memory maps": read_maps, "weighted sum": add_up}
        seconds = interleaved(runs, place, 3, cold=True)
        nbytes = rounds * 4 * CLIENTS * parameters
        kind = "sealed" if sealed else "unsealed"
        what = f"stream of {nbytes / 1e9:.1f} GB, {kind}, cold cache"
        lines += table(what, nbytes, seconds, "memory maps")
        lines += memory_lines(place, rounds, parameters, kind)
        shutil.rmtree(place)
    return lines


def fill(place: Path, rounds: int, parameters: int, sealed: bool) -> None:
    """Record a long history of one round's numbers."""
    record = make_record(1, CLIENTS, parameters)
    layout = layout_of(parameters)
    with DiskHistory.create(place, layout, sealed=sealed) as history:
        for index in range(1, rounds + 1):
            history.append_round(make_indexed(record, index))


def read_maps(place: Path) -> None:
    """Read every byte of the round files through memory maps."""
    for path in sorted((place / "segments").glob("round-*")):
        raw = np.memmap(path, np.uint8, "r")
        touch(raw[: raw.size // 4 * 4])


def add_up(place: Path) -> None:
    """Add up all updates with equal weights."""
    with DiskHistory.open(place) as history:
        weighted_sum(history, lambda r: dict.fromkeys(r.clients, 1 / len(r.clients)))


def memory_lines(place: Path, rounds: int, parameters: int, kind: str) -> list[str]:
    """Return how far a child's memory grows over the sum, in rounds."""
    child = subprocess.run(
        [sys.executable, __file__, "--child", str(place)],
        capture_output=True,
        text=True,
        check=True,
    )
    grown = int(child.stdout) / (4 * CLIENTS * parameters)
    return [f"| memory of the sum, {kind} | {rounds} rounds | {grown:.2f} rounds | |"]


def measure_memory(place: Path) -> int:
    """Return by how many bytes the sum raises this process's peak resident memory."""
    status = Path("/proc/self/status")

    def peak() -> int:
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])  # type: ignore[index]

    before = peak()
    add_up(place)
    return peak() - before


def table(what: str, nbytes: int, seconds: dict[str, float], base: str) -> list[str]:
    """Return lines: what, how, MB/s, ratio to the base."""
    return [
        f"| {what} | {name} | {nbytes / 1e6 / value:,.0f} MB/s | "
        f"{seconds[base] / value:.2f} |"
        for name, value in seconds.items()
    ]


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["append", "read", "stream"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--folder", type=Path, help="where to write; needs the room")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(measure_memory(options.child))
        return
    parameters = SMOKE_PARAMETERS if options.smoke else PARAMETERS
    repeats = 2 if options.smoke else options.repeats
    gigabytes = 0.02 if options.smoke else options.gigabytes
    lines = ["| what | how | rate | ratio |", "| :-- | :-- | --: | --: |"]
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for name in ("append", "read", "stream"):
            if options.part in (None, name):
                place = Path(scratch) / name
                place.mkdir()
                lines += {
                    "append": lambda p: append_part(p, repeats, parameters),
                    "read": lambda p: read_part(p, repeats, parameters),
                    "stream": lambda p: stream_part(p, gigabytes, parameters),
                }[name](place)
    text = "\n".join(lines)
    print(text)
    if options.write:
        marks = re.compile(r"(<!-- table: history -->\n).*?(<!-- end -->)", re.DOTALL)
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(marks.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page), "utf-8")


if __name__ == "__main__":
    main()
