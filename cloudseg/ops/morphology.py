"""Cleaning a mask: opening, closing, small holes and specks; each looks only so far, so a halo makes it exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box
from cloudseg.ops.components import Connectivity, component_sizes

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class MorphologyRule:
    """What is done to a mask, in this order.

    Attributes
    ----------
    opening_nm, closing_nm
        Radius of the ball that is opened and closed with; 0: not at all.
    hole_vx
        Holes of at most so many voxels (connected through faces) are filled.
    speck_vx
        Foreground of at most so many voxels (connected through faces, edges, corners) is removed.
    voxel_size_nm
        Edge of a voxel along x, y, z.
    planar
        Whether each section is cleaned alone.
    """

    opening_nm: float = 0.0
    closing_nm: float = 0.0
    hole_vx: int = 0
    speck_vx: int = 0
    voxel_size_nm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    planar: bool = False

    @property
    def halo(self) -> XYZ:
        """Voxels around a block that decide about it.

        A hole of n voxels reaches n - 1 voxels from any of them; what reaches further is larger.
        """
        far = self.hole_vx + self.speck_vx
        x, y, z = (
            2 * math.floor(self.opening_nm / s) + 2 * math.floor(self.closing_nm / s) + far
            for s in self.voxel_size_nm
        )
        return (x, y, 0 if self.planar else z)


def halo_of(core: Box, *, bounds: Box, rule: MorphologyRule) -> Box:
    """Return the box whose mask a block needs."""
    return core.grow(rule.halo).intersect(bounds)


def clean_mask(mask: npt.NDArray[Any], *, core: Box, bounds: Box, rule: MorphologyRule) -> Mask:
    """Return the mask of ``core`` after opening, closing, filling of holes and removal of specks.

    Parameters
    ----------
    mask
        ``(x, y, z)`` over :func:`halo_of` ``(core, bounds=bounds, rule=rule)``; everything but 0 is foreground.
    core, bounds
        The block, and the volume it belongs to. What lies outside the volume neither erodes nor grows.
    rule
        What is done.

    Returns
    -------
    ``(x, y, z)`` uint8 over the core, in Fortran order: 1 is foreground. Blocks of any tiling make the mask of the
    whole volume.
    """
    outer = halo_of(core, bounds=bounds, rule=rule)
    if mask.shape != outer.shape:
        raise SpecError(
            f"the mask must have shape {outer.shape} (the block and a halo of {rule.halo}), got {mask.shape}"
        )
    # scipy wants the last axis to lie together in memory.
    now = np.ascontiguousarray((mask != 0).T)
    if rule.opening_nm:
        now = _dilated(_eroded(now, _ball(rule.opening_nm, rule)), _ball(rule.opening_nm, rule))
    if rule.closing_nm:
        now = _eroded(_dilated(now, _ball(rule.closing_nm, rule)), _ball(rule.closing_nm, rule))
    now = now.T
    if rule.hole_vx:
        now = now | _of_at_most(~now, rule.hole_vx, connectivity=6, planar=rule.planar)
    if rule.speck_vx:
        now = now & ~_of_at_most(now, rule.speck_vx, connectivity=26, planar=rule.planar)
    return np.asfortranarray(now[core.slices_in(outer)], dtype=np.uint8)


def _ball(radius_nm: float, rule: MorphologyRule) -> npt.NDArray[np.bool_]:
    """Return a ball as ``(z, y, x)`` voxels."""
    axes = []
    for axis, size in zip("xyz", rule.voxel_size_nm, strict=True):
        reach = 0 if rule.planar and axis == "z" else math.floor(radius_nm / size)
        axes.append((np.arange(-reach, reach + 1) * size) ** 2)
    x, y, z = axes
    inside: npt.NDArray[np.bool_] = z[:, None, None] + y[:, None] + x <= radius_nm**2
    return inside


def _eroded(mask: npt.NDArray[np.bool_], ball: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    out: npt.NDArray[np.bool_] = ndimage.binary_erosion(mask, ball, border_value=1)
    return out


def _dilated(mask: npt.NDArray[np.bool_], ball: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    out: npt.NDArray[np.bool_] = ndimage.binary_dilation(mask, ball, border_value=0)
    return out


def _of_at_most(
    mask: npt.NDArray[np.bool_], n_voxels: int, *, connectivity: Connectivity, planar: bool
) -> npt.NDArray[np.bool_]:
    """Return the voxels of the mask in components of at most ``n_voxels``."""
    parts = np.split(mask, mask.shape[2], axis=2) if planar else [mask]
    small = []
    for part in parts:
        numbers, sizes = component_sizes(part, connectivity=connectivity)
        small.append((sizes[numbers] <= n_voxels) & part)
    return np.concatenate(small, axis=2)
