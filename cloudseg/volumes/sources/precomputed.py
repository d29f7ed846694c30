"""A volume that is Precomputed already, as a source: for copies, crops and other chunkings."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from cloudseg.geometry import XYZ, Box
from cloudseg.volumes.open import open_volume
from cloudseg.volumes.protocol import Array, Volume
from cloudseg.volumes.sources.base import VoxelSize


class VolumeSource:
    """One scale of a Precomputed volume; boxes are counted from its first voxel."""

    def __init__(self, volume: Volume, *, mip: int = 0) -> None:
        self._volume = volume
        info = volume.info
        self.uri = f"{volume.uri}[mip {mip}]"
        self.shape: XYZ = info.shape
        self.n_channels: int = info.n_channels
        self.dtype: np.dtype[Any] = info.numpy_dtype
        self.voxel_size_nm: VoxelSize | None = info.voxel_size_nm
        self.offset: XYZ = info.bounds.start
        self.natural_shape: XYZ = info.chunk_shape
        self.fingerprint = info.canonical_json()
        self.notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, uri: str, *, mip: int = 0) -> Self:
        """Open one scale."""
        return cls(open_volume(uri, mip=mip), mip=mip)

    def read(self, box: Box) -> Array:
        """Return the voxels of ``box``; a chunk that was never written is an error."""
        return self._volume.read(box.shift(self.offset))

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
