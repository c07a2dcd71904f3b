"""What the log says about a client: nothing that outlives the client's key.

Both values are HMACs under the client's key. While it lives, its holder can show which
entries are about the client and that a file is the one that was committed. Once it is
destroyed nobody can, not even by running the same simulation again.
"""

import hmac

from fedunlearn.history.record import ClientId
from fedunlearn.history.seal import Keys


def pseudonym(keys: Keys, client: ClientId) -> str:
    """Return the client's name in the log, 32 hexadecimal digits."""
    return _mac(keys, client, b"pseudonym")


def commitments(keys: Keys, client: ClientId, index: int, seal: str) -> str:
    """Return the commitment to a client's update in a round, 32 hexadecimal digits.

    Args:
        keys: The keys.
        client: Whose update.
        index: Of which round.
        seal: The seal of its file, which authenticates the update; "" if none is kept.
    """
    return _mac(keys, client, f"update|{index}|{seal}".encode("ascii"))


def _mac(keys: Keys, client: ClientId, what: bytes) -> str:
    key = hmac.digest(keys.client_key(client), b"fedunlearn log", "sha256")
    return hmac.digest(key, what, "sha256")[:16].hex()
