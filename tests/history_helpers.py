"""What the tests of histories share: a small layout, rounds from a seed, one digest.

The children of the crash tests import it too: nothing heavy here.
"""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedunlearn.errors import HistoryError
from fedunlearn.history import (
    ArraysInMemory,
    DiskHistory,
    RoundRecord,
    ServerState,
    SetAside,
)
from fedunlearn.history.files import RealFiles
from fedunlearn.params import Layout

LAYOUT = Layout(("weight", "bias"), ((2, 3), (2,)))
LATE = 50
"""A client that is asked in every round and never answers in time."""


def a_state(index, seed=0):
    """The server after round ``index``: a model, a momentum, a random state."""
    rng = np.random.default_rng((seed, index, 1))
    weight, momentum = rng.normal(size=(2, 3)), rng.normal(size=8)
    return ServerState(
        arrays={"weight": weight.astype(np.float32), "steps": np.array([index])},
        rule={"momentum": momentum.astype(np.float32)},
        random=json.dumps([seed, index]),
    )


def a_record(index, clients, seed=0):
    """A round that is the same whenever its index, clients and seed are."""
    rng = np.random.default_rng((seed, index))
    clients, count = tuple(sorted(clients)), len(clients)
    model, matrix = rng.normal(size=LAYOUT.size), rng.normal(size=(count, LAYOUT.size))
    return RoundRecord(
        index=index,
        clients=clients,
        num_examples=np.array([10 + c + index for c in clients], np.int64),
        num_steps=np.array([2 + c for c in clients], np.int64),
        num_samples=np.array([20 + 2 * c for c in clients], np.int64),
        asked=(*clients, LATE),
        set_aside=(SetAside(LATE, "it was late"),),
        loss=1 / index,
        seconds=0.25,
        arrays=ArraysInMemory(
            model.astype(np.float32),
            matrix.astype(np.float32),
            a_state(index - 1, seed),
        ),
    )


def history_digest(history):
    """SHA-256 of everything that can be read from a history; errors pass through.

    Wall-clock seconds, sizes and the log are left out: equal digests mean that two
    histories answer alike.
    """
    digest = hashlib.sha256()
    holds = history.holds
    _add(digest, history.rounds, history.clients, sorted(history.withdrawn))
    _add(digest, sorted(getattr(history, "names", {}).items()), holds.sums_from)
    for index in history.rounds:
        _add_round(digest, history.round(index), index in holds.broadcasts)
    for client in history.clients:
        _add(digest, client, history.rounds_of(client))
        if holds.sums_from is not None and any(
            index >= holds.sums_from for index in history.rounds_of(client)
        ):
            _add_array(digest, "sum", history.sum_of(client))
    tip = history.tip
    _add(digest, "tip", None if tip is None else tip.round)
    if tip is not None:
        _add_state(digest, tip.state)
    return digest.hexdigest()


def _add_round(digest, record, has_broadcast):
    aside = [(s.client, s.reason) for s in record.set_aside]
    _add(digest, record.index, record.clients, record.kept, record.asked, aside)
    _add(digest, record.loss)
    for name in ("num_examples", "num_steps", "num_samples", "sensitivities"):
        value = getattr(record, name)
        _add(digest, name, None if value is None else value.tolist())
    if has_broadcast:
        _add_array(digest, "broadcast", record.broadcast)
    _add_array(digest, "updates", record.updates_of(record.kept))
    _add_state(digest, record.arrays.state())


def _add_state(digest, state):
    for kind, named in (("arrays", state.arrays), ("rule", state.rule)):
        for name in sorted(named):
            _add_array(digest, f"{kind}/{name}", named[name])
    _add(digest, "random", state.random)


def _add_array(digest, name, array):
    _add(digest, name, str(array.dtype), array.shape)
    digest.update(np.ascontiguousarray(array).tobytes())


def _add(digest, *values):
    digest.update(repr(values).encode("utf-8") + b"\n")


class WatchedFiles:
    """The disk, with somebody looking on.

    Args:
        before: Called with the method's name and arguments before anything happens; if
            it raises, nothing happens.
        after: Called with name, arguments and result once it has happened.
    """

    def __init__(self, before=None, after=None):
        self.real = RealFiles()
        self.before, self.after = before, after

    def create(self, path):
        return self._call("create", path)

    def write(self, handle, data):
        return self._call("write", handle, data)

    def sync(self, handle):
        return self._call("sync", handle)

    def close(self, handle):
        return self._call("close", handle)

    def sync_folder(self, folder):
        return self._call("sync_folder", folder)

    def rename(self, old, new):
        return self._call("rename", old, new)

    def unlink(self, path):
        return self._call("unlink", path)

    def commit(self, database):
        return self._call("commit", database)

    def reached(self, step):
        return self._call("reached", step)

    def _call(self, method, *args):
        if self.before is not None:
            self.before(method, *args)
        result = getattr(self.real, method)(*args)
        if self.after is not None:
            self.after(method, args, result)
        return result


@contextmanager
def in_memory(tmp_path):
    """A folder in memory, if there is one, for tests that make thousands of files.

    They lose nothing: whether bytes were synced can be seen on no living system.
    """
    memory = Path("/dev/shm")  # noqa: S108 - only its speed is used
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="fedunlearn-", dir=memory) as place:
        yield Path(place)


LEAVER, LEAVERS_NAME = 0, "Ophelia-who-leaves"
"""The client that the stories erase, and a name that must not be found afterwards."""


@dataclass(frozen=True)
class Story:
    """What happens to a history, from its making to its closing.

    Played again after a crash, it goes on from whatever is there.

    Args:
        retention: What stays of the rounds.
        clean: Whether the erasure comes with a clean model.
        before, after: Rounds appended before and after the erasure.
        clients: Who takes part, beside the leaver, who misses the first round.
        pause: Whether the history is closed and opened again before the erasure.
    """

    retention: str = "all"
    clean: bool = True
    before: int = 5
    after: int = 2
    clients: tuple = (1, 2)
    pause: bool = True

    @property
    def steps(self):
        """Names of the steps after which a history has a state to compare with."""
        rounds = range(1, self.before + self.after + 1)
        names = [f"append {i}" for i in rounds]
        names.insert(self.before, "erase")
        if self.pause:
            names.insert(self.before, "reopen")
        return ("create", *names)

    def open(self, folder, files):
        """Create the history, or open the one that is there."""
        if (folder / "index.db").exists():
            return DiskHistory.open(folder, write=True, files=files)
        names = {LEAVER: LEAVERS_NAME, 1: "Horatio"}
        return DiskHistory.create(
            folder, LAYOUT, retention=self.retention, names=names, files=files
        )

    def is_done(self, history, step):
        """Whether a step of this name lies behind the history."""
        if step == "erase":
            return LEAVER in history.withdrawn
        if step.startswith("append"):
            return history.tip is not None and history.tip.round >= _number(step)
        return step == "create"

    def do(self, history, step):
        """Do a step; return the history to go on with."""
        if step == "reopen":
            history.close()
            return self.open(history.folder, history._store.files)
        if step == "erase":
            history.erase([LEAVER], a_state(100) if self.clean else None, "they asked")
        if step.startswith("append"):
            index = _number(step)
            there = 1 < index <= self.before
            clients = (LEAVER, *self.clients) if there else self.clients
            history.append_round(a_record(index, clients), a_state(index))
        return history

    def play(self, folder, files, note):
        """Play it to the end; ``note(history, step)`` hears of every step."""
        history = self.open(folder, files)
        for step in self.steps:
            if not self.is_done(history, step):
                history = self.do(history, step)
            note(history, step)
        history.close()

    def digests(self, folder):
        """Step -> digest of the history after it, when nothing interrupts."""
        out = {}
        self.play(
            folder,
            None,
            lambda history, step: out.update({step: history_digest(history)}),
        )
        return out


def states_around(steps, last):
    """The step that was over last, and the one that may have been; None: no history."""
    at = -1 if last is None else steps.index(last)
    return {last, *steps[at + 1 : at + 2]}


def assert_one_outer_key(folder):
    """A key ring has changed hands completely: a key and its checksum, no other key."""
    assert len((folder / "outer.key").read_bytes()) == 2 * 32


def assert_erased(history, client):
    """Nothing of the client is listed or can be read; its key is gone."""
    assert client in history.withdrawn
    assert client not in history.clients
    assert client not in history.names
    assert history.rounds_of(client) == ()
    assert history.traces_of(client) == ()
    with pytest.raises(HistoryError, match="destroyed"):
        history._store.keys.client_key(client)


def _number(step):
    return int(step.split()[1])
