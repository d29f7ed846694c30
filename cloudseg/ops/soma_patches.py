"""Where the patches of a two-stage segmentation lie, and how its masks are cleaned, as published for FAFB.

A block is covered by windows at its faces and by seven patches for each seed: one round it and one shifted to each
side. What any patch calls soma is soma; holes and specks of single sections go, then small objects. The result depends
on the block. For comparison with what is exact (:mod:`cloudseg.ops.soma_growth`).
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ, Box
from cloudseg.ops.components import component_sizes

Mask = npt.NDArray[np.bool_]


def window_boxes(outer: Box, *, patch: XYZ, stride: XYZ, pad: XYZ) -> list[Box]:
    """Return the windows at the faces of a block.

    Parameters
    ----------
    outer
        The block.
    patch, stride
        Edges of a window, and the distance between two.
    pad
        How far the first window begins before the block, and the last may end behind it.

    Returns
    -------
    Those windows of the whole grid that are the first or the last along at least one axis, x fastest.
    """
    starts = []
    for low, high, edge, step, margin in zip(outer.start, outer.stop, patch, stride, pad, strict=True):
        last = max(low - margin, high + margin - edge)
        starts.append([*range(low - margin, last, step), last])
    boxes = []
    for k, j, i in itertools.product(*(range(len(s)) for s in reversed(starts))):
        index = (i, j, k)
        if any(n in (0, len(s) - 1) for n, s in zip(index, starts, strict=True)):
            at = tuple(s[n] for n, s in zip(index, starts, strict=True))
            boxes.append(Box.of_shape(patch, at=(at[0], at[1], at[2])))
    return boxes


def seed_boxes(at: XYZ, *, patch: XYZ, shift: XYZ) -> list[Box]:
    """Return the patch round a seed, and the six that are shifted along an axis."""
    x, y, z = (a - p // 2 for a, p in zip(at, patch, strict=True))
    middle = Box.of_shape(patch, at=(x, y, z))
    boxes = [middle]
    for axis in range(3):
        for side in (-1, 1):
            step = [0, 0, 0]
            step[axis] = side * shift[axis]
            boxes.append(middle.shift((step[0], step[1], step[2])))
    return boxes


def without_specks(mask: Mask, *, max_hole_vx: int, min_piece_vx: int) -> Mask:
    """Return ``mask`` with small holes filled and small pieces gone, each section by itself.

    Parameters
    ----------
    mask
        ``(x, y, z)``.
    max_hole_vx
        Holes of fewer voxels are filled, also ones at the border.
    min_piece_vx
        Pieces of fewer voxels are dropped.
    """
    out = mask.copy(order="F")
    for k in range(mask.shape[2]):
        section = out[:, :, k : k + 1]
        if not section.any():
            continue
        numbers, sizes = component_sizes(~section, connectivity=6)
        section = section | ((numbers > 0) & (sizes < max_hole_vx)[numbers])
        numbers, sizes = component_sizes(section, connectivity=6)
        out[:, :, k : k + 1] = (numbers > 0) & (sizes >= min_piece_vx)[numbers]
    return out


def objects_of(mask: Mask, *, min_size_vx: int) -> npt.NDArray[np.int64]:
    """Return the objects of a mask that are large enough, numbered from 1 in scan order, x fastest."""
    numbers, sizes = component_sizes(mask, connectivity=6)
    kept = sizes >= max(min_size_vx, 1)
    kept[0] = False
    name = np.where(kept, np.cumsum(kept), 0)
    objects: npt.NDArray[np.int64] = name[numbers]
    return objects
