"""The folder of one run: everything needed to understand and repeat it."""

import csv
import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedunlearn.errors import ConfigError, DataError
from fedunlearn.params import Layout, Vector
from fedunlearn.report import ReportInput, render_report
from simulations.comparison import Comparison
from simulations.events import Event
from simulations.scenario import Scenario

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
            raise ConfigError(f"{path} already holds a run; choose another --out")
        try:
            (path / "models").mkdir(parents=True, exist_ok=True)
            (path / "config.yaml").write_text(config_yaml(scenario), encoding="utf-8")
            _write_json(path / "environment.json", environment())
        except OSError as error:
            raise ConfigError(f"cannot write to {path}: {error.strerror}") from error
        return cls(path)

    def history(self, seed: int) -> Path:
        """Return the folder of a seed's recorded history."""
        return self.path / "history" / f"seed-{seed}"

    def log(self, event: Event) -> None:
        """Append an event to ``events.jsonl``."""
        if event.kind not in _QUIET:
            line = {"time": _now(), "event": event.kind, **event.facts}
            with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

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
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(results, dict):
        raise DataError(f"{file} is not what a run writes")
    return results


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
