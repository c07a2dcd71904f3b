"""Keys of a sequence of rounds (or clients), of which any can be destroyed for good.

The key of round t is leaf t of a binary tree of depth 32 (Goldreich, Goldwasser and
Micali 1986, "How to construct random functions", section 3; HMAC-SHA256 in place of
their generator). Who has a node has every leaf below it and no other: rounds are
destroyed by keeping, in place of a node, the largest subtrees without them.
"""

import hmac
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

from fedunlearn.errors import HistoryError

DEPTH = 32
"""Levels below the root: there are ``2**DEPTH`` rounds, from 0."""
KEY_BYTES = 32
"""Length of the root and of every key."""

_ROUNDS = 1 << DEPTH
_LABEL = b"fedunlearn tree"

Node = tuple[int, int, bytes]
"""Depth (0 is the root), the path from the root as an integer, key."""


@final
@dataclass(frozen=True, slots=True)
class KeyTree:
    """The keys that are left.

    An object of this class is never changed: keys are destroyed once every copy of the
    larger one is, and Python cannot promise that of its own memory.

    Attributes:
        nodes: Roots of subtrees that do not overlap, by their first round. The same
            rounds left of the same root are always the same nodes.

    Raises:
        HistoryError: If the nodes are no such subtrees.
    """

    nodes: tuple[Node, ...] = field(repr=False)
    _way: list[tuple[Node, ...]] = field(
        default_factory=lambda: [()], init=False, repr=False, compare=False
    )
    """From one of the nodes to the leaf that was asked for last: the next one is
    mostly near it. A tuple in a list is replaced at once, whoever else reads it."""

    def __post_init__(self) -> None:
        free = 0
        for depth, prefix, key in self.nodes:
            if depth > DEPTH or len(key) != KEY_BYTES:
                raise HistoryError("the tree of round keys is damaged: no such node")
            rounds = _rounds_below(depth, prefix)
            if rounds.start < free or rounds.stop > _ROUNDS:
                raise HistoryError("the tree of round keys is damaged: wrong order")
            free = rounds.stop

    @classmethod
    def fresh(cls, root: bytes) -> "KeyTree":
        """Return the keys of all rounds.

        Args:
            root: 32 random bytes, fit for a key.

        Raises:
            ValueError: If it has another length.
        """
        if len(root) != KEY_BYTES:
            raise ValueError(f"the root has {len(root)} bytes, not {KEY_BYTES}")
        return cls(((0, 0, root),))

    def key(self, index: int) -> bytes:
        """Return the key of round ``index``, 32 bytes.

        Raises:
            HistoryError: If it was destroyed.
            ValueError: If ``index`` is not in ``[0, 2**32)``.
        """
        _check(index)
        way = [n for n in self._way[0] if index >> (DEPTH - n[0]) == n[1]]
        if not way:
            node = self._above(index)
            if node is None:
                raise HistoryError(f"the key of round {index} was destroyed")
            way = [node]
        while way[-1][0] < DEPTH:
            depth = way[-1][0] + 1
            way.append(_child(way[-1], index >> (DEPTH - depth) & 1))
        self._way[0] = tuple(way)
        return way[-1][2]

    def covers(self, index: int) -> bool:
        """Tell if the key of round ``index`` is left; ValueError as in :meth:`key`."""
        return self._above(index) is not None

    @property
    def gaps(self) -> tuple[range, ...]:
        """The rounds whose keys were destroyed, as ascending ranges."""
        starts = [_rounds_below(*node[:2]) for node in self.nodes]
        stops = [0, *(r.stop for r in starts)]
        begins = [*(r.start for r in starts), _ROUNDS]
        pairs = zip(stops, begins, strict=True)
        return tuple(range(a, b) for a, b in pairs if a < b)

    def without_from(self, index: int) -> "KeyTree":
        """Return the keys of the rounds before ``index``.

        Of all rounds, at most 32 nodes stay. From round 2**32 on there is none.

        Raises:
            ValueError: If ``index`` is not in ``[0, 2**32]``.
        """
        if not 0 <= index <= _ROUNDS:
            raise ValueError(f"there is no round {index}")
        return self._without(range(index, _ROUNDS))

    def without(self, indices: Iterable[int]) -> "KeyTree":
        """Return the keys of all rounds but these.

        Each of them adds at most 31 nodes.

        Raises:
            ValueError: If one is not in ``[0, 2**32)``.
        """
        gone = sorted(set(indices))
        for index in gone[:1] + gone[-1:]:
            _check(index)
        return self._without(gone)

    def _without(self, gone: Sequence[int]) -> "KeyTree":
        return KeyTree(
            tuple(kept for node in self.nodes for kept in _largest_left(node, gone))
        )

    def _above(self, index: int) -> Node | None:
        """Return the node above the leaf of a round, or None."""
        _check(index)
        after = bisect_right(
            self.nodes, index, key=lambda node: _rounds_below(*node[:2]).start
        )
        if after and index in _rounds_below(*self.nodes[after - 1][:2]):
            return self.nodes[after - 1]
        return None


def _largest_left(node: Node, gone: Sequence[int]) -> Iterator[Node]:
    """Yield the largest subtrees below ``node`` without rounds of ``gone`` (sorted)."""
    rounds = _rounds_below(*node[:2])
    lost = bisect_left(gone, rounds.stop) - bisect_left(gone, rounds.start)
    if lost == 0:
        yield node
    elif lost < len(rounds):
        for bit in (0, 1):
            yield from _largest_left(_child(node, bit), gone)


def _rounds_below(depth: int, prefix: int) -> range:
    return range(prefix << (DEPTH - depth), (prefix + 1) << (DEPTH - depth))


def _child(node: Node, bit: int) -> Node:
    depth, prefix, key = node
    below = hmac.digest(key, _LABEL + bytes([bit]), "sha256")
    return depth + 1, prefix << 1 | bit, below


def _check(index: int) -> None:
    if not 0 <= index < _ROUNDS:
        raise ValueError(f"there is no round {index}")
