"""The tree of round keys: what is kept is unchanged, what is gone cannot be derived."""

import hashlib
from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.errors import HistoryError
from fedunlearn.history.key_tree import KeyTree

ROUNDS = 2**32
ROOT = bytes(range(32))
FRESH = KeyTree.fresh(ROOT)
EDGES = [0, 1, 2, 3, 7, 8, 1000, 2**31 - 1, 2**31, 2**31 + 1, ROUNDS - 2, ROUNDS - 1]
INDICES = st.sampled_from(EDGES) | st.integers(0, 40) | st.integers(0, ROUNDS - 1)
MANY = st.lists(INDICES, max_size=8)


def slow_hmac(key, message):
    """RFC 2104, for keys of at most 64 bytes."""
    key = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(k ^ 0x36 for k in key) + message).digest()
    return hashlib.sha256(bytes(k ^ 0x5C for k in key) + inner).digest()


def slow_key(root, index):
    """Walk down from the root along the 32 digits of the round, first one first."""
    for bit in f"{index:032b}":
        root = slow_hmac(root, b"fedunlearn tree" + bytes([int(bit)]))
    return root


def leaves(depth, prefix):
    """Return the first leaf below a node and the one after the last."""
    width = 2 ** (32 - depth)
    return prefix * width, (prefix + 1) * width


def check_form(keys):
    """Check that subtrees stand in order, do not overlap and hold their own keys."""
    spans = [leaves(depth, prefix) for depth, prefix, _ in keys.nodes]
    assert all(0 <= start < stop <= ROUNDS for start, stop in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    for depth, prefix, key in keys.nodes:
        node = ROOT
        for bit in f"{prefix:0{depth}b}" if depth else "":
            node = slow_hmac(node, b"fedunlearn tree" + bytes([int(bit)]))
        assert key == node
    return sum(stop - start for start, stop in spans)


def check_gone(keys, gone):
    """Check that no kept node is a leaf of ``gone`` or above it."""
    for index in gone:
        for depth, prefix, _ in keys.nodes:
            start, stop = leaves(depth, prefix)
            assert not start <= index < stop
        assert not keys.covers(index)
        with pytest.raises(
            HistoryError, match=f"^the key of round {index} was destroyed$"
        ):
            keys.key(index)


def check_kept(keys, kept):
    for index in kept:
        assert keys.covers(index)
        assert keys.key(index) == slow_key(ROOT, index)


@given(st.binary(min_size=32, max_size=32), INDICES)
def test_a_leaf_is_that_of_the_naive_walk(root, index):
    keys = KeyTree.fresh(root)
    assert keys.nodes == ((0, 0, root),)
    assert keys.covers(index)
    assert keys.key(index) == slow_key(root, index)


def test_keys_differ():
    assert len({FRESH.key(i) for i in EDGES} | {ROOT}) == len(EDGES) + 1
    assert FRESH.key(3) != KeyTree.fresh(bytes(32)).key(3)


@given(INDICES, MANY)
def test_without_from_keeps_what_is_before_and_nothing_else(index, others):
    keys = FRESH.without_from(index)
    assert len(keys.nodes) == bin(index).count("1") <= 32
    assert check_form(keys) == index
    near = {max(index - 1, 0), index, min(index + 1, ROUNDS - 1), *others}
    check_kept(keys, {i for i in near if i < index})
    check_gone(keys, {i for i in near if i >= index} | {ROUNDS - 1})


@given(MANY, MANY)
def test_without_takes_these_and_nothing_else(gone, others):
    keys = FRESH.without(gone)
    assert check_form(keys) == ROUNDS - len(set(gone))
    assert len(keys.nodes) <= 1 + 31 * len(set(gone))
    near = {i ^ 1 for i in gone} | {*others, 0, ROUNDS - 1}
    check_kept(keys, near - set(gone))
    check_gone(keys, gone)


@given(MANY, MANY, INDICES)
def test_one_set_of_rounds_has_one_form(a, b, index):
    both = FRESH.without([*a, *b])
    assert FRESH.without(a).without(b) == both
    assert FRESH.without(b).without(reversed(a)) == both
    assert both.without(a) == both
    cut = FRESH.without_from(index)
    assert cut.without_from(index) == cut
    assert cut.without(a) == FRESH.without(a).without_from(index)
    assert cut.without_from(min(index + 1, ROUNDS)) == cut


def test_rounds_one_by_one_or_all_from_one_on():
    keys = FRESH.without_from(10).without([9, 7, 8])
    assert keys == FRESH.without_from(7)
    assert keys.without(range(7)).nodes == ()
    assert keys.without([]) == keys
    assert FRESH.without(i for i in (3, 3)) == FRESH.without([3])
    assert len(FRESH.without([0]).nodes) == 32


def test_the_ends():
    assert FRESH.without_from(0) == KeyTree(())
    assert FRESH.without_from(0).without_from(0) == KeyTree(())
    assert FRESH.without_from(ROUNDS) == FRESH
    assert FRESH.without_from(ROUNDS - 1) == FRESH.without([ROUNDS - 1])
    assert len(FRESH.without_from(ROUNDS - 1).nodes) == 32
    assert not KeyTree(()).covers(5)


@pytest.mark.parametrize("index", [-1, ROUNDS, ROUNDS + 1, -ROUNDS])
def test_a_round_that_cannot_be(index):
    for keys in (FRESH, KeyTree(()), FRESH.without([5])):
        for call in (keys.key, keys.covers):
            with pytest.raises(ValueError, match=f"there is no round {index}"):
                call(index)
        for indices in ([index], [1, index, 2]):
            with pytest.raises(ValueError, match=f"there is no round {index}"):
                keys.without(indices)
        if index != ROUNDS:
            with pytest.raises(ValueError, match=f"there is no round {index}"):
                keys.without_from(index)


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_root_of_another_length(size):
    with pytest.raises(ValueError, match=f"{size} bytes, not 32"):
        KeyTree.fresh(bytes(size))


K = bytes(32)


@pytest.mark.parametrize(
    "nodes",
    [
        ((-1, 0, K),),
        ((33, 0, K),),
        ((0, 0, K[:31]),),
        ((0, 0, K + K),),
        ((0, 1, K),),
        ((0, -1, K),),
        ((32, ROUNDS, K),),
        ((1, 1, K), (1, 0, K)),
        ((1, 0, K), (1, 0, K)),
        ((1, 0, K), (2, 1, K)),
        ((2, 1, K), (1, 0, K)),
        ((1, 1, K), (2, 4, K)),
    ],
    ids=lambda nodes: str([node[:2] for node in nodes]),
)
def test_nodes_that_are_no_subtrees_in_order(nodes):
    with pytest.raises(HistoryError, match="the tree of round keys is damaged"):
        KeyTree(nodes)


def test_siblings_may_stand_side_by_side():
    keys = KeyTree(((1, 0, K), (1, 1, K)))
    assert keys.covers(0)
    assert keys.covers(ROUNDS - 1)


def test_keys_are_never_shown_or_changed():
    keys = FRESH.without([3])
    assert repr(keys) == "KeyTree()"
    before = keys.nodes
    keys.without_from(2)
    keys.without([1])
    assert keys.nodes == before
    with pytest.raises(FrozenInstanceError):
        keys.nodes = ()


def test_many_holes_stay_quick():
    keys = FRESH.without(range(0, 4000, 2))
    assert all(keys.covers(i) == bool(i % 2) for i in range(4000))
    assert keys.key(3999) == slow_key(ROOT, 3999)
