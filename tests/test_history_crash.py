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
from pathlib import Path
from queue import SimpleQueue

import pytest

from fedunlearn.errors import HistoryError
from fedunlearn.history import DiskHistory
from fedunlearn.history.files import STEPS
from fedunlearn.history.migrate import migrate
from fedunlearn.history.segment import open_segment
from tests.history_helpers import (
    LEAVER,
    LEAVERS_NAME,
    Story,
    WatchedFiles,
    a_record,
    a_state,
    history_digest,
)

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "history-format-1"
CORES = 2


class Migration:
    """A history of format 1 is rewritten; then one more round is appended."""

    steps = ("before", "migrate", "append 5")

    def prepare(self, folder):
        shutil.copytree(GOLDEN, folder)

    def play(self, folder, files, note):
        note(None, "before")
        if not (folder / "keys.bin").exists():
            migrate(folder, files=files)
        with DiskHistory.open(folder, write=True, files=files) as history:
            note(history, "migrate")
            if 5 not in history.rounds:
                size = history.layout.size
                history.append_round(a_record(5, (0, 1), size=size), a_state(5))
            note(history, "append 5")

    def digests(self, folder):
        out = {}
        self.prepare(folder)
        self.play(folder, None, lambda history, step: out.update(_after(history, step)))
        return out
