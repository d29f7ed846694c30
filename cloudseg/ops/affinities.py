"""Affinities between voxels, from labels.

``affinity[c, v]`` is the link between voxel ``v`` and voxel ``v + offset[c]``. Nearest-neighbour affinities have the
offsets ``(-1, 0, 0)``, ``(0, -1, 0)``, ``(0, 0, -1)``: the link to the lower neighbour along x, y and z.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ

NEAREST: tuple[XYZ, XYZ, XYZ] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
"""Offsets of the three nearest-neighbour channels."""


def shifted_pairs(offset: XYZ) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the slices of voxels ``v`` that have a partner ``v + offset``, and the slices of those partners."""
    here = tuple(slice(-o if o < 0 else 0, -o if o > 0 else None) for o in offset)
    there = tuple(slice(max(0, o), o if o < 0 else None) for o in offset)
    return here, there


def labels_to_affinities(
    labels: npt.NDArray[np.generic],
    *,
    offsets: Sequence[XYZ] = NEAREST,
    boundary: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Return the affinities that ``labels`` imply, and where they are known.

    Parameters
    ----------
    labels
        ``(x, y, z)`` integers. 0 is unknown: links that touch it have no target.
    offsets
        One offset per channel, in voxels.
    boundary
        ``(x, y, z)``: voxels whose links are all broken (a membrane given a width), or None.

    Returns
    -------
    affinities
        ``(c, x, y, z)`` uint8, 1 where both ends carry the same label (and neither is boundary).
    known
        ``(c, x, y, z)`` bool, False where an end is 0 or outside the block.
    """
    if labels.ndim != 3:
        raise SpecError(f"labels must be (x, y, z), got shape {labels.shape}")
    affinities = np.zeros((len(offsets), *labels.shape), np.uint8)
    known = np.zeros(affinities.shape, np.bool_)
    for c, offset in enumerate(offsets):
        here, there = shifted_pairs(offset)
        a, b = labels[here], labels[there]
        same = a == b
        if boundary is not None:
            same &= ~(boundary[here] | boundary[there])
        affinities[c][here] = same
        known[c][here] = (a != 0) & (b != 0)
    return affinities, known


def thick_boundary(labels: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Return the voxels that touch (through a face) a voxel of another non-zero label.

    Two voxels wide at each interface; the same as scikit-image ``find_boundaries(mode="thick", connectivity=1)``
    except that label 0 is unknown and makes no boundary.
    """
    boundary = np.zeros(labels.shape, np.bool_)
    for offset in NEAREST:
        here, there = shifted_pairs(offset)
        a, b = labels[here], labels[there]
        differ = (a != b) & (a != 0) & (b != 0)
        boundary[here] |= differ
        boundary[there] |= differ
    return boundary
