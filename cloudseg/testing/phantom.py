"""EM-like tissue with exact truth: neurites packed without gaps, dark membranes, organelles, noise.

The tissue is a weighted Voronoi tessellation of smooth random curves: each voxel belongs to the curve whose
distance, divided by that curve's calibre, is smallest. The image is painted from the same distances, so truth
and picture agree exactly. Project-defined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cloudseg.geometry import XYZ, Box
from cloudseg.ops.affinities import labels_to_affinities
from cloudseg.ops.watershed import supervoxels

_STEP_VX = 3.0
_CELL_VX = 24


@dataclass(frozen=True, slots=True)
class Phantom:
    """A phantom volume.

    Attributes
    ----------
    image
        ``(x, y, z)`` uint8, Fortran order.
    labels
        ``(x, y, z)`` uint64, Fortran order: 1..n, each connected through faces; cells touch, as in dense FIB-SEM truth.
        0 only for a voxel that touches nothing of its own kind.
    voxel_size_nm
        Edge of a voxel along x, y, z.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint64]
    voxel_size_nm: tuple[float, float, float]


def neurite_phantom(shape: XYZ, *, seed: int, calibre_vx: float = 14.0, noise: float = 11.0) -> Phantom:
    """Return a block of neuropil-like tissue at 8 nm per voxel.

    Parameters
    ----------
    shape
        Size in voxels.
    seed
        Same seed, shape and parameters: same bytes.
    calibre_vx
        Typical radius of a neurite.
    noise
        Standard deviation of the detector noise in grey levels.

    Returns
    -------
    Image and truth of one block.
    """
    rng = np.random.default_rng(seed)
    points, owner, calibre, mito_radius = _curves(shape, rng=rng, calibre_vx=calibre_vx)
    order, first = _bin_points(points, shape)
    labels, to_membrane, in_mito = _nearest_curves(
        np.asarray(shape, np.int64),
        points[order].astype(np.float32),
        owner[order].astype(np.int64),
        calibre.astype(np.float32),
        mito_radius[order].astype(np.float32),
        first,
        np.asarray([-(-s // _CELL_VX) + 2 for s in shape], np.int64),
    )
    image = _paint(labels, to_membrane, in_mito, rng=rng, noise=noise)
    # A curve may leave the block and come back: what does not hang together in the block is not one object in it.
    links = np.stack([np.asfortranarray(c) for c in labels_to_affinities(labels + 1)[0] * np.uint8(255)])
    box = Box.of_shape(shape)
    pieces = supervoxels(links, core=box, bounds=box, t_low=255, t_high=255).labels
    ids, rank = np.unique(pieces, return_inverse=True)
    compact = rank.reshape(labels.shape).astype(np.uint64) + np.uint64(ids[0] != 0)
    return Phantom(np.asfortranarray(image), np.asfortranarray(compact), (8.0, 8.0, 8.0))


def _curves(
    shape: XYZ, *, rng: np.random.Generator, calibre_vx: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Random-walk centre lines that together fill the block: points, owners, calibres, mitochondria radii."""
    low, high = -_CELL_VX * np.ones(3), np.asarray(shape) + _CELL_VX
    wanted_length = np.prod(high - low) / (np.pi * calibre_vx**2)
    points, owners, calibres, mitos = [], [], [], []
    length, label = 0.0, 0
    while length < wanted_length:
        position = rng.uniform(low, high)
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        scale = np.exp(rng.normal(0.0, 0.25))
        radius = calibre_vx * min(max(scale, 0.5), 2.2)
        walk = []
        n_steps = int(rng.uniform(0.5, 2.0) * max(high - low) / _STEP_VX)
        for _ in range(n_steps):
            direction = direction + rng.normal(0.0, 0.16, 3)
            direction /= np.linalg.norm(direction)
            position = position + _STEP_VX * direction
            if np.any(position < low) or np.any(position >= high):
                break
            walk.append(position)
        if len(walk) < 4:
            continue
        mito = np.zeros(len(walk))
        for _ in range(rng.poisson(len(walk) * _STEP_VX / 140.0)):
            at, half = rng.integers(len(walk)), int(rng.uniform(4, 14))
            mito[max(0, at - half) : at + half] = radius * rng.uniform(0.4, 0.6)
        points.append(np.array(walk))
        owners.append(np.full(len(walk), label))
        mitos.append(mito)
        calibres.append(radius / calibre_vx)
        length += len(walk) * _STEP_VX * (radius / calibre_vx) ** 2
        label += 1
    return np.concatenate(points), np.concatenate(owners), np.array(calibres), np.concatenate(mitos)


def _bin_points(
    points: npt.NDArray[np.float64], shape: XYZ
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sort points into cells of ``_CELL_VX``: the order, and where each cell begins."""
    cells = np.asarray([-(-s // _CELL_VX) + 2 for s in shape])
    index = np.clip(np.floor(points / _CELL_VX).astype(np.int64) + 1, 0, cells - 1)
    flat = (index[:, 0] * cells[1] + index[:, 1]) * cells[2] + index[:, 2]
    order = np.argsort(flat, kind="stable")
    first = np.searchsorted(flat[order], np.arange(np.prod(cells) + 1))
    return order, first


@numba.njit(cache=True)
def _gap(x, start):  # type: ignore[no-untyped-def]
    """Distance along one axis from a voxel to the cell that begins at ``start``."""
    if x < start:
        return start - x
    return max(x - (start + _CELL_VX - 1), 0)


@numba.njit(cache=True)
def _nearest_curves(shape, points, owner, calibre, mito_radius, first, cells):  # type: ignore[no-untyped-def]
    labels = np.zeros((shape[0], shape[1], shape[2]), np.int64)
    to_membrane = np.zeros((shape[0], shape[1], shape[2]), np.float32)
    in_mito = np.zeros((shape[0], shape[1], shape[2]), np.float32)
    far = np.float32(1e9)
    # Squared distances over squared calibres rank as the distances do, without a root per candidate.
    weight = (1 / np.square(calibre))[owner]
    lightest = weight.min()
    for x in range(shape[0]):
        for y in range(shape[1]):
            for z in range(shape[2]):
                best, second, best_label, best_point = far, far, np.int64(-1), np.int64(-1)
                second_label = np.int64(-1)
                cx, cy, cz = x // _CELL_VX + 1, y // _CELL_VX + 1, z // _CELL_VX + 1
                # Near cells first; then those two cells away that could still hold something nearer: a thick
                # neurite reaches further than a thin one.
                for ring in range(2):
                    reach = ring + 1
                    for i in range(max(cx - reach, 0), min(cx + reach + 1, cells[0])):
                        for j in range(max(cy - reach, 0), min(cy + reach + 1, cells[1])):
                            for k in range(max(cz - reach, 0), min(cz + reach + 1, cells[2])):
                                if ring == 1:
                                    if abs(i - cx) < 2 and abs(j - cy) < 2 and abs(k - cz) < 2:
                                        continue
                                    gx = _gap(x, (i - 1) * _CELL_VX)
                                    gy = _gap(y, (j - 1) * _CELL_VX)
                                    gz = _gap(z, (k - 1) * _CELL_VX)
                                    if (gx * gx + gy * gy + gz * gz) * lightest >= second:
                                        continue
                                cell = (i * cells[1] + j) * cells[2] + k
                                for p in range(first[cell], first[cell + 1]):
                                    dx, dy, dz = points[p, 0] - x, points[p, 1] - y, points[p, 2] - z
                                    label = owner[p]
                                    d = (dx * dx + dy * dy + dz * dz) * weight[p]
                                    if d < best:
                                        if label != best_label:
                                            second, second_label = best, best_label
                                        best, best_label, best_point = d, label, p
                                    elif d < second and label != best_label:
                                        second, second_label = d, label
                labels[x, y, z] = best_label
                best, second = np.sqrt(best), np.sqrt(second)
                if second_label >= 0:
                    scale = 0.5 * (calibre[best_label] + calibre[second_label])
                    to_membrane[x, y, z] = 0.5 * (second - best) * scale
                else:
                    to_membrane[x, y, z] = far
                if best_point >= 0:
                    radius = mito_radius[best_point]
                    if radius > 0:
                        in_mito[x, y, z] = radius - best * calibre[best_label]
                    else:
                        in_mito[x, y, z] = -far
    return labels, to_membrane, in_mito


def _paint(
    labels: npt.NDArray[np.int64],
    to_membrane: npt.NDArray[np.float32],
    in_mito: npt.NDArray[np.float32],
    *,
    rng: np.random.Generator,
    noise: float,
) -> npt.NDArray[np.uint8]:
    """Grey levels from distances: cytoplasm per cell, membranes, mitochondria, vesicles, noise."""
    shape = labels.shape
    tone = rng.normal(0.0, 6.0, int(labels.max()) + 2).astype(np.float32)
    image = np.float32(148.0) + tone[labels]
    image += 60.0 * ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 3.0)
    image += 22.0 * ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 1.2)
    dots = (rng.random(shape, np.float32) < 0.0007) & (to_membrane > 3)
    image -= 900.0 * ndimage.gaussian_filter(dots.astype(np.float32), 1.5)
    mito = (in_mito > 0) & (to_membrane > 2.5)
    image[mito] -= 34.0
    rim = np.exp(-np.square(np.clip(in_mito, -50, 50) / 1.2)) * (to_membrane > 2.0) * (in_mito > -50)
    image -= 38.0 * rim
    image -= 75.0 * np.exp(-np.square(np.minimum(to_membrane, 100) / 1.5))
    image = ndimage.gaussian_filter(image, 0.6) + noise * ndimage.gaussian_filter(
        rng.standard_normal(shape, np.float32), 0.45
    ) * np.float32(1.6)
    grey: npt.NDArray[np.uint8] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return grey
