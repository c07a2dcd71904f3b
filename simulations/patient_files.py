"""The disk of runs that advance together."""

import sqlite3
from functools import partial
from pathlib import Path
from typing import final

from typing_extensions import override

from fedunlearn.history.files import RealFiles
from simulations.engine import SimulationGrid


@final
class PatientFiles(RealFiles):
    """A disk that is waited for while other runs go on.

    Args:
        grid: The run's, which knows of the others.
    """

    def __init__(self, grid: SimulationGrid) -> None:
        self._grid = grid

    @override
    def sync(self, handle: int) -> None:
        self._grid.aside(partial(super().sync, handle))

    @override
    def sync_folder(self, folder: Path) -> None:
        self._grid.aside(partial(super().sync_folder, folder))

    @override
    def commit(self, database: sqlite3.Connection) -> None:
        self._grid.aside(partial(super().commit, database))

    @override
    def unlink(self, path: Path) -> None:
        self._grid.aside(partial(super().unlink, path))
