"""Which registry packages the fetchable data sets lie in."""

import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A data set inside a published package.

    Attributes:
        package: The package on the Python package index.
        version: Its version.
        sha256: Hash of its wheel, in hex.
        member: Path of the data inside the wheel.
        licence: Licence of the data, which may differ from the package's.
        citation: Whom to cite.
    """

    package: str
    version: str
    sha256: str
    member: str
    licence: str
    citation: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


def manifest() -> dict[str, Artefact]:
    """Return data set name -> where it lies, as in ``manifest.json``."""
    text = resources.files("fedunlearn.data").joinpath("manifest.json").read_text()
    return {name: Artefact(**entry) for name, entry in json.loads(text).items()}
