"""A tissue mask seen in the voxels of an image, whatever scale it is stored at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box
from cloudseg.volumes.protocol import Volume, VolumeInfo


@dataclass(frozen=True)
class TissueMask:
    """A mask (0 = no tissue) whose voxels are whole multiples of an image's."""

    volume: Volume
    factor: XYZ

    @classmethod
    def open(cls, uri: str, *, mip: int, image: VolumeInfo, open_volume: Callable[..., Volume]) -> TissueMask:
        """Open the mask at ``uri`` and refuse one that does not fit ``image``.

        Raises
        ------
        SpecError
            If its voxels are no whole multiples of the image's, it does not hold one channel of integers, or it does
            not overlap the image.
        """
        volume = open_volume(uri, mip=mip)
        info = volume.info
        ratios = [m / i for m, i in zip(info.voxel_size_nm, image.voxel_size_nm, strict=True)]
        x, y, z = (max(1, round(r)) for r in ratios)
        if any(abs(r - f) > 1e-3 * f for r, f in zip(ratios, (x, y, z), strict=True)):
            raise SpecError(
                f"the mask {uri} has voxels of {info.voxel_size_nm} nm, the image {image.voxel_size_nm} nm; "
                "a mask's voxels must be whole multiples of the image's: downsample the mask from the image's grid"
            )
        if info.n_channels != 1 or info.dtype == "float32":
            raise SpecError(
                f"the mask {uri} must hold one channel of integers (0 = no tissue), got {info.n_channels} of "
                f"{info.dtype}"
            )
        mask = cls(volume, (x, y, z))
        cover = mask._cover(image.bounds)
        if info.bounds.intersect(cover).is_empty:
            raise SpecError(
                f"the mask {uri} covers {info.bounds} in its own voxels, the image would be at {cover}: "
                "they do not overlap; check the voxel offsets"
            )
        return mask

    def read(self, box: Box) -> npt.NDArray[np.bool_]:
        """Return where ``box`` (in image voxels) holds tissue, ``(x, y, z)``; outside the mask there is none."""
        cover = self._cover(box)
        coarse = self.volume.read(cover, fill=0, missing="zero") != 0
        index = [
            np.arange(low, high) // f - c
            for low, high, f, c in zip(box.start, box.stop, self.factor, cover.start, strict=True)
        ]
        tissue: npt.NDArray[np.bool_] = coarse[np.ix_(*index)]
        return tissue

    def _cover(self, box: Box) -> Box:
        low = tuple(a // f for a, f in zip(box.start, self.factor, strict=True))
        high = tuple(-(-b // f) for b, f in zip(box.stop, self.factor, strict=True))
        return Box(low, high)  # type: ignore[arg-type]
