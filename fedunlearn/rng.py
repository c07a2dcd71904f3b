"""Random streams that depend on names, never on the order of draws.

Each stream is derived from ``(seed, purpose, keys...)``. Two streams with different
names are independent, so leaving one client out changes nobody else's numbers: that is
what makes retraining without a client a paired comparison.
"""

import zlib

import numpy as np

SEED_LIMIT = 2**63
"""Seeds lie in ``[0, SEED_LIMIT)``: they travel in Flower records as signed 64 bit."""


def derive(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Return the generator of one purpose.

    Args:
        seed: The run's seed, in ``[0, SEED_LIMIT)``.
        purpose: What the numbers are for, such as ``"batches"``.
        keys: Non-negative integers that tell streams of a purpose apart, such as the
            round and the client.

    Raises:
        ValueError: If the seed or a key is negative.
    """
    if not 0 <= seed < SEED_LIMIT or any(k < 0 for k in keys):
        raise ValueError(f"seed {seed} and keys {keys} must not be negative")
    words = (seed & 0xFFFFFFFF, seed >> 32, zlib.crc32(purpose.encode()), *keys)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
