"""Random changes of a patch's geometry: orientation, rotation, bending, sections that slid out of place.

All deformation is one resampling, straight out of the block: a rotated patch sees real tissue at its corners, not a
mirror image, and what lies outside of the block is unknown. Every function takes a numpy ``Generator`` and gives the
same result for the same state of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cloudseg.geometry import XYZ
from cloudseg.training.labels import UNKNOWN, Ids

Image = npt.NDArray[np.float32]
Positions = npt.NDArray[np.float32]
Orientation = tuple[tuple[int, int, int], tuple[bool, bool, bool]]


def draw_orientation(rng: np.random.Generator, *, isotropic: bool) -> Orientation:
    """Return axes and flips at random: one of 48 for isotropic data, of 16 where z is special."""
    axes = tuple(rng.permutation(3)) if isotropic else (*rng.permutation(2), 2)
    flips = tuple(bool(rng.random() < 0.5) for _ in range(3))
    return (int(axes[0]), int(axes[1]), int(axes[2])), (flips[0], flips[1], flips[2])


def shape_before(shape: XYZ, orientation: Orientation) -> XYZ:
    """Return the shape to cut so that :func:`orient` makes ``shape`` of it."""
    before = [0, 0, 0]
    for axis, size in zip(orientation[0], shape, strict=True):
        before[axis] = size
    return (before[0], before[1], before[2])


def orient(array: npt.NDArray[np.generic], orientation: Orientation) -> npt.NDArray[np.generic]:
    """Transpose and flip ``(x, y, z)``; a view."""
    axes, flips = orientation
    return array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def grid(shape: XYZ) -> Positions:
    """Return ``(3, x, y, z)``: each voxel's own position."""
    return np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))


def rotate(position: Positions, *, rng: np.random.Generator, most_deg: float, isotropic: bool) -> None:
    """Turn by a random angle round the middle, within sections; of isotropic data in any of the three planes."""
    angle = np.deg2rad(rng.uniform(-most_deg, most_deg))
    planes = ((0, 1), (0, 2), (1, 2))
    a, b = planes[int(rng.integers(3))] if isotropic else planes[0]
    shape = position.shape[1:]
    u = position[a] - np.float32((shape[a] - 1) / 2)
    v = position[b] - np.float32((shape[b] - 1) / 2)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    position[a] += u * (cos - 1) - v * sin
    position[b] += u * sin + v * (cos - 1)


def bend(
    position: Positions,
    *,
    rng: np.random.Generator,
    strength_vx: tuple[float, float, float],
    spacing_vx: tuple[float, float, float],
) -> None:
    """Displace smoothly: random vectors on a coarse grid, linear in between.

    Parameters
    ----------
    position
        ``(3, x, y, z)``; changed in place.
    rng
        Where chance comes from.
    strength_vx
        Deviation of a displacement, axis by axis.
    spacing_vx
        Distance of the grid's knots, axis by axis.
    """
    shape = position.shape[1:]
    knots = [max(int(size / space), 2) + 2 for size, space in zip(shape, spacing_vx, strict=True)]
    along_x, along_y, along_z = (_hats(size, n) for size, n in zip(shape, knots, strict=True))
    for axis in range(3):
        field = rng.normal(0.0, strength_vx[axis], knots).astype(np.float32)
        # One axis at a time, the longest product last.
        part = np.tensordot(along_x, field, axes=(1, 0))
        part = np.tensordot(part, along_y, axes=(1, 1))
        position[axis] += np.tensordot(part, along_z, axes=(1, 1))


def elastic(position: Positions, *, rng: np.random.Generator, alpha_vx: float, sigma_vx: float) -> None:
    """Displace along x and y, all sections alike: noise from -1 to 1, smoothed, times ``alpha_vx``.

    After Simard et al. 2003 (https://doi.org/10.1109/ICDAR.2003.1227801).
    """
    for axis in range(2):
        noise = rng.uniform(-1.0, 1.0, position.shape[1:3]).astype(np.float32)
        field = ndimage.gaussian_filter(noise, sigma_vx, mode="constant") * np.float32(alpha_vx)
        position[axis] += field[:, :, None]


def slide(position: Positions, *, rng: np.random.Generator, most_vx: float) -> None:
    """Shift all sections above a random one along x and y: the stack was badly aligned there."""
    z = int(rng.integers(1, max(position.shape[3], 2)))
    position[0, :, :, z:] += np.float32(rng.uniform(-most_vx, most_vx))
    position[1, :, :, z:] += np.float32(rng.uniform(-most_vx, most_vx))


def resample(
    image: npt.NDArray[np.generic], ids: Ids, position: Positions, *, corner: XYZ
) -> tuple[Image, Ids]:
    """Read image (linear) and ids (nearest) at ``position`` past ``corner``.

    Parameters
    ----------
    image, ids
        The whole block, ``(x, y, z)``.
    position
        ``(3, x, y, z)``.
    corner
        Voxel of the block that is position 0.

    Returns
    -------
    Grey levels (mirrored outside of the block) and ids (unknown outside of it).
    """
    place = position + np.array(corner, np.float32)[:, None, None, None]
    low = [max(int(np.floor(p.min())), 0) for p in place]
    high = [min(int(np.ceil(p.max())) + 1, size) for p, size in zip(place, image.shape, strict=True)]
    low = [min(a, size - 1) for a, size in zip(low, image.shape, strict=True)]
    high = [max(b, a + 1) for a, b in zip(low, high, strict=True)]
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    place -= np.array(low, np.float32)[:, None, None, None]
    grey = ndimage.map_coordinates(
        image[window].astype(np.float32), place, order=1, mode="reflect", output=np.float32
    )
    nearest = np.rint(place).astype(np.int32)
    inside = np.ones(position.shape[1:], np.bool_)
    part = ids[window]
    for axis, size in enumerate(part.shape):
        inside &= (nearest[axis] >= 0) & (nearest[axis] < size)
        np.clip(nearest[axis], 0, size - 1, out=nearest[axis])
    found = np.where(inside, part[tuple(nearest)], np.int32(UNKNOWN))
    return grey, found.astype(np.int32, copy=False)


def _hats(size: int, n_knots: int) -> npt.NDArray[np.float32]:
    """``(size, n_knots)``: the weight of each knot at each voxel, for linear interpolation between them."""
    place = np.linspace(0, n_knots - 1, size, dtype=np.float32)[:, None]
    weights: npt.NDArray[np.float32] = np.maximum(0, 1 - np.abs(place - np.arange(n_knots, dtype=np.float32)))
    return weights
