"""A server's state as bytes: safetensors, so that nothing in it can run.

safetensors sorts what it is given, and a strategy may rely on the order of a model's
arrays: each name carries its place.
"""

import numpy as np

from fedunlearn.errors import HistoryError
from fedunlearn.history.record import ServerState
from fedunlearn.history.seal import Bytes
from fedunlearn.params import Array

_RANDOM = "random"
_MOST_ITEM_BYTES = 8


def pack_state(state: ServerState) -> Bytes:
    """Return the state as bytes, shape ``(1, n)``; no byte for an empty one.

    Raises:
        HistoryError: If an array holds anything but numbers of at most 8 bytes.
    """
    from safetensors.numpy import save

    named: dict[str, Array] = {f"arrays/{n}": a for n, a in state.arrays.items()}
    named |= {f"rule/{n}": a for n, a in state.rule.items()}
    if state.random:
        named[_RANDOM] = np.frombuffer(state.random.encode("ascii"), np.uint8)
    if not named:
        return np.empty((1, 0), np.uint8)
    plain = {
        f"{at:06d}/{name}": _plain(name, array)
        for at, (name, array) in enumerate(named.items())
    }
    return np.frombuffer(save(plain), np.uint8)[None]


def _plain(name: str, array: Array) -> Array:
    # safetensors writes a strided array's buffer in its own order, without a word.
    plain = np.asarray(array, order="C")
    if plain.dtype.kind not in "biufc" or plain.dtype.itemsize > _MOST_ITEM_BYTES:
        _, _, own = name.partition("/")
        raise HistoryError(
            f"array {own!r} of the server's state is {plain.dtype}: only numbers of at "
            f"most {_MOST_ITEM_BYTES} bytes can be recorded"
        )
    return plain


def unpack_state(data: Bytes) -> ServerState:
    """Return the state that bytes of :func:`pack_state` stand for."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not data.size:
        return ServerState()
    try:
        placed = load(data.tobytes())
    except SafetensorError as error:
        raise HistoryError(f"a server's state is unreadable: {error}") from error
    named = {name.partition("/")[2]: placed[name] for name in sorted(placed)}
    random = named.pop(_RANDOM, np.empty(0, np.uint8))
    return ServerState(
        arrays=_below("arrays/", named),
        rule=_below("rule/", named),
        random=random.tobytes().decode("ascii"),
    )


def _below(prefix: str, named: dict[str, Array]) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): array
        for name, array in named.items()
        if name.startswith(prefix)
    }
