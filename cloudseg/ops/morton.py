"""Morton codes: numbers that put what is near in space near in a file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError

BITS = 21
"""Bits of each axis; three of them fit into 63."""

# Each step doubles the gaps between the bits, from the upper half down: the usual "magic masks" of three dimensions.
_SPREAD = (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def morton_codes(
    points: npt.NDArray[np.float64],
    *,
    lower: tuple[float, float, float],
    upper: tuple[float, float, float],
) -> npt.NDArray[np.uint64]:
    """Return the Morton code of each point: x has the lowest bit.

    Parameters
    ----------
    points
        ``(n, 3)`` float64, x, y, z. Points outside the bounds get the code of the nearest cell inside.
    lower, upper
        Bounds. The longest side is cut into 2^21 cells, which are cubes.

    Returns
    -------
    ``(n,)`` uint64, below 2^63.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise SpecError(f"points must be (n, 3), got shape {points.shape}")
    extent = max(high - low for low, high in zip(lower, upper, strict=True))
    if not extent > 0:
        raise SpecError(f"bounds must have an extent above 0, got lower {lower}, upper {upper}")
    cells = np.floor((points - np.asarray(lower, np.float64)) * ((1 << BITS) / extent))
    grid = np.clip(cells, 0, (1 << BITS) - 1).astype(np.uint64)
    code = np.zeros(len(points), np.uint64)
    for axis in range(3):
        code |= _spread(grid[:, axis]) << np.uint64(axis)
    return code


def _spread(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Put two zero bits between each two bits."""
    for shift, mask in _SPREAD:
        values = (values | (values << np.uint64(shift))) & np.uint64(mask)
    return values
