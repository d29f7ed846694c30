"""Random changes that EM undergoes anyway: orientation, bending, contrast, noise, blur, lost sections.

Every function takes a numpy ``Generator`` and gives the same result for the same state of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.generic]


def orient(
    image: Image, labels: Labels, *, rng: np.random.Generator, isotropic: bool
) -> tuple[Image, Labels]:
    """Flip and transpose at random: 48 orientations of isotropic data, 16 where z is special."""
    axes = tuple(rng.permutation(3)) if isotropic else (*rng.permutation(2), 2)
    flips = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(3))
    return image.transpose(axes)[flips], labels.transpose(axes)[flips]


def bend(
    image: Image, labels: Labels, *, rng: np.random.Generator, spacing_vx: int = 32, strength_vx: float = 3.0
) -> tuple[Image, Labels]:
    """Deform smoothly: random displacements on a coarse grid, linear in between; labels by nearest neighbour."""
    knots = [max(size // spacing_vx, 2) + 2 for size in image.shape]
    along_x, along_y, along_z = (_hats(size, n) for size, n in zip(image.shape, knots, strict=True))
    position = np.empty((3, *image.shape), np.float32)
    for axis, size in enumerate(image.shape):
        field = rng.normal(0.0, strength_vx, knots).astype(np.float32)
        position[axis] = np.einsum("abc,xa,yb,zc->xyz", field, along_x, along_y, along_z, optimize=True)
        line = [1, 1, 1]
        line[axis] = size
        position[axis] += np.arange(size, dtype=np.float32).reshape(line)
    bent = ndimage.map_coordinates(image, position, order=1, mode="reflect", output=np.float32)
    nearest = np.rint(position).astype(np.int32)
    for axis, size in enumerate(image.shape):
        np.clip(nearest[axis], 0, size - 1, out=nearest[axis])
    return bent, labels[tuple(nearest)]


def _hats(size: int, n_knots: int) -> npt.NDArray[np.float32]:
    """``(size, n_knots)``: the weight of each knot at each voxel, for linear interpolation between them."""
    place = np.linspace(0, n_knots - 1, size, dtype=np.float32)[:, None]
    weights: npt.NDArray[np.float32] = np.maximum(0, 1 - np.abs(place - np.arange(n_knots, dtype=np.float32)))
    return weights


def recolour(image: Image, *, rng: np.random.Generator) -> Image:
    """Change contrast, brightness, gamma, sharpness and noise of a normalised image (mean 0, deviation 1)."""
    image = image * np.float32(rng.uniform(0.75, 1.3)) + np.float32(rng.normal(0.0, 0.25))
    if rng.random() < 0.3:
        low, high = float(image.min()), float(image.max())
        image = ((image - low) / max(high - low, 1e-6)) ** np.float32(np.exp(rng.normal(0.0, 0.25))) * (
            high - low
        ) + low
    if rng.random() < 0.25:
        image = ndimage.gaussian_filter(image, rng.uniform(0.4, 1.1))
    if rng.random() < 0.4:
        image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.0, 0.3))
    return image.astype(np.float32)


def spoil_sections(image: Image, *, rng: np.random.Generator) -> Image:
    """Lose a section, or change its contrast, along the section axis z."""
    image = image.copy()
    z = int(rng.integers(image.shape[2]))
    if rng.random() < 0.5:
        image[:, :, z] = 0.0
    else:
        image[:, :, z] = image[:, :, z] * rng.uniform(0.4, 1.6) + rng.normal(0.0, 0.5)
    return image
