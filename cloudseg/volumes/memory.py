"""Volumes and objects in this process's memory: real storage for tests and for work that fits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cloudseg.errors import NotFoundError
from cloudseg.geometry import XYZ, Box
from cloudseg.volumes.addresses import Address, check_key
from cloudseg.volumes.checks import (
    check_read,
    check_write,
    chunk_name,
    chunks_of,
    from_planar,
    missing_chunk,
    new_array,
    to_planar,
)
from cloudseg.volumes.protocol import Array, VolumeInfo


class MemoryVolume:
    """One scale of a volume in memory, stored chunk by chunk: an unwritten chunk is missing, and costs nothing.

    Parameters
    ----------
    info
        What it is; its sharding is respected (writes cover whole shards), its encoding is not applied.
    uri
        The name it gives itself in messages.
    """

    def __init__(self, info: VolumeInfo, *, uri: str = "memory://unnamed") -> None:
        self._info = info
        self._uri = uri
        self._chunks: dict[XYZ, Array] = {}

    @property
    def uri(self) -> str:
        """Where it lives."""
        return self._uri

    @property
    def info(self) -> VolumeInfo:
        """What it is."""
        return self._info

    def read(
        self, box: Box, *, fill: int | None = None, missing: Literal["error", "zero"] = "error"
    ) -> Array:
        """Return the voxels of ``box`` as a new array; see :class:`~cloudseg.volumes.protocol.Volume`."""
        check_read(box, fill=fill, missing=missing, info=self._info, uri=self._uri)
        out = new_array(box, self._info, fill=fill or 0)
        inside = box.intersect(self._info.bounds)
        for index, chunk in chunks_of(inside, self._info):
            stored = self._chunks.get(index)
            part = chunk.intersect(inside)
            target = out[(..., *part.slices_in(box))]
            if stored is not None:
                target[...] = stored[(..., *part.slices_in(chunk))]
            elif missing == "zero":
                target[...] = 0
            else:
                raise missing_chunk(inside, uri=self._uri, detail=f"chunk {chunk_name(chunk)}")
        return out

    def write(self, box: Box, data: Array) -> None:
        """Store ``data`` at ``box``, which covers whole chunks (or shards)."""
        check_write(box, data, info=self._info, uri=self._uri)
        for index, chunk in chunks_of(box, self._info):
            part = data[(..., *chunk.slices_in(box))]
            # Replaced, never changed in place: a reader sees the old chunk or the new one.
            self._chunks[index] = from_planar(
                np.array(to_planar(part, self._info), order="F", copy=True), self._info
            )

    def __repr__(self) -> str:
        return f"MemoryVolume({self._uri}, {self._info.bounds}, {self._info.dtype})"


@dataclass
class _Store:
    """What ``memory://`` addresses of this process point to."""

    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    volumes: dict[tuple[str, int], MemoryVolume] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    version: int = 0


_STORE = _Store()


def memory_volume(uri: str, info: VolumeInfo, *, mip: int) -> MemoryVolume:
    """Return the voxels of one scale at a ``memory://`` address, the same for every caller."""
    key = (Address.parse(uri).path, mip)
    with _STORE.lock:
        volume = _STORE.volumes.get(key)
        if volume is None or volume.info != info:
            volume = _STORE.volumes[key] = MemoryVolume(info, uri=f"memory://{key[0]}")
        return volume


def clear_memory(uri: str = "") -> None:
    """Forget what lies at or below a ``memory://`` address; everything, if none is given."""
    path = Address.parse(uri).path if uri else ""
    with _STORE.lock:
        for name in [n for n in _STORE.objects if not path or n == path or n.startswith(path + "/")]:
            del _STORE.objects[name]
        for key in [k for k in _STORE.volumes if not path or k[0] == path or k[0].startswith(path + "/")]:
            del _STORE.volumes[key]


class MemoryObjects:
    """Objects under one ``memory://`` address of this process."""

    def __init__(self, uri: str) -> None:
        self._folder = Address.parse(uri).path

    @property
    def uri(self) -> str:
        """Where it lives."""
        return f"memory://{self._folder}"

    def get(self, key: str) -> bytes:
        """Return an object."""
        data, _ = self.get_versioned(key)
        if data is None:
            raise NotFoundError(f"there is no {key!r} in {self.uri}")
        return data

    def get_versioned(self, key: str) -> tuple[bytes | None, bytes]:
        """Return an object (None if there is none) and its version."""
        data, version = _STORE.objects.get(self._path(key), (None, 0))
        return data, str(version).encode()

    def put(self, key: str, data: bytes) -> None:
        """Store an object."""
        with _STORE.lock:
            _STORE.version += 1
            _STORE.objects[self._path(key)] = (bytes(data), _STORE.version)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store an object unless one exists; True for the one caller who stored it."""
        return self.put_if_unchanged(key, data, version=b"0")

    def put_if_unchanged(self, key: str, data: bytes, *, version: bytes) -> bool:
        """Store an object if it still has ``version``; whether it was stored."""
        with _STORE.lock:
            if self.get_versioned(key)[1] != version:
                return False
            self.put(key, data)
            return True

    def exists(self, key: str) -> bool:
        """Whether an object lies under ``key``."""
        return self._path(key) in _STORE.objects

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that begin with ``prefix``, sorted."""
        start = self._folder + "/"
        with _STORE.lock:
            keys = [name.removeprefix(start) for name in _STORE.objects if name.startswith(start + prefix)]
        yield from sorted(keys)

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        with _STORE.lock:
            _STORE.objects.pop(self._path(key), None)

    def _path(self, key: str) -> str:
        return f"{self._folder}/{check_key(key, uri=self.uri)}"
