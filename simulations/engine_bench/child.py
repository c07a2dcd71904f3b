"""A contestant as a process of its own, asked over its standard input and output.

One JSON value a line. The driver writes ``"round"``, ``"model"`` or ``"quit"``; the
child answers ``{"seconds": ..., "kernel_seconds": ...}``, ``{"path": ...}`` of an
``.npy`` file, or ends. Between its rounds a child waits for the next line.
"""

import json
import os
import queue
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from threading import Thread
from types import TracebackType
from typing import IO, Any, Self, final
from uuid import uuid4

import numpy as np

from fedunlearn.errors import RunError
from fedunlearn.params import Vector
from simulations.engine_bench.processes import Process, alive, kill, tree

ROUND, MODEL, QUIT = "round", "model", "quit"
MARK = "FEDUNLEARN_BENCH_CHILD"
"""Environment variable that marks the processes of a child."""
FOLDER = "{folder}"
"""Stands for the child's own temporary folder in the values of ``Command.env``."""
GRACE = 20.0
"""Seconds a child has to end by itself; Flower and Ray need about six."""
_SHOWN = 15
"""Last lines of a dead child's standard error that its error shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How a child is started.

    Attributes:
        argv: Program and arguments.
        env: Environment variables beyond this process's.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@final
class Child:
    """A running contestant; use it in a ``with`` statement, which ends it.

    Args:
        command: What to run.
        timeout: Seconds an answer may take.
    """

    def __init__(self, command: Command, *, timeout: float = 600.0) -> None:
        self._command = command
        self._timeout = timeout
        self._token = uuid4().hex
        self._folder = TemporaryDirectory(prefix="fu-bench-")
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=_SHOWN)
        self._readers: list[Thread] = []
        self._seen: frozenset[Process] = frozenset()
        self._started = 0.0

    def __enter__(self) -> Self:
        """Return the child; it starts with :meth:`start`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the child and every process it made, at once if something went wrong."""
        self.close(GRACE if error is None else 0.0)

    def start(self) -> Self:
        """Start the process.

        Raises:
            RunError: If it was started before.
        """
        if self._process is not None:
            raise RunError("this child was started before")
        own = {MARK: self._token, "TMPDIR": self._folder.name}
        folder = self._folder.name
        env = {k: v.replace(FOLDER, folder) for k, v in self._command.env.items()}
        self._started = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603 - a command of ours, no shell
            self._command.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env, **own},
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._watch(self._process)
        return self

    @property
    def age(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self._started

    def processes(self) -> frozenset[Process]:
        """Return the child and its descendants that run now."""
        if self._process is None:
            return frozenset()
        found = tree(self._process.pid)
        self._seen |= found
        return found

    def send(self, request: str) -> None:
        """Write a request; :meth:`receive` its answer before the next one.

        Raises:
            RunError: If the child is dead or was never started.
        """
        process = self._running()
        try:
            self._stdin(process).write(json.dumps(request) + "\n")
            self._stdin(process).flush()
        except (BrokenPipeError, ValueError):
            raise self._died(process) from None

    def receive(self) -> Mapping[str, Any]:
        """Return the answer to the last request.

        Raises:
            RunError: If the child dies, does not answer in time or answers nonsense.
        """
        process = self._running()
        try:
            line = self._lines.get(timeout=self._timeout)
        except queue.Empty:
            raise RunError(
                f"{self._name} gave no answer in {self._timeout:g} s{self._tail()}"
            ) from None
        if line is None:
            raise self._died(process)
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise RunError(f"{self._name} answered {line.strip()!r}, no JSON object")
        return answer

    def ask(self, request: str) -> Mapping[str, Any]:
        """Write a request and return the answer; see :meth:`send`, :meth:`receive`."""
        self.send(request)
        return self.receive()

    def model(self) -> Vector:
        """Return the child's global model, shape ``(P,)``."""
        vector: Vector = np.load(str(self.ask(MODEL)["path"]), allow_pickle=False)
        return vector

    def close(self, grace: float = GRACE) -> None:
        """Let the child end, then kill what is left of its processes.

        Args:
            grace: Seconds it has to end by itself.
        """
        process, mine = self._process, self.processes()
        if process is not None:
            self._say_goodbye(process)
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                process.kill()
            # Ray's processes end a moment after the one that started them.
            _wait_for(mine | self._seen, 2.0)
            kill(self._seen | tree(process.pid, self._token) | mine)
            process.wait()
            for reader in self._readers:
                reader.join(timeout=5.0)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._process, self._seen = None, frozenset()
        self._folder.cleanup()

    def _say_goodbye(self, process: "subprocess.Popen[str]") -> None:
        try:
            self._stdin(process).write(json.dumps(QUIT) + "\n")
            self._stdin(process).close()
        except (BrokenPipeError, ValueError):
            return

    def _watch(self, process: "subprocess.Popen[str]") -> None:
        self._readers = [
            Thread(target=self._read_answers, args=(process.stdout,), daemon=True),
            Thread(target=self._read_errors, args=(process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_answers(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._errors.append(line.rstrip())

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None:
            raise RunError(f"{self._name} does not run: start it first")
        return self._process

    @staticmethod
    def _stdin(process: "subprocess.Popen[str]") -> IO[str]:
        if process.stdin is None:
            raise RunError("the child has no standard input")
        return process.stdin

    def _died(self, process: "subprocess.Popen[str]") -> RunError:
        try:
            code: object = process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            code = "none yet"
        for reader in self._readers:
            reader.join(timeout=1.0)
        return RunError(f"{self._name} died (exit code {code}){self._tail()}")

    @property
    def _name(self) -> str:
        argv = [a for a in self._command.argv if a not in {sys.executable, "-m"}]
        return f"the child {' '.join(argv)!r}"

    def _tail(self) -> str:
        return "".join(f"\n  {line}" for line in self._errors)


def _wait_for(processes: frozenset[Process], timeout: float) -> None:
    end = time.monotonic() + timeout
    while alive(processes) and time.monotonic() < end:
        time.sleep(0.02)
