"""Shoulder exercises recorded by a smart watch, of ten people (Burns et al. 2018)."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedunlearn.data.cache import read_cached
from fedunlearn.data.dataset import Dataset, Features, Keys, Labels
from fedunlearn.data.npz import Arrays
from fedunlearn.data.split import TEST_SHARE, group_stream, share_of
from fedunlearn.errors import DataError

SCALE = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
"""What each channel is divided by: three of acceleration in g, three of rotation in
rad/s. They are round constants: statistics of the data would carry the influence of a
person who leaves."""

KEYS = ("signal", "lengths", "labels", "subjects")
"""Arrays of the cached file: all series one after the other, ``(T, 6)`` at 50 Hz; the
length, class and person of each of them, ``(s,)``."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Windows over 140 series of 10 people, 7 exercises, shape ``(6, window)``.

    The person is the natural client. Windows overlap if ``step < window``, therefore
    whole series become test data: of each person a fixed fifth of the series, no two of
    one exercise. What a client holds out of its own training data is drawn from its
    windows: take ``step >= window`` where that must not share samples with the rest.

    Attributes:
        window: Length of a window in samples, 50 a second.
        step: Samples from the start of one window to the start of the next.
        cache: Folder of fetched data; None takes the default one.
    """

    window: int = 100
    step: int = 50
    cache: str | None = None

    def __post_init__(self) -> None:
        """Refuse windows without samples and steps on the spot."""
        for name, value in (("window", self.window), ("step", self.step)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def load(self) -> Dataset:
        """Return the data set.

        Raises:
            DataError: If it was not fetched, or a series is shorter than a window.
        """
        raw = read_cached("watch", KEYS, self.cache)
        labels, subjects, lengths = raw["labels"], raw["subjects"], raw["lengths"]
        if self.window > lengths.min():
            raise DataError(
                f"data.window is {self.window}, the shortest series of 'watch' has "
                f"{lengths.min()} samples"
            )
        series = np.split(scaled(raw["signal"]), np.cumsum(lengths)[:-1])
        windows = [self._windows(one) for one in series]
        counts = [len(some) for some in windows]
        x, y = np.concatenate(windows), np.repeat(labels, counts)
        clients = np.repeat(subjects, counts)
        test = np.repeat(held_out_series(labels, subjects), counts)
        return Dataset(
            "watch", x[~test], y[~test], x[test], y[test], clients[~test], clients[test]
        ).validated()

    def _windows(self, series: Features) -> Features:
        """Return a series of shape ``(t, 6)`` as windows, shape ``(k, 6, window)``."""
        every = np.lib.stride_tricks.sliding_window_view(series, self.window, axis=0)
        return every[:: self.step]


def scaled(signal: Features) -> Features:
    """Return the signal, shape ``(T, 6)``, divided by ``SCALE``."""
    out: Features = np.divide(signal, SCALE, dtype=np.float32)
    return out


def held_out_series(labels: Labels, subjects: Keys) -> npt.NDArray[np.bool_]:
    """Return which series are test data, shape ``(s,)``.

    Args:
        labels: The exercise of each series, shape ``(s,)``.
        subjects: The person of each series, shape ``(s,)``.
    """
    mask = np.zeros(len(labels), np.bool_)
    for index, subject in enumerate(np.unique(subjects)):
        own = group_stream(index).permutation(np.flatnonzero(subjects == subject))
        _, first = np.unique(labels[own], return_index=True)
        mask[own[np.sort(first)][: share_of(TEST_SHARE, len(own))]] = True
    return mask


def convert(member: bytes) -> Arrays:
    """Return the arrays of ``KEYS`` from the package's ``.npy`` file.

    Args:
        member: The file's content, from an archive whose hash was verified.

    Raises:
        DataError: If the content is not what the package holds.
    """
    content = _unpickled(member)
    try:
        series = [np.asarray(one, np.float32) for one in content["X"]]
        arrays: Arrays = {
            "signal": np.concatenate(series),
            "lengths": np.array([len(one) for one in series], np.int64),
            "labels": np.asarray(content["y"], np.int64),
            "subjects": np.array([f"subject-{s:02d}" for s in content["subject"]]),
        }
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"the watch recordings are malformed: {error!r}") from error
    if arrays["signal"].shape[1:] != (len(SCALE),):
        raise DataError(f"the watch recordings need {len(SCALE)} channels")
    return arrays


def _unpickled(member: bytes) -> dict[str, Any]:
    """Return the one object of an ``.npy`` file.

    This is the only place in the project that unpickles: the authors published the
    recordings so, and `fetch` lets only bytes with the manifest's SHA-256 come here.
    """
    content: dict[str, Any] = np.load(io.BytesIO(member), allow_pickle=True).item()
    return content
