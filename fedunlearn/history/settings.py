"""What is fixed when a history is made, and what its index says at first."""

import json
from dataclasses import dataclass

from fedunlearn.history.codecs import Codec
from fedunlearn.history.codecs import codec as read_codec
from fedunlearn.history.index import FORMAT
from fedunlearn.history.retention import Retention
from fedunlearn.history.retention import retention as read_retention
from fedunlearn.history.seal import Written
from fedunlearn.params import Layout


@dataclass(frozen=True, slots=True)
class Settings:
    """What is fixed when a history is created.

    Attributes:
        store: A random id.
        layout: Names and shapes of the model's arrays.
        codec: How updates are stored.
        retention: What of them stays.
        sealed: Whether payloads are encrypted.
    """

    store: str
    layout: Layout
    codec: Codec
    retention: Retention
    sealed: bool

    def to_json(self) -> str:
        """Return the settings as text."""
        return json.dumps(
            {
                "store": self.store,
                "layout": [self.layout.names, self.layout.shapes],
                "codec": self.codec.name,
                "retention": self.retention.name,
                "sealed": self.sealed,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Return the settings a text stands for."""
        fields = json.loads(text)
        names, shapes = fields["layout"]
        return cls(
            fields["store"],
            Layout(tuple(names), tuple(tuple(s) for s in shapes)),
            read_codec(fields["codec"]),
            read_retention(fields["retention"]),
            fields["sealed"],
        )


def first_meta(settings: Settings) -> dict[str, str]:
    """Return what the index of an empty history says."""
    return {
        "format": str(FORMAT),
        "generation": "1",
        "tip": "",
        "nbytes": "0",
        "peak_bytes": "0",
        "pending": "",
        "sums_from": "1" if settings.retention.sums else "",
    }


@dataclass(frozen=True, slots=True)
class TipFile:
    """Where the tip is: the round behind it, its generation and its file, if any."""

    round: int
    generation: int
    written: Written | None

    def to_json(self) -> str:
        """Return it as text."""
        file = self.written
        place = None if file is None else [file.name, file.nbytes, file.seal]
        return json.dumps([self.round, self.generation, place])

    @classmethod
    def from_json(cls, text: str) -> "TipFile | None":
        """Return what a text says; None for an empty one."""
        if not text:
            return None
        index, generation, place = json.loads(text)
        return cls(int(index), int(generation), Written(*place) if place else None)
