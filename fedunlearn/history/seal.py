"""What binds a row of bytes to its place: keys, ciphers and MACs.

Sealed rows are AES-256-GCM ciphertext; open rows are the bytes themselves with the
GMAC tag of the same key. Either way a row is bound to history, generation, round, part
and owner, and no byte of a file is used that was not authenticated.
"""

import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from fedunlearn.history.keys import hkdf
from fedunlearn.history.record import ClientId

Bytes = npt.NDArray[np.uint8]
"""A matrix of bytes, shape ``(n, B)``."""

TAG_BYTES, SEAL_BYTES = 16, 32
_NONCE = bytes(12)
"""One nonce for all rows: each row has its own key (see ``Place.row_key``)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of a file.

    Attributes:
        name: ``broadcast``, ``state``, ``updates`` or ``sums``.
        dtype: Its safetensors dtype where the rows are not encrypted.
        rows: Shape ``(n, B)``.
        owners: Whose bytes each row is; None for the server's.
    """

    name: str
    dtype: str
    rows: Bytes
    owners: tuple[ClientId | None, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file belongs: all that its rows are bound to.

    Attributes:
        store: The history's id.
        generation: Between which two unlearnings it was written.
        index: The round whose key seals it.
        salt: 16 random bytes of this file, in hex: no key is ever used twice.
        sealed: Whether rows are encrypted.
    """

    store: str
    generation: int
    index: int
    salt: str
    sealed: bool

    def cipher(self, keys: "Keys", part: str, owner: ClientId | None) -> Cipher[GCM]:
        """Return the row's cipher; its key is used for this row only."""
        secret = keys.round_key(self.generation, self.index)
        if owner is not None:
            secret = keys.client_key(owner) + secret
        return Cipher(
            AES(hkdf(secret, self._salt, self.bound(part, owner))), GCM(_NONCE)
        )

    def bound(self, part: str, owner: ClientId | None) -> bytes:
        """Return what a row is bound to, as bytes."""
        whose = "server" if owner is None else str(owner)
        place = f"{self.store}|{self.generation}|{self.index}|{part}|{whose}"
        return place.encode("ascii")

    @property
    def _salt(self) -> bytes:
        return bytes.fromhex(self.salt)


@dataclass(frozen=True, slots=True)
class Keys:
    """Finds keys; asked for every row.

    Attributes:
        store: The key of seals.
        client_key: Client -> ``K_c``; raises HistoryError if it was destroyed.
        round_key: Generation and round -> ``G_g,t``; raises likewise.
    """

    store: bytes
    client_key: Callable[[ClientId], bytes]
    round_key: Callable[[int, int], bytes]


def asked_once(keys: Keys) -> Keys:
    """Return keys that look a round's up once: for one reading or writing of a file.

    A round's key is the same for all rows and takes 32 HMACs. Not to be kept: who asks
    later must be told that a key was destroyed.
    """
    return replace(keys, round_key=cache(keys.round_key))


@dataclass(frozen=True, slots=True)
class Written:
    """A file as the index refers to it: name, size in bytes and seal in hex."""

    name: str
    nbytes: int
    seal: str


def mac(key: bytes, header: bytes, tags: bytes) -> bytes:
    """Return the seal of a file's header and tags."""
    return hmac.digest(key, header + tags, "sha256")


def new_salt() -> str:
    """Return 16 random bytes in hex."""
    return os.urandom(16).hex()
