"""The one door to tensorstore's stores: contexts, addresses, and its errors in our words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Never

import tensorstore as ts

from cloudseg.errors import (
    CloudsegError,
    CorruptDataError,
    NotFoundError,
    SpecError,
    StorageError,
    TransientStorageError,
)
from cloudseg.volumes.addresses import Address

# Shard indices and the chunks that neighbouring reads share; small beside any block.
_CACHE_BYTES = 64 << 20
# 1 + 2 + 4 + 8 + 16 s of waiting; what lasts longer is for the task's own retries.
_RETRIES = 5
_REQUESTS = 32

ABSENT = b"\x02"
"""The version of an object that does not exist: tensorstore's ``StorageGeneration::NoValue``."""

_CODE = re.compile(r"^([A-Z_]{4,}): ")
# What tensorstore appends for its own developers: [tensorstore_spec='...'] [http_response_code='403'] ...
_NOTES = re.compile(r" \[\w+='.*", re.DOTALL)
_HTTP_STATUS = re.compile(r"\[http_response_code='(\d+)'\]")
_TRANSIENT = {"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED"}
_CORRUPT = {"FAILED_PRECONDITION", "DATA_LOSS", "INVALID_ARGUMENT", "OUT_OF_RANGE"}
_REFUSED = {"PERMISSION_DENIED", "UNAUTHENTICATED"}


def set_threads(n: int | None) -> None:
    """Bound the threads that volumes opened from now on use for copying, codecs and local files.

    Parameters
    ----------
    n
        Number of threads; None lets each core work. Child processes inherit it (environment
        ``CLOUDSEG_THREADS``).

    Raises
    ------
    SpecError
        If ``n`` is below 1.
    """
    if n is None:
        os.environ.pop("CLOUDSEG_THREADS", None)
        return
    if n < 1:
        raise SpecError(f"the number of threads must be at least 1, got {n}")
    os.environ["CLOUDSEG_THREADS"] = str(n)


def context() -> ts.Context:
    """Return the context that all volumes of this process share: one cache, one set of threads."""
    return _context(
        _number("CLOUDSEG_THREADS", 0),
        n_retries(),
        os.environ.get("CLOUDSEG_FILE_SYNC", "1") not in ("0", "false", "no"),
    )


def renew_context() -> None:
    """Forget what was cached, for volumes opened from now on: something in it may have arrived damaged."""
    _context.cache_clear()


def uncached_context() -> ts.Context:
    """Return a context of its own, which has seen nothing yet."""
    return ts.Context(context().spec)


def n_retries() -> int:
    """How often a read that failed is tried again (environment ``CLOUDSEG_STORAGE_RETRIES``)."""
    return _number("CLOUDSEG_STORAGE_RETRIES", _RETRIES)


@lru_cache(maxsize=8)
def _context(threads: int, retries: int, file_sync: bool) -> ts.Context:
    settings: dict[str, Any] = {"cache_pool": {"total_bytes_limit": _CACHE_BYTES}, "file_io_sync": file_sync}
    for name in ("gcs", "s3", "http"):
        settings[f"{name}_request_concurrency"] = {"limit": _REQUESTS}
        settings[f"{name}_request_retries"] = {
            "max_retries": retries,
            "initial_delay": "1s",
            "max_delay": "16s",
        }
    if threads:
        settings["data_copy_concurrency"] = {"limit": threads}
        settings["file_io_concurrency"] = {"limit": threads}
    return ts.Context(settings)


def threads_context() -> ts.Context:
    """Return a new context with the same bound on threads, and nothing shared: for stores in memory."""
    threads = _number("CLOUDSEG_THREADS", 0)
    return ts.Context({"cache_pool": {}} | ({"data_copy_concurrency": {"limit": threads}} if threads else {}))


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not text.isdigit():
        raise SpecError(f"the environment variable {variable} must be a whole number, got {text!r}")
    return int(text)


def kvstore_spec(address: Address) -> dict[str, Any]:
    """Return tensorstore's description of the folder at ``address``.

    ``s3`` follows ``AWS_ENDPOINT_URL`` and ``AWS_REGION`` (or ``AWS_DEFAULT_REGION``), and sends no
    credentials if ``CLOUDSEG_S3_ANONYMOUS`` is set, which public buckets need.
    """
    folder = address.path + "/" if address.path else ""
    match address.scheme:
        case "file":
            return {"driver": "file", "path": address.path.rstrip("/") + "/"}
        case "gs":
            return {"driver": "gcs", "bucket": address.host, "path": folder}
        case "s3":
            spec: dict[str, Any] = {"driver": "s3", "bucket": address.host, "path": folder}
            # tensorstore 0.1.86 does not read AWS_ENDPOINT_URL by itself.
            if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
                spec["endpoint"] = endpoint
                spec["aws_region"] = "us-east-1"
            if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
                spec["aws_region"] = region
            if os.environ.get("CLOUDSEG_S3_ANONYMOUS"):
                spec["aws_credentials"] = {"type": "anonymous"}
            elif os.environ.get("AWS_ACCESS_KEY_ID"):
                # The default chain would look for files in the home folder first, and complain aloud.
                spec["aws_credentials"] = {"type": "environment"}
            return spec
        case "http" | "https":
            query = f"?{address.query}" if address.query else ""
            return {
                "driver": "http",
                "base_url": f"{address.scheme}://{address.host}/{query}",
                "path": folder,
            }
        case "memory" | "phantom-brain":
            raise AssertionError(f"{address.scheme}:// does not go through tensorstore")


def open_kvstore(address: Address) -> ts.KvStore:
    """Open the folder at ``address``; touches nothing."""
    with translated(address.uri, "open"):
        return ts.KvStore.open(kvstore_spec(address), context=context()).result()


@contextmanager
def translated(uri: str, doing: str) -> Iterator[None]:
    """Turn tensorstore's errors into ours.

    Parameters
    ----------
    uri
        What was touched.
    doing
        A verb: ``read``, ``write``.
    """
    try:
        yield
    except CloudsegError:
        raise
    except (ValueError, OSError, IndexError, RuntimeError) as error:
        _raise(error, uri, doing)


def _raise(error: Exception, uri: str, doing: str) -> Never:
    text = _NOTES.sub("", str(error))
    status = _HTTP_STATUS.search(str(error))
    refused = status is not None and status[1] in ("401", "403")
    found = _CODE.match(text)
    code = found[1] if found else ""
    detail = text[found.end() :] if found else text
    if "No space left" in detail or "Disk quota exceeded" in detail:
        raise StorageError(
            f"no space left while trying to {doing} {uri}: free some and start again ({detail})"
        ) from error
    if "Read-only file system" in detail:
        raise StorageError(f"cannot {doing} {uri}: its file system is read-only ({detail})") from error
    if code == "NOT_FOUND":
        hint = "; does the bucket exist?" if doing in ("write", "list") else ""
        raise NotFoundError(f"cannot {doing} {uri}: {detail}{hint}") from error
    if code in _REFUSED or refused:
        raise StorageError(
            f"{uri} refused to let us {doing}: {detail}; check that this account may do so, and that the name is right"
        ) from error
    if "Could not resolve host" in detail or "Could not connect" in detail:
        raise TransientStorageError(
            f"cannot reach {uri} to {doing} it: {detail}; check the network and the name of the server"
        ) from error
    if code in _TRANSIENT:
        raise TransientStorageError(
            f"cannot {doing} {uri} just now, a second try may work: {detail}"
        ) from error
    # Where the damage is in the index of a shard, tensorstore leaves the code out.
    if doing == "read" and (code in _CORRUPT or (not code and "Error decoding" in detail)):
        raise CorruptDataError(
            f"what is stored at {uri} is damaged: {detail}; write it again, or remove it and run the tasks that made it"
        ) from error
    raise StorageError(f"cannot {doing} {uri}: {text}") from error
