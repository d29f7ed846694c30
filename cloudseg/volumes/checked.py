"""Whole objects of a bucket, each compared with the digest that the storage keeps of it, and read again if it differs.

What arrives cut, changed or not at all is asked for again, with growing pauses. What stays wrong is an error that
names the object.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException

from cloudseg.errors import (
    CloudsegError,
    CorruptDataError,
    NotFoundError,
    StorageError,
    TransientStorageError,
)
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.bucket_client import N_CONNECTIONS, BucketClient, Reply, s3_region
from cloudseg.volumes.compressed_files import decompressed
from cloudseg.volumes.digests import stored_digest
from cloudseg.volumes.kvstore import ABSENT, n_retries

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 16.0
_BUSY = (408, 429, 500, 502, 503, 504)
_CODE = re.compile(rb"<Code>(\w+)</Code>")


@dataclass(frozen=True, slots=True)
class Found:
    """An object.

    Attributes
    ----------
    data
        Its bytes, decompressed if they were stored with a Content-Encoding; None if there is no such object.
    version
        What tensorstore calls its generation.
    """

    data: bytes | None
    version: bytes


class CheckedObjects:
    """The whole objects of a folder in a bucket, checked.

    Parameters
    ----------
    address
        ``gs://`` or ``s3://``.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client = BucketClient(address)

    def read(self, key: str) -> Found:
        """Return an object whose bytes are those that were stored.

        Raises
        ------
        CorruptDataError
            If they are not, however often they are read.
        TransientStorageError
            If the storage does not answer, or is busy, however often it is asked.
        StorageError
            If it refuses.
        """
        where = f"{self._address.uri}/{key}"
        n_tries = 1 + n_retries()
        for n_failures in range(1, n_tries + 1):
            try:
                return self._read_once(key, where)
            except (TransientStorageError, CorruptDataError):
                if n_failures == n_tries:
                    raise
                pause(n_failures)
        raise AssertionError("the last try returns or raises")

    def read_all(self, keys: Iterable[str]) -> list[Future[Found]]:
        """Ask for many objects at once; return what :meth:`read` will give for each, in order."""
        return [_readers(os.getpid()).submit(self.read, key) for key in keys]

    def _read_once(self, key: str, where: str) -> Found:
        reply = self._ask(key, where)
        if reply.status == 404:
            return Found(None, ABSENT)
        if not _is_proven(reply, where):
            again = self._ask(key, where)
            if (again.data, _version(again)) != (reply.data, _version(reply)):
                raise CorruptDataError(
                    f"{where} was different each time it was read, and its storage keeps no digest of it; "
                    "check what lies between here and the bucket"
                )
        return Found(_decoded(reply, where), _version(reply))

    def _ask(self, key: str, where: str) -> Reply:
        try:
            reply = self._client.get(key)
        except CloudsegError:
            raise
        except (HTTPException, OSError) as error:
            raise TransientStorageError(
                f"cannot reach {where} to read it: {str(error) or type(error).__name__}; check the network and "
                "the name of the server"
            ) from error
        if reply.status not in (200, 404) or _code(reply) == "NoSuchBucket":
            raise self._refusal(reply, where)
        return reply

    def _refusal(self, reply: Reply, where: str) -> Exception:
        code = _code(reply) or f"HTTP {reply.status}"
        if reply.status == 404:
            return NotFoundError(f"cannot read {where}: {code}; does the bucket exist?")
        if reply.status in _BUSY:
            return TransientStorageError(f"cannot read {where} just now, a second try may work: {code}")
        home = reply.headers.get("x-amz-bucket-region", "")
        if home and home != s3_region(self._address.host):
            return StorageError(
                f"cannot read {where}: the bucket is in region {home}, and was looked for in "
                f"{s3_region(self._address.host)}; set AWS_REGION={home}"
            )
        if reply.status in (401, 403):
            return StorageError(
                f"{where} refused to let us read: {code}; check that this account may do so, and that the name "
                "is right"
            )
        return StorageError(f"cannot read {where}: {code}")


def pause(n_failures: int) -> None:
    """Wait after the ``n_failures``-th failure: twice as long each time, and not all readers at once."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (n_failures - 1))
    time.sleep(longest * random.uniform(0.5, 1.0))


def _is_proven(reply: Reply, where: str) -> bool:
    """Whether a digest says that the bytes of ``reply`` are right; an error if one says they are wrong."""
    n_stored = reply.headers.get("x-goog-stored-content-length", "")
    as_stored = reply.headers.get("x-goog-stored-content-encoding", "identity") in (
        "identity",
        reply.headers.get("content-encoding", "identity"),
    )
    if as_stored and n_stored.isdigit() and len(reply.data) != int(n_stored):
        raise CorruptDataError(
            f"{where} has {n_stored} bytes, but {len(reply.data)} arrived, each time it was read"
        )
    digest = stored_digest(reply.headers) if as_stored else None
    if digest is None:
        return False
    if not digest.fits(reply.data):
        raise CorruptDataError(
            f"{where} arrived damaged each time it was read: the {digest.name} of its {len(reply.data)} bytes is not "
            f"{digest.value.hex()}, which its storage keeps; check what lies between here and the bucket, or write "
            "it again"
        )
    return True


def _decoded(reply: Reply, where: str) -> bytes:
    encoding = reply.headers.get("content-encoding", "identity")
    match encoding:
        case "identity" | "" | "aws-chunked":
            return reply.data
        case "gzip":
            return decompressed(reply.data, ".gz", where=where)
        case "br" | "zstd":
            return decompressed(reply.data, f".{encoding}", where=where)
    raise StorageError(f"{where} is stored with Content-Encoding {encoding!r}, which cloudseg does not read")


def _version(reply: Reply) -> bytes:
    if generation := reply.headers.get("x-goog-generation"):
        return b"\0" + int(generation).to_bytes(8, "little")
    return b"\0" + reply.headers.get("etag", "").encode()


def _code(reply: Reply) -> str:
    found = _CODE.search(reply.data[:1000]) if reply.status != 200 else None
    return found[1].decode() if found else ""


@lru_cache(maxsize=1)
def _readers(process_id: int) -> ThreadPoolExecutor:  # noqa: ARG001  (threads do not survive a fork)
    return ThreadPoolExecutor(N_CONNECTIONS, thread_name_prefix="bucket")
