"""Random streams that depend on names, never on the order of draws.

Each stream is derived from ``(seed, purpose, keys...)``. Two streams with different
names are independent, so leaving one client out changes nobody else's numbers: that is
what makes retraining without a client a paired comparison.
"""

import zlib
from typing import Any, final

import numpy as np

SEED_LIMIT = 2**63
"""Seeds lie in ``[0, SEED_LIMIT)``: they travel in Flower records as signed 64 bit."""
_WORD = 2**32


def derive(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Return the generator of one purpose.

    Args:
        seed: The run's seed, in ``[0, SEED_LIMIT)``.
        purpose: What the numbers are for, such as ``"batches"``.
        keys: Integers in ``[0, 2**32)`` that tell streams of a purpose apart, such as
            the round and the client. A purpose always takes the same number of them:
            no key and the key 0 name the same stream.

    Raises:
        ValueError: If the seed or a key lies outside its range.
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, keys)))


@final
class Streams:
    """Many streams of one purpose, told apart by a number: one a client.

    Philox is counter-based: the purpose gives its key, the number the highest word of
    its counter. Going from stream to stream costs a microsecond, ``derive`` ten.

    Args:
        seed: As for :func:`derive`.
        purpose: As for :func:`derive`; not one that ``derive`` is used with.
        keys: As for :func:`derive`.
    """

    def __init__(self, seed: int, purpose: str, *keys: int) -> None:
        key = _sequence(seed, purpose, keys).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=key)
        self._start: Any = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def of(self, number: int) -> np.random.Generator:
        """Return the generator at the start of a stream; valid until the next call."""
        self._start["state"]["counter"][3] = number
        self._bits.state = self._start
        return self._generator


def _sequence(seed: int, purpose: str, keys: tuple[int, ...]) -> np.random.SeedSequence:
    check_stream(seed, keys)
    words = (seed & 0xFFFFFFFF, seed >> 32, zlib.crc32(purpose.encode()), *keys)
    return np.random.SeedSequence(words)


def check_stream(seed: int, keys: tuple[int, ...]) -> None:
    """Raise ValueError if a seed or a key lies outside its range."""
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed {seed} does not lie in [0, 2**63)")
    if any(not 0 <= key < _WORD for key in keys):
        # A larger key is read as two words and would name another stream's numbers.
        raise ValueError(f"keys {keys} do not lie in [0, 2**32)")
