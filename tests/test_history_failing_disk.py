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
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedunlearn.errors import DamagedError, HistoryError
from fedunlearn.history import ArraysInMemory, DiskHistory
from fedunlearn.history.index import Index
from fedunlearn.params import Layout
from tests.history_helpers import (
    LEAVER,
    Story,
    WatchedFiles,
    a_record,
    a_state,
    assert_erased,
    assert_one_outer_key,
    history_digest,
    in_memory,
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
    """The n-th call of a method fails, once; or all calls of all methods from then on.

    Args:
        method: Of which method; ``committed`` for a commit that fails once it is done,
            ``anything`` for any call and all that follow it until :meth:`heal`.
        number: The error's number.
        nth: Which call, from 1.
    """

    def __init__(self, method, number, nth):
        self.method, self.number, self.nth = method, number, nth
        self.calls, self.first, self.healed = 0, None, False
        self.files = WatchedFiles(self._before, self._after)

    @property
    def leaves_doubt(self):
        """Whether nobody knows afterwards what the disk holds."""
        broken = self.first == "commit" and self.number == errno.EIO
        return broken or self.first in ("sync", "sync_folder")

    @property
    def words(self):
        """What a person may be told."""
        return ERRORS[self.number], os.strerror(self.number)

    def heal(self):
        """Let the disk work again."""
        self.healed = True

    def _before(self, method, *args):
        anything = self.method == "anything" and method != "reached"
        if anything or method == self.method:
            self._count(method, args)

    def _after(self, method, args, _):
        if (self.method, method) == ("committed", "commit"):
            self._count(method, args)

    def _count(self, method, args):
        self.calls += 1
        lasts = self.method == "anything" and self.calls > self.nth
        if not self.healed and (self.calls == self.nth or lasts):
            if self.first in (None, "unlink"):  # a leftover may stay without a word
                self.first = method
            self._fail(method, args)

    def _fail(self, method, args):
        if method == "commit":
            raise sqlite3.OperationalError(ERRORS[self.number])
        if method == "close":
            os.close(args[0])  # the handle is gone even if closing it fails
        if method == "write":
            os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
        raise OSError(self.number, os.strerror(self.number))


def play_with(story, folder, fault, digests):
    """Play a story; where it fails, look around and go on."""
    history = None
    for at, step in enumerate(("create", *story.steps[1:], "close")):
        before = story.steps[at - 1] if at else None
        allowed = {digests.get(s) for s in states_around(story.steps, before)}
        late = False
        try:
            history = _one_step(story, folder, history, step, fault)
        except HistoryError as error:
            fault.heal()
            assert_clear(error, fault)
            late = str(error).startswith("thinning") and not fault.leaves_doubt
            if late or step == "erase":  # half done: shows when it is done again
                allowed = None
            history = _gone_on(story, folder, history, step, fault, allowed)
        if step == "erase" or (step in digests and not late):
            assert history_digest(history) == digests[step]
    assert fault.healed or fault.first in (None, "unlink"), "it was not noticed"
    with DiskHistory.open(folder, write=True) as again:
        assert again.check(read_data=True) == []
        assert history_digest(again) == digests[story.steps[-1]]
        assert_erased(again, LEAVER)
        assert_one_outer_key(folder)


def _one_step(story, folder, history, step, fault):
    if step == "create":
        return story.open(folder, fault.files)
    if step == "close":
        history.close()
        return None
    return story.do(history, step)


def _gone_on(story, folder, history, step, fault, allowed):
    """Look at what a failed step has left and do it again; return the history."""
    if step in ("create", "reopen", "close"):
        if history is not None:
            history.close()  # it is closed already, although it said that it failed
        history = story.open(folder, fault.files)
    elif fault.leaves_doubt:
        assert_refusing(history)
        history.close()
        history = DiskHistory.open(folder, write=True, files=fault.files)
    assert allowed is None or history_digest(history) in allowed
    assert [f.what for f in history.check(read_data=True) if f.damage] == []
    if step == "erase" or not story.is_done(history, step):
        history = story.do(history, step)
    if step == "close":
        history.close()
    return history


def assert_refusing(history):
    """Nobody knows what the disk holds: nothing is written any more."""
    doubt = r"takes no more writes: .* could not be confirmed .*; open it again"
    with pytest.raises(HistoryError, match=doubt):
        history.append_round(a_record(90, (1,)), a_state(90))
    with pytest.raises(HistoryError, match=doubt):
        history.erase([2])


def assert_clear(error, fault):
    """One sentence that says what failed and why; it does not cry damage."""
    assert_no_damage(error)
    assert any(words in str(error) for words in fault.words), error
    assert str(error) not in fault.words
    assert "\n" not in str(error)


def assert_no_damage(error):
    assert not isinstance(error, DamagedError), error


def open_handles():
    """How many files this process has open."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


def lowest_free_handle():
    """The number that the next opened file will get."""
    handle = os.dup(0)
    os.close(handle)
    return handle


def failing_calls(method, number):
    """Yield a fault for n = 1, 2, ... until there is no n-th call."""
    for nth in count(1):
        fault = Fault(method, number, nth)
        yield fault
        if fault.first is None:
            return


ALL = [
    *(("last:2", method, number) for method in METHODS for number in ERRORS),
    *(("own rows, all", method, errno.ENOSPC) for method in METHODS),
    *(("own rows, sums", method, errno.ENOSPC) for method in METHODS),
    ("last:2", "committed", errno.EIO),
    ("own rows, sums", "anything", errno.ENOSPC),
    ("own rows, sums", "anything", errno.EIO),
]
"""Every error in the first story; it makes no difference to the others."""


def count_failing_calls():
    """How many calls the test below lets fail, each in a story of its own."""
    out = 0
    for name, method, number in ALL:
        fault = Fault(method, number, sys.maxsize)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "history"
            STORIES[name].play(folder, fault.files, lambda *_: None)
        out += fault.calls
    return out


@pytest.fixture
def place(tmp_path):
    """A folder for many small files."""
    with in_memory(tmp_path) as folder:
        yield folder


@pytest.mark.parametrize(("name", "method", "number"), ALL)
def test_any_call_may_fail(name, method, number, place):
    """It is said clearly, nothing recorded is lost, and the end is the same."""
    story = STORIES[name]
    digests = story.digests(place / "undisturbed")
    faults = []
    for fault in failing_calls(method, number):
        folder = place / str(fault.nth) / "history"
        folder.parent.mkdir()
        handles = open_handles()
        try:
            play_with(story, folder, fault, digests)
            assert open_handles() == handles, "a handle was left open"
        except (AssertionError, HistoryError, OSError, sqlite3.Error) as error:
            faults.append(f"{method} #{fault.nth}: {error!r}")
        shutil.rmtree(folder.parent)
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)


@pytest.mark.parametrize("method", ["write", "sync", "close"])
def test_a_file_that_was_refused_takes_no_room(method, tmp_path):
    """On a full disk half a file would be in the way until the next writer comes."""
    fault = Fault(method, errno.ENOSPC, sys.maxsize)
    story, folder = STORIES["own rows, all"], tmp_path / "history"
    history = story.do(story.open(folder, fault.files), "append 1")
    before = sorted(path.name for path in (folder / "segments").iterdir())
    fault.nth = fault.calls + 1
    with pytest.raises(HistoryError, match="No space left"):
        story.do(history, "append 2")
    assert sorted(path.name for path in (folder / "segments").iterdir()) == before
    history.close()


# Real disks --------------------------------------------------------------------------

NO_FAULT = SimpleNamespace(files=None, leaves_doubt=False)
IN_DOUBT = SimpleNamespace(files=None, leaves_doubt=True)
BIG = Layout(("w",), ((50_000,),))
KIB = 1 << 10


def _after_a_refusal(story, folder, history, step, error, allowed):
    """Go on where the real disk or the system refused a step."""
    assert_no_damage(error)
    doubt = history is not None and bool(history._store.failure)
    if step == "erase" or str(error).startswith("thinning"):
        allowed = None
    fault = IN_DOUBT if doubt else NO_FAULT
    return _gone_on(story, folder, history, step, fault, allowed)


@contextmanager
def small_disk(place, size):
    """Mount a small file system; it must be root's to mount."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill")
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk, leave):
    """Put a file on a disk that leaves so many bytes free; return its path."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - leave))
    return ballast


def a_big_record(index):
    """600 kB in a round."""
    rng = np.random.default_rng(index)
    numbers = rng.normal(size=(4, BIG.size)).astype(np.float32)
    arrays = ArraysInMemory(numbers[0], numbers[1:])
    return replace(a_record(index, (0, 1, 2)), arrays=arrays)


def test_a_full_disk_refuses_rounds_until_there_is_room(tmp_path):
    """Appending until it is full, and on once there is room again."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        ballast = fill(disk, 3 << 20)
        history = DiskHistory.create(disk / "history", BIG)
        digests = {0: history_digest(history)}
        full = r"No space left on device|database or disk is full"
        with pytest.raises(HistoryError, match=full) as refused:
            append_until_refused(history, digests)
        assert not isinstance(refused.value, DamagedError)
        index = max(digests) + 1
        assert index > 2
        assert history.rounds == tuple(range(1, index))
        assert history_digest(history) == digests[index - 1]
        assert history.check(read_data=True) == []
        ballast.unlink()
        history.append_round(a_big_record(index), a_state(index))
        assert history.rounds == tuple(range(1, index + 1))
        digest = history_digest(history)
        history.close()
        with DiskHistory.open(disk / "history", write=True) as again:
            assert again.check(read_data=True) == []
            assert history_digest(again) == digest


def append_until_refused(history, digests):
    for index in count(1):
        history.append_round(a_big_record(index), a_state(index))
        digests[index] = history_digest(history)


@pytest.mark.parametrize("name", STORIES)
def test_any_amount_of_room_may_be_left(name, tmp_path):
    """SQLite's own writes fail here: at every step, with every few KiB left."""
    story = STORIES[name]
    digests = story.digests(tmp_path / "undisturbed")
    refused = 0
    with small_disk(tmp_path / "disk", "1m") as disk:
        for leave in range(0, 120 * KIB, 4 * KIB):
            folder = disk / str(leave) / "history"
            refused += play_without_room(story, folder, leave, digests)
            shutil.rmtree(folder.parent)
    assert refused > 3 * len(story.steps)


def play_without_room(story, folder, leave, digests):
    """Play a story, each step first on a disk with little room; count the refusals."""
    history, refused, disk = None, 0, folder.parents[1]
    folder.parent.mkdir()
    for at, step in enumerate(("create", *story.steps[1:], "close")):
        before = story.steps[at - 1] if at else None
        allowed = {digests.get(s) for s in states_around(story.steps, before)}
        ballast = fill(disk, leave)
        try:
            history = _one_step(story, folder, history, step, NO_FAULT)
        except HistoryError as error:
            refused += 1
            ballast.unlink()
            history = _after_a_refusal(story, folder, history, step, error, allowed)
        ballast.unlink(missing_ok=True)
    with DiskHistory.open(folder, write=True) as again:
        assert again.check(read_data=True) == []
        assert history_digest(again) == digests[story.steps[-1]]
        assert_erased(again, LEAVER)
        assert_one_outer_key(folder)
    return refused


def test_a_read_only_disk_can_be_read_and_nothing_else(tmp_path):
    """Where nothing can be written, a writer is refused and a reader is not."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        folder = disk / "history"
        digests = STORIES["last:2"].digests(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert_only_readable(folder, digests["append 4"], errno.EROFS)


def test_what_a_read_only_disk_cannot_tell_is_not_left_out(tmp_path):
    """A crashed writer's last commits lie in a log that only a writable disk opens."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        folder = disk / "history"
        code = (
            "import os, pathlib, sys\n"
            "from tests.history_helpers import Story\n"
            "history = Story().open(pathlib.Path(sys.argv[1]), None)\n"
            "Story().do(history, 'append 1')\n"
            "os._exit(0)\n"
        )
        command = [sys.executable, "-c", code, str(folder)]
        subprocess.run(command, cwd=PROJECT, check=True)
        (folder / "index.db-shm").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(HistoryError, match="cannot be opened"):
            DiskHistory.open(folder)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        with DiskHistory.open(folder) as reader:
            assert reader.rounds == (1,)


def test_a_folder_of_others_can_be_read_and_nothing_else(tmp_path):
    """Permissions keep a writer out; a reader is let in where they allow it."""
    if os.geteuid() == 0:
        pytest.skip("permissions do not hold root back")
    folder = tmp_path / "history"
    digests = STORIES["last:2"].digests(folder)
    for path in (folder / "LOCK", folder, tmp_path):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        assert_only_readable(folder, digests["append 4"], errno.EACCES)
    finally:
        for path in (tmp_path, folder):
            path.chmod(0o700)


def assert_only_readable(folder, digest, number):
    words = os.strerror(number)
    with pytest.raises(HistoryError, match=words) as refused:
        DiskHistory.open(folder, write=True)
    assert not isinstance(refused.value, DamagedError)
    with pytest.raises(HistoryError, match=words):
        DiskHistory.create(folder.with_name("another"), BIG)
    with DiskHistory.open(folder) as reader:
        assert history_digest(reader) == digest
        assert reader.check(read_data=True) == []
        with pytest.raises(HistoryError, match="open for reading only"):
            reader.append_round(a_record(9, (1,)), a_state(9))


def starve(folder, spare):
    """Play a story, each step first with so few files that may be opened more.

    Run in a process of its own; prints how often it was refused.
    """
    story, folder, refused = STORIES["own rows, sums"], Path(folder), 0
    digests = story.digests(folder.with_name("undisturbed"))
    history = None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for at, step in enumerate(("create", *story.steps[1:], "close")):
        before = story.steps[at - 1] if at else None
        allowed = {digests.get(s) for s in states_around(story.steps, before)}
        most = lowest_free_handle() + spare
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
        try:
            history = _one_step(story, folder, history, step, NO_FAULT)
        except HistoryError as error:
            refused += 1
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            history = _after_a_refusal(story, folder, history, step, error, allowed)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with DiskHistory.open(folder, write=True) as again:
        assert again.check(read_data=True) == []
        assert history_digest(again) == digests[story.steps[-1]]
    sys.stdout.write(f"{refused}\n")


@pytest.mark.parametrize("spare", range(8))
def test_too_many_open_files_are_no_damage(spare, tmp_path):
    """A process that may open no more files is refused, and goes on when it may."""
    code = (
        "import sys, tests.test_history_failing_disk as tests\n"
        "tests.starve(sys.argv[1], int(sys.argv[2]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "history"), str(spare)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    refused = int(out.stdout)
    assert refused > 0 if spare < 3 else refused == 0 or spare < 7


def test_a_setting_that_was_rolled_back_is_what_it_was(tmp_path):
    """The writer remembers settings; a commit that fails must not change its mind."""
    full, path = [], tmp_path / "index.db"

    def before(method, *_):
        if method == "commit" and full:
            raise sqlite3.OperationalError("database or disk is full")

    files = WatchedFiles(before=before)
    Index.create(path, {"nbytes": "1"}, {}, files)
    index, reader = Index(path, write=True), Index(path, write=False)

    def change(value):
        with index.transaction(files, "append"):
            assert index.meta("nbytes") == "1"
            index.set_meta("nbytes", value)
            assert index.meta("nbytes") == value

    full.append(True)
    with pytest.raises(sqlite3.OperationalError):
        change("2")
    assert index.meta("nbytes") == reader.meta("nbytes") == "1"
    full.clear()
    change("3")
    assert index.meta("nbytes") == reader.meta("nbytes") == "3"
    index.close()
    reader.close()
