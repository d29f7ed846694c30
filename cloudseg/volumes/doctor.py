"""Trying out a bucket or folder: what works, what does not, and what to do about it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException

from cloudseg.errors import CloudsegError, NotFoundError, StorageError, TransientStorageError
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.claims import claim, new_owner
from cloudseg.volumes.objects import VersionedObjects, open_objects

# Who asks when somebody looks at a bucket with the public Neuroglancer.
ORIGIN = "https://neuroglancer-demo.appspot.com"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one trial found.

    Attributes
    ----------
    check
        What was tried, in a word or two.
    ok
        Whether it works; None if it could not be tried here.
    found
        What was seen.
    remedy
        What to do; empty if all is well.
    """

    check: str
    ok: bool | None
    found: str
    remedy: str = ""


def examine_bucket(uri: str, *, read_only: bool = False) -> Iterator[Finding]:
    """Try reading, writing, listing, deleting, conditional creates and CORS below ``uri``; leave nothing behind.

    Parameters
    ----------
    uri
        ``gs://``, ``s3://``, ``file://``, or read-only ``http(s)://``.
    read_only
        Try only what needs no rights to write.

    Raises
    ------
    SpecError
        If the address is malformed.
    """
    address = Address.parse(uri)
    objects = open_objects(address.uri)
    if read_only or address.is_read_only:
        yield _tried("read", address, lambda: _read_nothing(objects))
        if not address.is_read_only:
            yield _tried("list", address, lambda: _list_some(objects))
        yield from _cors(address, "cloudseg-doctor")
        return
    folder = f"cloudseg-doctor-{uuid.uuid4().hex}"
    probe = f"{folder}/probe"
    try:
        written = _tried("write", address, lambda: objects.put(probe, b"probe"))
        yield _tried("read", address, lambda: _read(objects, probe) if written.ok else _read_nothing(objects))
        yield written
        yield _tried("list", address, lambda: _list(objects, folder, 1 if written.ok else 0))
        if written.ok:
            yield _tried("conditional create", address, lambda: _create(objects, folder))
            yield from _cors(address, probe)
            yield _tried("delete", address, lambda: _delete(objects, probe))
        else:
            for check in ("conditional create", "delete"):
                yield Finding(check, None, "not tried, for nothing could be written")
            yield from _cors(address, probe)
    finally:
        for key in ("probe", "claim"):
            with suppress(CloudsegError):
                objects.delete(f"{folder}/{key}")
        if address.scheme == "file":
            _remove_folder(address, folder)


def _tried(check: str, address: Address, trial: Callable[[], None]) -> Finding:
    try:
        trial()
    except CloudsegError as error:
        return Finding(check, False, str(error), _remedy(check, address, error))
    return Finding(check, True, "works")


def _read(objects: VersionedObjects, key: str) -> None:
    data = objects.get(key)
    if data != b"probe":
        raise StorageError(f"{objects.uri}/{key} was written as b'probe' and reads as {data[:20]!r}")


def _read_nothing(objects: VersionedObjects) -> None:
    with suppress(NotFoundError):
        objects.get_versioned(f"cloudseg-doctor-{uuid.uuid4().hex}")


def _list(objects: VersionedObjects, folder: str, n: int) -> None:
    found = list(objects.list(f"{folder}/"))
    if len(found) != n:
        raise StorageError(f"{n} object(s) lie in {objects.uri}/{folder}, and {len(found)} are listed")


def _list_some(objects: VersionedObjects) -> None:
    # Of a name that nobody has, so that a bucket of millions is not listed.
    list(objects.list(f"cloudseg-doctor-{uuid.uuid4().hex}/"))


def _create(objects: VersionedObjects, folder: str) -> None:
    key, first, second = f"{folder}/claim", new_owner().encode(), new_owner().encode()
    won = [claim(objects, key, first), claim(objects, key, second)]
    if won != [True, False] or objects.get(key) != first:
        raise StorageError(
            f"two owners claimed {objects.uri}/{key} one after the other, and the storage told them {won}: it does "
            "not heed the condition 'only if there is none'"
        )


def _delete(objects: VersionedObjects, key: str) -> None:
    objects.delete(key)
    if objects.exists(key):
        raise StorageError(f"{objects.uri}/{key} is still there after it was deleted")


def _cors(address: Address, key: str) -> Iterator[Finding]:
    """Whether a browser at another origin may read; through cloudseg's own server it may always."""
    if address.scheme not in ("gs", "s3"):
        return
    from cloudseg.volumes.bucket_client import BucketClient

    try:
        reply = BucketClient(address).get(key, {"Origin": ORIGIN})
    except (HTTPException, OSError) as error:
        yield Finding("CORS", False, str(error) or type(error).__name__, "see the line on reading")
        return
    allowed = reply.headers.get("access-control-allow-origin", "")
    if allowed in ("*", ORIGIN):
        yield Finding("CORS", True, f"browsers at {ORIGIN} may read")
    else:
        yield Finding(
            "CORS",
            False,
            f"browsers at {ORIGIN} may not read: the bucket answers with "
            + (f"Access-Control-Allow-Origin {allowed!r}" if allowed else "no Access-Control-Allow-Origin"),
            f"look at it through 'cloudseg serve', or: {_cors_command(address)}",
        )


def _cors_command(address: Address) -> str:
    if address.scheme == "gs":
        rule = '[{"origin": ["*"], "method": ["GET", "HEAD"], "responseHeader": ["Range", "Content-Type"]}]'
        return f"echo '{rule}' > cors.json; gcloud storage buckets update gs://{address.host} --cors-file=cors.json"
    rule = '{"CORSRules": [{"AllowedOrigins": ["*"], "AllowedMethods": ["GET", "HEAD"], "AllowedHeaders": ["*"]}]}'
    return f"aws s3api put-bucket-cors --bucket {address.host} --cors-configuration '{rule}'"


def _remedy(check: str, address: Address, error: CloudsegError) -> str:
    text = str(error)
    if isinstance(error, TransientStorageError):
        return "check the network, the address of the server and any proxy; then try again"
    if "credentials" in text or "set AWS_REGION" in text:
        return text.rpartition("; ")[2].rpartition(": ")[2] if "set AWS_REGION" in text else "see there"
    if isinstance(error, NotFoundError):
        make = {"gs": "gcloud storage buckets create", "s3": "aws s3 mb"}.get(address.scheme)
        return (
            f"correct the name, or make the bucket: {make} {address.scheme}://{address.host}" if make else ""
        )
    if address.scheme == "gs":
        from cloudseg.volumes.bucket_client import google_token

        if google_token() is None:
            return (
                "no Google credentials were found: run 'gcloud auth application-default login', or set "
                "GOOGLE_APPLICATION_CREDENTIALS to the key of a service account"
            )
        role = "roles/storage.objectViewer" if check in ("read", "list") else "roles/storage.objectUser"
        return f"give this account {role} on gs://{address.host}"
    if address.scheme == "s3":
        right = {"list": "s3:ListBucket", "read": "s3:GetObject", "delete": "s3:DeleteObject"}.get(
            check, "s3:PutObject"
        )
        on = address.host if right == "s3:ListBucket" else f"{address.host}/*"
        return f"allow this account {right} on arn:aws:s3:::{on}"
    return "check that the folder exists, is on a healthy disk, and may be written to"


def _remove_folder(address: Address, folder: str) -> None:
    import os

    with suppress(OSError):
        os.rmdir(os.path.join(address.path, folder))
