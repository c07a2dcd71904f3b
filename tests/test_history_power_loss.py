"""Takes the power away after every operation and looks at every disk that may be left.

A story is played once on a real disk while all that it asks of it is written down.
After any beginning of that list a power loss may leave several disks:

* bytes that were not synced are there, are not, or stop amid the last write;
* names that were made, changed or removed in a folder that was not synced since are as
  before or as after, each for itself;
* a commit of the index is there once SQLite has returned from it (SQLite's promise, for
  which it is told ``synchronous=FULL``): its file and its write-ahead log are copied.

Every such disk is laid out in a folder and opened for writing. It must hold what was
committed: all that was acknowledged, and of what was going on all or nothing.
"""

import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations, count, islice, product
from pathlib import Path

import pytest

from fedunlearn.errors import HistoryError
from fedunlearn.history import DiskHistory
from fedunlearn.history.migrate import migrate
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

GOLDEN = Path(__file__).parent / "golden" / "history-format-1"
MOST_UNSYNCED = 8
"""Changed names of which all subsets are tried; code that syncs never has more."""
DATABASES = ("index.db", "index.db.new")


class Migration:
    """A history of format 1 is rewritten; then one more round is appended."""

    steps = ("nothing", "migrate", "append")

    def prepare(self, folder):
        shutil.copytree(GOLDEN, folder)

    def play(self, folder, files, note):
        note(None, "nothing")
        if not (folder / "keys.bin").exists():
            migrate(folder, files=files)
        with DiskHistory.open(folder, write=True, files=files) as history:
            note(history, "migrate")
            if 5 not in history.rounds:
                history.append_round(a_record(5, (0, 1)), a_state(5))
            note(history, "append")


STORIES = {
    "all": Story(before=3, after=1),
    "own rows": Story(before=3, after=1, clean=False),
    "last:2": Story("last:2", before=3, after=1, pause=False),
    "sums": Story("sums", before=3, after=1, clean=False, pause=False),
    "migrate": Migration(),
}
"""Three clients, three rounds, an erasure, one more round; and a migration."""


# What happens ------------------------------------------------------------------------


@dataclass
class Recorder:
    """Writes down what is asked of the disk below a folder, as a list of tuples.

    Files and folders are numbers; a name is a folder's number and a string.
    """

    root: Path
    log: list = field(default_factory=list)
    _numbers: dict = field(default_factory=dict)
    _handles: dict = field(default_factory=dict)
    _databases: dict = field(default_factory=dict)
    _replaced: dict = field(default_factory=dict)
    _next: count = field(default_factory=lambda: count(1))

    def __post_init__(self):
        """Begin with what is there, durable."""
        self._numbers[self.root] = 0
        self._look_around()
        for path in self.root.rglob("*"):
            if path.is_file() and path.name not in DATABASES:
                number = self._new(path)
                self.log += [("create", *self._name(path), number)]
                self.log += [("write", number, path.read_bytes()), ("sync", number)]
        folders = [n for path, n in self._numbers.items() if path.is_dir()]
        self.log += [("sync_folder", number) for number in folders]
        self.start = len(self.log)

    @property
    def files(self):
        """The disk to play on."""
        return WatchedFiles(self._before, self._after)

    def note(self, _, step):
        """Hear that a step is over."""
        self._look_around()
        self.log.append(("done", step))

    def _before(self, method, *args):
        self._look_around()
        if method == "rename" and args[1].is_file():
            lost = os.open(args[1], os.O_RDONLY)
            self._replaced[lost] = (self._numbers[args[1]], _content(lost))

    def _after(self, method, args, result):
        if method in ("create", "sync", "sync_folder", "rename", "unlink"):
            getattr(self, f"_{method}")(*args, result)
        elif method == "write":
            self.log.append(("write", self._handles[args[0]], bytes(args[1])))
        elif method == "commit":
            self._look_around()

    def _create(self, path, handle):
        self._handles[handle] = self._new(path)
        self.log.append(("create", *self._name(path), self._numbers[path]))

    def _sync(self, handle, _):
        self.log.append(("sync", self._handles[handle]))

    def _sync_folder(self, folder, _):
        self.log.append(("sync_folder", self._numbers[folder]))

    def _rename(self, old, new, _):
        self.log.append(("rename", *self._name(old), new.name, self._numbers[old]))
        for path in [p for p in self._numbers if p == old or old in p.parents]:
            self._numbers[new / path.relative_to(old)] = self._numbers.pop(path)

    def _unlink(self, path, _):
        if path in self._numbers:
            self.log.append(("unlink", *self._name(path)))
            del self._numbers[path]

    def _look_around(self):
        """Write down what does not pass through the seam."""
        for path in sorted(self.root.rglob("*")):
            if path.is_dir() and path not in self._numbers:
                self.log.append(("mkdir", *self._name(path), self._new(path)))
            if path.name in DATABASES:
                self._look_at_database(path)
        for lost, (number, content) in self._replaced.items():
            if content != (now := _content(lost)):
                self.log.append(("overwrite", number, now))
                self._replaced[lost] = (number, now)

    def _look_at_database(self, path):
        if path not in self._numbers:
            self.log.append(("create", *self._name(path), self._new(path)))
        wal, number = path.with_name(path.name + "-wal"), self._numbers[path]
        content = (path.read_bytes(), wal.read_bytes() if wal.exists() else b"")
        if self._databases.get(number) != content:
            self._databases[number] = content
            self.log.append(("committed", number, *content))

    def _name(self, path):
        return self._numbers[path.parent], path.name

    def _new(self, path):
        assert path not in self._numbers, path
        self._numbers[path] = next(self._next)
        return self._numbers[path]

    def close(self):
        """Let go of replaced files."""
        for lost in self._replaced:
            os.close(lost)


def _content(handle):
    return os.pread(handle, 1 << 20, 0)


def recorded(story):
    """Play a story; return its digests, the log and where in it the story begins."""
    with tempfile.TemporaryDirectory() as place:
        digests, root = {}, Path(place) / "root"
        root.mkdir()
        if isinstance(story, Migration):
            story.prepare(root / "history")
        recorder = Recorder(root)

        def note(history, step):
            digests[step] = None if history is None else history_digest(history)
            recorder.note(history, step)

        story.play(root / "history", recorder.files, note)
        recorder.note(None, "closed")
        recorder.close()
    return digests, recorder.log, recorder.start


# What may be left --------------------------------------------------------------------


@dataclass
class Disk:
    """What of a log is durable, and what is not yet."""

    names: dict = field(default_factory=lambda: {0: {}})
    data: dict = field(default_factory=dict)
    unsynced_names: list = field(default_factory=list)
    unsynced_data: dict = field(default_factory=dict)
    last: str | None = None

    def do(self, kind, *args):
        """Do what an entry of the log says."""
        if kind == "done":
            self.last = args[0]
        elif kind in ("mkdir", "create", "rename", "unlink"):
            self.unsynced_names.append((kind, *args))
            if kind == "mkdir":
                self.names[args[2]] = {}
            if kind == "create":
                self.data[args[2]] = b""
                self.unsynced_data[args[2]] = []
        elif kind == "write":
            self.unsynced_data[args[0]].append(args[1])
        elif kind == "sync":
            self.data[args[0]] += b"".join(self.unsynced_data[args[0]])
            self.unsynced_data[args[0]] = []
        elif kind == "sync_folder":
            for change in [c for c in self.unsynced_names if c[1] == args[0]]:
                _change(self.names, change)
                self.unsynced_names.remove(change)
        elif kind == "committed":
            self.data[args[0]] = args[1:]
        else:
            self.data[args[0]] = args[1]

    def images(self):
        """Yield every disk that may be left: path -> bytes; folders end with ``/``."""
        for are_there in _subsets(self.unsynced_names):
            names = {folder: dict(own) for folder, own in self.names.items()}
            for change in are_there:
                _change(names, change)
            paths = dict(_walk(names, 0, ""))
            options = [self._contents(number) for number in paths.values()]
            for contents in product(*options):
                yield _laid_out(paths, contents)

    def _contents(self, number):
        """The contents a file may have; None for a folder."""
        if number in self.names:
            return [None]
        durable, unsynced = self.data[number], self.unsynced_data.get(number)
        if not unsynced:
            return [durable]
        *most, last = unsynced
        most = durable + b"".join(most)
        return list(
            dict.fromkeys((most + last, most + last[: len(last) // 2], durable))
        )


def _subsets(changes):
    """Yield all subsets; of very many, those that lack or have one or two at most."""
    if len(changes) <= MOST_UNSYNCED:
        for mask in product((False, True), repeat=len(changes)):
            yield [c for c, is_there in zip(changes, mask, strict=True) if is_there]
        return
    for size in (0, 1, 2):
        for some in combinations(range(len(changes)), size):
            yield [changes[at] for at in some]
            yield [c for at, c in enumerate(changes) if at not in some]


def _change(names, change):
    kind, folder, name, *more = change
    own = names[folder]
    if kind in ("mkdir", "create"):
        own[name] = more[0]
    elif kind == "unlink":
        own.pop(name, None)
    else:
        own.pop(name, None)
        own[more[0]] = more[1]


def _walk(names, folder, prefix):
    for name, number in sorted(names[folder].items()):
        if number in names:
            yield f"{prefix}{name}/", number
            yield from _walk(names, number, f"{prefix}{name}/")
        else:
            yield prefix + name, number


def _laid_out(paths, contents):
    out = {}
    for path, content in zip(paths, contents, strict=True):
        out[path] = b"" if content is None else content
        if isinstance(content, tuple):
            out[path], out[f"{path}-wal"] = content
    return out


def images(story, log, start, known=()):
    """Yield what may be left: ``(key, image, states it may be in)``, no two alike.

    Those whose key is among ``known`` are passed over.
    """
    disk, seen = Disk(), set(known)
    for at, entry in enumerate(log, 1):
        disk.do(*entry)
        if at >= start:
            last = story.steps[-1] if disk.last == "closed" else disk.last
            allowed = states_around(story.steps, last)
            for image in disk.images():
                key = (_digest(image), *sorted(map(str, allowed)))
                if key not in seen:
                    seen.add(key)
                    yield key, image, allowed


def _digest(image):
    digest = hashlib.sha256()
    for path in sorted(image):
        digest.update(f"{path}\n{len(image[path])}\n".encode())
        digest.update(image[path])
    return digest.digest()


def count_images():
    """How many different disks the test below looks at, by story."""
    out = Counter()
    for name, story in STORIES.items():
        _, log, start = recorded(story)
        out[name] = sum(1 for _ in images(story, log, start))
    return dict(out)


# What must be left -------------------------------------------------------------------


def laid_out(image, root):
    """Put an image into a folder."""
    root.mkdir()
    for path, content in image.items():
        if path.endswith("/"):
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)
            (root / path).chmod(0o600)


def fault_of(story, image, allowed, digests, root):
    """Return what is wrong with an image, or None."""
    laid_out(image, root)
    try:
        if isinstance(story, Migration):
            _look_at_migration(story, root / "history", allowed, digests)
        else:
            _look_at_history(story, root / "history", allowed, digests)
    except (AssertionError, HistoryError, OSError, sqlite3.Error) as error:
        names = ", ".join(sorted(image))
        return f"{sorted(map(str, allowed))}: {error!r} with {names}"
    shutil.rmtree(root)
    return None


def _look_at_history(story, folder, allowed, digests):
    if not (folder / "index.db").exists():
        assert None in allowed, "the history is gone"
        history = story.open(folder, None)
    else:
        history = DiskHistory.open(folder, write=True)
    with history:
        assert history.check(read_data=True) == []
        assert_one_outer_key(folder)
        assert history_digest(history) in {digests[s] for s in allowed if s}
        if LEAVER in history.withdrawn:
            assert_erased(history, LEAVER)
        history.append_round(a_record(9, (1,)), a_state(9))
    with DiskHistory.open(folder) as reader:
        assert reader.rounds[-1] == 9


def _look_at_migration(story, folder, allowed, digests):
    if "nothing" not in allowed:
        with DiskHistory.open(folder) as history:
            assert history_digest(history) in {digests[s] for s in allowed}
    ends = []
    story.play(folder, None, lambda history, step: ends.append(history))
    with DiskHistory.open(folder) as history:
        assert history_digest(history) == digests["append"]
        assert history.check(read_data=True) == []
    kept = folder.with_name("history.format-1")
    for path in GOLDEN.rglob("*.*"):
        assert (kept / path.relative_to(GOLDEN)).read_bytes() == path.read_bytes()


def faults_of(story, recording, place, known=()):
    """Yield what is wrong with the images of a story, a few at a time."""
    digests, log, start = recording

    def examine(job):
        at, (_, image, allowed) = job
        return fault_of(story, image, allowed, digests, place / str(at))

    found = enumerate(images(story, log, start, known))
    with ThreadPoolExecutor(2) as pool:
        while some := list(islice(found, 16)):
            yield from (fault for fault in pool.map(examine, some) if fault)


@pytest.fixture
def place(tmp_path):
    """A folder for many small files."""
    with in_memory(tmp_path) as folder:
        yield folder


@pytest.mark.parametrize("name", STORIES)
def test_a_power_loss_leaves_what_was_committed(name, place):
    """No disk that may be left is anything but a committed beginning of the story."""
    faults = list(faults_of(STORIES[name], recorded(STORIES[name]), place))
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)


def syncs(log, start):
    """Where a log makes something durable: position, and what came last before it."""
    step, change = None, None
    for at, (kind, *rest) in enumerate(log):
        if kind == "done":
            step = rest[0]
        elif kind in ("rename", "create", "mkdir"):
            name = rest[2] if kind == "rename" else rest[1]
            change = f"{kind} {name.split('-')[0]}"
        elif kind.startswith("sync") and at >= start:
            yield at, (step, change, kind)


@pytest.mark.parametrize("name", ["all", "own rows"])
def test_every_sync_is_needed(name, place):
    """Negative control: with any one sync forgotten, some disk is found to be wrong."""
    story = STORIES[name]
    digests, log, start = recorded(story)
    known = [key for key, _, _ in images(story, log, start)]
    unnoticed = set()
    for at, what in syncs(log, start):
        folder = place / str(at)
        folder.mkdir()
        recording = (digests, log[:at] + log[at + 1 :], start)
        if not next(faults_of(story, recording, folder, known), None):
            unnoticed.add(what)
    assert unnoticed == {
        # The folder is synced again before anything refers to the first outer key,
        (None, "rename outer.key", "sync_folder"),
        # and without its first seal an index is as true, only less guarded. (Later the
        # old seal's bytes are overwritten, which its name must not outlive.)
        ("append 3", "rename index.seal", "sync_folder"),
    }


@pytest.mark.parametrize("forgotten", ["sync", "sync_folder"])
def test_never_syncing_is_found(forgotten, place):
    """Negative control: nothing is ever synced, or no name is."""
    digests, log, start = recorded(STORIES["sums"])
    log = [entry for entry in log if entry[0] != forgotten]
    assert next(faults_of(STORIES["sums"], (digests, log, start), place))


def test_there_are_enough_images():
    """A list of a few images would prove little."""
    assert sum(count_images().values()) > 500


def test_sqlite_is_told_to_keep_its_promise(tmp_path):
    """What the images take for granted is what SQLite is asked for."""
    for _ in ("created", "opened again"):
        with STORIES["all"].open(tmp_path / "history", None) as history:
            found = [
                history._store.index.select(f"PRAGMA {name}")[0][0]
                for name in ("synchronous", "journal_mode", "secure_delete")
            ]
        assert found == [2, "wal", 1]
