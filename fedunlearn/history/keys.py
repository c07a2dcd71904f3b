"""The keys of a history: destroying one is what erases.

Two trees of keys meet in every sealed record. One leaf a client, ``K_c``, and, in each
generation g, one leaf a round, ``G_g,t``; the record's own key is
``HKDF-SHA256(K_c || G_g,t)``. Destroying ``K_c`` kills the client's updates in every
generation; destroying ``G_g,t`` from some round on kills all models and everybody's
updates that were computed from contaminated models. A generation is the time between
two unlearnings.

The key ring lies in ``keys.bin``, sealed under an outer key that lies in ``outer.key``.
Every erasure draws a new outer key and overwrites the old one, so that an old copy of
``keys.bin`` alone opens nothing. Whoever copied both files keeps what they open: that
is an operator's copy, and no program can reach it.
"""

import hashlib
import hmac
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedunlearn.errors import DamagedError, HistoryError
from fedunlearn.history.files import Files, unreadable
from fedunlearn.history.files import replace as replace_file
from fedunlearn.history.key_tree import KeyTree
from fedunlearn.history.record import ClientId

KEY_BYTES = 32
_MAGIC = b"fedunlearn keys1"
_ID_BYTES, _NONCE_BYTES = 16, 12


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys of a history.

    Attributes:
        settings: What the history is, as JSON: with it and the files an index can be
            rebuilt.
        store: Authenticates file headers; survives every erasure.
        clients: One leaf a client.
        generations: Number from 1 -> one leaf a round.
    """

    settings: str
    store: bytes = field(repr=False)
    clients: KeyTree = field(repr=False)
    generations: dict[int, KeyTree] = field(repr=False)

    @classmethod
    def fresh(cls, settings: str) -> "KeyRing":
        """Return a new ring with generation 1, from the system's randomness."""
        tree = KeyTree.fresh
        return cls(settings, _random(), tree(_random()), {1: tree(_random())})

    def with_generation(self, number: int) -> "KeyRing":
        """Return the ring with one generation more."""
        fresh = KeyTree.fresh(_random())
        return replace(self, generations={**self.generations, number: fresh})

    def without(
        self, clients: frozenset[ClientId], below: int, first: int | None
    ) -> "KeyRing":
        """Return the ring without some keys.

        Args:
            clients: Clients whose keys go.
            below: Generations with a smaller number lose rounds.
            first: The first round whose keys go; None leaves all rounds.
        """
        kept = self.generations
        if first is not None:
            kept = {
                g: tree.without_from(first) if g < below else tree
                for g, tree in kept.items()
            }
            kept = {g: tree for g, tree in kept.items() if tree.nodes}
        return replace(self, clients=self.clients.without(clients), generations=kept)

    def round_key(self, generation: int, index: int) -> bytes:
        """Return ``G_g,t``.

        Raises:
            HistoryError: If it was destroyed.
        """
        if generation not in self.generations:
            raise HistoryError(f"the keys of generation {generation} were destroyed")
        return self.generations[generation].key(index)

    def to_json(self) -> str:
        """Return the ring as text."""
        return json.dumps(
            {
                "settings": self.settings,
                "store": self.store.hex(),
                "clients": _nodes(self.clients),
                "generations": {
                    str(g): _nodes(tree) for g, tree in self.generations.items()
                },
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "KeyRing":
        """Return the ring a text stands for."""
        fields = json.loads(text)
        return cls(
            fields["settings"],
            bytes.fromhex(fields["store"]),
            _tree(fields["clients"]),
            {int(g): _tree(nodes) for g, nodes in fields["generations"].items()},
        )


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256 (RFC 5869)."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """The two key files of a history, rewritten whole and never in place.

    Attributes:
        folder: Where they lie.
    """

    folder: Path

    @property
    def ring_path(self) -> Path:
        """The sealed key ring."""
        return self.folder / "keys.bin"

    @property
    def outer_path(self) -> Path:
        """The outer key."""
        return self.folder / "outer.key"

    def create(self, files: Files, ring: KeyRing) -> None:
        """Write both files of a new history."""
        outer = _random()
        replace_file(files, self.outer_path, _pack_outer([outer]), "create.outer")
        replace_file(files, self.ring_path, _wrap(ring, outer), "create.keys")

    def rewrite(self, files: Files, ring: KeyRing) -> None:
        """Write another ring under a new outer key.

        While the ring changes hands the outer file holds both keys: whichever ring a
        crash leaves can be opened, and :meth:`settle` drops the key that opens none.
        """
        old, new = self._outer_of_ring(), _random()
        both = _pack_outer([old, new])
        replace_file(files, self.outer_path, both, "erase.outer")
        replace_file(files, self.ring_path, _wrap(ring, new), "erase.keys")
        replace_file(files, self.outer_path, _pack_outer([new]), "erase.outer")

    def settle(self, files: Files) -> None:
        """Drop an outer key that an interrupted rewrite left behind."""
        if len(self._read_outer()) > 1:
            only = _pack_outer([self._outer_of_ring()])
            replace_file(files, self.outer_path, only, "erase.outer")

    def read(self) -> KeyRing:
        """Return the ring.

        Raises:
            DamagedError: If a file is missing, damaged or fits not the other.
        """
        try:
            return self._read()
        except DamagedError:  # an erasure may have come between the two files
            return self._read()

    def _read(self) -> KeyRing:
        content = self._ring_content()
        outer, box = self._outer_of_ring(), content[len(_MAGIC) + _ID_BYTES :]
        try:
            text = AESGCM(outer).decrypt(
                box[:_NONCE_BYTES], box[_NONCE_BYTES:], content[: -len(box)]
            )
            return KeyRing.from_json(text.decode("ascii"))
        except (InvalidTag, ValueError, KeyError) as error:
            raise DamagedError.of("it does not open", self.ring_path) from error

    def _ring_content(self) -> bytes:
        content = _read(self.ring_path)
        shortest = len(_MAGIC) + _ID_BYTES + _NONCE_BYTES + 16
        if not content.startswith(_MAGIC) or len(content) < shortest:
            raise DamagedError.of("it is no key ring", self.ring_path)
        return content

    def _outer_of_ring(self) -> bytes:
        wanted = self._ring_content()[len(_MAGIC) : len(_MAGIC) + _ID_BYTES]
        for outer in self._read_outer():
            if _key_id(outer) == wanted:
                return outer
        raise DamagedError.of(f"it does not open {self.ring_path}", self.outer_path)

    def _read_outer(self) -> list[bytes]:
        content = _read(self.outer_path)
        body, check = content[:-KEY_BYTES], content[-KEY_BYTES:]
        whole = hashlib.sha256(body).digest() == check
        if not whole or not body or len(body) % KEY_BYTES:
            raise DamagedError.of("it holds no outer key", self.outer_path)
        return [body[at : at + KEY_BYTES] for at in range(0, len(body), KEY_BYTES)]


def forget_keys(folder: Path) -> None:
    """Destroy the keys of a history that is thrown away: nothing of it opens again."""
    for path in (KeyFiles(folder).outer_path, KeyFiles(folder).ring_path):
        if path.exists():
            with path.open("r+b") as file:
                file.write(os.urandom(path.stat().st_size))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(error, path) from error


def _wrap(ring: KeyRing, outer: bytes) -> bytes:
    head, nonce = _MAGIC + _key_id(outer), os.urandom(_NONCE_BYTES)
    box = AESGCM(outer).encrypt(nonce, ring.to_json().encode("ascii"), head)
    return head + nonce + box


def _key_id(key: bytes) -> bytes:
    return hmac.digest(key, b"fedunlearn outer key", "sha256")[:_ID_BYTES]


def _pack_outer(keys: list[bytes]) -> bytes:
    body = b"".join(keys)
    return body + hashlib.sha256(body).digest()


def _nodes(tree: KeyTree) -> list[tuple[int, int, str]]:
    return [(depth, prefix, key.hex()) for depth, prefix, key in tree.nodes]


def _tree(nodes: list[tuple[int, int, str]]) -> KeyTree:
    return KeyTree(tuple((d, p, bytes.fromhex(key)) for d, p, key in nodes))


def _random() -> bytes:
    return os.urandom(KEY_BYTES)
