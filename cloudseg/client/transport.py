"""Requests to a server: timeouts always, tokens only where they are safe, retries with jitter, errors with a type."""

from __future__ import annotations

import json
import os
import random
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, TypeVar
from urllib.parse import urlsplit

from cloudseg.errors import (
    AuthError,
    CloudsegError,
    NotFoundError,
    QueryError,
    ServerError,
    SpecError,
    TransientStorageError,
)

if TYPE_CHECKING:
    import urllib3

T = TypeVar("T")

ATTEMPTS = 6
_CONNECT_S = 10.0
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 8.0
# A server that says "in an hour" is not waited for.
_LONGEST_RETRY_AFTER_S = 60.0
_AGAIN = frozenset({429, 502, 503, 504})
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its headers (names in lower case) and its whole body, or a file to read it from."""

    headers: Mapping[str, str]
    data: bytes
    file: Any = None


@dataclass
class Transport:
    """Sends requests to one server.

    Attributes
    ----------
    base
        ``https://host[:port][/path]``.
    token
        Secret; never shown.
    timeout_s
        How long the server may be silent.
    sleep, jitter
        The clock and the dice, for tests.
    """

    base: str
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    _pool: urllib3.PoolManager | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base)
        if not parts.hostname or parts.query or parts.fragment or parts.username is not None:
            raise SpecError(
                f"a server is written https://host[:port][/path], got {_without_secrets(self.base)!r}"
            )
        if not self.timeout_s > 0:
            raise SpecError(f"timeout: expected seconds above 0, got {self.timeout_s}")
        self.base = self.base.rstrip("/")
        self.token = find_token(self.base, self.token)
        if self.token is not None and parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise AuthError(
                f"the token was not sent to {self.base}: over plain http anybody on the way could read it; "
                "use the server's https address"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise AuthError("the token holds characters that no token has; copy it again")

    def get(self, path: str) -> Any:
        """Return the JSON at ``path``."""
        return self.send("GET", path, None, accept="application/json", read=_read_json)

    def post(
        self,
        path: str,
        body: Any,
        *,
        accept: str,
        read: Callable[[Reply], Any],
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send what changes nothing, or nothing more when it is sent again: where there is no answer, it is."""
        return self.send("POST", path, json.dumps(body).encode(), accept=accept, read=read, headers=headers)

    def stream(
        self,
        path: str,
        body: Callable[[], Any],
        *,
        accept: str,
        read: Callable[[Reply], Iterator[T]],
    ) -> Iterator[T]:
        """Yield what is read of a long answer while it comes; where it breaks off, ask for the rest.

        Parameters
        ----------
        path
            Where to ask.
        body
            Gives the question for what was not yielded yet.
        accept
            Media type of the answer.
        read
            Yields from its file; raises :class:`~cloudseg.errors.TransientStorageError` where it ends too soon.

        Raises
        ------
        TransientStorageError
            If it breaks off ATTEMPTS times without anything new.
        """
        n_broken = 0
        while True:
            reply = self.send(
                "POST",
                path,
                json.dumps(body()).encode(),
                accept=accept,
                read=lambda reply: reply,
                whole=False,
            )
            try:
                for item in read(reply):
                    n_broken = 0
                    yield item
                return
            except TransientStorageError as error:
                n_broken += 1
                if n_broken >= ATTEMPTS:
                    raise TransientStorageError(
                        f"the answer of {self.base}{path} broke off {n_broken} times in a row: {error}"
                    ) from error
            finally:
                reply.file.close()
            self.sleep(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**n_broken) * self.jitter())

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        *,
        accept: str,
        read: Callable[[Reply], Any],
        headers: Mapping[str, str] | None = None,
        whole: bool = True,
    ) -> Any:
        """Send a request until it is answered, or ATTEMPTS are used up.

        Parameters
        ----------
        method, path, body
            The request.
        accept
            Media type of the answer.
        read
            Reads the answer; where it raises :class:`~cloudseg.errors.TransientStorageError`, the answer was not
            whole and the request is repeated.
        headers
            More of them.
        whole
            Whether the answer is in memory before it is read; otherwise only its beginning has come.

        Raises
        ------
        TransientStorageError
            If the server cannot be reached, or is too busy, each time.
        AuthError, NotFoundError, QueryError, ServerError
            As the server says.
        """
        import urllib3

        problem: CloudsegError | None = None
        for attempt in range(ATTEMPTS):
            wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt) * self.jitter()
            try:
                answer = self._manager.request(
                    method,
                    self.base + path,
                    body=body,
                    headers={**self._headers(accept), **(headers or {})},
                    timeout=urllib3.Timeout(connect=min(_CONNECT_S, self.timeout_s), read=self.timeout_s),
                    retries=False,
                    redirect=False,
                    preload_content=whole,
                )
                reply = _reply(answer, whole=whole)
            except urllib3.exceptions.HTTPError as error:
                problem = TransientStorageError(
                    f"cannot reach {self.base}{path}: {_short(error)}; check the address and the network, or give a "
                    f"longer timeout than {self.timeout_s:g} s"
                )
                problem.__cause__ = error
            else:
                if answer.status == 200:
                    try:
                        return read(reply)
                    except TransientStorageError as error:
                        problem = error
                elif answer.status in _AGAIN:
                    problem = _problem(answer.status, reply, self.base + path)
                    wait_s = max(wait_s, _retry_after(reply))
                    if wait_s > _LONGEST_RETRY_AFTER_S:
                        break
                else:
                    raise _problem(answer.status, reply, self.base + path)
            if attempt + 1 < ATTEMPTS:
                self.sleep(wait_s)
        assert problem is not None
        raise problem

    def close(self) -> None:
        """Let go of connections."""
        if self._pool is not None:
            self._pool.clear()

    @property
    def _manager(self) -> urllib3.PoolManager:
        if self._pool is None:
            import urllib3

            self._pool = urllib3.PoolManager(maxsize=8)
        return self._pool

    def _headers(self, accept: str) -> dict[str, str]:
        headers = {"Accept": accept, "Content-Type": "application/json", "User-Agent": "cloudseg"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers


def _reply(answer: urllib3.BaseHTTPResponse, *, whole: bool) -> Reply:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    if whole or answer.status != 200:
        return Reply(headers, answer.data)
    return Reply(headers, b"", answer)


def find_token(base: str, given: str | None) -> str | None:
    """Return the token for a server: the one given, ``$CLOUDSEG_TOKEN``, or its line in the token file; or None.

    Raises
    ------
    AuthError
        If others than its owner can read the token file, or it is not valid.
    """
    if given is not None:
        return given.strip()
    if named := os.environ.get("CLOUDSEG_TOKEN"):
        return named.strip()
    path = token_file()
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if stat.S_IMODE(mode) & 0o077:
        raise AuthError(f"others can read the tokens in {path}; close it with: chmod 600 {path}")
    try:
        tokens = json.loads(path.read_text())
        found = tokens.get(base)
    except (ValueError, AttributeError) as error:
        raise AuthError(f'{path} must be JSON, {{"https://server": "token"}}: {error}') from error
    return str(found).strip() if found else None


def token_file() -> Path:
    """Return where tokens are kept by server."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "cloudseg" / "tokens.json"


def _problem(status: int, reply: Reply, url: str) -> CloudsegError:
    try:
        said = json.loads(reply.data)["error"]
        message, request_id = str(said["message"]), str(said.get("request_id", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, request_id = reply.data[:200].decode("utf-8", "replace").strip() or "no reason given", ""
    request_id = request_id or reply.headers.get("x-request-id", "")
    if status in (401, 403):
        return AuthError(message)
    if status == 404:
        return NotFoundError(message)
    if status in _AGAIN:
        return TransientStorageError(f"{url} answered {status} each time: {message}")
    if 400 <= status < 500:
        return QueryError(message)
    if status < 400:
        return ServerError(f"{url} answered {status}, which is no answer of cloudseg; check the address")
    return ServerError(f"{url} failed with {status}: {message} (request id {request_id or 'unknown'})")


def _retry_after(reply: Reply) -> float:
    try:
        return max(0.0, float(reply.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0  # a date: our own pause will do


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _read_json(reply: Reply) -> Any:
    try:
        return json.loads(reply.data)
    except ValueError:
        refuse(f"the answer is no JSON: {reply.data[:80]!r}")


def refuse(message: str) -> Never:
    """Raise an error that is worth another try: the answer was not whole."""
    raise TransientStorageError(message)
