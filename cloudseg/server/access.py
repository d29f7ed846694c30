"""Who may ask what, and how often: bearer tokens with scopes, capability names of mounts, a rate for each identity."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.specs import FrozenModel

Scope = Literal["read", "edit"]

_BEARER = re.compile(r"^Bearer +([\x21-\x7e]{1,4096})$", re.IGNORECASE)
# Identities that were not seen for long are forgotten, so that many addresses cannot fill the memory.
_MAX_IDENTITIES = 10_000


class TokenEntry(FrozenModel):
    """One token: whose it is, what it may do, until when. Of the token itself only the SHA-256 is kept."""

    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = ("read",)
    expires: AwareDatetime | None = None


class TokenFile(FrozenModel):
    """The file behind ``cloudseg serve --tokens``: the tokens, and a secret from which names of mounts are made."""

    secret: str = Field(min_length=16)
    tokens: tuple[TokenEntry, ...]


class RefusedError(Exception):
    """A request is refused: status and reason."""

    def __init__(self, status: int, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks."""

    name: str
    scopes: frozenset[Scope]


@dataclass
class Access:
    """Decides about requests.

    Attributes
    ----------
    tokens
        None lets everybody read, and nobody write.
    rate_per_s
        Requests a second of one identity, in the long run; 0 for no bound. Twice as many may come at once.
    now, clock
        The wall clock, and one that never goes back; for tests.
    """

    tokens: TokenFile | None = None
    rate_per_s: float = 0
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    clock: Callable[[], float] = time.monotonic
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, authorization: str | None, *, peer: str, scope: Scope) -> Identity:
        """Return who asks, if it may.

        Parameters
        ----------
        authorization
            The header, or None.
        peer
            Address that the request comes from.
        scope
            What it wants to do.

        Raises
        ------
        RefusedError
            401 for no token or a wrong one, 403 for one that may not do this, 429 for too many requests.
        """
        try:
            identity = self._identity(authorization, peer)
        except RefusedError:
            self._slow_down(f"refused:{peer}")  # guessing costs as much as asking
            raise
        self._slow_down(identity.name)
        if scope not in identity.scopes:
            if self.tokens is None:
                raise RefusedError(
                    403,
                    "this server takes no edits: start it with --tokens FILE, and use a token with the scope edit",
                )
            raise RefusedError(
                403,
                f"the token of {identity.name!r} has no scope {scope!r}, only {', '.join(sorted(identity.scopes))}; "
                "ask whoever runs the server for one that has",
            )
        return identity

    def capability(self, name: str) -> str:
        """Return the name under which a mount is served: with tokens, one that cannot be guessed.

        Viewers send no tokens for volumes; a link with this name is the permission to read that mount.
        """
        if self.tokens is None:
            return name
        mark = hmac.new(self.tokens.secret.encode(), name.encode(), hashlib.sha256).hexdigest()[:32]
        return f"{name}.{mark}"

    def _identity(self, authorization: str | None, peer: str) -> Identity:
        if self.tokens is None:
            return Identity(f"anonymous:{peer}", frozenset({"read"}))
        if authorization is None:
            raise RefusedError(
                401, "this server wants a token: send 'Authorization: Bearer TOKEN', or Somas(..., token=...)"
            )
        match = _BEARER.match(authorization)
        if not match:
            raise RefusedError(401, "the Authorization header is not of the form 'Bearer TOKEN'")
        digest = hashlib.sha256(match[1].encode()).hexdigest()
        found = None
        for each in self.tokens.tokens:  # all of them, whichever fits: the time says nothing
            if hmac.compare_digest(each.sha256, digest):
                found = each
        if found is None:
            raise RefusedError(
                401, "the token is not known here; check it, or ask whoever runs the server for one"
            )
        if found.expires is not None and found.expires <= self.now():
            raise RefusedError(
                401, f"the token of {found.name!r} expired on {found.expires:%Y-%m-%d}; ask for a new one"
            )
        return Identity(found.name, frozenset(found.scopes))

    def _slow_down(self, name: str) -> None:
        if not self.rate_per_s:
            return
        burst = max(1.0, 2 * self.rate_per_s)
        with self._lock:
            now = self.clock()
            left, then = self._left.get(name, (burst, now))
            left = min(burst, left + (now - then) * self.rate_per_s)
            if left < 1:
                self._left[name] = (left, now)
                wait = (1 - left) / self.rate_per_s
                raise RefusedError(
                    429,
                    f"more than {self.rate_per_s:g} requests a second; wait {wait:.2f} s",
                    retry_after_s=wait,
                )
            if len(self._left) >= _MAX_IDENTITIES:
                self._left = {key: (l, t) for key, (l, t) in self._left.items() if now - t < 2}  # noqa: E741
            self._left[name] = (left - 1, now)


def read_tokens(path: Path) -> TokenFile:
    """Read a file of tokens.

    Raises
    ------
    NotFoundError
        If there is no such file.
    SpecError
        If it is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFoundError(
            f"cannot read the tokens in {path}: {error.strerror}; make the first with: cloudseg token {path} NAME"
        ) from error
    return TokenFile.load(text, where=str(path))


def add_token(path: Path, entry: TokenEntry, *, secret: str) -> None:
    """Add a token to a file that only its owner can read; make the file with ``secret`` if there is none.

    Raises
    ------
    SpecError
        If the name is taken.
    """
    known = read_tokens(path) if path.exists() else TokenFile(secret=secret, tokens=())
    if any(each.name == entry.name for each in known.tokens):
        raise SpecError(
            f"{path} has a token of {entry.name!r} already; choose another name, or remove that line"
        )
    new = known.model_copy(update={"tokens": (*known.tokens, entry)})
    temporary = path.with_name(path.name + ".new")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(new.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
