"""Boundary maps as affinities, so that everything exact that works on affinities works on boundaries too.

The link between two voxels is as weak as the boundary between them. Then the supervoxels of
:mod:`cloudseg.ops.watershed` are the basins of the boundary map, the mean over the faces of two regions is their mean
boundary (GASP average linkage, Bailoni et al. 2019, arXiv 1906.11713), and with a threshold first, supervoxels are the
connected components of what lies below it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box


def boundary_affinities(
    boundaries: npt.NDArray[np.uint8],
    *,
    core: Box,
    bounds: Box,
    join: Literal["max", "mean"] = "mean",
    threshold: int | None = None,
    planar: bool = False,
) -> npt.NDArray[np.uint8]:
    """Return the nearest-neighbour affinities of a boundary map.

    Parameters
    ----------
    boundaries
        ``(x, y, z)`` uint8 over ``core.with_lower_neighbours(bounds=bounds)``; 255 is a sure boundary.
    core, bounds
        The block, and the volume it belongs to, in the same voxel coordinates.
    join
        Which boundary lies between two voxels: the mean of their values, rounded up, or the greater one.
    threshold
        If given, affinities are 255 where both voxels lie below it, and 0 elsewhere.
    planar
        Whether sections stay apart: then links along z are 0.

    Returns
    -------
    ``(3, x, y, z)`` uint8 over the core in Fortran order; links that would leave the volume are 0.

    Raises
    ------
    SpecError
        If the array has another shape or type.
    """
    outer = core.with_lower_neighbours(bounds=bounds)
    check_boundaries(boundaries, outer)
    inner = core.slices_in(outer)
    out = np.zeros((3, *core.shape), np.uint8, order="F")
    here: npt.NDArray[np.uint8] = boundaries[inner]
    for axis in range(2 if planar else 3):
        reach = list(inner)
        at: list[slice] = [slice(None)] * 3
        if core.start[axis] == bounds.start[axis]:  # the first plane has no lower neighbour
            at[axis] = slice(1, None)
            reach[axis] = slice(inner[axis].start, inner[axis].stop - 1)
        else:
            reach[axis] = slice(inner[axis].start - 1, inner[axis].stop - 1)
        upper, lower = here[tuple(at)], boundaries[tuple(reach)]
        between: npt.NDArray[Any] = np.maximum(upper, lower)
        if threshold is not None:
            out[axis][tuple(at)] = np.where(between < threshold, 255, 0)
            continue
        if join == "mean":
            between = (upper.astype(np.uint16) + lower + 1) // 2
        out[axis][tuple(at)] = 255 - between
    return out


def check_boundaries(boundaries: npt.NDArray[Any], box: Box) -> None:
    """Refuse an array that is not a boundary map over ``box``.

    Raises
    ------
    SpecError
        With what was expected and what came.
    """
    if boundaries.dtype != np.uint8 or boundaries.shape != box.shape:
        raise SpecError(
            f"boundaries must be uint8 of shape {box.shape} (the block and what it needs around it), "
            f"got {boundaries.dtype} of shape {boundaries.shape}"
        )
