"""Heart disease in four hospitals (Fed-Heart-Disease of FLamby)."""

import csv
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedunlearn.data.cache import read_cached
from fedunlearn.data.dataset import Dataset, Features
from fedunlearn.data.npz import Arrays
from fedunlearn.data.split import held_out
from fedunlearn.errors import DataError

SCALING = {
    "age": (55.0, 10.0),
    "trestbps": (130.0, 20.0),
    "chol": (220.0, 100.0),
    "thalch": (140.0, 25.0),
    "oldpeak": (1.0, 1.0),
}
"""Column -> (centre, scale): age in years, blood pressure in mm Hg, cholesterol in
mg/dl, heart rate in 1/min, ST depression in mm. They are round constants: statistics of
the data would carry the influence of a hospital that leaves."""
FLAGS = ("fbs", "exang")
"""Columns of yes and no: high blood sugar, angina on exercise."""
CATEGORIES = {
    "cp": ("typical angina", "atypical angina", "non-anginal", "asymptomatic"),
    "restecg": ("normal", "st-t abnormality", "lv hypertrophy"),
    "sex": ("Female", "Male"),
}
"""Column -> its categories, one feature each."""

KEYS = ("features", "labels", "clients")
"""Arrays of the cached file: ``(n, 16)`` unscaled, ``(n,)`` and ``(n,)``."""

_COLUMNS = (*SCALING, *FLAGS, *CATEGORIES)
_FLAG = ("FALSE", "TRUE")
_CORRECTED = {"304": "Hungary"}
"""Row id -> hospital, where the published copy has a slip: it says Cleveland."""

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Heart:
    """740 patients of 4 hospitals, 16 features, disease or none.

    The hospital is the natural client. A fixed fifth of each hospital is test data. A
    cholesterol or blood pressure of 0 in the source means that it was not measured (all
    of Switzerland's cholesterol); such values are kept as they are.

    Attributes:
        cache: Folder of fetched data; None takes the default one.
    """

    cache: str | None = None

    def load(self) -> Dataset:
        """Return the data set.

        Raises:
            DataError: If it was not fetched.
        """
        raw = read_cached("heart", KEYS, self.cache)
        x, y, clients = scaled(raw["features"]), raw["labels"], raw["clients"]
        test = held_out(clients)
        return Dataset(
            "heart", x[~test], y[~test], x[test], y[test], clients[~test], clients[test]
        ).validated()


def convert(table: bytes) -> Arrays:
    """Return the arrays of ``KEYS`` from the package's CSV table.

    A row that lacks a value in a column we use is dropped, as FLamby does. The columns
    ``slope``, ``ca`` and ``thal`` are not used: they lack too many values.

    Raises:
        DataError: If a column is missing or a value is none we know.
    """
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    needed = ("id", "dataset", "num", *_COLUMNS)
    missing = [c for c in needed if not rows or c not in rows[0]]
    if missing:
        raise DataError(f"the heart table has no column {missing[0]!r} or no rows")
    whole = [row for row in rows if all(row[column] for column in _COLUMNS)]
    try:
        features = [_features(row) for row in whole]
        labels = [int(row["num"]) > 0 for row in whole]
    except (ValueError, TypeError) as error:
        raise DataError(f"the heart table has an unexpected value: {error}") from error
    clients = [_CORRECTED.get(row["id"], row["dataset"]) for row in whole]
    return {
        "features": np.array(features, np.float32),
        "labels": np.array(labels, np.int64),
        "clients": np.array(clients, np.str_),
    }


def scaled(features: npt.NDArray[np.float32]) -> Features:
    """Return the features, shape ``(n, 16)``, with the measured ones scaled."""
    centre, scale = np.array(list(SCALING.values()), np.float32).T
    out = features.copy()
    out[:, : len(SCALING)] = (features[:, : len(SCALING)] - centre) / scale
    return out


def _features(row: Row) -> list[float]:
    for column, known in (*CATEGORIES.items(), *((c, _FLAG) for c in FLAGS)):
        if row[column] not in known:
            raise ValueError(f"{column}={row[column]!r}")
    return [
        *(float(row[column]) for column in SCALING),
        *(float(_FLAG.index(row[column])) for column in FLAGS),
        *(
            float(row[column] == category)
            for column, known in CATEGORIES.items()
            for category in known
        ),
    ]
