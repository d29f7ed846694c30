"""Plant-like tissue in light microscopy with exact truth: polyhedral cells, bright walls, blur, haze, nuclei, noise.

Cells are a Voronoi tessellation of scattered points under a metric of its own per volume, bent a little; the image is
painted from the same distances. Walls differ in brightness, so that some are hardly seen: as in real stacks, only
their neighbours tell where they are. Project-defined.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial

from cloudseg.geometry import XYZ
from cloudseg.testing.phantom import Phantom

Float = npt.NDArray[np.float32]


def cell_phantom(
    shape: XYZ, *, seed: int, voxel_size_nm: tuple[float, float, float] = (160.0, 160.0, 250.0)
) -> Phantom:
    """Return a block of cells whose walls are stained.

    Parameters
    ----------
    shape
        Size in voxels.
    seed
        Same seed, shape and voxel size: same bytes. It also draws what differs between specimens and microscopes:
        size and form of the cells, thickness and brightness of walls, blur, haze, light, noise.
    voxel_size_nm
        Edge of a voxel along x, y, z.

    Returns
    -------
    Image and truth of one block.
    """
    rng = np.random.default_rng(seed)
    labels, to_wall, wall = _tessellate(shape, rng=rng, voxel_size_nm=voxel_size_nm)
    image = _paint(labels, to_wall, wall, rng=rng, voxel_size_nm=voxel_size_nm)
    return Phantom(
        np.asfortranarray(image), np.asfortranarray(labels.astype(np.uint64) + np.uint64(1)), voxel_size_nm
    )


def _tessellate(
    shape: XYZ, *, rng: np.random.Generator, voxel_size_nm: tuple[float, float, float]
) -> tuple[npt.NDArray[np.int64], Float, npt.NDArray[np.int64]]:
    """Return the cell of each voxel, how far its nearest wall is in nm, and a number of that wall."""
    size = np.asarray(voxel_size_nm)
    diameter = np.exp(rng.uniform(np.log(4000.0), np.log(12000.0)))
    # Some tissues grow along their axes, in files of long or flat cells.
    turn = np.eye(3) if rng.random() < 0.5 else spatial.transform.Rotation.random(rng=rng).as_matrix()
    stretch = np.exp(rng.normal(0.0, rng.choice([0.3, 0.6]), 3))
    # In this space cells are as wide as long.
    metric = turn @ np.diag(1 / (stretch / np.cbrt(stretch.prod()))) @ turn.T
    low, high = -1.5 * diameter * np.ones(3), np.asarray(shape) * size + 1.5 * diameter
    points = _scattered(low, high, diameter, rng=rng) @ metric.T
    where = np.stack(
        np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, size, strict=True)), indexing="ij"), axis=-1
    )
    for axis in range(3):
        field = _smooth_noise(shape, 0.25 * diameter / size, rng=rng)
        where[..., axis] += field * (rng.uniform(0.0, 0.08) * diameter)
    distance, nearest = spatial.cKDTree(points).query(where.reshape(-1, 3) @ metric.T, k=2)
    apart = np.linalg.norm(points[nearest[:, 0]] - points[nearest[:, 1]], axis=1)
    # Exactly how far the plane between the two points is, in the cells' metric.
    to_wall = (np.square(distance[:, 1]) - np.square(distance[:, 0])) / (2 * np.maximum(apart, 1.0))
    _, rank = np.unique(nearest[:, 0], return_inverse=True)
    wall = nearest.min(axis=1) * np.int64(len(points)) + nearest.max(axis=1)
    return (
        _connected(rank.reshape(shape)),
        to_wall.reshape(shape).astype(np.float32),
        wall.reshape(shape),
    )


def _smooth_noise(
    shape: tuple[int, ...], deviation_vx: npt.NDArray[np.float64], *, rng: np.random.Generator
) -> Float:
    """Return smooth noise of mean 0 and deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), deviation_vx, mode="wrap")
    noise -= noise.mean()
    smooth: Float = noise / max(float(noise.std()), 1e-6)
    return smooth


def _scattered(
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    diameter: float,
    *,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Return points about ``diameter`` apart: one somewhere in each cell of a grid, those too near another left out."""
    counts = np.ceil((high - low) / diameter).astype(int)
    corners = np.array(list(itertools.product(*(range(n) for n in counts))), float)
    points: npt.NDArray[np.float64] = (
        low + (corners + rng.uniform(0.0, rng.uniform(0.5, 1.0), corners.shape)) * diameter
    )
    close = spatial.cKDTree(points).query_pairs(0.45 * diameter, output_type="ndarray")
    return np.delete(points, np.unique(close[:, 1]), axis=0)


def _connected(rank: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give the pieces of a cell that the bending tore apart ids of their own."""
    pieces, n = np.zeros(rank.shape, np.int64), 0
    for cell, box in enumerate(ndimage.find_objects(rank + 1)):
        if box is None:
            continue
        found, count = ndimage.label(rank[box] == cell)
        pieces[box] += np.where(found > 0, found + n, 0)
        n += count
    return pieces - 1


def _paint(
    labels: npt.NDArray[np.int64],
    to_wall: Float,
    wall: npt.NDArray[np.int64],
    *,
    rng: np.random.Generator,
    voxel_size_nm: tuple[float, float, float],
) -> npt.NDArray[np.uint8]:
    """Grey levels: walls, cytoplasm, nuclei; then what the microscope does to them."""
    shape, size = labels.shape, np.asarray(voxel_size_nm)
    n_cells = int(labels.max()) + 1
    ids, rank = np.unique(wall, return_inverse=True)
    lit = np.exp(rng.normal(0.0, 0.45, len(ids)))
    thickness = rng.uniform(120.0, 260.0)
    body = np.abs(rng.normal(0.0, rng.uniform(0.02, 0.12), n_cells))
    bright = lit[rank].reshape(shape) * np.exp(-np.square(to_wall / thickness))
    image = (bright + body[labels]).astype(np.float32)
    image += _nuclei(labels, size, rng=rng) * rng.uniform(0.0, 0.35)
    sharp = rng.uniform(100.0, 300.0)
    deep = sharp * np.exp(rng.uniform(np.log(1.5), np.log(10.0)))  # light microscopes see worse along z
    image = ndimage.gaussian_filter(image, np.array([sharp, sharp, deep]) / size)
    # What lies deeper is seen through more tissue: less and less sharp.
    murk = rng.uniform(0.0, 1.0) * np.linspace(0, 1, shape[2], dtype=np.float32) ** rng.choice([1.0, 2.0])
    image += murk * (
        ndimage.gaussian_filter(image, np.array([2 * sharp, 2 * sharp, 2 * deep]) / size) - image
    )
    image += rng.uniform(0.1, 0.9) * ndimage.gaussian_filter(image, np.array([900.0, 900.0, 2500.0]) / size)
    image *= np.exp(rng.uniform(0.0, 0.5) * _smooth_noise(shape, 5000.0 / size, rng=rng))
    image *= np.exp(-rng.uniform(0.0, 0.8) * np.linspace(0, 1, shape[2]) ** rng.choice([1.0, 2.0]))
    image *= 1 - rng.uniform(0.0, 0.3) * (rng.random((*shape[:2], 1)) < 0.03)  # pixels of the camera
    photons = np.exp(rng.uniform(np.log(8.0), np.log(200.0)))
    image = rng.poisson(np.maximum(image, 0) * photons).astype(np.float32) / np.float32(photons)
    black, white = float(np.percentile(image, 0.5)) * rng.uniform(0.5, 1.0), float(np.percentile(image, 99.7))
    scaled = (image - black) / max(white - black, 1e-6) * rng.uniform(180.0, 320.0) + rng.uniform(0.0, 20.0)
    grey: npt.NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return grey


def _nuclei(
    labels: npt.NDArray[np.int64], size: npt.NDArray[np.float64], *, rng: np.random.Generator
) -> Float:
    """A faint ball in the middle of some cells."""
    image = np.zeros(labels.shape, np.float32)
    seen = rng.random(int(labels.max()) + 1) < rng.uniform(0.0, 0.6)
    for cell, box in enumerate(ndimage.find_objects(labels + 1)):
        if box is None or not seen[cell]:
            continue
        mask = labels[box] == cell
        middle = np.array(ndimage.center_of_mass(mask)) * size
        radius = 0.5 * np.cbrt(mask.sum() * size.prod()) * rng.uniform(0.4, 0.7)
        grid = np.stack(
            np.meshgrid(*(np.arange(n) * s for n, s in zip(mask.shape, size, strict=True)), indexing="ij")
        )
        far = np.sqrt(np.square(grid - middle[:, None, None, None]).sum(axis=0))
        image[box] += np.clip((radius - far) / 300.0 + 0.5, 0, 1) * mask
    return image
