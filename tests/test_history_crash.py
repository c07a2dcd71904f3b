"""Kills a writer at every named step and looks at what is left.

A child process plays a story and kills itself with SIGKILL at one of the steps of
``fedunlearn.history.files.STEPS``. What it leaves is opened for writing, must be what
was committed, and the story is then played to its end, which must be the same as if
nothing had happened. The children are forked from a process that only waits, so that
a kill costs a fork and no import.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import pytest

from fedunlearn.errors import HistoryError
from fedunlearn.history import DiskHistory
from fedunlearn.history.files import STEPS
from fedunlearn.history.migrate import migrate
from tests.history_helpers import (
    LEAVER,
    LEAVERS_NAME,
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

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "history-format-1"
CORES = 2


class Migration:
    """A history of format 1 is rewritten; then one more round is appended."""

    steps = ("migrate", "append")

    def prepare(self, folder):
        shutil.copytree(GOLDEN, folder)

    def play(self, folder, files, note):
        if not (folder / "keys.bin").exists():
            migrate(folder, files=files)
        with DiskHistory.open(folder, write=True, files=files) as history:
            note(history, "migrate")
            if 5 not in history.rounds:
                history.append_round(a_record(5, (0, 1)), a_state(5))
            note(history, "append")


STORIES = {
    "last:2": Story("last:2"),
    "sums": Story("sums"),
    "crab": Story("crab:0.1,0.5,0.5"),
    "own rows, all": Story("all", clean=False),
    "own rows, sums": Story("sums", clean=False),
    "migrate": Migration(),
}
"""Together they pass through every step."""


def prepared(name, place):
    """Put what the story starts from into a folder of ``place``; return the folder."""
    folder = place / "history"
    if isinstance(STORIES[name], Migration):
        STORIES[name].prepare(folder)
    return folder


def occurrences(name):
    """Play a story to its end; return its digests and how often it passes each step."""
    seen, digests = Counter(), {}

    def before(method, *args):
        if method == "reached":
            seen[args[0]] += 1

    def note(history, step):
        digests[step] = history_digest(history)

    with tempfile.TemporaryDirectory() as place:
        STORIES[name].play(prepared(name, Path(place)), WatchedFiles(before), note)
    return digests, seen


def chosen(seen):
    """Every time that a story passes a step; there are few enough to take them all."""
    return [(step, nth) for step, total in seen.items() for nth in range(1, total + 1)]


def count_kills():
    """How many kills the tests below carry out, and at how many different steps."""
    pairs = [pair for name in STORIES for pair in chosen(occurrences(name)[1])]
    return {"kills": len(pairs), "steps": len({step for step, _ in pairs})}


# In the child ------------------------------------------------------------------------


def wait_for_orders():
    """Fork for every line of input; the fork plays a story and dies on the way."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 70
            with suppress(BaseException):
                status = _die_playing(**order)
            os._exit(status)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


def _die_playing(story, folder, step, nth):
    seen = Counter()

    def before(method, *args):
        if method == "reached":
            seen[args[0]] += 1
            if args[0] == step and seen[step] == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    notes = os.open(f"{folder}.notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(_, done):
        os.write(notes, f"{done}\n".encode("ascii"))

    STORIES[story].play(Path(folder), WatchedFiles(before), note)
    return 0


# In the test -------------------------------------------------------------------------


class Victims:
    """As many waiting processes as there are cores."""

    def __init__(self, place):
        self.errors = (place / "errors").open("w+")
        self.idle = SimpleQueue()
        self.all = [self._started() for _ in range(CORES)]
        for process in self.all:
            self.idle.put(process)

    def _started(self):
        code = "from tests.test_history_crash import wait_for_orders as w; w()"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=ROOT,
            text=True,
        )

    def kill(self, story, folder, step, nth):
        """Have a child play until it dies; return the steps that were over by then."""
        order = {"story": story, "folder": str(folder), "step": step, "nth": nth}
        process = self.idle.get()
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        self.idle.put(process)
        assert os.WIFSIGNALED(status), f"it ended with {status}"
        assert os.WTERMSIG(status) == signal.SIGKILL
        return Path(f"{folder}.notes").read_text().split("\n")[:-1]

    def stop(self):
        for process in self.all:
            process.stdin.close()
            process.wait()
            process.stdout.close()
        self.errors.close()


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    """The processes that wait for orders."""
    out = Victims(tmp_path_factory.mktemp("victims"))
    yield out
    out.stop()


@pytest.fixture
def place(tmp_path):
    """A folder for many small files."""
    with in_memory(tmp_path) as folder:
        yield folder


@pytest.mark.parametrize("name", STORIES)
def test_a_kill_at_any_step_leaves_what_was_committed(name, victims, place):
    """Whatever is interrupted, the next writer ends it, and the end is the same."""
    digests, seen = occurrences(name)

    def examine(folder, step, nth):
        prepared(name, folder.parent)
        notes = victims.kill(name, folder, step, nth)
        look_at_what_is_left(STORIES[name], folder, notes, digests)

    examine_all(examine, chosen(seen), place)


@pytest.mark.parametrize("name", ["last:2", "own rows, all", "own rows, sums"])
def test_a_recovery_may_be_killed_as_well(name, victims, place):
    """Two kills: one amid an erasure, another while the next writer finishes it."""
    digests, _ = occurrences(name)
    first = prepared(name, place)
    victims.kill(name, first, "erase.promise.committed", 1)
    seen = steps_of_recovery(first, place / "copy")
    assert {"erase.keys_destroyed", "erase.rows.committed"} <= seen.keys()

    def examine(folder, step, nth):
        shutil.copytree(first, folder)
        shutil.copy(f"{first}.notes", f"{folder}.notes")
        notes = victims.kill(name, folder, step, nth)
        look_at_what_is_left(STORIES[name], folder, notes, digests)

    examine_all(examine, chosen(seen), place)


@pytest.mark.parametrize("amid", [False, True], ids=["idle", "amid a read"])
def test_a_reader_at_the_last_close_is_no_damage(amid, victims, tmp_path):
    """It may keep the index's log from being emptied; the next close is cut short."""
    name, folder = "own rows, all", tmp_path / "history"
    story = STORIES[name]
    history = story.open(folder, None)
    for step in story.steps[1:4]:
        history = story.do(history, step)
    history.close()
    history = story.open(folder, None)
    with DiskHistory.open(folder) as reader:
        if amid:
            reader._store.index.select("BEGIN")
        assert len(reader.rounds) == 3
        for step in story.steps[4:6]:
            history = story.do(history, step)
        digest = history_digest(history)
        history.close()
        assert len(reader.rounds) == (3 if amid else 5)
    victims.kill(name, folder, "close.seal.created", 1)
    with DiskHistory.open(folder) as reader:
        assert history_digest(reader) == digest
        assert [f.what for f in reader.check(read_data=True) if f.damage] == []
    with DiskHistory.open(folder, write=True) as history:
        assert history.check(read_data=True) == []


def steps_of_recovery(folder, copy):
    """How often the next writer passes each step before it can be used."""
    seen = Counter()

    def before(method, *args):
        if method == "reached":
            seen[args[0]] += 1

    shutil.copytree(folder, copy)
    history = DiskHistory.open(copy, write=True, files=WatchedFiles(before))
    out = dict(seen)
    history.close()
    return out


def examine_all(examine, pairs, place):
    """Call ``examine(folder, step, nth)`` for all pairs; fail with all that fails."""

    def fault(job):
        number, (step, nth) = job
        folder = place / str(number) / "history"
        folder.parent.mkdir()
        try:
            examine(folder, step, nth)
        except (AssertionError, HistoryError, OSError) as error:
            return f"{step} #{nth}: {type(error).__name__}: {error}"
        shutil.rmtree(folder.parent)
        return None

    with ThreadPoolExecutor(CORES) as pool:
        faults = [f for f in pool.map(fault, enumerate(pairs)) if f]
    assert not faults, f"{len(faults)} of {len(pairs)}:\n" + "\n".join(faults)


def look_at_what_is_left(story, folder, notes, digests):
    """Recover, compare with the states before and after the step that was going on."""
    if isinstance(story, Migration):
        end = _after_migration(story, folder, digests)
    else:
        end = _after_story(story, folder, notes, digests)
    assert end == digests[story.steps[-1]], "the end is another one"
    assert_finished(folder, LEAVER if isinstance(story, Story) else None)


def _after_story(story, folder, notes, digests):
    allowed = states_around(story.steps, notes[-1] if notes else None)
    if not (folder / "index.db").exists():
        assert None in allowed, "the history is gone"
        with pytest.raises(HistoryError, match="holds no history"):
            DiskHistory.open(folder)
    else:
        assert_no_damage_before_recovery(folder)
        with DiskHistory.open(folder, write=True) as history:
            assert history.check(read_data=True) == []
            where = [step for step in allowed if digests.get(step)]
            assert history_digest(history) in {digests[step] for step in where}, where
            erased = LEAVER in history.withdrawn
            if erased:
                assert_erased(history, LEAVER)
        assert_finished(folder, LEAVER if erased else None)
    return played_to_the_end(story, folder)


def _after_migration(story, folder, digests):
    """The old history is whole at any time; opening it does not finish a migration."""
    kept = folder.with_name(folder.name + ".format-1")
    old = kept if kept.exists() else folder
    assert_like_golden(old)
    if (folder / "keys.bin").exists():
        with DiskHistory.open(folder, write=True) as history:
            assert history.check(read_data=True) == []
            assert history_digest(history) in set(digests.values())
    else:
        words = "migrate" if folder.exists() else "holds no history"
        with pytest.raises(HistoryError, match=words):
            DiskHistory.open(folder)
    end = played_to_the_end(story, folder)
    assert_like_golden(kept)
    assert not folder.with_name(folder.name + ".migrating").exists()
    return end


def assert_like_golden(folder):
    """All files are there as they were; SQLite may have put empty ones beside them."""
    files = content(folder)
    assert {name: files[name] for name in content(GOLDEN)} == content(GOLDEN)
    assert set(files) - set(content(GOLDEN)) <= {"index.db-wal", "index.db-shm"}
    assert not files.get("index.db-wal")


def played_to_the_end(story, folder):
    """Play what is left of a story; return the digest of its end."""
    ends = []

    def note(history, step):
        if step == story.steps[-1]:
            ends.append(history_digest(history))

    story.play(folder, None, note)
    return ends[0]


def assert_no_damage_before_recovery(folder):
    """A reader, who repairs nothing, finds leftovers at most."""
    with DiskHistory.open(folder) as reader:
        assert [f.what for f in reader.check(read_data=True) if f.damage] == []


def assert_finished(folder, gone):
    """After the writer closed it, a reader finds all in order and no leftovers."""
    assert_one_outer_key(folder)
    files = content(folder)
    with DiskHistory.open(folder) as reader:
        assert reader.check(read_data=True) == []
    assert set(files) >= {"index.db", "keys.bin", "outer.key", "LOCK"}
    left = [n for n in files if n.endswith((".new", "-wal", "-shm"))]
    assert left == [], "leftovers"
    if gone is not None:
        name = LEAVERS_NAME.encode("ascii")
        assert [n for n, data in files.items() if name in data] == []


def content(folder):
    """Name -> bytes of all files below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", ["last:2", "own rows, all", "own rows, sums"])
def test_an_erasure_leaves_no_name_in_an_open_history(name, tmp_path):
    """What was deleted is gone from the index and its log before anybody closes it."""
    folder, story = tmp_path / "history", STORIES[name]
    found = {}

    def note(_, step):
        files = content(folder).items()
        found[step] = [n for n, data in files if LEAVERS_NAME.encode("ascii") in data]

    story.play(folder, None, note)
    assert found["create"], "negative control: the name is there at first"
    assert found["reopen"] == ["index.db"]
    assert found["erase"] == []


def test_every_step_is_reached():
    """A step that no story passes would go untested; one without a name as well."""
    passed = set().union(*(occurrences(name)[1] for name in STORIES))
    assert passed == set(STEPS)


def test_the_next_writer_takes_over_from_a_dead_one(tmp_path):
    """A living writer keeps others out and is named; a dead one does not."""
    folder = tmp_path / "history"
    code = (
        "import sys, pathlib, time\n"
        "from tests.history_helpers import Story\n"
        "history = Story().open(pathlib.Path(sys.argv[1]), None)\n"
        "history = Story().do(history, 'append 1')\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with writer:
        assert writer.stdout.readline() == b"ready\n"
        with pytest.raises(HistoryError, match=rf"\b{writer.pid}\b"):
            DiskHistory.open(folder, write=True)
        with DiskHistory.open(folder) as reader:
            assert reader.rounds == (1,)
        writer.kill()
    assert (folder / "LOCK").read_text() == f"{writer.pid}\n", "it died as a holder"
    with DiskHistory.open(folder, write=True) as second:
        assert second.check(read_data=True) == []
        Story().do(second, "append 2")
        with pytest.raises(HistoryError, match=rf"\b{os.getpid()}\b"):
            DiskHistory.open(folder, write=True)
    assert (folder / "LOCK").read_text() == ""
