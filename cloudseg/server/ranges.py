"""HTTP's conditional and range requests: pure functions on header values (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"^\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*$", re.IGNORECASE)
_FURTHEST = 10**18
_TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True, slots=True)
class ByteRange:
    """One range as a client asked for it.

    Attributes
    ----------
    first
        First byte, or None for a suffix.
    last
        Last byte, inclusive; None for "to the end". For a suffix, how many bytes from the end.
    """

    first: int | None
    last: int | None

    def within(self, size_bytes: int) -> tuple[int, int] | None:
        """Return the half-open part of ``size_bytes`` bytes that is meant, or None where no byte is (HTTP 416)."""
        if self.first is None:
            n = min(self.last or 0, size_bytes)
            return (size_bytes - n, size_bytes) if n else None
        if self.first >= size_bytes:
            return None
        stop = size_bytes if self.last is None else min(self.last + 1, size_bytes)
        return (self.first, stop)


def parse_range(header: str | None) -> ByteRange | None:
    """Return the single range that ``header`` asks for.

    None means "answer with the whole": there is no header, it asks for several ranges (which a server may
    ignore, and no reader of volumes asks for), or it is malformed (which a server must ignore).
    """
    match = _RANGE.match(header or "")
    if not match:
        return None
    first, last = (_offset(digits) for digits in match.groups())
    if first is None and last is None:
        return None
    if first is not None and last is not None and last < first:
        return None
    return ByteRange(first, last)


def _offset(digits: str) -> int | None:
    """Return a number of bytes; one larger than any object is as good as any other."""
    short = digits.lstrip("0")
    return (int(short or "0") if len(short) <= 18 else _FURTHEST) if digits else None


def matches(header: str | None, etag: str) -> bool:
    """Whether ``If-None-Match: header`` names ``etag``: weak comparison, ``*`` names everything."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return etag.removeprefix("W/") in {tag.removeprefix("W/") for tag in _TAG.findall(header)}


def accepts(header: str | None, coding: str) -> bool:
    """Whether ``Accept-Encoding: header`` allows ``coding``; no header allows identity only.

    RFC 9110 lets a server assume anything where the header is absent; plain clients that send none (``curl``)
    do not decode either.
    """
    weights: dict[str, float] = {}
    for item in (header or "").split(","):
        name, _, parameters = item.partition(";")
        weight = 1.0
        for parameter in parameters.split(";"):
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        weights[name.strip().lower()] = weight
    return weights.get(coding, weights.get("*", 0.0)) > 0
