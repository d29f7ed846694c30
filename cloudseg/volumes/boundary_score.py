"""Boundary F1 of a segmentation in a bucket or file, block by block."""

from __future__ import annotations

from collections.abc import Callable

from cloudseg.geometry import XYZ, Box, tile
from cloudseg.ops.boundary_score import BoundaryScore, halo_of, score_boundaries
from cloudseg.volumes.evaluate import Labels

_BLOCK: XYZ = (256, 256, 64)


def boundary_score(
    seg: Labels,
    truth: Labels,
    *,
    box: Box,
    tolerance_vx: int = 1,
    zero_is_boundary: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> BoundaryScore:
    """Compare the boundaries of ``seg`` and ``truth`` inside ``box``, which both must cover.

    Parameters
    ----------
    seg, truth, box
        What to compare, where.
    tolerance_vx, zero_is_boundary
        See :func:`cloudseg.ops.boundary_score.score_boundaries`.
    progress
        Called after every block.
    """
    total, n_done = BoundaryScore(), 0
    for core in tile(box, _BLOCK):
        outer = core.grow(halo_of(tolerance_vx)).intersect(box)
        total += score_boundaries(
            seg.read(outer),
            truth.read(outer),
            core.slices_in(outer),
            tolerance_vx=tolerance_vx,
            zero_is_boundary=zero_is_boundary,
        )
        n_done += core.n_voxels
        if progress is not None:
            progress("boundaries", n_done, box.n_voxels)
    return total
