"""Where a segmentation made section by section is probably wrong: cheap detectors, cell by cell.

After the idea of Multi-Pass (Meirovitch et al. 2016, arXiv 1612.02120), a fast pass over everything and a slow one
where errors show; which detectors is project-defined. A cell is doubtful if in one of its sections

- an object ends flat: many of its pixels lie there, and none in the next section around the cell;
- two objects are in conflict: a piece of one lies on another for the most part;

or if too many of its voxels belong to nothing. Each cell looks at itself and a margin: exact for any tiling.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box, tile

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class DoubtRule:
    """When a cell is doubtful.

    Attributes
    ----------
    cell, margin
        Edges of a cell in voxels, counted from the volume's lower corner; how far around it objects are looked for
        within sections.
    end_px
        Pixels of an object in the last section before it is gone, from which on the end is flat; pixels of a conflict.
    conflict
        Share of a piece that lies on another object; above 1: not looked for.
    hole_vx
        Voxels of a cell that belong to nothing, from which on it is doubtful.
    """

    cell: XYZ = (32, 32, 32)
    margin: int = 8
    end_px: int = 60
    conflict: float = 0.8
    hole_vx: int = 500

    def box_of(self, core: Box, *, bounds: Box) -> Box:
        """Return the box whose labels the cells of ``core`` need."""
        return core.grow((self.margin, self.margin, 1)).intersect(bounds)


def doubts(labels: Ids, *, core: Box, bounds: Box, rule: DoubtRule) -> npt.NDArray[np.uint8]:
    """Return which cells of a block are doubtful.

    Parameters
    ----------
    labels
        ``(x, y, z)`` uint64 over ``rule.box_of(core, bounds=bounds)``; 0 is nothing.
    core, bounds
        The block, whole cells but for those that the volume cuts, and the volume.
    rule
        See :class:`DoubtRule`.

    Returns
    -------
    ``(x, y, z)`` uint8 over the core in Fortran order: 1 in the voxels of doubtful cells.
    """
    box = rule.box_of(core, bounds=bounds)
    if labels.shape != box.shape:
        raise SpecError(f"labels must have shape {box.shape}, got {labels.shape}")
    if any((c - b) % n for c, b, n in zip(core.start, bounds.start, rule.cell, strict=True)):
        raise SpecError(f"{core} does not begin with a cell of {rule.cell} voxels from {bounds.start}")
    out = np.zeros(core.shape, np.uint8, order="F")
    for cell in tile(core, rule.cell):
        around = cell.grow((rule.margin, rule.margin, 1)).intersect(bounds)
        window = labels[around.slices_in(box)]
        inner = cell.slices_in(around)
        if np.count_nonzero(window[inner] == 0) >= rule.hole_vx or _has_fault(window, inner, rule):
            out[cell.slices_in(core)] = 1
    return out


def _has_fault(window: Ids, inner: tuple[slice, ...], rule: DoubtRule) -> bool:
    """Return whether an object ends flat in the cell, or two are in conflict."""
    here, low, high = inner[:2], inner[2].start, inner[2].stop
    for z, other in itertools.chain.from_iterable(((z, z + 1), (z, z - 1)) for z in range(low, high)):
        if not 0 <= other < window.shape[2]:
            continue
        now, then = window[:, :, z], window[:, :, other]
        ids, n = np.unique(now[here], return_counts=True)
        large = ids[(ids > 0) & (n >= rule.end_px)]
        if not np.isin(large, then).all():
            return True
        if rule.conflict > 1:
            continue
        for name in large:
            below = then[now == name]
            others, shared = np.unique(below[(below != name) & (below != 0)], return_counts=True)
            if len(others) and shared.max() >= max(rule.conflict * len(below), rule.end_px):
                return True
    return False
