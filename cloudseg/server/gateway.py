"""The gateway: stored bytes to HTTP, as viewers of volumes need them, from disk or from a bucket."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO, Protocol

from cloudseg.errors import CorruptDataError, NotFoundError, SpecError, StorageError
from cloudseg.server.ranges import ByteRange, accepts, matches, parse_range
from cloudseg.volumes import open_objects
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.computed import is_computed
from cloudseg.volumes.parts import Parts

# What cloud-volume appends to a file's name instead of setting a Content-Encoding, and the coding that it means.
_CODINGS = {".gz": "gzip", ".br": "br", ".zstd": "zstd"}

# Up to here a file is read at once; above it is streamed, so that memory does not depend on the shard.
_STREAM_ABOVE_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20

# What curl, below tensorstore, says of a body that it cannot decode.
_UNDECODED = "bad HTTP Content or Transfer-Encoding"

# Data may be written again (a run goes on): a reader asks each time, and a 304 costs no bytes.
_CACHING = "no-cache"


@dataclass(frozen=True, slots=True)
class Asked:
    """The headers of a request that decide what is sent."""

    byte_range: ByteRange | None = None
    if_none_match: str | None = None
    if_range: str | None = None
    accept_encoding: str | None = None
    head: bool = False

    @classmethod
    def of(cls, headers: Mapping[str, str], *, method: str) -> Asked:
        """Read them from a request."""
        return cls(
            byte_range=parse_range(headers.get("range")),
            if_none_match=headers.get("if-none-match"),
            if_range=headers.get("if-range"),
            accept_encoding=headers.get("accept-encoding"),
            head=method == "HEAD",
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: a status, headers, and a body in one piece or in several."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterator[bytes] = b""


class Folder(Protocol):
    """Something mounted: a folder whose objects can be sent."""

    @property
    def uri(self) -> str:
        """Where it lives."""
        ...

    def answer(self, key: str, asked: Asked) -> Answer:
        """Return the answer for ``key``; :class:`~cloudseg.errors.NotFoundError` if nothing lies there."""
        ...


def open_folder(uri: str) -> Folder:
    """Return the folder at ``uri``: read from disk where it is local, through tensorstore elsewhere.

    Raises
    ------
    NotFoundError
        If a local folder does not exist.
    SpecError
        If the address is of no use to a browser.
    """
    address = Address.parse(uri)
    if address.scheme == "file":
        return LocalFolder(Path(address.path))
    if address.scheme == "memory":
        raise SpecError(f"{uri} lives in the memory of another process: nothing can be served from it")
    if is_computed(address):
        return ComputedFolder(uri)
    return BucketFolder(uri)


class ComputedFolder:
    """A volume that is computed when it is read, chunk by chunk; nothing of it is stored.

    Parameters
    ----------
    uri
        Its address.
    """

    def __init__(self, uri: str) -> None:
        self._objects = open_objects(uri)
        self._objects.get("info")  # refused now, not by every chunk

    @property
    def uri(self) -> str:
        """Where it seems to live."""
        return self._objects.uri

    def answer(self, key: str, asked: Asked) -> Answer:
        """Return the answer for ``key``; see :class:`Folder`.

        Raises
        ------
        NotFoundError
            If the volume has no such object.
        """
        if not _is_plain(key):
            raise NotFoundError(f"there is no {key!r} in {self.uri}")
        data = self._objects.get(key)
        headers = {
            "Cache-Control": _CACHING,
            "Accept-Ranges": "bytes",
            "Content-Type": _content_type(key),
            "Last-Modified": formatdate(0, usegmt=True),
            "ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"',
        }
        return _send(_Bytes(data), len(data), headers, asked)


class LocalFolder:
    """A folder on disk. Nothing outside it is reachable, by ``..`` or by a link.

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    NotFoundError
        If there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise NotFoundError(f"no folder at {path}: check the name; nothing was started")
        self._path = path
        self._real = Path(os.path.realpath(path))

    @property
    def uri(self) -> str:
        """Where it lives."""
        return Address.parse(str(self._path)).uri

    def answer(self, key: str, asked: Asked) -> Answer:
        """Return the answer for ``key``; see :class:`Folder`.

        A chunk stored as ``key.gz`` (or ``.br``, ``.zstd``) is sent as it lies, with its ``Content-Encoding``; a
        client that does not take the coding gets ``gzip`` decoded.

        Raises
        ------
        NotFoundError
            If there is no such file, or it lies outside the folder.
        CorruptDataError
            If the file lies there both plain and compressed: one of the two is out of date.
        StorageError
            If a client takes no coding in which the file is there.
        """
        plain = self._inside(key)
        twins = [(self._inside(key + ending), coding) for ending, coding in _CODINGS.items()]
        found = [(path, coding) for path, coding in [(plain, ""), *twins] if path is not None]
        if not found:
            raise NotFoundError(f"no object {key!r} in {self.uri}")
        if len(found) > 1:
            names = " and ".join(path.name for path, _ in found)
            raise CorruptDataError(
                f"{self.uri} holds {names}: one of them is out of date, and nothing tells which; "
                "remove the wrong one, or write the volume again"
            )
        path, coding = found[0]
        return _send_file(path, coding, key, asked)

    def _inside(self, key: str) -> Path | None:
        """Return the real path of the file ``key`` if it is one and lies in the folder."""
        if not _is_plain(key):
            return None
        real = Path(os.path.realpath(self._path / key))
        try:
            return real if real.is_relative_to(self._real) and real.is_file() else None
        except OSError:  # a name longer than the file system allows, or a folder we may not enter
            return None


class BucketFolder:
    """A folder in a bucket, or behind another HTTP server.

    Parameters
    ----------
    uri
        ``gs://``, ``s3://`` or ``http(s)://``; read with the credentials of this process.
    """

    def __init__(self, uri: str) -> None:
        self._parts = Parts(uri)

    @property
    def uri(self) -> str:
        """Where it lives."""
        return self._parts.uri

    def answer(self, key: str, asked: Asked) -> Answer:
        """Return the answer for ``key``; see :class:`Folder`."""
        if not _is_plain(key):
            raise NotFoundError(f"no object {key!r} in {self.uri}")
        wanted = asked.byte_range
        if asked.if_range is not None and wanted is not None:
            head = self._parts.read(key, first=0, stop=0)
            wanted = wanted if asked.if_range.strip() == _etag(head.version) else None
        known = _known_version(asked.if_none_match)
        try:
            if wanted is None:
                part = self._parts.read(key, known_version=known)
            elif wanted.first is None:
                part = self._parts.read(key, first=-(wanted.last or 0) or None, known_version=known)
                if wanted.last == 0:
                    raise EOFError
            else:
                stop = None if wanted.last is None else wanted.last + 1
                part = self._parts.read(key, first=wanted.first, stop=stop, known_version=known)
        except EOFError:
            return Answer(416, {"Content-Range": "bytes */*", "Cache-Control": _CACHING})
        except StorageError as error:
            if wanted is None or _UNDECODED not in str(error):
                raise
            # A part of what is stored compressed cannot be decoded. A server may send the whole instead.
            part, wanted = self._parts.read(key, known_version=known), None
        headers = {"Cache-Control": _CACHING, "Accept-Ranges": "bytes"}
        if part.version:
            headers["ETag"] = _etag(part.version)
        if part.data is None or matches(asked.if_none_match, headers.get("ETag", "")):
            return Answer(304, headers)
        headers["Content-Type"] = _content_type(key)
        headers["Content-Length"] = str(len(part.data))
        if wanted is not None:
            total = "*" if part.size_bytes is None else part.size_bytes
            headers["Content-Range"] = f"bytes {part.start}-{part.start + len(part.data) - 1}/{total}"
        body = b"" if asked.head else part.data
        return Answer(200 if wanted is None else 206, headers, body)


def _send_file(path: Path, coding: str, key: str, asked: Asked) -> Answer:
    try:
        file = path.open("rb")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    streaming = False
    try:
        # Of the open file: another may take its name at any moment.
        status = os.fstat(file.fileno())
        tag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
        headers = {
            "Cache-Control": _CACHING,
            "Accept-Ranges": "bytes",
            "Content-Type": _content_type(key),
            "Last-Modified": formatdate(status.st_mtime, usegmt=True),
            "ETag": f'"{tag}"',
        }
        if coding:
            headers["Vary"] = "Accept-Encoding"
        if coding and not accepts(asked.accept_encoding, coding):
            decoded = _decoded(file, path, coding)
            headers["ETag"] = f'"{tag}-plain"'
            return _send(_Bytes(decoded), len(decoded), headers, asked)
        if coding:
            headers["Content-Encoding"] = coding
        answer = _send(_File(file), status.st_size, headers, asked)
        streaming = not isinstance(answer.body, bytes)
        return answer
    finally:
        if not streaming:
            file.close()


class _Readable(Protocol):
    def pieces(self, start: int, stop: int) -> bytes | Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class _Bytes:
    data: bytes

    def pieces(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]


@dataclass(frozen=True, slots=True)
class _File:
    file: BinaryIO

    def pieces(self, start: int, stop: int) -> bytes | Iterator[bytes]:
        self.file.seek(start)
        return (
            self.file.read(stop - start)
            if stop - start <= _STREAM_ABOVE_BYTES
            else self._stream(stop - start)
        )

    def _stream(self, left: int) -> Iterator[bytes]:
        with self.file:
            while left and (piece := self.file.read(min(left, _PIECE_BYTES))):
                left -= len(piece)
                yield piece


def _send(source: _Readable, size_bytes: int, headers: dict[str, str], asked: Asked) -> Answer:
    """Answer from something whose size is known."""
    if matches(asked.if_none_match, headers["ETag"]):
        kept = ("Cache-Control", "ETag", "Last-Modified", "Vary")
        return Answer(304, {name: value for name, value in headers.items() if name in kept})
    wanted = asked.byte_range
    if asked.if_range is not None and asked.if_range.strip() not in (
        headers["ETag"],
        headers["Last-Modified"],
    ):
        wanted = None  # the client has a part of an older object: it needs the whole new one
    start, stop, status = 0, size_bytes, 200
    if wanted is not None:
        part = wanted.within(size_bytes)
        if part is None:
            return Answer(416, {"Content-Range": f"bytes */{size_bytes}", "Cache-Control": _CACHING})
        start, stop = part
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size_bytes}"
    headers["Content-Length"] = str(stop - start)
    return Answer(status, headers, b"" if asked.head else source.pieces(start, stop))


def _decoded(file: BinaryIO, path: Path, coding: str) -> bytes:
    if coding != "gzip":
        raise StorageError(
            f"{path} is stored as {coding}, which this client does not take (Accept-Encoding: {coding})"
        )
    try:
        return gzip.decompress(file.read())
    except (OSError, EOFError) as error:
        raise CorruptDataError(f"{path} is no whole gzip file ({error}); write it again") from error


def _is_plain(key: str) -> bool:
    """Whether ``key`` is a path of ordinary names: no ``..``, no empty part, nothing a file system reads otherwise."""
    return all(part not in ("", ".", "..") for part in key.split("/")) and "\0" not in key and "\\" not in key


def _content_type(key: str) -> str:
    name = key.rsplit("/", 1)[-1]
    if name in ("info", "provenance") or name.endswith(".json") or key.endswith(":0"):
        return "application/json"
    if name.endswith((".toml", ".txt", ".md", ".swc")):
        return "text/plain; charset=utf-8"
    # Never text/html or a script: stored bytes are data, and must not run in the page's origin.
    kind = mimetypes.guess_type(name)[0] or ""
    return kind if kind.startswith("image/") and "svg" not in kind else "application/octet-stream"


def _etag(version: bytes) -> str:
    return f'"{version.hex()}"' if version else '""'


def _known_version(header: str | None) -> bytes | None:
    """The version inside an entity tag of ours, if the header holds exactly one."""
    if header is None:
        return None
    try:
        return bytes.fromhex(header.strip().removeprefix("W/").strip('"')) or None
    except ValueError:
        return None
