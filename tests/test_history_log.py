"""The log: its canonical text, its chain, its tree and its file."""

import hashlib
import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.errors import DataError, RequestError
from fedunlearn.history import log, merkle
from fedunlearn.history.log import Entry, canonical, faults, from_jsonl, to_jsonl
from fedunlearn.history.merkle import Head

VECTORS = [
    ("", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
    ("00", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
    ("10", "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
    ("2021", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
    ("3031", "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
    ("40414243", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
    (
        "5051525354555657",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    ),
    (
        "606162636465666768696a6b6c6d6e6f",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ),
]
"""Leaf, and root of the tree up to it: merkle tests of certificate-transparency."""
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
MOST = 40
BODIES = [f'{{"seq":{i}}}' for i in range(MOST)]


def sha(data):
    return hashlib.sha256(data).digest()


def split(n):
    """Return the largest power of two below n, by counting."""
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def slow_root(leaves):
    """MTH of RFC 6962 section 2.1, word for word."""
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return sha(b"\x00" + leaves[0])
    k = split(len(leaves))
    return sha(b"\x01" + slow_root(leaves[:k]) + slow_root(leaves[k:]))


def slow_path(m, leaves):
    """PATH of section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*slow_path(m, leaves[:k]), slow_root(leaves[k:])]
    return [*slow_path(m - k, leaves[k:]), slow_root(leaves[:k])]


def slow_subproof(m, leaves, whole=True):
    """SUBPROOF of section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [slow_root(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*slow_subproof(m, leaves[:k], whole), slow_root(leaves[k:])]
    return [*slow_subproof(m - k, leaves[k:], False), slow_root(leaves[:k])]


def raw(bodies):
    return [body.encode() for body in bodies]


def as_hex(nodes):
    return tuple(node.hex() for node in nodes)


def chain(n, start=None):
    entries = [] if start is None else list(start)
    for i in range(n):
        last = entries[-1] if entries else None
        entries.append(log.next_entry(last, {"kind": "round", "value": [i, None]}))
    return entries


def head(entries):
    return merkle.head_of([entry.body for entry in entries])


def damaged(text, old=None):
    """Tell if the damage in a text is noticed."""
    try:
        return any(faults(from_jsonl(text), old))
    except DataError:
        return True


# Canonical text

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = st.dictionaries(TEXT, VALUES, max_size=5)


def same(a, b):
    """Tell if two JSON values are equal, and true is not 1."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def shuffled(value, random):
    """Return a copy with every dictionary in another order."""
    if isinstance(value, dict):
        keys = list(value)
        random.shuffle(keys)
        return {key: shuffled(value[key], random) for key in keys}
    if isinstance(value, list):
        return [shuffled(item, random) for item in value]
    return value


@given(FIELDS, st.randoms(use_true_random=False))
def test_the_canonical_text_depends_on_the_value_alone_and_gives_it_back(fields, rand):
    text = canonical(fields)
    assert text.isascii()
    assert text.isprintable()
    assert same(json.loads(text), fields)
    assert canonical(shuffled(fields, rand)) == text
    assert canonical(json.loads(text)) == text


@given(FIELDS, FIELDS)
def test_two_values_have_two_texts(a, b):
    assert (canonical(a) == canonical(b)) == same(a, b)


def test_canonical_by_example():
    fields = {"b": [True, None, -1], "a": {"z": "é\n", "y": 10**30}, "": 0}
    assert canonical(fields) == (
        '{"":0,"a":{"y":1000000000000000000000000000000,"z":"\\u00e9\\n"},'
        '"b":[true,null,-1]}'
    )


@pytest.mark.parametrize(
    "value",
    [
        *(1.0, float("nan"), float("inf"), b"", (), {1}, object, 1j),
        *({1: 2}, {None: 2}, {True: 1}, "\ud800", "\ud83d\ude00", {"\udfff": 1}),
    ],
    ids=repr,
)
def test_what_has_no_canonical_form_is_refused_at_every_level(value):
    for fields in ({"a": value}, {"a": [value]}, {"a": {"b": [{"c": value}]}}):
        with pytest.raises(ValueError, match=r"form|not text|surrogates"):
            canonical(fields)


def nested(levels):
    value = 0
    for _ in range(levels):
        value = [value]
    return {"a": value}


def test_depth_is_bounded():
    assert canonical(nested(log.MOST_LEVELS - 1))
    for levels in (log.MOST_LEVELS, 100_000):
        with pytest.raises(ValueError, match="deep"):
            canonical(nested(levels))
    circle = {}
    circle["a"] = circle
    with pytest.raises(ValueError, match="deep"):
        canonical(circle)


# Chain


def test_the_chain_by_hand():
    first = log.next_entry(None, {"b": 1})
    second = log.next_entry(first, {"z": "x"})
    body = b'{"b":1,"seq":0}'
    zero = sha(bytes(32) + body)
    assert first == Entry(0, body.decode(), zero.hex())
    body = b'{"seq":1,"z":"x"}'
    assert second == Entry(1, body.decode(), sha(zero + body).hex())
    assert not list(faults([first, second]))


def test_the_caller_cannot_number_entries_and_its_fields_stay_as_they_are():
    fields = {"b": 1}
    log.next_entry(None, fields)
    assert fields == {"b": 1}
    with pytest.raises(ValueError, match="seq"):
        log.next_entry(None, {"seq": 0})


def test_faults_name_entry_and_reason():
    entries = chain(5)

    def with_third(**changes):
        return list(faults([*entries[:3], replace(entries[3], **changes), entries[4]]))

    def text(body):
        """Return the faults if another body is sealed as entry 3."""
        before = bytes.fromhex(entries[2].hash)
        forged = Entry(3, body, sha(before + body.encode()).hex())
        return list(faults([*entries[:3], forged]))

    broken = "the chain is broken at entry {}: its hash is not that of"
    assert not list(faults(entries))
    assert not list(faults([]))
    assert with_third(seq=4) == ["entry 3 carries the numbers 4 and 3"]
    changed = with_third(body=entries[3].body.replace("[3", "[4"))
    assert len(changed) == 1
    assert changed[0].startswith(broken.format(3))
    wrong = with_third(hash="ab" * 32)
    assert len(wrong) == 2
    assert wrong[0].startswith(broken.format(3))
    assert wrong[1].startswith(broken.format(4))
    assert len(with_third(hash=entries[3].hash.upper())) == 1
    assert len(with_third(hash="nonsense")) == 1
    assert text('{"seq":2}') == ["entry 3 carries the numbers 3 and 2"]
    for body, why in [
        ('{"seq": 3}', "not a canonical JSON object"),
        ('{"seq":3,"a":1}', "not a canonical JSON object"),
        ('{"seq":3,"seq":3}', "not a canonical JSON object"),
        ("[3]", "not a canonical JSON object"),
        ('{"seq":3.0}', "float"),
        ('{"a":NaN,"seq":3}', "float"),
        ('{"seq":true}', "no number"),
        ("{}", "no number"),
        ("", "Expecting value"),
        ("[" * 100_000, "nested"),
    ]:
        (fault,) = text(body)
        assert fault.startswith("the text of entry 3 is damaged")
        assert why in fault
    assert len(with_third(body="\udc00")) == 2


def test_numbers_start_at_zero_and_leave_none_out():
    body = '{"seq":1}'
    first = Entry(1, body, sha(bytes(32) + body.encode()).hex())
    assert list(faults([first])) == ["entry 0 carries the numbers 1 and 1"]


def test_true_is_not_the_number_one():
    first = log.next_entry(None, {})
    body = '{"seq":true}'
    forged = Entry(1, body, sha(bytes.fromhex(first.hash) + body.encode()).hex())
    assert list(faults([first, forged]))


def test_an_old_head_finds_what_was_cut_off_or_written_anew():
    entries = chain(7)
    old = head(entries)
    assert not list(faults(entries, old))
    assert not list(faults(chain(3, entries), old))
    assert list(faults(entries[:5], old)) == [
        "the log has 5 entries, the head was taken of 7"
    ]
    last = log.next_entry(entries[5], {"another": 1})
    for rewritten in ([*entries[:6], last], chain(2, [*entries[:6], last])):
        assert not list(faults(rewritten))
        assert list(faults(rewritten, old)) == [
            "the first 7 entries are not those the head was taken of"
        ]
    assert not list(faults(entries, head([])))


# Tree


def test_published_roots_and_paths():
    leaves = [bytes.fromhex(leaf) for leaf, _ in VECTORS]
    bodies = [leaf.decode() for leaf in leaves]
    assert str(merkle.head_of([])) == f"0:{EMPTY}"
    for n, (_, root) in enumerate(VECTORS, 1):
        assert merkle._root([merkle._leaf(leaf) for leaf in leaves[:n]]).hex() == root
        assert slow_root(leaves[:n]).hex() == root
        assert merkle.head_of(bodies[:n]) == Head(n, root)
    assert merkle.inclusion_proof(bodies, 0) == (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    )


@pytest.mark.parametrize("n", range(MOST + 1))
def test_roots_and_proofs_are_those_of_the_slow_reference(n):
    bodies = BODIES[:n]
    new = merkle.head_of(bodies)
    assert new == Head(n, slow_root(raw(bodies)).hex())
    for m in range(n):
        proof = merkle.inclusion_proof(bodies, m)
        assert proof == as_hex(slow_path(m, raw(bodies)))
        assert merkle.verify_inclusion(bodies[m], m, n, proof, new.root)
        assert merkle.verify_inclusion(bodies[m], m, n, list(proof), new.root)
    for m in range(n + 1):
        proof = merkle.consistency_proof(bodies, m)
        assert proof == (as_hex(slow_subproof(m, raw(bodies))) if m else ())
        assert merkle.verify_consistency(merkle.head_of(bodies[:m]), new, proof)


def mutations(proof):
    """Yield wrong proofs near a right one."""
    yield (*proof, "00" * 32)
    yield ("00" * 32, *proof)
    for i, item in enumerate(proof):
        yield proof[:i] + proof[i + 1 :]
        yield (*proof[: i + 1], *proof[i:])
        for wrong in (f"{int(item[0], 16) ^ 1:x}{item[1:]}", item[:-1], item + "00"):
            yield (*proof[:i], wrong, *proof[i + 1 :])
        if item.upper() != item:
            yield (*proof[:i], item.upper(), *proof[i + 1 :])
        if i and proof[i - 1] != item:
            yield (*proof[: i - 1], item, proof[i - 1], *proof[i + 1 :])


@pytest.mark.parametrize("n", range(1, MOST + 1))
def test_no_changed_inclusion_proof_holds(n):
    bodies = BODIES[:n]
    root = merkle.head_of(bodies).root
    for m in range(n):
        body, proof = bodies[m], merkle.inclusion_proof(bodies, m)
        for wrong in mutations(proof):
            assert not merkle.verify_inclusion(body, m, n, wrong, root)
        for other in {*range(-1, n + 2)} - {m}:
            assert not merkle.verify_inclusion(body, other, n, proof, root)
        assert not merkle.verify_inclusion(body + " ", m, n, proof, root)
        for wrong in (merkle.head_of(BODIES[: n - 1]).root, root.upper(), "", "é"):
            assert not merkle.verify_inclusion(body, m, n, proof, wrong)
        assert not merkle.verify_inclusion(body, m, 0, proof, root)


@pytest.mark.parametrize("n", range(1, MOST + 1))
def test_no_changed_consistency_proof_holds(n):
    bodies = BODIES[:n]
    new, other = merkle.head_of(bodies), "ab" * 32
    for m in range(n + 1):
        old, proof = merkle.head_of(bodies[:m]), merkle.consistency_proof(bodies, m)
        for wrong in mutations(proof):
            assert not merkle.verify_consistency(old, new, wrong)
        if m:
            assert not merkle.verify_consistency(Head(m, other), new, proof)
            assert not merkle.verify_consistency(old, Head(n, other), proof)
        if 0 < m < n:
            assert not merkle.verify_consistency(old, new, ())
        if m < n:
            assert not merkle.verify_consistency(new, old, proof)
            assert not merkle.verify_consistency(new, old, ())
            changed = merkle.head_of([*bodies[:m], "another", *bodies[m + 1 :]])
            assert merkle.verify_consistency(
                old,
                changed,
                merkle.consistency_proof([*bodies[:m], "another", *bodies[m + 1 :]], m),
            )
            assert not m or not merkle.verify_consistency(old, changed, proof)


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        3,
        "",
        "ab" * 32,
        {},
        [None],
        [3],
        [b"ab" * 32],
        ["x" * 64],
        ["ab" * 32] * 99,
    ],
    ids=repr,
)
@pytest.mark.parametrize("sizes", [(1, 3), (2, 3), (3, 3), (3, 4), (4, 8), (0, 3)])
def test_garbage_is_no_proof_and_no_accident(garbage, sizes):
    old, new = (merkle.head_of(BODIES[:n]) for n in sizes)
    assert not merkle.verify_consistency(old, new, garbage)
    assert not merkle.verify_inclusion(BODIES[0], 0, new.size, garbage, new.root)
    assert not merkle.verify_inclusion(BODIES[0], 0, 1, garbage, new.root)


def test_right_roots_with_wrong_sizes_do_not_hold():
    """Each proof would lead to its roots if its length did not count."""
    heads = [merkle.head_of(BODIES[:n]) for n in range(9)]
    proof = merkle.inclusion_proof(BODIES[:2], 1)
    assert merkle.verify_inclusion(BODIES[1], 1, 2, proof, heads[2].root)
    assert not merkle.verify_inclusion(BODIES[1], 0, 1, proof, heads[2].root)
    assert not merkle.verify_inclusion(BODIES[0], 0, 2, (), heads[1].root)
    proof = merkle.consistency_proof(BODIES[:8], 7)
    assert merkle.verify_consistency(heads[7], heads[8], proof)
    forged = Head(3, heads[7].root), Head(4, heads[8].root)
    assert not merkle.verify_consistency(*forged, proof)
    proof = merkle.consistency_proof(BODIES[:4], 3)
    assert merkle.verify_consistency(heads[3], heads[4], proof)
    assert not merkle.verify_consistency(heads[3], Head(8, heads[4].root), proof)


def test_a_node_is_no_leaf():
    """Without the two prefixes an inner node could be shown as an entry."""
    left, right = (sha(b"\x00" + body) for body in raw(BODIES[:2]))
    forged = (left + right).decode("utf-8", "surrogateescape")
    root = merkle.head_of(BODIES[:2]).root
    assert not merkle.verify_inclusion(forged, 0, 1, (), root)


def test_proofs_of_what_is_not_there_are_refused():
    for index in (-1, 5):
        with pytest.raises(RequestError, match=f"no entry {index} in a log of 5"):
            merkle.inclusion_proof(BODIES[:5], index)
    for size in (-1, 6):
        with pytest.raises(RequestError, match=f"5 entries never had {size}"):
            merkle.consistency_proof(BODIES[:5], size)


def test_a_head_has_one_text():
    for n in (0, 1, 10):
        taken = merkle.head_of(BODIES[:n])
        assert Head.parse(str(taken)) == taken
    root = "ab" * 32
    for text in [
        *("", ":", "5", f"5:{root[:-1]}", f"5:{root}0", f"5:{root.upper()}"),
        f"\u0665:{root}",
        *(f" 5:{root}", f"5:{root}\n", f"05:{root}", f"-5:{root}", f"+5:{root}"),
        *(f"5 :{root}", f"0:{root}", f"{'9' * 5000}:{root}", f":{root}"),
    ]:
        with pytest.raises(RequestError, match="not the head of a log"):
            Head.parse(text)
    for size, wrong in ((-1, root), (5, root.upper()), (5, ""), (0, root)):
        with pytest.raises(RequestError, match="not the head of a log"):
            Head(size, wrong)


def test_a_long_log_has_a_quick_head():
    bodies = [f'{{"seq":{i}}}' for i in range(100_000)]
    seconds = []
    for _ in range(3):
        start = time.process_time()
        merkle.head_of(bodies)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1


# File


def test_a_line_by_hand():
    (entry,) = chain(1)
    body = '{"kind":"round","seq":0,"value":[0,null]}'
    assert to_jsonl([entry]) == f'{{"body":{body},"hash":"{entry.hash}"}}\n'
    assert to_jsonl([]) == ""
    assert from_jsonl("") == []


@given(
    st.lists(st.dictionaries(TEXT.filter("seq".__ne__), VALUES, max_size=3), max_size=4)
)
def test_the_file_gives_back_the_log(many):
    entries = []
    for fields in many:
        entries.append(log.next_entry(entries[-1] if entries else None, fields))
    text = to_jsonl(entries)
    assert text.count("\n") == len(text.splitlines()) == len(entries)
    assert from_jsonl(text) == entries
    assert not list(faults(entries, head(entries)))
    assert "".join(to_jsonl([entry]) for entry in entries) == text
    for line in text.splitlines():
        assert set(json.loads(line)) == {"body", "hash"}


def test_every_changed_byte_is_noticed():
    data = to_jsonl(chain(2)).encode()
    for i, byte in enumerate(data):
        for other in range(256):
            if other != byte:
                changed = data[:i] + bytes([other]) + data[i + 1 :]
                assert damaged(changed.decode("utf-8", "surrogateescape")), (i, other)


@pytest.mark.parametrize("sign", [" ", "\n", "\r", "\t", "0", ",", "}", "\ufeff", "é"])
def test_every_inserted_sign_is_noticed(sign):
    text = to_jsonl(chain(3))
    for i in range(len(text) + 1):
        assert damaged(text[:i] + sign + text[i:]), i


def test_every_lost_sign_is_noticed():
    text = to_jsonl(chain(3))
    for i in range(len(text)):
        assert damaged(text[:i] + text[i + 1 :]), i


def test_every_truncation_is_noticed():
    entries = chain(5)
    text, old = to_jsonl(entries), head(entries)
    for i in range(len(text)):
        assert damaged(text[:i], old), i
        at_a_line = i == 0 or text[i - 1] == "\n"
        assert damaged(text[:i]) == (not at_a_line), i


def test_every_lost_doubled_or_swapped_line_is_noticed():
    entries = chain(6)
    lines, old = to_jsonl(entries).splitlines(keepends=True), head(entries)
    assert not damaged("".join(lines), old)
    for i in range(6):
        assert damaged("".join(lines[:i] + lines[i + 1 :]), old)
        assert damaged("".join(lines[:i] + lines[i + 1 :])) == (i < 5)
        assert damaged("".join(lines[: i + 1] + lines[i:]))
        for j in range(i):
            swapped = list(lines)
            swapped[i], swapped[j] = lines[j], lines[i]
            assert damaged("".join(swapped))


def test_the_file_says_which_line_is_damaged():
    text = to_jsonl(chain(3))
    for wrong, message in [
        (text[:-1], "line 3 of the log is incomplete"),
        (text + "\n", "line 4 of the log does not have the form"),
        (
            text.replace(':2,"value"', ': 2,"value"'),
            "line 3 of the log is damaged: it is not",
        ),
        (
            text.replace('"seq":1', '"sequ":1'),
            "line 2 of the log is damaged: it has no number",
        ),
    ]:
        with pytest.raises(DataError, match=message):
            from_jsonl(wrong)


def test_what_could_not_be_read_back_is_not_written():
    (entry,) = chain(1)
    lines = to_jsonl([entry])[:-1]
    for wrong in (
        replace(entry, seq=1),
        replace(entry, hash=entry.hash.upper()),
        replace(entry, body=entry.body + " "),
        replace(entry, body="[" * 100_000),
        replace(
            entry,
            body=lines[8 : -len(entry.hash) - 11] + lines[-75:] + "\n" + '{"body":{}',
        ),
    ):
        with pytest.raises(DataError, match="entry"):
            to_jsonl([wrong])
