"""Random changes of grey levels: contrast, gamma, blur, noise; lost and spoiled sections; light microscopy's faults.

Images are ``(x, y, z)`` float32, normalised (mean 0, deviation 1), sections along z. No function changes its input.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Image = npt.NDArray[np.float32]


def stretch(image: Image, *, rng: np.random.Generator) -> Image:
    """Change contrast and brightness."""
    return image * np.float32(rng.uniform(0.75, 1.3)) + np.float32(rng.normal(0.0, 0.25))


def gamma(image: Image, *, rng: np.random.Generator) -> Image:
    """Bend the grey scale between the darkest and the brightest voxel."""
    low, high = float(image.min()), float(image.max())
    span = max(high - low, 1e-6)
    exponent = np.float32(np.exp(rng.normal(0.0, 0.25)))
    return (((image - low) / span) ** exponent * span + low).astype(np.float32)


def blur(image: Image, *, rng: np.random.Generator, along_z: float = 1.0) -> Image:
    """Lose sharpness; ``along_z`` is the blur along z relative to that within sections."""
    deviation = rng.uniform(0.4, 1.1)
    blurred: Image = ndimage.gaussian_filter(image, (deviation, deviation, deviation * along_z))
    return blurred


def noise(image: Image, *, rng: np.random.Generator, most: float = 0.3) -> Image:
    """Add noise of a random strength, up to a deviation of ``most``."""
    return image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.0, most))


def lose_sections(image: Image, *, rng: np.random.Generator, most: int = 2) -> Image:
    """Make one to ``most`` neighbouring sections uniformly grey."""
    n = int(rng.integers(1, most + 1))
    z = int(rng.integers(image.shape[2]))
    image = image.copy()
    image[:, :, z : z + n] = np.float32(rng.normal(0.0, 0.5))
    return image


def shift_section(image: Image, *, rng: np.random.Generator, most_vx: float = 8.0) -> Image:
    """Shift a single section along x and y: only the image, for the neurite goes on where it was."""
    z = int(rng.integers(image.shape[2]))
    by = rng.uniform(-most_vx, most_vx, 2)
    image = image.copy()
    image[:, :, z] = ndimage.shift(image[:, :, z], by, order=1, mode="reflect")
    return image


def recolour_section(image: Image, *, rng: np.random.Generator) -> Image:
    """Change contrast and brightness of one section."""
    z = int(rng.integers(image.shape[2]))
    image = image.copy()
    image[:, :, z] = image[:, :, z] * np.float32(rng.uniform(0.4, 1.6)) + np.float32(rng.normal(0.0, 0.5))
    return image


def jump(image: Image, *, rng: np.random.Generator) -> Image:
    """Change contrast and brightness from some section on: the microscope was stopped there."""
    z = int(rng.integers(1, max(image.shape[2], 2)))
    image = image.copy()
    image[:, :, z:] = image[:, :, z:] * np.float32(rng.uniform(0.7, 1.3)) + np.float32(rng.normal(0.0, 0.4))
    return image


def defocus_section(image: Image, *, rng: np.random.Generator) -> Image:
    """Blur one section."""
    z = int(rng.integers(image.shape[2]))
    image = image.copy()
    image[:, :, z] = ndimage.gaussian_filter(image[:, :, z], rng.uniform(1.0, 3.0))
    return image


def published_grey(image: Image, *, rng: np.random.Generator) -> Image:
    """Change contrast, brightness and gamma, either of the whole patch or of each section by itself.

    By up to 15 %, 15 % of the range between the darkest and the brightest voxel, and exponents from 1/2 to 2.
    """
    low, high = float(image.min()), float(image.max())
    span = max(high - low, 1e-6)
    n = image.shape[2] if rng.random() < 0.5 else 1
    contrast, brightness, power = rng.random((3, n)).astype(np.float32)
    unit = (image - np.float32(low)) / np.float32(span)
    unit = unit * (1 + (contrast - np.float32(0.5)) * np.float32(0.3))
    unit = np.clip(unit + (brightness - np.float32(0.5)) * np.float32(0.3), 0, 1)
    changed: Image = (unit ** np.float32(2) ** (2 * power - 1)) * np.float32(span) + np.float32(low)
    return changed.astype(np.float32)


def shot_noise(image: Image, *, rng: np.random.Generator) -> Image:
    """Count photons: noise that grows with the signal, by Poisson's law."""
    dark = float(image.min())
    photons_per_unit = np.float32(rng.uniform(8.0, 60.0))
    counted = rng.poisson((image - dark) * photons_per_unit)
    return (counted / photons_per_unit + dark).astype(np.float32)


def dim_with_depth(image: Image, *, rng: np.random.Generator) -> Image:
    """Let light fade along z, from either side: scattering and bleaching."""
    dark = float(image.min())
    left = rng.uniform(0.3, 1.0)
    fade = left ** np.linspace(0.0, 1.0, image.shape[2], dtype=np.float32)
    if rng.random() < 0.5:
        fade = fade[::-1]
    return ((image - dark) * fade + dark).astype(np.float32)


def haze(image: Image, *, rng: np.random.Generator) -> Image:
    """Add light from out of focus: a smooth bright cloud."""
    cloud = ndimage.zoom(
        rng.random((3, 3, 3), np.float32),
        [n / 3 for n in image.shape],
        order=1,
        grid_mode=True,
        mode="nearest",
    )
    assert cloud.shape == image.shape
    return (image + cloud * np.float32(rng.uniform(0.0, 1.0))).astype(np.float32)


def stripes(image: Image, *, rng: np.random.Generator) -> Image:
    """Darken lines along x or y: the shadows of a light sheet."""
    axis = int(rng.integers(2))
    line: Image = ndimage.gaussian_filter1d(rng.standard_normal((image.shape[axis],), np.float32), 2.0)
    line *= np.float32(rng.uniform(0.0, 0.3)) / max(float(line.std()), 1e-6)
    return (image + (line[:, None, None] if axis == 0 else line[None, :, None])).astype(np.float32)
