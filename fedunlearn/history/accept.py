"""What a round must be before any history takes it."""

from dataclasses import replace
from math import isfinite

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import HistoryError
from fedunlearn.history.record import ClientId, RoundRecord, SetAside
from fedunlearn.params import Layout

MOST_ROUNDS, MOST_CLIENTS = 2**32 - 2, 2**32
"""The largest index of a round, and the number of ids: each has a leaf in a tree."""


def accepted(
    record: RoundRecord, layout: Layout, last: int, withdrawn: frozenset[ClientId]
) -> RoundRecord:
    """Return the round with plain numbers in it.

    Args:
        record: The round.
        layout: What its vectors are.
        last: The round it has to follow.
        withdrawn: Clients that cannot be recorded.

    Raises:
        HistoryError: If a history cannot hold it as it is.
    """
    _check_index(int(record.index), last)
    clients = tuple(int(client) for client in record.clients)
    _check_clients(clients, withdrawn)
    _check_arrays(record, layout)
    _check_numbers(record)
    felt = record.sensitivities
    return replace(
        record,
        index=int(record.index),
        clients=clients,
        asked=tuple(int(client) for client in record.asked),
        set_aside=tuple(_plain(aside) for aside in record.set_aside),
        # SQLite knows no -0.0: it would come back as another number.
        sensitivities=None if felt is None or not clients else felt + 0.0,
        loss=None if record.loss is None else float(record.loss) + 0.0,
        seconds=float(record.seconds) + 0.0,
    )


def _check_index(index: int, last: int) -> None:
    if index < 1 or index <= last:
        raise HistoryError(
            f"round {index} cannot follow round {last}: a history only grows"
        )
    if index > MOST_ROUNDS:
        raise HistoryError(f"round {index} is beyond the last possible {MOST_ROUNDS}")


def _check_clients(
    clients: tuple[ClientId, ...], withdrawn: frozenset[ClientId]
) -> None:
    if list(clients) != sorted(set(clients)):
        raise HistoryError(f"clients must ascend, got {', '.join(map(str, clients))}")
    if clients and not 0 <= clients[0] <= clients[-1] < MOST_CLIENTS:
        raise HistoryError(
            f"ids of clients lie between 0 and {MOST_CLIENTS - 1}, "
            f"got {clients[0]} to {clients[-1]}"
        )
    if gone := sorted(withdrawn.intersection(clients)):
        raise HistoryError(
            f"client {gone[0]} was erased from this history and cannot be recorded"
        )


def _check_arrays(record: RoundRecord, layout: Layout) -> None:
    shapes = {
        "broadcast": (layout.size,),
        "updates": (len(record.clients), layout.size),
    }
    arrays = {"broadcast": record.broadcast, "updates": record.updates}
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise HistoryError(f"{name} must be float32, got {array.dtype}")
        _check_shape(name, array, shapes[name])


def _check_numbers(record: RoundRecord) -> None:
    count = (len(record.clients),)
    for name in ("num_examples", "num_steps", "num_samples"):
        numbers = getattr(record, name)
        if numbers.dtype.kind not in "iu":
            raise HistoryError(f"{name} must be integers, got {numbers.dtype}")
        _check_shape(name, numbers, count)
        if (numbers < 0).any():
            raise HistoryError(f"{name} cannot be negative, got {numbers.min()}")
    felt = record.sensitivities
    if felt is not None:
        _check_shape("sensitivities", felt, count)
        if not np.isfinite(felt).all():
            raise HistoryError("sensitivities must be finite")
    for name, number in (("loss", record.loss), ("seconds", record.seconds)):
        if number is not None and not isfinite(number):
            raise HistoryError(f"{name} must be finite, got {number}")


def _check_shape(
    name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...]
) -> None:
    if array.shape != shape:
        raise HistoryError(f"{name} should have shape {shape}, found {array.shape}")


def _plain(aside: SetAside) -> SetAside:
    client = None if aside.client is None else int(aside.client)
    return SetAside(client, aside.reason)
