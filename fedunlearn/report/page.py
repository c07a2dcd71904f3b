"""The report as one HTML file that asks nothing of the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fedunlearn.errors import DataError
from fedunlearn.report.clients import (
    Counts,
    caption,
    label_distribution,
    shown_clients,
)
from fedunlearn.report.columns import LOSS_COLUMNS
from fedunlearn.report.comparison import checked_rows, tabulate
from fedunlearn.report.names import clean, listed
from fedunlearn.report.plots import accuracy_by_round, costs
from fedunlearn.report.scatter import gap_and_cost
from fedunlearn.report.story import story
from fedunlearn.report.style import bytes_style
from fedunlearn.report.summary import Estimate, Row, seed_distance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportInput:
    """What a report is made of.

    Attributes:
        results: The content of ``results.json``.
        accuracy_by_round: Seed to test accuracy (0 to 1) of the global model after
            round 0, 1, 2, ... of training.
        client_names: Name of client 0, 1, 2, ...; any text.
        label_counts: Training examples, shape ``(clients, classes)``.
        forget: The clients that left, positions in ``client_names``.
        config_yaml: The configuration that was run.
        environment: What it ran on: versions, machine.
    """

    results: Mapping[str, Any]
    accuracy_by_round: Mapping[int, Sequence[float]]
    client_names: Sequence[str]
    label_counts: Counts
    forget: Sequence[int]
    config_yaml: str
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of the page; ``svg`` is markup, ``title`` and ``caption`` are text."""

    name: str
    title: str
    svg: str
    caption: str


def render_report(report: ReportInput) -> str:
    """Return the page; the same input gives the same text.

    Raises:
        DataError: If the parts of ``report`` do not fit together.
    """
    from jinja2 import Environment, StrictUndefined

    _check(report)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("fedunlearn.report").joinpath("template.html").read_text("utf-8")
    return environment.from_string(source).render(_context(report))


def _check(report: ReportInput) -> None:
    checked_rows(report.results)
    clients = len(report.client_names)
    if report.label_counts.ndim != 2 or len(report.label_counts) != clients:  # noqa: PLR2004
        raise DataError(
            f"label counts of shape {report.label_counts.shape} do not fit "
            f"{clients} client names; expected (clients, classes)"
        )
    if strangers := [i for i in report.forget if not 0 <= i < clients]:
        raise DataError(f"leaver {strangers[0]} is not one of {clients} clients")


def _context(report: ReportInput) -> dict[str, object]:
    results = report.results
    leavers = [report.client_names[i] for i in report.forget]
    return {
        "name": clean(results["scenario"]["name"]),
        "story": story(results, leavers),
        "facts": _facts(results),
        "table": tabulate(results),
        "losses": tabulate(results, LOSS_COLUMNS),
        "plots": [plot for plot in _plots(report) if plot.svg],
        "rows": [{**row, "method": clean(row["method"])} for row in results["rows"]],
        "seeds": len({row["seed"] for row in results["rows"]}),
        "config": report.config_yaml.strip(),
        "environment": {clean(k): clean(v) for k, v in report.environment.items()},
    }


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is short enough of the scenario, and the size of its history."""
    facts = []
    for key, value in results["scenario"].items():
        text = _fact(value)
        if key != "name" and text:
            facts.append((clean(key).replace("_", " "), text))
    kept = float(results["history"]["bytes"])
    style = bytes_style(kept)
    text = f"{style.text(Estimate(kept, None, 1))} {style.unit}"
    facts.append(("recorded history", text))
    if (noise := results.get("noise_floor")) is not None:
        facts.append(("numerical noise floor", f"{noise:.1e} of the way trained"))
    return facts


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return _fact(value.get("name"))
    if isinstance(value, (list, tuple)):
        return listed([clean(str(item)) for item in value], limit=10)
    return "" if value is None else clean(str(value))


def _plots(report: ReportInput) -> list[Plot]:
    rows: Sequence[Row] = report.results["rows"]
    shown = shown_clients(report.label_counts.sum(axis=1), report.forget)
    counts = report.label_counts
    return [
        Plot("gap", "Gap and cost", gap_and_cost(rows), _gap_caption(rows)),
        Plot(
            "training",
            "Training",
            accuracy_by_round(report.accuracy_by_round),
            "Test accuracy of the global model after each round: the mean in blue, "
            "each seed in grey.",
        ),
        Plot(
            "cost",
            "Cost",
            costs(rows),
            "Work asked of clients and model bytes moved; the dashed line is "
            "retraining. References in grey.",
        ),
        Plot(
            "clients",
            "Who holds what",
            label_distribution(counts, report.client_names, report.forget, shown),
            caption(counts, report.forget, shown),
        ),
    ]


def _gap_caption(rows: Sequence[Row]) -> str:
    text = (
        "Best is on the zero line and far to the left. The dashed line is the model "
        "before anybody left."
    )
    if seed_distance(rows, "forget_accuracy") is None:
        return text
    return (
        f"{text} Bars are 95 % t-intervals over seeds; the band is how far two "
        "retrainings are apart on average."
    )
