"""Where data lives: reading and normalising the URIs of buckets and folders."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from cloudseg.errors import SpecError

Scheme = Literal["memory", "file", "gs", "s3", "http", "https", "phantom-brain"]

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)$", re.DOTALL)
_NEUROGLANCER_SUFFIX = re.compile(r"\|neuroglancer-precomputed:?$")


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URI.

    Attributes
    ----------
    scheme
        Which kind of storage.
    host
        Bucket (``gs``, ``s3``), server (``http``, ``https``) or layer of a phantom brain; empty for ``file`` and
        ``memory``.
    path
        Folder inside it, without slashes at the ends; for ``file``, the absolute path of the folder.
    query
        What follows ``?`` in an http address (a signature, a token) or in one of a phantom brain (its settings);
        empty elsewhere.
    """

    scheme: Scheme
    host: str
    path: str
    query: str = ""

    @classmethod
    def parse(cls, uri: str | os.PathLike[str]) -> Address:
        """Read a URI, or a local path.

        Parameters
        ----------
        uri
            ``memory://``, ``file://``, ``gs://``, ``s3://``, ``http(s)://`` or a plain local path. A prefix
            ``precomputed://`` and a suffix ``|neuroglancer-precomputed:``, as Neuroglancer writes them, are
            accepted.

        Raises
        ------
        SpecError
            If the scheme is unknown, or the address names no bucket, server or folder.
        """
        text = os.fspath(uri).strip()
        text = _NEUROGLANCER_SUFFIX.sub("", text.removeprefix("precomputed://"))
        match = _SCHEME.match(text)
        if not match:
            return cls._of_path(text, given=text)
        scheme, rest = match[1].lower(), match[2]
        if scheme == "file":
            # Not percent-decoded: the engines behind us take file:// paths literally too.
            return cls._of_path(rest, given=text)
        if scheme == "memory":
            return cls("memory", "", _folder(rest, given=text, what="name"))
        if scheme in ("gs", "s3"):
            bucket, _, path = rest.partition("/")
            if not bucket:
                raise SpecError(f"{text!r} names no bucket: write {scheme}://bucket/folder")
            return cls("gs" if scheme == "gs" else "s3", bucket, _clean(path, given=text))
        if scheme in ("http", "https"):
            parts = urlsplit(text)
            if not parts.netloc:
                raise SpecError(f"{text!r} names no server: write {scheme}://server/folder")
            path = _clean(unquote(parts.path), given=text)
            return cls("http" if scheme == "http" else "https", parts.netloc, path, parts.query)
        if scheme == "phantom-brain":
            parts = urlsplit(text)
            return cls("phantom-brain", parts.netloc, "", unquote(parts.query))
        raise SpecError(
            f"{text!r} has the unknown scheme {scheme!r}; there are memory://, file://, gs://, s3://, "
            "read-only http:// and https://, phantom-brain:// for what is computed, and plain local paths"
        )

    @classmethod
    def _of_path(cls, path: str, *, given: str) -> Address:
        if not path:
            raise SpecError(f"{given!r} names no folder: write file:///folder, or a local path")
        return cls("file", "", str(Path(os.path.abspath(Path(path).expanduser()))))

    @property
    def uri(self) -> str:
        """The one spelling of this address."""
        if self.scheme == "file":
            return f"file://{self.path}"
        if self.scheme == "memory":
            return f"memory://{self.path}"
        path = quote(self.path) if self.scheme in ("http", "https") else self.path
        base = f"{self.scheme}://{self.host}" + (f"/{path}" if path else "")
        return base + (f"?{self.query}" if self.query else "")

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be stored here."""
        return self.scheme in ("http", "https", "phantom-brain")

    def __str__(self) -> str:
        return self.uri


def check_key(key: str, *, uri: str) -> str:
    """Return ``key`` if it names an object inside a folder.

    Raises
    ------
    SpecError
        If the key is empty, absolute, or has empty, ``.`` or ``..`` parts.
    """
    if not key or any(part in ("", ".", "..") for part in key.split("/")):
        raise SpecError(
            f"{key!r} is no key of an object in {uri}: write parts that are not empty, '.' or '..', separated by '/'"
        )
    if key.endswith(".__lock"):
        raise SpecError(
            f"{key!r} is no key of an object in {uri}: names that end in .__lock are reserved for locks"
        )
    return key


def _folder(path: str, *, given: str, what: str) -> str:
    cleaned = _clean(path, given=given)
    if not cleaned:
        raise SpecError(f"{given!r} has no {what}: write memory://name")
    return cleaned


def _clean(path: str, *, given: str) -> str:
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise SpecError(
            f"{given!r} has '.' or '..' in its path, which mean nothing in a bucket: write the full path"
        )
    return "/".join(parts)
