"""Neighbourhood thresholding: a voxel is foreground if it stands out from the mean of the box around it.

After Shahbazi et al. 2018 (FLoRIN, Sci Rep 8:14247): Bradley's adaptive threshold in any number of dimensions. A
dark voxel is foreground if ``value * count <= sum * (1 - contrast)`` over its box, a bright one if
``value * count >= sum * (1 + contrast)``. All of it is integer arithmetic, so nothing is rounded.

Project-defined, where the published code lets tiles show: the box is ``radius`` voxels to either side, both ends
included, and is clipped at the border of the volume only. With a halo of one radius a block decides as the whole
volume would, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box

Mask = npt.NDArray[np.uint8]

CONTRAST_STEPS = 10_000
"""Contrasts are whole multiples of one in so many."""


@dataclass(frozen=True, slots=True)
class NeighbourhoodRule:
    """When a voxel stands out.

    Attributes
    ----------
    radius
        Voxels of the box to either side, along x, y, z; 0 along z: each section alone.
    contrast
        How far below or above the mean, in steps of 1 / 10,000 of it.
    polarity
        Whether what is darker, or what is brighter than its surroundings is foreground.
    """

    radius: XYZ
    contrast: int
    polarity: Literal["dark", "bright"] = "dark"


def halo_of(core: Box, *, bounds: Box, rule: NeighbourhoodRule) -> Box:
    """Return the box whose image a block needs: one radius more on every side, inside the volume."""
    return core.grow(rule.radius).intersect(bounds)


def neighbourhood_threshold(
    image: npt.NDArray[Any], *, core: Box, bounds: Box, rule: NeighbourhoodRule
) -> Mask:
    """Return which voxels of ``core`` stand out.

    Parameters
    ----------
    image
        ``(x, y, z)`` uint8 or uint16 over :func:`halo_of` ``(core, bounds=bounds, rule=rule)``.
    core, bounds
        The block, and the volume it belongs to.
    rule
        The box, the contrast, the polarity.

    Returns
    -------
    ``(x, y, z)`` uint8 over the core, in Fortran order: 1 is foreground. Blocks of any tiling make the mask of the
    whole volume.

    Raises
    ------
    SpecError
        If the image has another shape or type, or the rule does not fit the volume.
    """
    check_rule(rule, bounds=bounds)
    outer = halo_of(core, bounds=bounds, rule=rule)
    if image.dtype not in (np.uint8, np.uint16) or image.shape != outer.shape:
        raise SpecError(
            f"the image must be uint8 or uint16 of shape {outer.shape} (the block and a halo of {rule.radius}), "
            f"got {image.dtype} of shape {image.shape}"
        )
    low = np.array([a - b for a, b in zip(core.start, outer.start, strict=True)], np.int64)
    mask = np.empty(core.shape, np.uint8, order="F")
    nx, ny, nz = outer.shape
    x, y, z = core.shape
    _threshold(
        # x last: a row of x lies together in memory, as in the Fortran-ordered arrays outside.
        np.asfortranarray(image).T.reshape(nz, ny, nx),
        mask.T.reshape(z, y, x),
        low,
        np.array(rule.radius, np.int64),
        np.int64(rule.contrast),
        rule.polarity == "bright",
        # Sums over a box without its extent along x; 32 bits carry them in all but the largest boxes.
        np.zeros(
            (1, nx),
            np.int32
            if np.iinfo(image.dtype).max * (2 * rule.radius[1] + 1) * (2 * rule.radius[2] + 1) < 2**31
            else np.int64,
        ),
    )
    return mask


def check_rule(rule: NeighbourhoodRule, *, bounds: Box) -> None:
    """Refuse a rule that is malformed, or whose box is larger than the volume."""
    if min(rule.radius) < 0 or max(rule.radius) == 0:
        raise SpecError(
            f"the neighbourhood must reach at least one voxel along one axis, got a radius of {rule.radius} voxels; "
            "make it larger than a voxel"
        )
    highest = CONTRAST_STEPS if rule.polarity == "dark" else 10 * CONTRAST_STEPS  # products stay in 64 bits
    if not 0 <= rule.contrast <= highest:
        raise SpecError(
            f"contrast must lie between 0 and {highest // CONTRAST_STEPS} for {rule.polarity} structures, "
            f"got {rule.contrast / CONTRAST_STEPS:g}"
        )
    for axis, radius, size in zip("xyz", rule.radius, bounds.shape, strict=True):
        if radius and 2 * radius + 1 > size:
            raise SpecError(
                f"the neighbourhood is {2 * radius + 1} voxels wide on {axis}, but the volume {bounds} only {size}: "
                "make the neighbourhood smaller, or 0 on this axis"
            )


@numba.njit(cache=True)
def _add(total, plane):  # type: ignore[no-untyped-def]
    for j in range(plane.shape[0]):
        for i in range(plane.shape[1]):
            total[j, i] += plane[j, i]


@numba.njit(cache=True)
def _subtract(total, plane):  # type: ignore[no-untyped-def]
    for j in range(plane.shape[0]):
        for i in range(plane.shape[1]):
            total[j, i] -= plane[j, i]


@numba.njit(cache=True)
def _threshold(image, mask, low, radius, contrast, bright, like):  # type: ignore[no-untyped-def]
    """Fill in the mask; arrays are ``(z, y, x)``.

    The integral volume is never stored: differences of it along z and y are kept as running sums (of planes, then of
    rows), and along x as one row of sums from its begin.
    """
    nz, ny, nx = image.shape
    rx, ry, rz = radius
    planes = np.zeros((ny, nx), like.dtype)
    rows = np.zeros(nx, like.dtype)
    along = np.zeros(nx + 1, np.int64)
    width = mask.shape[2]
    left, right = np.empty(width, np.int64), np.empty(width, np.int64)
    for i in range(width):
        left[i], right[i] = max(0, i + low[0] - rx), min(nx, i + low[0] + rx + 1)
    share = CONTRAST_STEPS + contrast if bright else CONTRAST_STEPS - contrast
    z0, z1 = 0, 0  # planes that are in the sum now
    for z in range(low[2], low[2] + mask.shape[0]):
        while z1 < min(nz, z + rz + 1):
            _add(planes, image[z1])
            z1 += 1
        while z0 < z - rz:
            _subtract(planes, image[z0])
            z0 += 1
        rows[:] = 0
        y0, y1 = 0, 0
        for y in range(low[1], low[1] + mask.shape[1]):
            while y1 < min(ny, y + ry + 1):
                rows += planes[y1]
                y1 += 1
            while y0 < y - ry:
                rows -= planes[y0]
                y0 += 1
            total = np.int64(0)
            for i in range(nx):
                total += rows[i]
                along[i + 1] = total
            area = (y1 - y0) * (z1 - z0)
            values, out = image[z, y], mask[z - low[2], y - low[1]]
            for i in range(width):
                window = (along[right[i]] - along[left[i]]) * share
                value = np.int64(values[i + low[0]]) * (right[i] - left[i]) * area * CONTRAST_STEPS
                out[i] = value >= window if bright else value <= window
