"""What data sets there are, for ``fedunlearn data list``."""

from dataclasses import dataclass
from pathlib import Path

from fedunlearn.data.cache import cached_file
from fedunlearn.data.fashion_mnist import DEBIAN_PATH, FILES, find
from fedunlearn.data.manifest import manifest
from fedunlearn.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """One line of the catalogue.

    Attributes:
        name: Name in ``DATASETS``.
        title: What it is.
        examples: Training and test examples together; None if the user's file decides.
        features: Shape of an example, as text.
        classes: Number of classes; None likewise.
        clients: Number of natural clients; None if it has none or the file decides.
        licence: Licence of the data.
        citation: Whom to cite.
        available: Whether ``load()`` with the default configuration finds it.
        how_to_get: One sentence.
    """

    name: str
    title: str
    examples: int | None
    features: str
    classes: int | None
    clients: int | None
    licence: str
    citation: str
    available: bool
    how_to_get: str


def catalogue(cache: Path | None = None) -> tuple[DatasetInfo, ...]:
    """Return all data sets.

    Args:
        cache: Folder of fetched data; None takes ``default_cache()``.
    """
    return (
        _digits(),
        _fashion_mnist(),
        _fetched(
            "heart", "heart disease in four hospitals", (740, "(16,)", 2, 4), cache
        ),
        _fetched(
            "watch",
            "shoulder exercises of ten people under a smart watch",
            (4677, "(6, 100)", 7, 10),
            cache,
        ),
        _npz(),
    )


def _digits() -> DatasetInfo:
    return DatasetInfo(
        name="digits",
        title="handwritten digits, 8x8 pixels",
        examples=1797,
        features="(1, 8, 8)",
        classes=10,
        clients=None,
        licence="CC BY 4.0",
        citation="Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI "
        "Machine Learning Repository, 1998",
        available=True,
        how_to_get="It comes with scikit-learn.",
    )


def _fashion_mnist() -> DatasetInfo:
    return DatasetInfo(
        name="fashion_mnist",
        title="pictures of clothes, 28x28 pixels",
        examples=70_000,
        features="(1, 28, 28)",
        classes=10,
        clients=None,
        licence="MIT",
        citation="Xiao, Rasul, Vollgraf: Fashion-MNIST, 2017, arXiv 1708.07747",
        available=_all_found(Path(DEBIAN_PATH)),
        how_to_get="Run `apt-get install dataset-fashion-mnist`, or point data.path at "
        "a folder with the four idx files.",
    )


def _fetched(
    name: str, title: str, facts: tuple[int, str, int, int], cache: Path | None
) -> DatasetInfo:
    examples, features, classes, clients = facts
    artefact = manifest()[name]
    return DatasetInfo(
        name=name,
        title=title,
        examples=examples,
        features=features,
        classes=classes,
        clients=clients,
        licence=artefact.licence,
        citation=artefact.citation,
        available=cached_file(name, cache).is_file(),
        how_to_get=f"Run `fedunlearn data fetch {name}`.",
    )


def _npz() -> DatasetInfo:
    return DatasetInfo(
        name="npz",
        title="a file of your own",
        examples=None,
        features="as in the file",
        classes=None,
        clients=None,
        licence="your own",
        citation="your own",
        available=False,
        how_to_get="Save x_train, y_train, x_test, y_test and, for natural clients, "
        "client_train and client_test with numpy.savez, and set data.path.",
    )


def _all_found(folder: Path) -> bool:
    try:
        return all(find(folder, name) for name in FILES)
    except DataError:
        return False
