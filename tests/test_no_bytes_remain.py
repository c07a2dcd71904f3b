"""After an erasure no byte of a client's updates is left where this project writes.

The real thing: train on Ray workers, kill, resume, unlearn, report, erase; then look
through the run's folder, the temporary folder, /dev/shm and Ray's session folder.
"""

import base64
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedunlearn.errors import HistoryError
from fedunlearn.history import DiskHistory
from simulations.cli import app

CHILD = Path(__file__).with_name("killed_run.py")
LEAVER = 4
WINDOW = 16
"""Bytes that must not be found in a row."""


def forms_of(rows):
    """Name -> the bytes of a client's vectors in one form."""
    out = {}
    for number, row in enumerate(rows):
        raw = np.ascontiguousarray(row, "<f4").tobytes()
        brain = torch.from_numpy(np.array(row)).bfloat16().view(torch.int16).numpy()
        out |= {
            f"float32 {number}": raw,
            f"float16 {number}": row.astype("<f2").tobytes(),
            f"bfloat16 {number}": brain.tobytes(),
            f"hex {number}": raw.hex().encode(),
            f"zlib {number}": zlib.compress(raw)[2:],
        }
        for shift in range(3):
            text = base64.b64encode(raw[shift:])
            out[f"base64+{shift} {number}"] = text
    return out


class Finder:
    """Knows every 16-byte window of some bytes in which enough bytes differ."""

    def __init__(self, forms):
        self.windows = {}
        for name, content in forms.items():
            for at in range(len(content) - WINDOW + 1):
                window = content[at : at + WINDOW]
                if len(set(window)) > WINDOW // 2:
                    self.windows.setdefault(window, name)
        heads = {int.from_bytes(w[:8], "little") for w in self.windows}
        self.heads = np.array(sorted(heads), np.uint64)

    def first_in(self, content):
        """Return which form lies in the bytes, or None."""
        for shift in range(8 if len(content) >= WINDOW else 0):
            count = (len(content) - shift) // 8
            words = np.frombuffer(content, "<u8", count, shift)
            for at in np.flatnonzero(np.isin(words, self.heads)):
                start = shift + 8 * int(at)
                found = self.windows.get(content[start : start + WINDOW])
                if found:
                    return found
        return None

    def found_below(self, folders):
        """Return path -> form for every file that holds one."""
        out = {}
        for folder in folders:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    form = self.first_in(path.read_bytes())
                    if form:
                        out[path] = form
        return out


def vectors_of(history, client):
    """All updates of a client, and the models it sent back."""
    out = []
    for index in history.rounds_of(client):
        record = history.round(index)
        (update,) = record.updates_of((client,))
        out += [np.array(update), record.broadcast + update]
    return out


def fedunlearn(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def run_killed_and_resumed(tiny, out, tmp, *overrides):
    environment = {**os.environ, "TMPDIR": str(tmp), "RAY_TMPDIR": str(tmp / "ray")}
    (tmp / "ray").mkdir(parents=True)
    child = subprocess.run(
        [sys.executable, CHILD, tiny, out, "tick", "2", "engine.workers=1", *overrides],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    subprocess.run(
        [sys.executable, "-m", "simulations", "run", "--resume", out],
        env=environment,
        capture_output=True,
        check=True,
    )


def places(out, tmp):
    shared = Path("/dev/shm")  # noqa: S108 - what is searched
    return [out, tmp, *([shared] if shared.is_dir() else [])]


@pytest.fixture
def short():
    """A folder with a short name: Ray's sockets must fit 107 bytes."""
    with TemporaryDirectory(prefix="fu", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.ray
@pytest.mark.slow
def test_no_byte_of_an_erased_client_is_left_anywhere(tiny, tmp_path, short):
    out = tmp_path / "run"
    run_killed_and_resumed(tiny, out, short)
    folder = out / "history" / "seed-0"
    with DiskHistory.open(folder) as history:
        finder = Finder(forms_of(vectors_of(history, LEAVER)))
    assert len(finder.windows) > 10_000
    model = out / "models" / "seed-0-rollback.safetensors"

    answer = fedunlearn("history", "erase", folder, LEAVER, "--model", model, "--yes")

    assert "3 updates" in answer
    assert finder.found_below(places(out, short)) == {}
    with DiskHistory.open(folder) as history:
        assert history.check(read_data=True) == []
        assert LEAVER not in history.clients
        with pytest.raises(HistoryError):
            history.round(1)


def test_the_search_finds_what_is_there(tiny, tmp_path):
    """The same search in a history that is not sealed, and of every single form."""
    out = tmp_path / "run"
    fedunlearn("run", tiny, "--out", out, "history.sealed=false")
    with DiskHistory.open(out / "history" / "seed-0") as history:
        forms = forms_of(vectors_of(history, LEAVER))
    finder = Finder(forms)
    found = finder.found_below([out / "history"])
    assert {p.name.split("-")[0] for p in found} == {"round"}
    assert set(found.values()) <= {n for n in forms if n.startswith("float32")}
    assert len(found) == 3
    for name, content in forms.items():
        hidden = b"x" * 13 + content[100:140] + b"y" * 5
        assert finder.first_in(hidden), name
    assert finder.first_in(b"nothing of the kind" * 100) is None
