"""Asking a bucket for whole objects over HTTP, with the credentials that the other tools of that cloud would use.

tensorstore gives the bytes of an object without the headers that say what they must be; so objects are read
here, and everything else (writing, listing, ranges of shards) is left to tensorstore.
"""

from __future__ import annotations

import atexit
import http.client
import os
import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

from cloudseg.errors import NotFoundError, StorageError
from cloudseg.volumes.addresses import Address

N_CONNECTIONS = 32
_CONNECT_S = 10.0
# Between two pieces of a body, not for the whole: a slow answer is good, a silent one is asked again.
_SILENCE_S = 60.0
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, undecoded; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class BucketClient:
    """Asks for objects of the folder at ``address``, which is ``gs://`` or ``s3://``."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._folder = address.path + "/" if address.path else ""

    def get(self, key: str, headers: Mapping[str, str] | None = None) -> Reply:
        """Ask once for the object under ``key``; any status is an answer.

        Raises
        ------
        http.client.HTTPException, OSError
            If no whole answer came.
        StorageError
            If there are no credentials to ask with.
        """
        return self._send("GET", self._folder + key, {"Accept-Encoding": "gzip", **(headers or {})})

    def _send(self, method: str, key: str, headers: dict[str, str]) -> Reply:
        if self._address.scheme == "gs":
            url = f"{gcs_url()}/download/storage/v1/b/{self._address.host}/o/{quote(key, safe='')}?alt=media"
            if token := google_token():
                headers["Authorization"] = f"Bearer {token}"
        else:
            url = f"{s3_url(self._address.host)}/{quote(key, safe='/-_.~')}"
            headers = _signed(method, url, {**headers, "x-amz-checksum-mode": "ENABLED"}, self._address.host)
        return _exchange(method, url, headers)


def gcs_url() -> str:
    """Where GCS is: an emulator's address in the environment, or the real one."""
    found = os.environ.get("TENSORSTORE_GCS_HTTP_URL") or os.environ.get("STORAGE_EMULATOR_HOST")
    return (found or "https://storage.googleapis.com").rstrip("/")


def google_token() -> str | None:
    """Return a token of the application default credentials; None if there are none, which public buckets accept."""
    if token := os.environ.get("GOOGLE_AUTH_TOKEN_FOR_TESTING"):
        return token
    credentials = _google_credentials()
    if credentials is None:
        return None
    with _refreshing:
        if not credentials.valid:
            from google.auth.exceptions import GoogleAuthError
            from google.auth.transport.requests import Request

            try:
                credentials.refresh(Request())
            except GoogleAuthError as error:
                raise StorageError(
                    f"Google's application default credentials do not work: {error}; renew them with "
                    "'gcloud auth application-default login', or check GOOGLE_APPLICATION_CREDENTIALS"
                ) from error
        token = str(credentials.token)
    return token


def s3_endpoint() -> str:
    """Return the address of an S3 server other than AWS; empty for AWS itself."""
    found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return found.rstrip("/")


def s3_region(bucket: str) -> str:
    """Return the region that requests for ``bucket`` go to: the user's setting, or else the bucket's own."""
    found = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if found or s3_endpoint():
        return found or "us-east-1"
    return _home_region(bucket)


def s3_url(bucket: str) -> str:
    """Return the address of a bucket."""
    if endpoint := s3_endpoint():
        return f"{endpoint}/{bucket}"
    region = s3_region(bucket)
    # A certificate for *.s3.region.amazonaws.com does not hold for a name with dots.
    if "." in bucket:
        return f"https://s3.{region}.amazonaws.com/{bucket}"
    return f"https://{bucket}.s3.{region}.amazonaws.com"


@lru_cache(maxsize=64)
def _home_region(bucket: str) -> str:
    reply = _exchange("HEAD", f"https://s3.amazonaws.com/{bucket}", {})
    if reply.status == 404:
        raise NotFoundError(f"there is no bucket s3://{bucket}; check its name")
    return reply.headers.get("x-amz-bucket-region") or "us-east-1"


def s3_credentials() -> Any:
    """Return AWS credentials as every AWS tool finds them: environment, profile, role; None for anonymous requests.

    Raises
    ------
    StorageError
        If there are none, and anonymous requests were not asked for.
    """
    if os.environ.get("CLOUDSEG_S3_ANONYMOUS"):
        return None
    found = _aws_session(
        os.environ.get("AWS_PROFILE", ""), os.environ.get("AWS_ACCESS_KEY_ID", "")
    ).get_credentials()
    if found is None:
        raise StorageError(
            "no AWS credentials found: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run "
            "where a role is attached; for a public bucket set CLOUDSEG_S3_ANONYMOUS=1"
        )
    return found.get_frozen_credentials()  # renews those of a role that are about to end


def _signed(method: str, url: str, headers: dict[str, str], bucket: str) -> dict[str, str]:
    credentials = s3_credentials()
    if credentials is None:
        return headers
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    request = AWSRequest(method, url, headers=headers)
    S3SigV4Auth(credentials, "s3", s3_region(bucket)).add_auth(request)
    return dict(request.headers.items())


@lru_cache(maxsize=4)
def _aws_session(profile: str, key_id: str) -> Any:  # noqa: ARG001  (the environment that it will look at)
    from botocore.session import Session

    return Session()


_refreshing = threading.Lock()


@lru_cache(maxsize=1)
def _google_credentials() -> Any:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        return google.auth.default(scopes=[_GOOGLE_SCOPE])[0]
    except DefaultCredentialsError:
        return None


# Connections that wait for the next request, by process (a forked child needs its own) and server.
_idle: defaultdict[tuple[int, str], deque[http.client.HTTPConnection]] = defaultdict(deque)


@atexit.register
def _close_all() -> None:
    for connections in _idle.values():
        while connections:
            connections.pop().close()


def _exchange(method: str, url: str, headers: Mapping[str, str]) -> Reply:
    """Send a request over an idle connection; again over a new one if that had been closed."""
    parts = urlsplit(url)
    server = (os.getpid(), f"{parts.scheme}://{parts.netloc}")
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    with suppress(IndexError, http.client.HTTPException, OSError):
        return _exchange_over(_idle[server].pop(), server, method, path, headers)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return _exchange_over(kind(parts.netloc, timeout=_CONNECT_S), server, method, path, headers)


def _exchange_over(
    connection: http.client.HTTPConnection,
    server: tuple[int, str],
    method: str,
    path: str,
    headers: Mapping[str, str],
) -> Reply:
    try:
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(_SILENCE_S)
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        # Not decoded: a digest is of the bytes as they are stored.
        found: dict[str, str] = {}
        for name, value in answer.getheaders():  # GCS may send its two hashes under one name
            found[name.lower()] = f"{found[name.lower()]},{value}" if name.lower() in found else value
        reply = Reply(answer.status, found, answer.read())
    except BaseException:
        connection.close()
        raise
    if len(_idle[server]) < N_CONNECTIONS:
        _idle[server].append(connection)
    else:
        connection.close()
    return reply
