"""Volumes read by cloud-volume, a library that shares no code with the one that wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cloudseg.errors import CorruptDataError, MissingChunkError, MissingExtraError
from cloudseg.geometry import Box
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.protocol import Array

if TYPE_CHECKING:
    import os


class SecondOpinion:
    """One scale of a volume, through cloud-volume.

    Parameters
    ----------
    uri
        As for :func:`cloudseg.volumes.open_volume`, but not ``memory://``.
    mip
        Which scale.

    Raises
    ------
    MissingExtraError
        If cloud-volume is not installed.
    """

    def __init__(self, uri: str | os.PathLike[str], *, mip: int = 0) -> None:
        try:
            import cloudvolume
        except ImportError as error:
            raise MissingExtraError.of("cloud-volume", extra="tasks") from error
        self.uri = Address.parse(uri).uri
        self._missing_chunk = cloudvolume.exceptions.EmptyVolumeException
        # One thread and no cache: the bytes of the storage, as they are now.
        self._volume: Any = cloudvolume.CloudVolume(
            f"precomputed://{self.uri}", mip=mip, fill_missing=False, cache=False, progress=False, parallel=1
        )

    def read(self, box: Box) -> Array:
        """Return the voxels of ``box``: ``(x, y, z)``, or ``(c, x, y, z)`` for several channels.

        Raises
        ------
        MissingChunkError
            If a chunk is not there.
        CorruptDataError
            If cloud-volume cannot decode what is there.
        """
        (x0, y0, z0), (x1, y1, z1) = box.start, box.stop
        try:
            voxels = np.asarray(self._volume[x0:x1, y0:y1, z0:z1])
        except self._missing_chunk as error:
            raise MissingChunkError(f"cloud-volume finds no chunk for {box} in {self.uri}") from error
        except Exception as error:
            raise CorruptDataError(
                f"cloud-volume cannot read {box} of {self.uri}: {type(error).__name__}: {error}"
            ) from error
        return voxels[..., 0] if voxels.shape[3] == 1 else np.moveaxis(voxels, 3, 0)
