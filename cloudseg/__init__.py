"""From volumetric electron microscopy in buckets to neurons, somas and statistics.

The names below are the promised interface; each is imported when it is first used, so that ``import cloudseg`` costs
nothing and looking at results loads neither torch nor a queue.

>>> import cloudseg
>>> cloudseg.Box.parse("0,0,0:64,64,32").shape
(64, 64, 32)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloudseg.client.somas import Somas
    from cloudseg.errors import (
        AuthError,
        CloudsegError,
        NotFoundError,
        QueryError,
        ServerError,
        SpecError,
        StorageError,
        TaskFailedError,
        TransientStorageError,
    )
    from cloudseg.geometry import XYZ, Box, tile
    from cloudseg.volumes import MemoryVolume, create_volume, open_objects, open_volume
    from cloudseg.volumes.protocol import ShardingSpec, Volume, VolumeInfo

__all__ = [
    "XYZ",
    "AuthError",
    "Box",
    "CloudsegError",
    "MemoryVolume",
    "NotFoundError",
    "QueryError",
    "ServerError",
    "ShardingSpec",
    "Somas",
    "SpecError",
    "StorageError",
    "TaskFailedError",
    "TransientStorageError",
    "Volume",
    "VolumeInfo",
    "create_volume",
    "open_objects",
    "open_volume",
    "tile",
]

_HOMES = {
    "cloudseg.client.somas": ("Somas",),
    "cloudseg.errors": (
        "AuthError",
        "CloudsegError",
        "NotFoundError",
        "QueryError",
        "ServerError",
        "SpecError",
        "StorageError",
        "TaskFailedError",
        "TransientStorageError",
    ),
    "cloudseg.geometry": ("XYZ", "Box", "tile"),
    "cloudseg.volumes": ("MemoryVolume", "create_volume", "open_objects", "open_volume"),
    "cloudseg.volumes.protocol": ("ShardingSpec", "Volume", "VolumeInfo"),
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("cloudseg")
    for module, names in _HOMES.items():
        if name in names:
            value: object = getattr(importlib.import_module(module), name)
            globals()[name] = value  # the next use finds it without coming here
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
