"""Local shape descriptors: how the part of an object near a voxel is placed, spread, tilted and filled.

After Sheridan et al. 2022 (https://doi.org/10.1038/s41592-022-01711-z). Every object is described by itself, under a
Gaussian window round each of its voxels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cloudseg.training.labels import FIRST_OBJECT, Ids

_REACH = 3.0
"""Deviations after which the window ends."""


def local_shape(
    ids: Ids, *, sigma_nm: float, voxel_size_nm: tuple[float, float, float], coarse: int = 1
) -> npt.NDArray[np.float32]:
    """Return the ten descriptors of each voxel of an object, scaled to 0 to 1; 0 elsewhere.

    Parameters
    ----------
    ids
        ``(x, y, z)``; ids from 1 on are objects (1 is the background).
    sigma_nm
        Deviation of the window.
    voxel_size_nm
        Edges of a voxel.
    coarse
        Compute on every n-th voxel along each axis and repeat the result.

    Returns
    -------
    ``(10, x, y, z)``: the way to the centre of mass along x, y, z (one half: none; 0 and 1: a deviation of the window);
    the variance along x, y, z (in squared deviations); the correlation of x with y, x with z and y with z (one half:
    none); the share of the window that the object fills.
    """
    small = ids[::coarse, ::coarse, ::coarse]
    step_nm = np.array(voxel_size_nm) * coarse
    sigma_vx = sigma_nm / step_nm
    out = np.zeros((10, *small.shape), np.float32)
    margin = np.ceil(_REACH * sigma_vx).astype(int)
    shifted = np.maximum(small, 0)
    for index, found in enumerate(ndimage.find_objects(shifted), start=1):
        if found is None:
            continue
        assert index >= FIRST_OBJECT - 1
        box = tuple(
            slice(max(s.start - m, 0), min(s.stop + m, size))
            for s, m, size in zip(found, margin, small.shape, strict=True)
        )
        mask = small[box] == index
        described = _describe(mask, sigma_vx=sigma_vx)
        out[(slice(None), *box)][:, mask] = described[:, mask]
    if coarse > 1:
        for axis in range(3):
            out = out.repeat(coarse, axis=axis + 1)
        out = out[:, : ids.shape[0], : ids.shape[1], : ids.shape[2]] * (ids > 0)
    return out


def _describe(mask: npt.NDArray[np.bool_], *, sigma_vx: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """``(10, x, y, z)`` of one object; lengths are in deviations of the window."""

    def window(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        blurred: npt.NDArray[np.float32] = ndimage.gaussian_filter(
            values, sigma_vx, mode="constant", truncate=_REACH
        )
        return blurred

    solid = mask.astype(np.float32)
    mass = window(solid)
    safe = np.maximum(mass, 1e-6)
    # Counted from the middle of the object, so that squares of large coordinates do not cancel in single precision.
    axes = np.meshgrid(
        *[(np.arange(n) - n / 2) / s for n, s in zip(mask.shape, sigma_vx, strict=True)],
        indexing="ij",
        sparse=True,
    )
    place = [a.astype(np.float32) for a in axes]
    mean = [window(solid * p) / safe for p in place]
    spread = {
        (i, j): window(solid * place[i] * place[j]) / safe - mean[i] * mean[j]
        for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    }
    variance = [np.maximum(spread[i, i], 1e-3) for i in range(3)]
    described = [(m - p) * 0.5 + 0.5 for m, p in zip(mean, place, strict=True)]
    described += [spread[i, i] for i in range(3)]
    described += [
        spread[i, j] / np.sqrt(variance[i] * variance[j]) * 0.5 + 0.5 for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    described.append(mass)
    stacked: npt.NDArray[np.float32] = np.clip(np.stack(described), 0.0, 1.0).astype(np.float32)
    return stacked
