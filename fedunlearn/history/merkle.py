"""A Merkle tree over the entries of a log: one hash that stands for all of them.

The tree is that of RFC 6962 section 2.1, the checks of its proofs are those of RFC 9162
sections 2.1.3.2 and 2.1.4.2; in departure from it, the empty log is a beginning of
every log. Hashes are 64 lower-case hexadecimal digits.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import final

from fedunlearn.errors import RequestError

HEX = re.compile("[0-9a-f]{64}")
_HEAD = re.compile("(0|[1-9][0-9]{0,17}):([0-9a-f]{64})")
_EMPTY_ROOT = sha256(b"").hexdigest()


@final
@dataclass(frozen=True, slots=True)
class Head:
    """The first ``size`` entries in one hash; as a text, ``SIZE:ROOT``.

    Raises:
        RequestError: If this can be the head of no log.
    """

    size: int
    root: str

    def __post_init__(self) -> None:
        empty = self.size == 0 and self.root != _EMPTY_ROOT
        if empty or not _HEAD.fullmatch(str(self)):
            raise RequestError(f"{str(self)!r} is not the head of a log")

    def __str__(self) -> str:  # type: ignore[explicit-override]  # not in 3.11
        return f"{self.size}:{self.root}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Return the head whose text this is; RequestError if there is none."""
        match = _HEAD.fullmatch(text)
        if match is None:
            raise RequestError(f"{text!r} is not the head of a log (SIZE:ROOT)")
        return cls(int(match[1]), match[2])


def utf8(body: str) -> bytes:
    """Return the bytes of a body, of a damaged one too."""
    return body.encode("utf-8", "surrogatepass")


def head_of(bodies: Sequence[str]) -> Head:
    """Return the head of a log with these bodies."""
    return Head(len(bodies), _root(_leaves(bodies)).hex())


def inclusion_proof(bodies: Sequence[str], index: int) -> tuple[str, ...]:
    """Return the hashes that lead from one body to the root, from the leaf upwards.

    Raises:
        RequestError: If there is no entry ``index``.
    """
    if not 0 <= index < len(bodies):
        raise RequestError(f"there is no entry {index} in a log of {len(bodies)}")
    level, path = _leaves(bodies), []
    while len(level) > 1:
        path += level[index ^ 1 : (index ^ 1) + 1]  # the last node may have no sibling
        level, index = _parents(level), index >> 1
    return tuple(node.hex() for node in path)


def verify_inclusion(
    body: str, index: int, size: int, proof: Sequence[str], root: str
) -> bool:
    """Tell if ``body`` is entry ``index`` of the log with this head.

    Take ``size`` and ``root`` from one trusted head: the root alone fixes no size.
    """
    path = _read(proof)
    if path is None or not 0 <= index < size:
        return False
    left, last, node = index, size - 1, _leaf(utf8(body))
    for other in path:
        if last == 0:
            return False
        if left & 1 or left == last:
            node = _node(other, node)
            left, last = _climb(left, last)
        else:
            node = _node(node, other)
        left, last = left >> 1, last >> 1
    return last == 0 and node.hex() == root


def consistency_proof(bodies: Sequence[str], old_size: int) -> tuple[str, ...]:
    """Return the hashes that show that the log began with its first entries.

    Raises:
        RequestError: If the log never had ``old_size`` entries.
    """
    if not 0 <= old_size <= len(bodies):
        raise RequestError(f"a log of {len(bodies)} entries never had {old_size}")
    leaves, size, path, whole = _leaves(bodies), old_size, [], True
    while 0 < size < len(leaves):
        half = 1 << ((len(leaves) - 1).bit_length() - 1)
        if size <= half:
            path.append(_root(leaves[half:]))
            leaves = leaves[:half]
        else:
            path.append(_root(leaves[:half]))
            leaves, size, whole = leaves[half:], size - half, False
    if not whole:
        path.append(_root(leaves))
    return tuple(node.hex() for node in reversed(path))


def verify_consistency(old: Head, new: Head, proof: Sequence[str]) -> bool:
    """Tell if the log of ``new`` begins with the log of ``old``."""
    path = _read(proof)
    if path is None or not 0 < old.size < new.size:
        return path == [] and (old.size == 0 or old == new)
    if old.size & (old.size - 1) == 0:
        path.insert(0, bytes.fromhex(old.root))
    if not path:
        return False
    left, last = old.size - 1, new.size - 1
    while left & 1:
        left, last = left >> 1, last >> 1
    before = after = path[0]
    for other in path[1:]:
        if last == 0:
            return False
        if left & 1 or left == last:
            before, after = _node(other, before), _node(other, after)
            left, last = _climb(left, last)
        else:
            after = _node(after, other)
        left, last = left >> 1, last >> 1
    return last == 0 and (before.hex(), after.hex()) == (old.root, new.root)


def _climb(left: int, last: int) -> tuple[int, int]:
    """Go up until ``left`` is a right child or at the left edge of the tree."""
    while left and not left & 1:
        left, last = left >> 1, last >> 1
    return left, last


def _read(proof: object) -> list[bytes] | None:
    """Return the hashes of a proof, or None if it is not a list of hashes."""
    if not isinstance(proof, list | tuple):
        return None
    if not all(isinstance(item, str) and HEX.fullmatch(item) for item in proof):
        return None
    return [bytes.fromhex(item) for item in proof]


def _leaf(content: bytes) -> bytes:
    return sha256(b"\x00" + content).digest()


def _leaves(bodies: Sequence[str]) -> list[bytes]:
    return [_leaf(utf8(body)) for body in bodies]


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def _parents(level: list[bytes]) -> list[bytes]:
    """Return the next level: a node without a sibling goes up as it is."""
    pairs = zip(level[::2], level[1::2], strict=False)
    return [_node(*pair) for pair in pairs] + level[len(level) & ~1 :]


def _root(level: list[bytes]) -> bytes:
    """Return the root over leaf hashes."""
    while len(level) > 1:
        level = _parents(level)
    return level[0] if level else bytes.fromhex(_EMPTY_ROOT)
