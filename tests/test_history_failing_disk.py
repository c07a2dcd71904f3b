"""Lets the disk refuse at every call, once, and goes on when it has recovered.

The n-th call of a method of the seam fails, for n = 1, 2, ... until a story passes
without failing. After each failure what was recorded before is intact, and either the
same object goes on, or, if nobody knows what the disk holds, it refuses and a new one
goes on; the end is always that of a story in which nothing failed. What does not pass
through the seam, SQLite's own writes above all, meets a real small disk that is full,
one that is read-only, and a process that may open no more files.
"""

import errno
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from fedunlearn.errors import DamagedError, HistoryError
from fedunlearn.history import DiskHistory
from tests.history_helpers import (
    LAYOUT,
    LEAVER,
    Story,
    WatchedFiles,
    a_record,
    a_state,
    assert_erased,
    history_digest,
    states_around,
)

PROJECT = Path(__file__).parents[1]
METHODS = (
    "create", "write", "sync", "close", "sync_folder", "rename", "unlink", "commit",
)  # fmt: skip
ERRORS = {
    errno.ENOSPC: "database or disk is full",
    errno.EIO: "disk I/O error",
    errno.EMFILE: "unable to open database file",
}
"""What the disk says, and what SQLite makes of it."""
STORIES = {
    "last:2": Story("last:2", before=3, after=1),
    "own rows, sums": Story("sums", before=3, after=1, clean=False),
    "own rows, all": Story("all", before=3, after=1, clean=False),
}


class Fault:
    """The n-th call of a method fails, once.

    Args:
        method: Of which method.
        number: The error's number.
        nth: Which call, from 1.
    """

    def __init__(self, method, number, nth):
        self.method, self.number, self.nth = method, number, nth
        self.calls = 0
        self.files = WatchedFiles(self._before)

    @property
    def happened(self):
        """Whether there were that many calls."""
        return self.calls >= self.nth

    @property
    def leaves_doubt(self):
        """Whether nobody knows afterwards what the disk holds."""
        broken = self.method == "commit" and self.number == errno.EIO
        return broken or self.method in ("sync", "sync_folder")

    @property
    def words(self):
        """What a person must be told."""
        if self.method == "commit":
            return ERRORS[self.number]
        return os.strerror(self.number)

    def _before(self, method, *args):
        if method != self.method:
            return
        self.calls += 1
        if self.calls == self.nth:
            self._fail(*args)

    def _fail(self, *args):
        if self.method == "commit":
            raise sqlite3.OperationalError(ERRORS[self.number])
        if self.method == "close":
            os.close(args[0])  # the handle is gone even if closing it fails
        if self.method == "write":
            os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
        raise OSError(self.number, os.strerror(self.number))


def play_with(story, folder, fault, digests):
    """Play a story; where it fails, look around and go on."""
    history = None
    for at, step in enumerate(("create", *story.steps[1:], "close")):
        allowed = states_around(story.steps, story.steps[at - 1] if at else None)
        try:
            history = _one_step(story, folder, history, step, fault)
        except HistoryError as error:
            assert_clear(error, fault)
            history = _gone_on(story, folder, history, step, fault, allowed, digests)
        if step in digests:
            assert history_digest(history) == digests[step]
    with DiskHistory.open(folder, write=True) as again:
        assert again.check(read_data=True) == []
        assert history_digest(again) == digests[story.steps[-1]]
        assert_erased(again, LEAVER)


def _one_step(story, folder, history, step, fault):
    if step == "create":
        return story.open(folder, fault.files)
    if step == "close":
        history.close()
        return None
    return story.do(history, step)


def _gone_on(story, folder, history, step, fault, allowed, digests):
    """Look at what a failed step has left and do it again; return the history."""
    if step in ("create", "reopen", "close"):
        history = None if step == "create" else _closed(history)
        history = story.open(folder, fault.files)
    elif fault.leaves_doubt:
        with pytest.raises(
            HistoryError, match=r"takes no more writes: .*open it again"
        ):
            story.do(history, step)
        with pytest.raises(
            HistoryError, match=r"takes no more writes: .*open it again"
        ):
            history.erase([2])
        history.close()
        history = DiskHistory.open(folder, write=True, files=fault.files)
    if step != "erase" or fault.leaves_doubt:
        assert history_digest(history) in {digests[s] for s in allowed if s}
    assert [f.what for f in history.check(read_data=True) if f.damage] == []
    if step == "erase" or not story.is_done(history, step):
        history = story.do(history, step)
    if step == "close":
        history.close()
    return history


def _closed(history):
    """A writer that could not close properly is closed all the same."""
    history.close()
    with pytest.raises(HistoryError, match="open for reading only"):
        history.erase([2])


def assert_clear(error, fault):
    """One sentence that says what failed and why; it does not cry damage."""
    assert not isinstance(error, DamagedError), error
    assert fault.words in str(error)
    assert str(error) != fault.words
    assert "\n" not in str(error)


def failing_calls(story, method, number):
    """Yield a fault for n = 1, 2, ... until there is no n-th call."""
    for nth in count(1):
        fault = Fault(method, number, nth)
        yield fault
        if not fault.happened:
            return


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", STORIES)
def test_any_call_may_fail(name, method, number, tmp_path):
    """It is said clearly, nothing recorded is lost, and the end is the same."""
    story = STORIES[name]
    digests = story.digests(tmp_path / "undisturbed")
    faults = []
    for fault in failing_calls(story, method, number):
        folder = tmp_path / str(fault.nth) / "history"
        folder.parent.mkdir()
        try:
            play_with(story, folder, fault, digests)
        except (AssertionError, HistoryError, OSError, sqlite3.Error) as error:
            faults.append(f"{method} #{fault.nth}: {error!r}")
        shutil.rmtree(folder.parent)
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)
