"""Small immutable objects beside the voxels: receipts, graphs, manifests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.volumes.addresses import Address, check_key

if TYPE_CHECKING:
    import tensorstore as ts


class Objects(Protocol):
    """A folder of named byte strings. Keys are relative, ``/`` separated."""

    @property
    def uri(self) -> str:
        """Where it lives."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object; :class:`~cloudseg.errors.NotFoundError` if there is none."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Store an object atomically, replacing an older one."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store an object unless one exists; True for the one caller who stored it."""
        ...

    def exists(self, key: str) -> bool:
        """Whether an object lies under ``key``."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that begin with ``prefix``, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        ...


class VersionedObjects(Objects, Protocol):
    """Objects that can be changed without losing another writer's change."""

    def get_versioned(self, key: str) -> tuple[bytes | None, bytes]:
        """Return an object (None if there is none) and its version."""
        ...

    def put_if_unchanged(self, key: str, data: bytes, *, version: bytes) -> bool:
        """Store an object if it still has ``version``; whether it was stored."""
        ...


def open_objects(uri: str | os.PathLike[str]) -> VersionedObjects:
    """Open a folder of objects; touches nothing.

    Parameters
    ----------
    uri
        ``memory://``, ``file://`` (or a local path), ``gs://``, ``s3://``, or read-only ``http(s)://``.

    Raises
    ------
    SpecError
        If the address cannot be read.

    Notes
    -----
    In a bucket, an answer can be lost after a successful ``put_if_absent``; the repeated request then finds
    the object and returns False. A caller who must know uses :func:`cloudseg.volumes.claims.claim`.
    """
    address = Address.parse(uri)
    if address.scheme == "memory":
        from cloudseg.volumes.memory import MemoryObjects

        return MemoryObjects(address.uri)
    if address.scheme == "phantom-brain":
        from cloudseg.volumes.computed import maker_of

        return maker_of(address).computed_objects(address)
    return KvObjects(address)


class KvObjects:
    """Objects in a local folder, a bucket, or on a web server."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._opened: ts.KvStore | None = None

    @property
    def uri(self) -> str:
        """Where it lives."""
        return self._address.uri

    def get(self, key: str) -> bytes:
        """Return an object."""
        data, _ = self.get_versioned(key)
        if data is None:
            raise NotFoundError(f"there is no {key!r} in {self.uri}")
        return data

    def get_versioned(self, key: str) -> tuple[bytes | None, bytes]:
        """Return an object (None if there is none) and its version."""
        from cloudseg.volumes.kvstore import translated

        check_key(key, uri=self.uri)
        if self._address.scheme in ("gs", "s3"):
            from cloudseg.volumes.checked import CheckedObjects

            checked = CheckedObjects(self._address).read(key)
            return checked.data, checked.version
        with translated(f"{self.uri}/{key}", "read"):
            found = self._store.read(key).result()
        return (bytes(found.value) if found.state == "value" else None), bytes(found.stamp.generation)

    def put(self, key: str, data: bytes) -> None:
        """Store an object atomically."""
        self._write(key, data, None)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store an object unless one exists; True for the one caller who stored it."""
        from cloudseg.volumes.kvstore import ABSENT

        return self._write(key, data, ABSENT)

    def put_if_unchanged(self, key: str, data: bytes, *, version: bytes) -> bool:
        """Store an object if it still has ``version``; whether it was stored."""
        return self._write(key, data, version)

    def exists(self, key: str) -> bool:
        """Whether an object lies under ``key``."""
        return self.get_versioned(key)[0] is not None

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that begin with ``prefix``, sorted."""
        import tensorstore as ts

        from cloudseg.volumes.kvstore import translated

        if self._address.is_read_only:
            raise SpecError(
                f"a web server cannot list what it has: {self.uri}; name the objects, or use the bucket's URI"
            )
        with translated(self.uri, "list"):
            # The least string above all that begin with the prefix: no byte of UTF-8 is 0xff.
            within = (
                ts.KvStore.KeyRange(prefix, prefix.encode() + b"\xff") if prefix else ts.KvStore.KeyRange()
            )
            keys = self._store.list(within).result()
        yield from sorted(key.decode() for key in keys)

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        self._write(key, None, None)

    @property
    def _store(self) -> ts.KvStore:
        if self._opened is None:
            from cloudseg.volumes.kvstore import open_kvstore

            self._opened = open_kvstore(self._address)
        return self._opened

    def _write(self, key: str, data: bytes | None, version: bytes | None) -> bool:
        from cloudseg.volumes.kvstore import translated

        check_key(key, uri=self.uri)
        if self._address.is_read_only:
            raise SpecError(
                f"{self.uri} is a web address, which is read-only; write to file://, gs:// or s3:// instead"
            )
        with translated(f"{self.uri}/{key}", "write"):
            stored = self._store.write(key, data, if_equal=version).result()
        # An empty generation is tensorstore's way to say that the condition did not hold.
        return version is None or bool(stored.generation)
