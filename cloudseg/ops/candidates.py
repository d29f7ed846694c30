"""Where somas may be: maxima of a map of scores, the same for every tiling.

A map is made from what there is: a network's probability, the response of a blob filter, or the depth of a mask or of
the segments of neurons (the radius of the largest ball inside them). All look a bounded way, so a block with a halo
finds its share of the candidates, and a greedy choice over all of them, best first, keeps one in each neighbourhood.
Blobs: Lindeberg 1998, https://doi.org/10.1023/A:1008045108935. The rest is project-defined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box

Floats = npt.NDArray[np.float32]
Size = tuple[float, float, float]

# A Gaussian is cut off here, in deviations.
_CUT = 3.0
# The deviations of a difference of Gaussians stand to each other like this, squared.
_RATIO = 1.26


@dataclass(frozen=True, slots=True)
class Candidates:
    """Places where somas may be.

    Attributes
    ----------
    at
        ``(n, 3)`` int64: voxels, in the volume's coordinates.
    score
        ``(n,)`` float64, higher is better.
    radius_nm
        ``(n,)`` float64.
    segment
        ``(n,)`` uint64: the segment that it lies in; 0 if none is known.
    """

    at: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]
    radius_nm: npt.NDArray[np.float64]
    segment: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.score)

    @classmethod
    def none(cls) -> Self:
        """Return no candidate."""
        return cls(np.zeros((0, 3), np.int64), np.zeros(0), np.zeros(0), np.zeros(0, np.uint64))

    @classmethod
    def joined(cls, parts: list[Candidates]) -> Self:
        """Return the candidates of all ``parts``."""
        every = [cls.none(), *parts]
        return cls(*(np.concatenate([getattr(p, n) for p in every]) for n in cls.__dataclass_fields__))

    def take(self, which: npt.NDArray[Any]) -> Candidates:
        """Return those where ``which`` is True, or at these places."""
        return Candidates(*(getattr(self, n)[which] for n in self.__dataclass_fields__))


def halo_of_blur(sigma_nm: float, voxel_size_nm: Size) -> XYZ:
    """Return how many voxels :func:`blurred` looks to each side."""
    x, y, z = (int(_CUT * sigma_nm / size + 0.5) for size in voxel_size_nm)
    return (x, y, z)


def blurred(values: npt.NDArray[Any], *, sigma_nm: float, voxel_size_nm: Size) -> Floats:
    """Return ``values`` rounded off by a Gaussian; the array's border is mirrored."""
    from scipy import ndimage

    if sigma_nm == 0:
        return values.astype(np.float32)
    out: Floats = ndimage.gaussian_filter(
        values, [sigma_nm / s for s in voxel_size_nm], output=np.float32, mode="mirror", truncate=_CUT
    )
    return out


def blob_response(
    grey: npt.NDArray[Any], *, radii_nm: tuple[float, ...], voxel_size_nm: Size, bright: bool
) -> tuple[Floats, Floats]:
    """Return how much each voxel is the middle of a blob, and of which radius.

    Parameters
    ----------
    grey
        ``(x, y, z)`` grey levels.
    radii_nm
        Radii to try. A ball of radius r answers most to a Gaussian of deviation r / sqrt(3).
    voxel_size_nm
        Edges of a voxel.
    bright
        Whether blobs are brighter than what is round them.

    Returns
    -------
    response, radius_nm
        ``(x, y, z)``: the greatest of the normalised Laplacians, in grey levels; the radius that it belongs to.
    """
    best = np.full(grey.shape, -np.inf, np.float32)
    radius = np.zeros(grey.shape, np.float32)
    for r in sorted(radii_nm):
        sigma = r / math.sqrt(3)
        # A difference of Gaussians is the Laplacian with the factor that makes scales comparable.
        inner = blurred(grey, sigma_nm=sigma / _RATIO, voxel_size_nm=voxel_size_nm)
        outer = blurred(grey, sigma_nm=sigma * _RATIO, voxel_size_nm=voxel_size_nm)
        response = inner - outer if bright else outer - inner
        better = response > best
        best[better] = response[better]
        radius[better] = r
    return best, radius


def halo_of_blobs(radii_nm: tuple[float, ...], voxel_size_nm: Size) -> XYZ:
    """Return how many voxels :func:`blob_response` looks to each side."""
    return halo_of_blur(max(radii_nm) / math.sqrt(3) * _RATIO, voxel_size_nm)


def quiet_mask(
    grey: npt.NDArray[Any],
    *,
    grey_range: tuple[float, float],
    max_deviation: float,
    sigma_nm: float,
    voxel_size_nm: Size,
) -> npt.NDArray[np.bool_]:
    """Return where the image is of middling grey and little texture, as in nuclei and cell bodies.

    Parameters
    ----------
    grey
        ``(x, y, z)`` grey levels.
    grey_range
        Least and greatest local mean.
    max_deviation
        Greatest local deviation.
    sigma_nm
        Size of the neighbourhood.
    voxel_size_nm
        Edges of a voxel.
    """
    values = grey.astype(np.float32)
    mean = blurred(values, sigma_nm=sigma_nm, voxel_size_nm=voxel_size_nm)
    square = blurred(values * values, sigma_nm=sigma_nm, voxel_size_nm=voxel_size_nm)
    low, high = grey_range
    quiet: npt.NDArray[np.bool_] = square - mean * mean <= max_deviation**2
    quiet &= (mean >= low) & (mean <= high)
    return quiet


def depth_nm(inside: npt.NDArray[Any], *, limit_nm: float, voxel_size_nm: Size) -> Floats:
    """Return how far each voxel inside is from what is outside, at most ``limit_nm``.

    Parameters
    ----------
    inside
        ``(x, y, z)``: a mask, or ids: then each is measured against all others. 0 is outside.
    limit_nm
        The result is exact as far as the array reaches this far round a voxel.
    voxel_size_nm
        Edges of a voxel, rounded to sixteenths of a nanometre, so that squares of distances are whole numbers.

    Returns
    -------
    ``(x, y, z)`` float32, the distance between the centres of voxels.
    """
    from scipy import ndimage

    free = np.asarray(inside) != 0
    if inside.dtype != np.bool_:
        for axis in range(3):
            low: list[slice] = [slice(None)] * 3
            high = list(low)
            low[axis], high[axis] = slice(None, -1), slice(1, None)
            differ = inside[tuple(low)] != inside[tuple(high)]
            free[tuple(low)] &= ~differ
            free[tuple(high)] &= ~differ
    if free.all():
        return np.full(free.shape, limit_nm, np.float32)
    steps = [max(1, round(size * 16)) for size in voxel_size_nm]
    nearest = ndimage.distance_transform_edt(
        free, sampling=steps, return_distances=False, return_indices=True
    )
    square = np.zeros(free.shape, np.int64)
    for axis, step in enumerate(steps):
        here = np.arange(free.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        square += ((nearest[axis] - here).astype(np.int64) * step) ** 2
    depth: Floats = np.minimum(np.sqrt(square) / 16, limit_nm).astype(np.float32)
    return depth


def halo_of_depth(limit_nm: float, voxel_size_nm: Size) -> XYZ:
    """Return how many voxels :func:`depth_nm` looks to each side."""
    x, y, z = (math.ceil(limit_nm / size) + 1 for size in voxel_size_nm)
    return (x, y, z)


def peaks(score: Floats, *, core: Box, outer: Box, least: float, window: XYZ) -> npt.NDArray[np.int64]:
    """Return the voxels of ``core`` whose score is the greatest in their window.

    Parameters
    ----------
    score
        ``(x, y, z)`` over ``outer``, which is ``core`` grown by ``window`` and cut off at the volume's border.
    core, outer
        The block, and what was read.
    least
        Smaller scores are no peaks.
    window
        Voxels to each side. Of equal scores the first voxel counts, x fastest.

    Returns
    -------
    ``(n, 3)`` int64 in the volume's coordinates, x fastest.
    """
    if score.shape != outer.shape:
        raise SpecError(
            f"the scores must have the shape {outer.shape} of the box that was read, got {score.shape}"
        )
    inner = core.slices_in(outer)
    low = np.array([s.start for s in inner], np.int64)
    high = np.array([s.stop for s in inner], np.int64)
    found: npt.NDArray[np.int64] = _peaks(
        np.asfortranarray(score), low, high, np.array(window, np.int64), np.float32(least)
    )
    found += np.array(outer.start, np.int64)
    return found


def suppressed(candidates: Candidates, *, distance_nm: float, voxel_size_nm: Size) -> Candidates:
    """Return the candidates that no better one is near, best first.

    Parameters
    ----------
    candidates
        Of the whole volume, in any order.
    distance_nm
        No two of the result are nearer than this. Of equal scores the first voxel counts, x fastest.
    voxel_size_nm
        Edges of a voxel.
    """
    from scipy.spatial import cKDTree

    x, y, z = candidates.at.T
    ordered = candidates.take(np.lexsort((x, y, z, -candidates.score)))
    keep = np.ones(len(ordered), np.bool_)
    points = ordered.at * np.asarray(voxel_size_nm)
    if len(ordered) > 1 and distance_nm > 0:
        tree = cKDTree(points)
        for i in range(len(ordered)):
            if keep[i]:
                near = np.array(tree.query_ball_point(points[i], distance_nm), np.int64)
                keep[near[near > i]] = False
    return ordered.take(keep)


def near_candidates(
    box: Box, candidates: Candidates, *, margin_nm: float, voxel_size_nm: Size
) -> npt.NDArray[np.bool_]:
    """Return ``(x, y, z)``: which voxels of ``box`` lie in a candidate's ball, of its radius and a margin."""
    mask = np.zeros(box.shape, np.bool_, order="F")
    size = np.asarray(voxel_size_nm)
    radii = candidates.radius_nm + margin_nm
    reach = np.floor(radii[:, None] / size).astype(np.int64)
    meets = (candidates.at + reach >= box.start) & (candidates.at - reach < box.stop)
    for n in np.flatnonzero(meets.all(axis=1)):
        at = candidates.at[n]
        ball = Box(tuple(at - reach[n]), tuple(at + reach[n] + 1)).intersect(box)
        x, y, z = (
            ((np.arange(low, high) - c) * s) ** 2
            for low, high, c, s in zip(ball.start, ball.stop, at, size, strict=True)
        )
        near = x[:, None, None] + y[None, :, None] + z[None, None, :] <= radii[n] ** 2
        mask[ball.slices_in(box)] |= near
    return mask


def tissue_cells(
    grey: npt.NDArray[Any],
    *,
    cell: XYZ,
    min_deviation: float,
    grey_range: tuple[float, float],
    fill: Literal[0, 255] | None = 0,
    missing: XYZ = (0, 0, 0),
) -> npt.NDArray[np.bool_]:
    """Return which cells of an image hold tissue: they have texture and are neither black nor white.

    Parameters
    ----------
    grey
        ``(x, y, z)`` grey levels.
    cell
        Voxels of a cell; the last ones of each axis may be smaller.
    min_deviation
        Least deviation of the grey levels in a cell.
    grey_range
        Least and greatest mean.
    fill
        Voxels of exactly this value were never imaged and do not count; a cell of mostly them is none. None: all count.
    missing
        How many voxels of the first cell of each axis lie before ``grey``.

    Returns
    -------
    One bool per cell.
    """
    values = grey.astype(np.float64)
    known = np.ones(grey.shape, np.bool_) if fill is None else grey != fill
    total = _cell_sums(np.ones(grey.shape), cell, missing)
    n = _cell_sums(known.astype(np.float64), cell, missing)
    mean = _cell_sums(np.where(known, values, 0.0), cell, missing) / np.maximum(n, 1)
    square = _cell_sums(np.where(known, values * values, 0.0), cell, missing) / np.maximum(n, 1)
    low, high = grey_range
    enough: npt.NDArray[np.bool_] = 2 * n >= total
    return enough & (square - mean * mean >= min_deviation**2) & (mean >= low) & (mean <= high)


def _cell_sums(values: npt.NDArray[np.float64], cell: XYZ, missing: XYZ) -> npt.NDArray[np.float64]:
    for axis, (edge, before) in enumerate(zip(cell, missing, strict=True)):
        starts = np.arange(-before, values.shape[axis], edge)
        values = np.add.reduceat(values, np.maximum(starts, 0), axis=axis)
    return values


@numba.njit(cache=True)
def _peaks(score, low, high, window, least):  # type: ignore[no-untyped-def]
    nx, ny, nz = score.shape
    out = []
    for k in range(low[2], high[2]):
        for j in range(low[1], high[1]):
            for i in range(low[0], high[0]):
                mine = score[i, j, k]
                if not mine >= least:
                    continue
                # The neighbours along x are cheap to ask, and most voxels fail there.
                if (i > 0 and window[0] > 0 and score[i - 1, j, k] >= mine) or (
                    i + 1 < nx and window[0] > 0 and score[i + 1, j, k] > mine
                ):
                    continue
                top = True
                for c in range(max(0, k - window[2]), min(nz, k + window[2] + 1)):
                    for b in range(max(0, j - window[1]), min(ny, j + window[1] + 1)):
                        for a in range(max(0, i - window[0]), min(nx, i + window[0] + 1)):
                            other = score[a, b, c]
                            before = c < k or (c == k and (b < j or (b == j and a < i)))
                            if other > mine or (other == mine and before):
                                top = False
                                break
                        if not top:
                            break
                    if not top:
                        break
                if top:
                    out.append((i, j, k))
    found = np.empty((len(out), 3), np.int64)
    for n in range(len(out)):
        found[n, 0], found[n, 1], found[n, 2] = out[n]
    return found
