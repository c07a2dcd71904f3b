"""Every error this project raises on purpose.

::

    FedUnlearnError
    ├── RequestError            the request was wrong (exit code 2)
    │   ├── ConfigError         a configuration key or value
    │   ├── UnknownNameError    a method, data set, model or client nobody knows
    │   ├── DataError           data that is missing or malformed
    │   └── RequirementError    a method needs more than the history or setting offers
    └── RunError                the run failed (exit code 1)
        ├── EmptyRoundError     nobody answered
        ├── HistoryError        a history that is missing, incomplete or in use
        │   └── DamagedError    bytes that are not those that were recorded
        └── LeaverContactError  a method tried to reach a client that asked to leave
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

_MOST_NAMES = 40
"""Names an error lists before it says how many more there are."""


class FedUnlearnError(Exception):
    """Root of the tree; its text is one sentence meant for a person."""


class RequestError(FedUnlearnError):
    """What was asked for cannot be done as asked."""


class ConfigError(RequestError):
    """A configuration key is unknown or its value is not allowed."""


class UnknownNameError(RequestError):
    """A name that stands in no table."""

    @classmethod
    def of(cls, kind: str, name: object, known: Iterable[object]) -> "UnknownNameError":
        """Return the error for ``name``, the nearest known name and the first ones.

        Args:
            kind: What was looked up, in the singular: "method", "data set".
            name: What was asked for.
            known: The names that would have been right.
        """
        names = [str(k) for k in known]
        shown = ", ".join(names[:_MOST_NAMES]) or "none"
        more = f" and {len(names) - _MOST_NAMES} more" if names[_MOST_NAMES:] else ""
        return cls(
            f"unknown {kind} {str(name)!r}{did_you_mean(str(name), names)} "
            f"(known: {shown}{more})"
        )


class DataError(RequestError):
    """Data is missing, unreadable or not what the scenario needs."""


class RequirementError(RequestError):
    """An unlearning method needs something that this history or setting lacks."""


class RunError(FedUnlearnError):
    """The request was right, the run was not."""


class EmptyRoundError(RunError):
    """No client of a round gave a usable answer."""


class HistoryError(RunError):
    """The recorded history is missing, damaged or used against its rules."""


class DamagedError(HistoryError):
    """Recorded bytes are gone or are not those that were recorded.

    Attributes:
        file: The file.
        round: Its round, or None.
        client: The client whose bytes they are, or None.
        offset: Where in the file they begin, or None.
    """

    file: Path | None = None
    round: int | None = None
    client: int | None = None
    offset: int | None = None

    @classmethod
    def of(
        cls,
        what: str,
        file: Path,
        *,
        round_index: int | None = None,
        client: int | None = None,
        offset: int | None = None,
    ) -> "DamagedError":
        """Return the error for a place in a file."""
        place = {"round": round_index, "client": client, "byte": offset}
        known = ", ".join(f"{k} {v}" for k, v in place.items() if v is not None)
        error = cls(f"{file} is damaged{f' ({known})' if known else ''}: {what}")
        error.file, error.round = file, round_index
        error.client, error.offset = client, offset
        return error


class LeaverContactError(RunError):
    """A method asked a client that is to be forgotten."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``known``, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
