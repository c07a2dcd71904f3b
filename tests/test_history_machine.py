"""Random lives of a history: appended to, erased from, killed, damaged, repaired.

Hypothesis chooses what happens; a model of a few dictionaries says what must be there.
The history on disk and the one in memory live through the same, and both must answer
like the model after every step.
"""

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from fedunlearn.errors import HistoryError, RunError
from fedunlearn.history import DiskHistory, InMemoryHistory, ServerState
from fedunlearn.history.repair import repair
from tests.history_helpers import LAYOUT, WatchedFiles, a_record, a_state
from tests.nasty_names import NASTY

CLIENTS = range(5)
NAMES = dict(zip(CLIENTS, NASTY, strict=False))


# --- the model: at most 80 lines ------------------------------------------------------


@dataclass
class Model:
    """What must be there: plain dictionaries, no file, no key, no index."""

    who: dict = field(default_factory=dict)  # round -> clients in it
    asked: dict = field(default_factory=dict)  # round -> asked
    lost: dict = field(default_factory=dict)  # round -> what a repair gave up
    names: dict = field(default_factory=lambda: dict(NAMES))
    withdrawn: set = field(default_factory=set)
    last: int = 0
    tip: int | None = None  # whose a_state the server is in; None: nobody said
    stands: bool = False  # whether anybody said anything

    def append(self, index, clients, tip):
        self.who[index], self.asked[index] = clients, a_record(index, clients).asked
        self.last, self.tip, self.stands = index, tip, True

    def erase(self, clients, tip):
        new = set(clients) - self.withdrawn
        if not new:
            return
        if tip is not None:
            seen = [i for i, who in self.who.items() if new & set(who)]
            for index in [i for i in self.who if seen and i >= min(seen)]:
                del self.who[index], self.asked[index]
                self.lost.pop(index, None)
            self.tip, self.stands = tip, True
        for index, who in self.who.items():
            self.who[index] = tuple(c for c in who if c not in new)
            self.asked[index] = tuple(c for c in self.asked[index] if c not in new)
        self.names = {c: n for c, n in self.names.items() if c not in new}
        self.withdrawn |= new

    def rounds_of(self, client):
        return tuple(i for i, who in self.who.items() if client in who)

    def kept(self, index):
        return tuple(c for c in self.who[index] if c not in self.lost.get(index, ()))

    def has(self, index, part):
        return part not in self.lost.get(index, ())


# --- comparing ------------------------------------------------------------------------


FULL = {}


def whole(index, clients=tuple(CLIENTS)):
    """Return a round as if everybody had taken part; rows differ by client."""
    if index not in FULL:
        FULL[index] = a_record(index, clients)
    return FULL[index]


def made(index, clients):
    """Return a round; each client's update is the same whoever else takes part."""
    everybody, plain = whole(index), a_record(index, clients)
    rows = np.array(everybody.updates_of(clients)).reshape(len(clients), LAYOUT.size)
    arrays = plain.arrays.__class__(
        np.array(everybody.broadcast), rows, everybody.arrays.state()
    )
    return plain.__class__(
        index=index,
        clients=plain.clients,
        num_examples=plain.num_examples,
        num_steps=plain.num_steps,
        num_samples=plain.num_samples,
        asked=plain.asked,
        set_aside=plain.set_aside,
        loss=plain.loss,
        seconds=plain.seconds,
        arrays=arrays,
    )


def same_state(found, true):
    assert found.random == true.random
    for ours, theirs in ((found.arrays, true.arrays), (found.rule, true.rule)):
        assert {n: a.tobytes() for n, a in ours.items()} == {
            n: a.tobytes() for n, a in theirs.items()
        }


def compare(history, model):
    """Check everything that can be read against the model."""
    assert history.rounds == tuple(model.who)
    assert history.withdrawn == model.withdrawn
    assert history.clients == tuple(sorted({c for w in model.who.values() for c in w}))
    for client in CLIENTS:
        assert history.rounds_of(client) == model.rounds_of(client)
    compare_tip(history, model)
    for index, clients in model.who.items():
        compare_round(history.round(index), model, index, clients)
    held = {i for i, who in model.who.items() if model.kept(i) == who}
    assert history.holds.updates == held
    assert history.holds.broadcasts == {i for i in model.who if model.has(i, "model")}
    rows = sum(len(model.kept(i)) + model.has(i, "model") for i in model.who)
    assert history.holds.nbytes == 4 * LAYOUT.size * rows
    assert history.holds.peak_bytes >= history.holds.nbytes


def compare_tip(history, model):
    tip = history.tip
    assert (tip is not None) == model.stands
    if tip is not None:
        assert tip.round == model.last
        same_state(
            tip.state, ServerState() if model.tip is None else a_state(model.tip)
        )


def compare_round(record, model, index, clients):
    true = whole(index)
    assert record.clients == clients
    assert record.asked == model.asked[index]
    assert record.kept == model.kept(index)
    assert record.loss == true.loss
    for name in ("num_examples", "num_steps", "num_samples"):
        rows = [true.clients.index(c) for c in clients]
        assert getattr(record, name).tolist() == getattr(true, name)[rows].tolist()
    found = record.updates_of(record.kept)
    assert found.tobytes() == true.updates_of(record.kept).tobytes()
    for client in set(clients) - set(record.kept):
        with pytest.raises(HistoryError):
            record.updates_of([client])
    if model.has(index, "model"):
        assert record.broadcast.tobytes() == true.broadcast.tobytes()
    if model.has(index, "state"):
        same_state(record.arrays.state(), true.arrays.state())


# --- the machine ----------------------------------------------------------------------


SOME = st.sets(st.sampled_from(CLIENTS), max_size=4).map(lambda s: tuple(sorted(s)))


def hurried():
    """Return a disk that is not waited for: no power fails here."""

    def hurry(method, args, _result):
        if method == "commit":
            args[0].execute("PRAGMA synchronous=OFF")

    files = WatchedFiles(after=hurry)
    files.sync = files.sync_folder = lambda _: None
    return files


class Lives(RuleBasedStateMachine):
    """One history on disk, sealed or not, one in memory, and the model of both."""

    cuts = Bundle("cuts")

    @initialize(sealed=st.booleans())
    def begin(self, sealed):
        self.place = Path(tempfile.mkdtemp())
        self.sealed, self.number, self.left = sealed, 0, []
        self.folder = self.place / "0"
        self.files = hurried()
        self.disk = DiskHistory.create(
            self.folder, LAYOUT, sealed=sealed, names=NAMES, files=self.files
        )
        self.memory = InMemoryHistory(LAYOUT)
        self.model, self.clean = Model(), 1_000

    def teardown(self):
        if hasattr(self, "place"):
            for history in (*self.left, self.disk):
                with suppress(RunError):
                    history.close()
            shutil.rmtree(self.place)

    def reopen(self):
        self.disk = DiskHistory.open(self.folder, write=True, files=self.files)

    def closed(self):
        self.disk.close()
        return self.folder

    @rule(clients=SOME, gap=st.integers(1, 3), tell=st.booleans())
    def append(self, clients, gap, tell):
        index = self.model.last + gap
        clients = tuple(c for c in clients if c not in self.model.withdrawn)
        for history in (self.disk, self.memory):
            state = a_state(index) if tell else None
            history.append_round(made(index, clients), state)
        self.model.append(index, clients, index if tell else None)

    @precondition(lambda self: self.model.withdrawn)
    @rule(data=st.data())
    def append_an_erased_client(self, data):
        client = data.draw(st.sampled_from(sorted(self.model.withdrawn)))
        for history in (self.disk, self.memory):
            with pytest.raises(HistoryError, match=f"client {client} was erased"):
                history.append_round(made(self.model.last + 1, (client,)))

    @precondition(lambda self: self.model.last)
    @rule(back=st.integers(0, 2))
    def append_what_is_behind(self, back):
        for history in (self.disk, self.memory):
            with pytest.raises(HistoryError, match="cannot follow"):
                history.append_round(made(max(self.model.last - back, 1), ()))

    @precondition(lambda self: self.sealed and not self.model.lost)
    @rule(clients=SOME, clean=st.booleans())
    def erase(self, clients, clean):
        """Not after a repair: what was lost then is not gone from memory."""
        new = set(clients) - self.model.withdrawn
        self.clean += 1
        tip = self.clean if clean else None
        state = a_state(tip) if clean else None
        done = self.disk.erase(clients, state)
        assert set(done.clients) == new
        self.memory.erase(clients, state)
        self.model.erase(clients, tip)

    @rule()
    def come_back(self):
        self.closed()
        self.reopen()

    @rule(shared_memory=st.booleans())
    def be_killed(self, shared_memory):
        """Go on from a copy of the folder, as it lies there this very moment."""
        self.number += 1
        folder = self.place / str(self.number)
        skipped = shutil.ignore_patterns() if shared_memory else ignore_shm
        shutil.copytree(self.folder, folder, ignore=skipped)
        self.left.append(self.disk)
        self.folder = folder
        self.reopen()

    @rule(read_data=st.booleans())
    def check(self, read_data):
        found = self.disk.check(read_data=read_data)
        assert found == []
        with DiskHistory.open(self.folder) as reader:
            assert reader.rounds == self.disk.rounds
            assert [f for f in reader.check(read_data=read_data) if f.damage] == []

    @rule(data=st.data())
    def be_damaged_and_healed(self, data):
        """Flip a byte of any file of a closed history, and take it back."""
        folder = self.closed()
        parts = [*folder.iterdir(), *(folder / "segments").iterdir()]
        paths = [p for p in sorted(parts) if p.is_file() and p.stat().st_size]
        paths = [p for p in paths if not p.name.endswith("-shm")]
        if (folder / "index.seal").exists():  # or nothing was ever recorded
            flipped = self.flipped(data, data.draw(st.sampled_from(paths)))
            assert self.is_found(folder), flipped
            flip(*flipped)
            assert not self.is_found(folder)
        self.reopen()

    @precondition(lambda self: self.model.who)
    @rule(data=st.data(), start=st.sampled_from(["round", "tip", "index.d", "index.s"]))
    def be_damaged_and_repaired(self, data, start):
        """Flip a byte of a file that is not a key, and live with what is left."""
        folder = self.closed()
        parts = [*folder.iterdir(), *(folder / "segments").iterdir()]
        paths = [p for p in sorted(parts) if p.name.startswith(start)]
        paths = [p for p in paths if p.name[-4:] not in ("-shm", "-wal")]
        if paths:
            flipped = self.flipped(data, data.draw(st.sampled_from(paths)))
            assert self.is_found(folder), flipped
            self.mend(flipped[0])
            assert not self.is_found(folder)
        self.reopen()

    def flipped(self, data, path):
        """Flip a byte; return what to flip to take it back."""
        at = data.draw(st.integers(0, path.stat().st_size - 1), label="byte")
        mask = data.draw(st.integers(1, 255), label="mask")
        flip(path, at, mask)
        return path, at, mask

    def is_found(self, folder):
        try:
            with DiskHistory.open(folder) as history:
                return any(f.damage for f in history.check(read_data=True))
        except HistoryError:
            return True

    def mend(self, path):
        losses = repair(self.folder, files=self.files)
        assert path in {loss.file for loss in losses}
        if path.name == "index.db":
            self.model.names = {}
            self.forget_rounds_without_a_file()
            if self.model.tip is None and not any(self.folder.glob("segments/tip-*")):
                self.model.stands, self.model.tip = self.stands_after_rebuild(), None
        if path.name.startswith("tip"):
            self.model.tip = None
            self.memory.tip = type(self.memory.tip)(self.model.last, ServerState())
        if path.name.startswith("round"):
            self.give_up(int(path.name.split("-")[1]), losses)

    def forget_rounds_without_a_file(self):
        for index, lost in [*self.model.lost.items()]:
            if lost >= {"model", "state", *self.model.who[index]}:
                del self.model.who[index], self.model.asked[index]
                del self.model.lost[index], self.memory._records[index]

    def stands_after_rebuild(self):
        """A tip without a state has no file: a rebuilt index knows of none."""
        self.memory.tip = None
        self.model.last = max(self.model.who, default=0)
        return False

    def give_up(self, index, losses):
        """Believe the list of losses, no more: a whole file, or rows of it."""
        of_round = [loss for loss in losses if loss.round == index]
        gone = {loss.client for loss in of_round if loss.client is not None}
        for part, name in (("broadcast", "model"), ("state", "state")):
            if any(f"its {part} are not" in loss.what for loss in of_round):
                gone.add(name)
        lost = self.model.lost.setdefault(index, set())
        lost |= gone or {"model", "state", *self.model.who[index]}

    @invariant()
    def disk_is_as_the_model_says(self):
        if hasattr(self, "disk"):
            compare(self.disk, self.model)
            assert self.disk.names == self.model.names

    @invariant()
    def memory_is_as_the_model_says(self):
        if hasattr(self, "memory"):
            lost, self.model.lost = self.model.lost, {}
            compare(self.memory, self.model)
            self.model.lost = lost


def ignore_shm(_folder, names):
    return [name for name in names if name.endswith("-shm")]


def flip(path, at, mask):
    raw = bytearray(path.read_bytes())
    raw[at] ^= mask
    path.write_bytes(raw)


Lives.TestCase.settings = settings(
    max_examples=100,
    phases=[Phase.reuse, Phase.generate],  # to shrink a story takes minutes
    report_multiple_bugs=False,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLives = Lives.TestCase


def test_the_model_stays_small():
    text = Path(__file__).read_text(encoding="utf-8")
    start = text.index("class Model:")
    assert text[start : text.index("# --- comparing")].count("\n") <= 80
