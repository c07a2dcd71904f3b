"""What a sweep over histories finds: its cells, its rows and the file they are in."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from typing_extensions import override

from fedunlearn.errors import DataError
from fedunlearn.history.codecs import codec
from fedunlearn.history.retention import retention
from simulations.evaluate import Metrics
from simulations.line_file import LineFile

CODECS = ("float32", "float16", "bfloat16", "int8", "top_k:0.1", "top_k:0.01")
RETENTIONS = ("all", "every:2", "every:4", "last:5", "sums", "sensitivities", "crab")
GAPS = ("test_accuracy", "forget_accuracy", "backdoor_success")
"""Metrics whose difference to retraining is a gap."""
ANY = "any"
"""Stands for every codec: the method read no update."""
DISTANCE = "l2_to_retrain"
"""A metric that is a gap already."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One way of keeping a history."""

    codec: str
    retention: str

    @override
    def __str__(self) -> str:
        """Return both names."""
        return f"{self.codec}, {self.retention}"


Key = tuple[int, str, Cell]
"""Seed, method and how the history was kept."""


def cells(
    codecs: Sequence[str] = CODECS, retentions: Sequence[str] = RETENTIONS
) -> tuple[Cell, ...]:
    """Return every codec with every retention, each once.

    Raises:
        RequestError: If there is no codec or retention of a name.
    """
    stored = dict.fromkeys(codec(name).name for name in codecs)
    kept = dict.fromkeys(retention(name).name for name in retentions)
    return tuple(Cell(c, r) for r, c in product(kept, stored))


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """One method on one seed's thinned history.

    Attributes:
        seed: The seed.
        method: Its label.
        codec: How updates were stored.
        retention: What of them was kept.
        stored_bytes: Models, updates and sums that the history holds in the end.
        peak_bytes: The most it ever held.
        nothing: Gaps of the trained model: what doing nothing comes to.
        needs: What the method lacks here; "" where it ran.
        reads_updates: Whether it read an update; if not, the codec plays no part.
        same_as: The codec whose run is repeated here for that reason, or "".
        read_bytes: Stored bytes of what it read.
        client_rounds: Local trainings it asked for.
        seconds: Wall-clock seconds it took.
        metrics: As in a comparison.
        gaps: The ``GAPS``, metric minus retraining's, and the L2 distance to it.
        model_sha256: Digest of the model's float32 bytes.
    """

    seed: int
    method: str
    codec: str
    retention: str
    stored_bytes: int
    peak_bytes: int
    nothing: Metrics
    needs: str = ""
    reads_updates: bool = False
    same_as: str = ""
    read_bytes: int = 0
    client_rounds: int = 0
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=dict)
    gaps: Metrics = field(default_factory=dict)
    model_sha256: str = ""

    @property
    def key(self) -> Key:
        """What it is the row of."""
        return self.seed, self.method, Cell(self.codec, self.retention)

    def flat(self) -> dict[str, Any]:
        """Return the row as one line of ``sweep.csv``."""
        line = asdict(self)
        groups = {name: line.pop(name) for name in ("metrics", "gaps", "nothing")}
        line |= {name: groups["metrics"].get(name) for name in GAPS}
        for name in (*GAPS, DISTANCE):
            line[f"gap_{name}"] = groups["gaps"].get(name)
            line[f"nothing_{name}"] = groups["nothing"].get(name)
        return line


def gaps(
    metrics: Mapping[str, float | None], retrained: Mapping[str, float | None]
) -> Metrics:
    """Return how far a model's metrics are from the retrained one's."""
    out: Metrics = {}
    for name in GAPS:
        own, base = metrics[name], retrained[name]
        out[name] = None if own is None or base is None else own - base
    return {**out, DISTANCE: metrics[DISTANCE]}


class RowFile:
    """Finished rows, one a line; a line that a stop cut short is dropped."""

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path)
        self.rows: dict[Key, SweepRow] = {}
        for number, value in enumerate(self._lines.values, start=1):
            try:
                row = SweepRow(**value)
            except TypeError as error:
                raise DataError(f"{path}, line {number}: not a sweep's row") from error
            self.rows[row.key] = row

    def add(self, row: SweepRow) -> None:
        """Append a row."""
        self._lines.add(asdict(row))
        self.rows[row.key] = row

    def twin(self, key: Key) -> SweepRow | None:
        """Return the method's run under another codec if this one cannot differ."""
        seed, method, cell = key
        for (s, m, c), row in self.rows.items():
            same = (s, m, c.retention) == (seed, method, cell.retention)
            if same and not (row.needs or row.reads_updates or row.same_as):
                return row
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One method on one way of keeping a history, over all seeds.

    Attributes:
        method: Its label.
        codec: The codec, or ``ANY``.
        retention: The retention.
        stored: Bytes in the end, mean over seeds; for ``ANY`` the least of all codecs.
        peak: The most bytes at any time, likewise.
        share: ``stored`` over that of everything in float32.
        needs: What the method lacks here; "" where it ran.
        gaps: Metric -> gap to retraining, one value a seed.
    """

    method: str
    codec: str
    retention: str
    stored: float
    peak: float
    share: float
    needs: str
    gaps: Mapping[str, tuple[float, ...]]


def points(results: Mapping[str, Any]) -> list[Point]:
    """Return what a ``sweep.json`` holds, by method, as its rows are ordered."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        codec = row["codec"] if row["reads_updates"] else ANY
        groups.setdefault((row["method"], row["retention"], codec), []).append(row)
    order = list(dict.fromkeys(row["method"] for row in results["rows"]))
    found = [_point(rows, codec, results) for (_, _, codec), rows in groups.items()]
    return sorted(found, key=lambda point: order.index(point.method))


def _point(
    rows: Sequence[Mapping[str, Any]], codec: str, results: Mapping[str, Any]
) -> Point:
    by_seed: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row)
    least = [min(own, key=lambda r: r["stored_bytes"]) for own in by_seed.values()]
    stored = statistics.fmean(row["stored_bytes"] for row in least)
    values = {
        name: tuple(v for row in least if (v := row["gaps"].get(name)) is not None)
        for name in (*GAPS, DISTANCE)
    }
    return Point(
        method=rows[0]["method"],
        codec=codec,
        retention=rows[0]["retention"],
        stored=stored,
        peak=statistics.fmean(row["peak_bytes"] for row in least),
        share=stored / results["full_bytes"],
        needs=rows[0]["needs"],
        gaps={name: found for name, found in values.items() if found},
    )


def nothing(results: Mapping[str, Any], metric: str) -> tuple[float, ...]:
    """Return the trained models' gaps, one a seed: what doing nothing comes to."""
    by_seed = {row["seed"]: row["nothing"][metric] for row in results["rows"]}
    return tuple(gap for gap in by_seed.values() if gap is not None)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, as ``sweep.json`` holds them, one a line."""
    lines = [SweepRow(**row).flat() for row in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
