"""Reads histories of format 1, written before histories could be erased."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np

from fedunlearn.errors import DamagedError, HistoryError
from fedunlearn.history.record import ArraysInMemory, RoundRecord, SetAside
from fedunlearn.params import Layout


def read_format1(folder: Path) -> tuple[Layout, Iterator[RoundRecord]]:
    """Return layout and rounds of a history of format 1.

    Raises:
        HistoryError: If it is none.
        DamagedError: While iterating, if a file is not what the index says.
    """
    path = folder / "index.db"
    if not path.is_file():
        raise HistoryError(f"{folder} holds no history (no index.db)")
    wal = path.with_name(path.name + "-wal")
    whole = not wal.exists() or wal.stat().st_size == 0
    how = "immutable=1" if whole else "mode=ro"  # the latter leaves files beside it
    database = sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True)
    try:
        meta = dict(database.execute("SELECT key, value FROM meta"))
        if meta["format"] != "1":
            raise HistoryError(f"{folder} has format {meta['format']}, not 1")
        names, shapes = json.loads(meta["layout"])
        rows = database.execute("SELECT * FROM rounds ORDER BY round").fetchall()
        participants = database.execute(
            "SELECT round, client, num_examples, num_steps, num_samples FROM updates"
            " ORDER BY round, row"
        ).fetchall()
    except (sqlite3.DatabaseError, KeyError, ValueError) as error:
        raise DamagedError.of(str(error), path) from error
    finally:
        database.close()
    layout = Layout(tuple(names), tuple(tuple(s) for s in shapes))
    return layout, _rounds(folder, layout, rows, participants)


def _rounds(
    folder: Path,
    layout: Layout,
    rows: list[tuple[int, int, str, str]],
    participants: list[tuple[int, ...]],
) -> Iterator[RoundRecord]:
    for index, nbytes, asked, aside in rows:
        own = [p[1:] for p in participants if p[0] == index]
        columns = np.array(own, np.int64).reshape(-1, 4).T
        path = folder / "rounds" / f"{index:06d}.safetensors"
        yield RoundRecord(
            index=index,
            clients=tuple(columns[0].tolist()),
            num_examples=columns[1],
            num_steps=columns[2],
            num_samples=columns[3],
            asked=tuple(json.loads(asked)),
            set_aside=tuple(SetAside(*pair) for pair in json.loads(aside)),
            arrays=_arrays(path, nbytes, len(own), layout.size),
        )


def _arrays(path: Path, nbytes: int, count: int, size: int) -> ArraysInMemory:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
        arrays = load(content)
        broadcast, updates = arrays["broadcast"], arrays["updates"]
    except (OSError, SafetensorError, KeyError) as error:
        raise DamagedError.of(str(error), path) from error
    shapes = (broadcast.shape, updates.shape)
    if len(content) != nbytes or shapes != ((size,), (count, size)):
        raise DamagedError.of("it is not what the index says", path)
    return ArraysInMemory(broadcast, updates)
