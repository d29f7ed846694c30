"""Small immutable objects beside the voxels: receipts, graphs, manifests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


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
