"""Range and conditional headers, against RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudseg.server.ranges import ByteRange, accepts, matches, parse_range

numbers = st.integers(0, 40)


@given(size=numbers, first=numbers, last=st.none() | numbers)
def test_a_range_within_an_object_is_what_slicing_gives(size, first, last):
    data = bytes(range(size))
    if last is not None and last < first:
        first, last = last, first
    part = ByteRange(first, last).within(size)
    expected = data[first:] if last is None else data[first : last + 1]
    assert (data[slice(*part)] if part else b"") == expected
    assert (part is None) == (expected == b"")


@given(size=numbers, n=numbers)
def test_a_suffix_is_what_slicing_from_the_end_gives(size, n):
    data = bytes(range(size))
    part = ByteRange(None, n).within(size)
    assert (data[slice(*part)] if part else b"") == (data[-n:] if n else b"")


@given(first=numbers, last=numbers)
def test_a_written_range_is_read_back(first, last):
    low, high = sorted((first, last))
    assert parse_range(f"bytes={low}-{high}") == ByteRange(low, high)
    assert parse_range(f"bytes={low}-") == ByteRange(low, None)
    assert parse_range(f"Bytes = -{high}") == ByteRange(None, high)
    assert parse_range(f"bytes=000{'0' * 5000}{low}-{high}") == ByteRange(low, high)


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes=", "bytes=-", "bytes=5-2", "bytes=0-1,4-5", "items=0-1", "bytes=a-b", "bytes=1-2-3"],
)
def test_what_is_no_single_range_asks_for_the_whole(header):
    assert parse_range(header) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ('"b","c"', False),
        ("*", True),
        ("a", False),
        ('"a,b"', False),
    ],
)
def test_if_none_match_names_tags_weakly(header, expected):
    assert matches(header, '"a"') is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=nonsense", False),
        ("identity", False),
        ("*", True),
        ("*;q=1, gzip;q=0", False),
        ("GZIP", True),
    ],
)
def test_accept_encoding_is_weighed(header, expected):
    assert accepts(header, "gzip") is expected
