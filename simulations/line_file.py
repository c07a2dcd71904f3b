"""JSON values, one a line, of work that may be stopped at any time."""

import json
from pathlib import Path
from typing import Any, final

from fedunlearn.errors import DataError


@final
class LineFile:
    """Values that were finished; a line that a stop cut short is dropped.

    Args:
        path: The file; it need not be there yet.

    Attributes:
        values: What it holds.

    Raises:
        DataError: If a line is not JSON.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.exists() else b""
        whole, newline, torn = content.rpartition(b"\n")
        if torn:
            path.write_bytes(whole + newline)
        self.values: list[Any] = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self.values.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from error

    def add(self, value: object) -> None:
        """Append a value."""
        # With its buffer: alone a file may take a part of a line without a word.
        with self._path.open("ab") as file:
            file.write(json.dumps(value).encode() + b"\n")
        self.values.append(value)
