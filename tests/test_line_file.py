"""Values, one a line, of work that was stopped at any byte."""

import resource
from contextlib import contextmanager

import pytest

from fedunlearn.errors import DataError
from simulations.line_file import LineFile

VALUES = [0.1, [1, "a\nb"], {"round": 3}, None]


def test_what_was_added_is_there(tmp_path):
    path = tmp_path / "values"
    assert LineFile(path).values == []
    assert not path.exists()
    file = LineFile(path)
    for value in VALUES:
        file.add(value)
    assert file.values == LineFile(path).values == VALUES


def test_whatever_byte_it_was_cut_at_whole_lines_stay(tmp_path):
    path = tmp_path / "values"
    file = LineFile(path)
    for value in VALUES:
        file.add(value)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        cut = LineFile(path)
        assert cut.values == VALUES[:whole]
        cut.add("more")
        assert LineFile(path).values == [*VALUES[:whole], "more"]


def test_a_line_that_is_no_json_is_told(tmp_path):
    path = tmp_path / "values"
    path.write_text("1\nodd\n")
    with pytest.raises(DataError, match="values, line 2: not JSON"):
        LineFile(path)


@contextmanager
def no_file_beyond(size):
    """Let every file be full at a size, as a full disk lets it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_that_does_not_fit_is_an_error_and_no_value(tmp_path):
    path = tmp_path / "values"
    file = LineFile(path)
    file.add(1)
    with no_file_beyond(4), pytest.raises(OSError, match="too large"):
        file.add(123456)
    assert path.read_bytes() == b"1\n12"
    assert file.values == [1]
    again = LineFile(path)
    again.add(2)
    assert LineFile(path).values == [1, 2]
