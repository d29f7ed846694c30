"""Where flood filling starts: places deep inside of something, by several rules.

All places are ``(n, 3)`` int64, in x, y, z; unless said otherwise sorted by z, then y, then x. The rules, their
constants and the order of operations (z, y, x) are those of google/ffn, so that its seeds come out to the last one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cloudseg.geometry import XYZ

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

# An edge is steeper than the mean round it, over a Gaussian of about 49 voxels.
_SIGMA = 49.0 / 6.0
_NOISE = 1e-4


def peak_seeds(
    image: Floats,
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    closed: Mask | None = None,
    labels: npt.NDArray[Any] | None = None,
    min_distance: int = 3,
) -> Places:
    """Return the places farthest from any edge of the image.

    Parameters
    ----------
    image
        ``(x, y, z)`` normalised grey levels.
    spacing
        Edges of a voxel; only their ratios count.
    closed, labels
        Voxels where nothing may start; segments that exist already (0: none).
    min_distance
        A peak is the highest in the box of so many voxels to each side, and not so near to the border.
    """
    # In the axes of the source, so that sums are rounded alike and random numbers fall on the same voxels.
    edges = _edges(np.ascontiguousarray(image.T, np.float32))
    if closed is not None:
        edges |= closed.T
    if edges.all():
        return np.zeros((0, 3), np.int64)
    x, y, z = spacing
    depth = ndimage.distance_transform_edt(~edges, sampling=(z, y, x)).astype(np.float32)
    return _sorted(_peaks_of_depth(depth, closed=closed, labels=labels, min_distance=min_distance))


def peak_seeds_2d(
    image: Floats, *, closed: Mask | None = None, min_distance: int = 7, floor: float = 2.5
) -> Places:
    """Return the places farthest from any edge in each section, at least ``floor`` voxels away."""
    found = []
    for z in range(image.shape[2]):
        edges = _edges(np.ascontiguousarray(image[:, :, z].T, np.float32))
        if closed is not None:
            edges |= closed[:, :, z].T
        if edges.all():
            continue
        depth = ndimage.distance_transform_edt(~edges).astype(np.float32)
        yx = _local_maxima(depth + _noise(depth.shape), min_distance=min_distance, floor=floor)
        found.append(np.column_stack([yx[:, 1], yx[:, 0], np.full(len(yx), z)]))
    return _sorted(np.concatenate([np.zeros((0, 3), np.int64), *found]))


def bright_seeds(image: Floats, *, closed: Mask | None = None, min_distance: int = 3) -> Places:
    """Return the brightest places: maxima of the image above its mean grey (0)."""
    values = np.array(image.T, np.float32)
    if closed is not None:
        values[closed.T] = -np.inf
    return _sorted(_local_maxima(values, min_distance=min_distance)[:, ::-1])


def grid_seeds(shape: XYZ, *, step: int = 16, offsets: tuple[int, ...] = (0, 8, 4, 12, 2, 10, 14)) -> Places:
    """Return one grid of places after the other, each shifted by one of ``offsets`` on all axes; not sorted."""
    grids = []
    for offset in offsets:
        z, y, x = np.meshgrid(*(np.arange(offset, n, step) for n in shape[::-1]), indexing="ij")
        grids.append(np.column_stack([x.ravel(), y.ravel(), z.ravel()]))
    return np.concatenate(grids).astype(np.int64)


def empty_seeds(
    labels: npt.NDArray[Any],
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    closed: Mask | None = None,
    min_distance: int = 2,
) -> Places:
    """Return the places farthest from any segment, in what earlier seeds left empty."""
    empty = np.ascontiguousarray(labels.T) == 0
    if closed is not None:
        empty &= ~closed.T
    if empty.all() or not empty.any():
        return np.zeros((0, 3), np.int64)
    x, y, z = spacing
    depth = ndimage.distance_transform_edt(empty, sampling=(z, y, x)).astype(np.float32)
    return _sorted(_peaks_of_depth(depth, closed=closed, labels=labels, min_distance=min_distance))


def with_full_view(places: Places, shape: XYZ, *, fov: XYZ) -> Places:
    """Return those of ``places`` round which the whole field of view lies in a volume of ``shape``."""
    half = np.array(fov) // 2
    inside = ((places - half >= 0) & (places + half < np.array(shape))).all(axis=1)
    kept: Places = places[inside]
    return kept


def _edges(image: Floats) -> Mask:
    steepness = ndimage.generic_gradient_magnitude(image, ndimage.sobel)
    edges: Mask = steepness > ndimage.gaussian_filter(steepness, _SIGMA, mode="reflect")
    return edges


def _peaks_of_depth(
    depth: Floats, *, closed: Mask | None, labels: npt.NDArray[Any] | None, min_distance: int
) -> Places:
    """Return the maxima of a depth in z, y, x, as x, y, z."""
    depth[~np.isfinite(depth)] = -1
    if closed is not None:
        depth[closed.T] = -1
    if labels is not None:
        depth[labels.T > 0] = -1
    return _local_maxima(depth + _noise(depth.shape), min_distance=min_distance)[:, ::-1]


def _noise(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return what breaks ties: the same numbers for every volume of one shape."""
    return np.random.RandomState(42).rand(*shape) * _NOISE


def _local_maxima(values: npt.NDArray[Any], *, min_distance: int, floor: float = 0.0) -> Places:
    """Return places in the axes of ``values``; of equal ones nearer than ``min_distance``, the first."""
    peaks = (values == ndimage.maximum_filter(values, size=2 * min_distance + 1, mode="nearest")) & (
        values > floor
    )
    inner = tuple(slice(min_distance, -min_distance) for _ in range(values.ndim))
    kept = np.zeros_like(peaks)
    kept[inner] = peaks[inner]
    places = np.argwhere(kept)
    heights = values[kept]
    if len(np.unique(heights)) == len(heights):
        return places  # the highest of their boxes, so none is near another
    taken, chosen = np.zeros(values.shape, np.bool_), []
    for place in places[np.argsort(-heights, kind="stable")]:
        if not taken[tuple(place)]:
            chosen.append(place)
            taken[tuple(slice(max(0, p - min_distance + 1), p + min_distance) for p in place)] = True
    return np.array(chosen, np.int64).reshape(-1, values.ndim)


def _sorted(places: Places) -> Places:
    ordered: Places = np.ascontiguousarray(places[np.lexsort(places.T)], np.int64)
    return ordered
