"""Where a soma is: its deepest voxel, and how near the others are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ

Floats = npt.NDArray[np.float64]

_N_BALL = 2000


def deepest_voxel(mask: npt.NDArray[Any], *, voxel_size_nm: tuple[float, float, float]) -> tuple[XYZ, float]:
    """Return the voxel of ``mask`` that is farthest from all that is outside, and how far that is in nm.

    Parameters
    ----------
    mask
        ``(x, y, z)``; 0 is outside, as is all beyond the array.
    voxel_size_nm
        Edge of a voxel along x, y, z.

    Returns
    -------
    The index of the voxel (the first, x fastest, of equally deep ones) and the distance from its centre to the
    nearest centre of a voxel outside.

    Raises
    ------
    SpecError
        If no voxel is set.

    Examples
    --------
    >>> ring = np.ones((5, 5, 1), bool)
    >>> ring[2, 2] = False
    >>> deepest_voxel(ring, voxel_size_nm=(8, 8, 8))
    ((0, 0, 0), 8.0)
    """
    from scipy import ndimage

    inside = np.asarray(mask) != 0
    if not inside.any():
        raise SpecError("the mask has no voxel, so none is the deepest")
    padded = np.pad(inside, 1)
    depth = ndimage.distance_transform_edt(padded, sampling=voxel_size_nm)[1:-1, 1:-1, 1:-1]
    flat = int(np.argmax(depth.ravel(order="F")))
    x, y, z = (int(v) for v in np.unravel_index(flat, depth.shape, order="F"))
    return (x, y, z), float(depth[x, y, z])


def nearest_distances(points_nm: Floats) -> Floats:
    """Return for each point the distance to the nearest other one; infinite where there is no other.

    Parameters
    ----------
    points_nm
        ``(n, 3)`` float64.
    """
    from scipy.spatial import KDTree

    points = np.asarray(points_nm, np.float64).reshape(-1, 3)
    if len(points) < 2:
        return np.full(len(points), np.inf)
    # Two neighbours: itself and the other; a point at the same place counts as another.
    found: Floats = KDTree(points).query(points, k=2)[0][:, 1]
    return found


def neighbour_counts(points_nm: Floats, *, radius_nm: float) -> npt.NDArray[np.int64]:
    """Return for each point how many others lie within ``radius_nm``.

    Parameters
    ----------
    points_nm
        ``(n, 3)`` float64.
    radius_nm
        Positive; a point at exactly that distance counts.
    """
    from scipy.spatial import KDTree

    if not radius_nm > 0:
        raise SpecError(f"the radius of a neighbourhood must be above 0 nm, got {radius_nm}")
    points = np.asarray(points_nm, np.float64).reshape(-1, 3)
    if not len(points):
        return np.empty(0, np.int64)
    counts = KDTree(points).query_ball_point(points, radius_nm, return_length=True)
    return np.asarray(counts, np.int64) - 1


def ball_fractions(
    points_nm: Floats,
    *,
    radius_nm: float,
    lower_nm: tuple[float, float, float],
    upper_nm: tuple[float, float, float],
) -> Floats:
    """Return which part of a ball about each point lies in a box: 1 in its middle, an eighth in its corners.

    Parameters
    ----------
    points_nm
        ``(n, 3)`` float64, in the box.
    radius_nm
        Of the balls.
    lower_nm, upper_nm
        Corners of the box.

    Notes
    -----
    Counted with the same 2,000 evenly spread points for each ball: the error is about 0.01.
    """
    points = np.asarray(points_nm, np.float64).reshape(-1, 3)
    low, high = np.asarray(lower_nm, np.float64), np.asarray(upper_nm, np.float64)
    fractions = np.ones(len(points))
    near = np.flatnonzero(((points - low < radius_nm) | (high - points < radius_nm)).any(axis=1))
    # A spiral of golden angles over shells of equal volume (Fibonacci lattice).
    k = np.arange(_N_BALL) + 0.5
    r = radius_nm * np.cbrt((k * 0.7548776662466927) % 1.0)
    cos, angle = 1 - 2 * k / _N_BALL, k * np.pi * (3 - np.sqrt(5))
    sin = np.sqrt(1 - cos**2)
    spread = np.stack([r * sin * np.cos(angle), r * sin * np.sin(angle), r * cos], axis=1)
    for some in np.array_split(near, max(1, len(near) // 1000)):
        at = points[some, None] + spread
        fractions[some] = ((at >= low) & (at < high)).all(axis=2).mean(axis=1)
    return fractions
