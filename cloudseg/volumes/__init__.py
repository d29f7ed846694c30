"""All storage: volumes of voxels, and small objects beside them."""

from __future__ import annotations

from typing import Any

from cloudseg.volumes.infofile import read_info, update_info
from cloudseg.volumes.memory import MemoryVolume, clear_memory
from cloudseg.volumes.objects import Objects, VersionedObjects, open_objects
from cloudseg.volumes.open import create_volume, open_volume, scales
from cloudseg.volumes.protocol import Array, DType, Encoding, ShardingSpec, Volume, VolumeInfo
from cloudseg.volumes.sharding import shard_shape, sharding_for

__all__ = [
    "Array",
    "DType",
    "Encoding",
    "MemoryVolume",
    "Objects",
    "ShardingSpec",
    "VersionedObjects",
    "Volume",
    "VolumeInfo",
    "clear_memory",
    "create_volume",
    "open_objects",
    "open_volume",
    "read_info",
    "scales",
    "set_threads",
    "shard_shape",
    "sharding_for",
    "update_info",
]


def __getattr__(name: str) -> Any:
    if name == "set_threads":  # its module imports tensorstore, which takes 0.1 s
        from cloudseg.volumes.kvstore import set_threads

        return set_threads
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
