"""The folder of one run: everything needed to understand and repeat it."""

import csv
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedunlearn.errors import ConfigError, DataError
from fedunlearn.history.lock import Lock
from fedunlearn.params import Layout, Vector
from fedunlearn.report import ReportInput, render_report
from simulations.comparison import Comparison, Row
from simulations.events import Event
from simulations.line_file import LineFile
from simulations.scenario import Scenario
from simulations.schema import plain_dict, read_yaml

_PACKAGES = ("fedunlearn", "flwr", "ray", "torch", "numpy", "omegaconf")
_QUIET = ("tick",)
"""Events that move a bar and say nothing worth keeping."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A new folder that a run fills.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, scenario: Scenario) -> "RunFolder":
        """Make the folder and write what is known before the run.

        Raises:
            ConfigError: If it cannot be written or already holds a run.
        """
        if (path / "config.yaml").exists():
            raise ConfigError(
                f"{path} already holds a run; choose another --out, or go on with it: "
                f"--resume {path}"
            )
        try:
            (path / "models").mkdir(parents=True, exist_ok=True)
            (path / "config.yaml").write_text(config_yaml(scenario), encoding="utf-8")
            _write_json(path / "environment.json", environment())
        except OSError as error:
            raise ConfigError(f"cannot write to {path}: {error.strerror}") from error
        return cls(path)

    @classmethod
    def reopen(cls, path: Path, scenario: Scenario) -> "RunFolder":
        """Open the folder of a run that was stopped.

        Raises:
            ConfigError: If it holds no run, or that of another scenario.
        """
        recorded = read_yaml(path / "config.yaml")
        wanted = plain_dict(OmegaConf.create(dict(scenario.resolved)), "the scenario")
        for key in wanted | recorded:
            if recorded.get(key) != wanted.get(key):
                raise ConfigError(
                    f"{path} was run with {key}: {recorded.get(key)}, not "
                    f"{wanted.get(key)}: it cannot be resumed as another run"
                )
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder.

        Raises:
            HistoryError: If one is in it, with its process id.
        """
        lock = Lock(self.path)
        try:
            yield
        finally:
            lock.release()

    def changed_packages(self) -> tuple[str, ...]:
        """Return what of the environment differs from when the run began."""
        before, now = read_json(self.path / "environment.json"), environment()
        names = [n for n in ("python", *_PACKAGES) if before.get(n) != now[n]]
        return tuple(f"{n} {before.get(n)} is now {now[n]}" for n in names)

    def history(self, seed: int) -> Path:
        """Return the folder of a seed's recorded history."""
        return self.path / "history" / f"seed-{seed}"

    def log(self, event: Event) -> None:
        """Append an event to ``events.jsonl``."""
        if event.kind not in _QUIET:
            line = {"time": _now(), "event": event.kind, **event.facts}
            # Without a buffer: half the time of a text file, and there at once.
            with open(self.path / "events.jsonl", "ab", 0) as file:  # noqa: PTH123
                file.write(json.dumps(line).encode() + b"\n")

    def journal(self, seed: int, label: str) -> Path:
        """Return the folder of what clients answered to an unfinished method."""
        return self.path / "unfinished" / f"seed-{seed}-{label}"

    def curve(self, seed: int) -> LineFile:
        """Return where the test accuracies of a seed are, round after round."""
        return LineFile(self._parts() / f"seed-{seed}.curve.jsonl")

    def save_noise(self, seed: int, noise: float) -> None:
        """Write the numerical noise floor."""
        _write_json(self._measured("noise", seed), noise)

    def noise(self, seed: int) -> float | None:
        """Return the numerical noise floor, or None if it was not measured yet."""
        path = self._measured("noise", seed)
        return float(read_json(path)) if path.exists() else None

    def save_row(self, row: Row, layout: Layout, model: Vector) -> None:
        """Write a finished row; it is there only if its model is."""
        self.save_model(row.seed, row.method, model, layout)
        _write_json(self._part(row.method, row.seed), row.as_dict())

    def row(self, seed: int, label: str) -> Row | None:
        """Return a finished row, or None."""
        path = self._part(label, seed)
        return Row.from_dict(read_json(path)) if path.exists() else None

    def model(self, seed: int, label: str, layout: Layout) -> Vector:
        """Return the model of a finished row."""
        from safetensors.numpy import load_file

        path = self.path / "models" / f"seed-{seed}-{label}.safetensors"
        return layout.flatten(load_file(path))

    def _part(self, label: str, seed: int) -> Path:
        return self._parts() / f"seed-{seed}-{label}.json"

    def _measured(self, what: str, seed: int) -> Path:
        # A dot where a row has a dash: a method may be called "noise" too.
        return self._parts() / f"seed-{seed}.{what}.json"

    def _parts(self) -> Path:
        folder = self.path / "parts"
        folder.mkdir(exist_ok=True)
        return folder

    def save_model(self, seed: int, label: str, model: Vector, layout: Layout) -> None:
        """Write a model as safetensors."""
        from safetensors.numpy import save_file

        path = self.path / "models" / f"seed-{seed}-{label}.safetensors"
        save_file(layout.unflatten(model), path)

    def write(self, comparison: Comparison) -> None:
        """Write the results and the report."""
        _write_json(self.path / "results.json", comparison.results())
        _write_csv(self.path / "results.csv", comparison)
        page = render_report(
            ReportInput(
                results=comparison.results(),
                accuracy_by_round=comparison.accuracy_by_round,
                client_names=comparison.client_names,
                label_counts=comparison.label_counts,
                forget=comparison.forget,
                config_yaml=(self.path / "config.yaml").read_text(encoding="utf-8"),
                environment=environment(),
            )
        )
        (self.path / "report.html").write_text(page, encoding="utf-8")


def config_yaml(scenario: Scenario) -> str:
    """Return the fully resolved scenario as YAML that ``fedunlearn run`` reads."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(scenario.resolved)))


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of a finished run's ``results.json``.

    Args:
        path: The run's folder or the file itself.

    Raises:
        DataError: If there is no such file or it is not what a run writes.
    """
    file = path / "results.json" if path.is_dir() else path
    results = read_json(file)
    if not isinstance(results, dict):
        raise DataError(f"{file} is not what a run writes")
    return results


def read_json(file: Path) -> Any:  # noqa: ANN401
    """Return what a JSON file holds.

    Raises:
        DataError: If there is no such file or it is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from error


def environment() -> dict[str, str]:
    """Return what the numbers may depend on; no path and no user name."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        **{name: version(name) for name in _PACKAGES},
    }


def _write_json(path: Path, content: object) -> None:
    """Write a file that is complete whenever it has its name."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _write_csv(path: Path, comparison: Comparison) -> None:
    lines = [row.flat() for row in comparison.rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
