"""What the columns of the comparison are and what they mean."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["percent", "points", "number", "count", "ratio", "bytes", "seconds"]
Source = Literal["metrics", "gap", "cost", "ratio"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: The metric or quantity in a row of ``results.json``.
        source: Where it stands: among metrics or costs, or a paired gap or ratio.
        group: Heading over several columns.
        title: Its heading.
        kind: How its numbers are written.
        note: What its sign and direction mean, one sentence.
    """

    name: str
    source: Source
    group: str
    title: str
    kind: Kind
    note: str = ""


COLUMNS = (
    Column(
        "test_accuracy",
        "metrics",
        "Accuracy",
        "test",
        "percent",
        note="Accuracy on held-out data of everybody; higher is better.",
    ),
    Column(
        "retain_accuracy",
        "metrics",
        "Accuracy",
        "retain",
        "percent",
        note="Accuracy on the training data of those who stay; higher is better.",
    ),
    Column(
        "forget_accuracy",
        "metrics",
        "Accuracy",
        "forget",
        "percent",
        note="Accuracy on the leaver's training data; best where retrain's is.",
    ),
    Column(
        "forget_holdout_accuracy",
        "metrics",
        "Accuracy",
        "holdout",
        "percent",
        note="Accuracy on data of the leaver that nobody trained on: what a model "
        "knows about such data without having seen it.",
    ),
    Column(
        "forget_accuracy",
        "gap",
        "Gap to retrain",
        "forget",
        "points",
        note="Forget accuracy minus retrain's with the same seed, in percentage "
        "points. Above 0 the leaver's data is still recognised; below 0 the model is "
        "worse on it than one that never saw it. Both signs are failures.",
    ),
    Column(
        "l2_to_retrain",
        "metrics",
        "Distance to retrain",
        "L2",
        "number",
        note="Euclidean distance between the parameters; 0 is the same model.",
    ),
    Column(
        "cosine_to_retrain",
        "metrics",
        "Distance to retrain",
        "cosine",
        "number",
        note="Cosine distance between the parameters; 0 is the same direction.",
    ),
    Column(
        "disagreement_with_retrain",
        "metrics",
        "Distance to retrain",
        "disagree",
        "percent",
        note="Share of examples on which the two predict different classes; 0 is the "
        "same answers.",
    ),
    Column(
        "backdoor_success",
        "metrics",
        "Attack",
        "backdoor",
        "percent",
        note="Share of triggered inputs that get the class the leaver planted; best "
        "where retrain's is.",
    ),
    Column(
        "client_rounds",
        "cost",
        "Cost",
        "client-rounds",
        "count",
        note="Local trainings asked of clients: clients times rounds.",
    ),
    Column(
        "client_rounds",
        "ratio",
        "Cost",
        "vs. retrain",
        "ratio",
        note="Client-rounds over those of retraining with the same seed; below 1 is "
        "cheaper.",
    ),
    Column(
        "bytes_moved",
        "cost",
        "Cost",
        "traffic",
        "bytes",
        note="Model bytes sent to clients and back, up plus down.",
    ),
    Column(
        "history_bytes",
        "cost",
        "Cost",
        "history",
        "bytes",
        note="Recorded models and updates that were read: what the server has to "
        "have kept.",
    ),
    Column(
        "wall_seconds",
        "cost",
        "Cost",
        "wall",
        "seconds",
        note="Wall-clock time on the machine that made this report.",
    ),
    Column(
        "simulated_seconds",
        "cost",
        "Cost",
        "simulated",
        "seconds",
        note="Time the clients' trainings would have taken with the scenario's speeds "
        "and deadline.",
    ),
)
"""The main comparison, left to right."""

LOSS_COLUMNS = (
    Column("test_loss", "metrics", "Loss", "test", "number"),
    Column("retain_loss", "metrics", "Loss", "retain", "number"),
    Column("forget_loss", "metrics", "Loss", "forget", "number"),
    Column("forget_holdout_loss", "metrics", "Loss", "holdout", "number"),
    Column("forget_loss", "gap", "Gap to retrain", "forget", "number"),
)
"""The same for the mean loss."""

_BRIEF = {
    ("test_accuracy", "metrics"),
    ("forget_accuracy", "metrics"),
    ("forget_accuracy", "gap"),
    ("disagreement_with_retrain", "metrics"),
    ("backdoor_success", "metrics"),
    ("client_rounds", "ratio"),
    ("history_bytes", "cost"),
    ("wall_seconds", "cost"),
    ("simulated_seconds", "cost"),
}

BRIEF = tuple(c for c in COLUMNS if (c.name, c.source) in _BRIEF)
"""The columns a terminal or a README has room for."""
