"""Watershed from the middles of things: seeds are maxima of the distance to the nearest boundary.

As in PlantSeg (Wolny et al. 2020, eLife 57613): threshold, distance transform, smoothing, maxima as seeds, flooding of
a mix of boundary and distance, in 3D or each section alone; regions that are too small are flooded by the others.
Project-defined: the distance enters the mix as ``1 / (1 + d)``, not divided by its greatest value, which would depend
on the block; and voxels of equal height are flooded first come, first served, so that a plateau is shared fairly.

Not exact for any tiling: a distance has no bound, and which flood arrives first may be decided far away. A seed is
named after its voxel in the volume, so neighbouring blocks that both see it call it alike; with a halo well above the
size of a cell the difference is small. Sections alone are exact for blocks that hold whole sections.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box

Labels = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DistanceRule:
    """How seeds are found and flooded.

    Attributes
    ----------
    threshold
        Boundary value (0..255) from which on a voxel is boundary.
    sigma
        Smoothing of the distance, in voxels along x; other axes smooth over the same length.
    alpha
        Share of the boundary in the height that is flooded; the rest is the distance.
    min_size_vx
        Smaller regions are given to those around them.
    stacked
        Whether each section is segmented alone.
    spacing
        Edges of a voxel relative to x.
    """

    threshold: int = 128
    sigma: float = 2.0
    alpha: float = 0.9
    min_size_vx: int = 50
    stacked: bool = False
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)


def distance_watershed(
    boundaries: npt.NDArray[np.uint8], *, box: Box, bounds: Box, rule: DistanceRule
) -> Labels:
    """Return the regions of a boundary map.

    Parameters
    ----------
    boundaries
        ``(x, y, z)`` uint8 over ``box``; 255 is a sure boundary.
    box, bounds
        What is segmented, and the volume it belongs to: a region is called one more than the smallest voxel index (x
        fastest, in the volume) of its seed.
    rule
        See :class:`DistanceRule`.

    Returns
    -------
    ``(x, y, z)`` uint64 in Fortran order; every voxel has a region.
    """
    if boundaries.dtype != np.uint8 or boundaries.shape != box.shape:
        raise SpecError(
            f"boundaries must be uint8 of shape {box.shape}, got {boundaries.dtype} of shape {boundaries.shape}"
        )
    if not rule.stacked:
        return _regions(boundaries, box, bounds, rule)
    out = np.empty(box.shape, np.uint64, order="F")
    x, y, z = box.start
    for k in range(box.shape[2]):
        section = Box.of_shape((box.shape[0], box.shape[1], 1), at=(x, y, z + k))
        out[:, :, k : k + 1] = _regions(boundaries[:, :, k : k + 1], section, bounds, rule)
    return out


def flood(heights: Floats, seeds: Labels) -> Labels:
    """Return which seed reaches each voxel first, lowest height first, then first come.

    Parameters
    ----------
    heights
        ``(x, y, z)`` float32.
    seeds
        ``(x, y, z)`` uint64; 0 is no seed. Neighbours share a face.
    """
    shape = np.array(heights.shape, np.int64)
    flat = seeds.reshape(-1, order="F").copy()
    _flood(np.ascontiguousarray(heights.reshape(-1, order="F")), flat, shape)
    return flat.reshape(heights.shape, order="F")


def _regions(boundaries: npt.NDArray[np.uint8], box: Box, bounds: Box, rule: DistanceRule) -> Labels:
    from scipy import ndimage

    inside = boundaries < rule.threshold
    if inside.all():  # nothing to be distant from: the middle of the box is as good as any place
        distance = np.zeros(box.shape, np.float32, order="F")
        distance[tuple(n // 2 for n in box.shape)] = 1.0
    else:
        distance = ndimage.distance_transform_edt(inside, sampling=rule.spacing).astype(np.float32)
    sigma = [rule.sigma / s if n > 1 else 0.0 for s, n in zip(rule.spacing, box.shape, strict=True)]
    smooth = ndimage.gaussian_filter(distance, sigma)
    peaks = (smooth == ndimage.maximum_filter(smooth, size=3)) & inside
    if not peaks.any():  # all boundary: one region
        peaks[(0, 0, 0)] = True
    seeds = _named(ndimage.label(peaks, structure=np.ones((3, 3, 3)))[0], box, bounds)
    heights = np.float32(rule.alpha / 255) * boundaries.astype(np.float32)
    heights += np.float32(1 - rule.alpha) / (1 + smooth)
    labels = flood(heights, seeds)
    ids, sizes = np.unique(labels, return_counts=True)
    small = ids[sizes < rule.min_size_vx]
    if not 0 < len(small) < len(ids):
        return labels
    labels[np.isin(labels, small)] = 0
    return flood(heights, labels)


def _named(parts: npt.NDArray[Any], box: Box, bounds: Box) -> Labels:
    """Call each part one more than the smallest voxel index in it."""
    n_x, n_y, _ = bounds.shape
    x, y, z = (
        np.arange(low, high, dtype=np.int64) - first
        for low, high, first in zip(box.start, box.stop, bounds.start, strict=True)
    )
    index = x[:, None, None] + n_x * (y[None, :, None] + n_y * z[None, None, :])
    least = np.full(int(parts.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, parts.reshape(-1), index.reshape(-1))
    names = (least + 1).astype(np.uint64)
    names[0] = 0
    return np.asfortranarray(names[parts])


@numba.njit(cache=True)
def _flood(heights, labels, shape):  # type: ignore[no-untyped-def]
    n_x, n_y, n_z = shape[0], shape[1], shape[2]
    step = (1, n_x, n_x * n_y)
    queue = [(np.float32(0), 0, 0)]
    queue.pop()
    n_queued = 0
    for at in range(labels.size):
        if labels[at] != 0:
            queue.append((heights[at], n_queued, at))
            n_queued += 1
    heapq.heapify(queue)
    while len(queue) > 0:
        height, _, at = heapq.heappop(queue)
        x, y, z = at % n_x, at // n_x % n_y, at // (n_x * n_y)
        place = (x, y, z)
        size = (n_x, n_y, n_z)
        for axis in range(3):
            for up in range(2):
                if (up == 0 and place[axis] == 0) or (up == 1 and place[axis] == size[axis] - 1):
                    continue
                to = at + step[axis] if up == 1 else at - step[axis]
                if labels[to] == 0:
                    labels[to] = labels[at]
                    # Water never falls back: behind a pass it rises from the pass.
                    heapq.heappush(queue, (max(height, heights[to]), n_queued, to))
                    n_queued += 1
