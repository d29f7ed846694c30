"""What a bucket says the bytes of an object must be, and whether they are."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import google_crc32c

_MD5_ETAG = re.compile(r'^"([0-9a-f]{32})"$')
# With these, an ETag that looks like an MD5 is none.
_KEYED = ("x-amz-server-side-encryption-customer-algorithm", "x-amz-server-side-encryption-aws-kms-key-id")


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest that the storage keeps of an object.

    Attributes
    ----------
    name
        ``crc32c``, ``md5``, ``sha256``, ``sha1`` or ``crc32``.
    value
        What it must be.
    """

    name: str
    value: bytes

    def fits(self, data: bytes) -> bool:
        """Whether ``data`` are the bytes that were stored."""
        return _COMPUTE[self.name](data) == self.value


def stored_digest(headers: Mapping[str, str]) -> Digest | None:
    """Return the digest that an answer of GCS or S3 carries, or None if it has none of the whole object.

    Parameters
    ----------
    headers
        Of an answer with a whole object, as it is stored; names in lower case.

    Notes
    -----
    GCS sends ``x-goog-hash`` with every object. S3 sends the checksum that an object was uploaded with, if it
    was asked for it; and an ETag, which is the MD5 except after an upload in parts or under a customer's key.
    """
    for part in headers.get("x-goog-hash", "").split(","):
        name, _, text = part.strip().partition("=")
        if name == "crc32c":
            return Digest(name, base64.b64decode(text))
    if headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT":
        for name in ("crc32c", "crc32", "sha256", "sha1"):
            text = headers.get(f"x-amz-checksum-{name}", "")
            if text and "-" not in text:
                return Digest(name, base64.b64decode(text))
    if headers.get("x-amz-server-side-encryption", "AES256") != "AES256" or any(k in headers for k in _KEYED):
        return None
    # GCS has an ETag too, which is no digest of anything.
    etag = _MD5_ETAG.match(headers.get("etag", "")) if "x-goog-generation" not in headers else None
    return Digest("md5", bytes.fromhex(etag[1])) if etag else None


_COMPUTE: dict[str, Callable[[bytes], bytes]] = {
    "crc32c": lambda data: google_crc32c.value(data).to_bytes(4, "big"),
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "md5": lambda data: hashlib.md5(data, usedforsecurity=False).digest(),
    "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}
