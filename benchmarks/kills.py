"""Kills a recording process at random moments: no acknowledged round may be lost.

    python benchmarks/kills.py               100 kills, a few minutes
    python benchmarks/kills.py --kills 3     the smoke version

A child appends rounds and says so after each; it erases a client half-way. SIGKILL
comes at a random moment, whatever it is doing. Then every round it had acknowledged
must be there, bit for bit, and `check --read-data` must find nothing; the next child
goes on.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from fedunlearn.history import ArraysInMemory, DiskHistory, RoundRecord, ServerState
from fedunlearn.params import Layout

LAYOUT = Layout(("weight",), ((2000,),))
CLIENTS, ROUNDS, LEAVER, FIRST = 5, 120, 4, 10
"""The leaver takes part from round FIRST on and is erased after half of the rounds."""


def record(index: int) -> RoundRecord:
    """Return a round that depends on its index only."""
    rng = np.random.default_rng(index)
    clients = tuple(c for c in range(CLIENTS) if c != LEAVER or takes_part(index))
    vectors = rng.standard_normal((len(clients) + 1, LAYOUT.size), np.float32)
    ones = np.ones(len(clients), np.int64)
    return RoundRecord(
        index=index,
        clients=clients,
        num_examples=ones * index,
        num_steps=ones,
        num_samples=ones,
        asked=clients,
        arrays=ArraysInMemory(vectors[0], vectors[1:]),
    )


def takes_part(index: int) -> bool:
    """Tell whether the leaver is in a round."""
    return FIRST <= index <= ROUNDS // 2


def state(index: int) -> ServerState:
    """Return the server after a round."""
    return ServerState({"weight": record(index).broadcast + np.float32(1)})


def work(folder: Path) -> None:
    """Append what is missing; say what is done."""
    with DiskHistory.create(folder, LAYOUT, exist_ok=True) as history:
        done = history.tip.round if history.tip else 0
        for index in range(done + 1, ROUNDS + 1):
            if index == ROUNDS // 2 + 1 and LEAVER not in history.withdrawn:
                history.erase({LEAVER}, state(0))
                print("erased", flush=True)
            history.append_round(record(index), state(index))
            print(index, flush=True)


def lost(folder: Path, said: list[str]) -> list[str]:
    """Return what is missing or wrong after a kill."""
    if not (folder / "index.db").exists():
        return said  # killed before there was a history: nothing was acknowledged
    with DiskHistory.open(folder, write=True) as history:
        wrong = [f.what for f in history.check(read_data=True)]
        erased = LEAVER in history.withdrawn
        if "erased" in said and not erased:
            wrong.append("the erasure")
        for word in said:
            index = int(word) if word.isdigit() else 0
            destroyed = erased and FIRST <= index <= ROUNDS // 2
            if index and not destroyed and not _equal(history, index):
                wrong.append(f"round {index}")
    return wrong


def _equal(history: DiskHistory, index: int) -> bool:
    if index not in history.rounds:
        return False
    found, expected = history.round(index), record(index)
    return bool(
        found.clients == expected.clients
        and np.array_equal(found.updates, expected.updates)
        and np.array_equal(found.broadcast, expected.broadcast)
    )


def killed_child(folder: Path, rng: random.Random, longest: float) -> tuple[bool, str]:
    """Run a child, kill it at a random moment; return whether it was, and its words."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--child", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        words, _ = child.communicate(timeout=rng.uniform(0.05, longest))
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        words, _ = child.communicate()
    if child.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError("a child failed by itself: see above")
    return child.returncode == -signal.SIGKILL, words


def kills(wanted: int, longest: float = 1.2, seed: int = 0) -> dict[str, int]:
    """Kill children until ``wanted`` were killed; return counts.

    Raises:
        RuntimeError: If anything acknowledged was lost.
    """
    rng, killed, acknowledged, finished = random.Random(seed), 0, 0, 0  # noqa: S311
    while killed < wanted:
        with tempfile.TemporaryDirectory() as scratch:
            folder, said, alive = Path(scratch) / "history", list[str](), True
            while alive and killed < wanted:
                alive, words = killed_child(folder, rng, longest)
                killed += alive
                # A word cut in the middle was never acknowledged.
                said += [w for w in words.split("\n")[:-1] if w]
                if wrong := lost(folder, said):
                    raise RuntimeError(f"after kill {killed}: lost {wrong}")
            acknowledged += len(said)
            finished += not alive
    return {"kills": killed, "acknowledged": acknowledged, "finished": finished}


def main() -> None:
    """Run as parent or as child."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        work(options.child)
        return
    counts = kills(options.kills)
    print(
        f"{counts['kills']} kills at random moments, {counts['acknowledged']} "
        f"acknowledged commits, {counts['finished']} histories finished: none lost"
    )


if __name__ == "__main__":
    main()
