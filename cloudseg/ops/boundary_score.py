"""Boundary F1: how well the boundaries between segments lie on those between true objects.

A boundary voxel shares a face with a voxel of another id. Precision is the share of the segmentation's boundary voxels
with a true one within the tolerance, recall the share of true ones with one of the segmentation (Martin et al. 2004,
https://doi.org/10.1109/TPAMI.2004.1273918, without their one-to-one matching). Counts of blocks add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ
from cloudseg.ops.affinities import thick_boundary

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BoundaryScore:
    """Boundary voxels, and those that found a partner; additive over blocks.

    Attributes
    ----------
    n_seg, n_seg_hit, n_truth, n_truth_hit
        Voxels of the segmentation and of the truth.
    """

    n_seg: int = 0
    n_seg_hit: int = 0
    n_truth: int = 0
    n_truth_hit: int = 0

    def __add__(self, other: BoundaryScore) -> BoundaryScore:
        return BoundaryScore(
            self.n_seg + other.n_seg,
            self.n_seg_hit + other.n_seg_hit,
            self.n_truth + other.n_truth,
            self.n_truth_hit + other.n_truth_hit,
        )

    @property
    def precision(self) -> float:
        """Share of the segmentation's boundary that is true; 1 where there is none."""
        return self.n_seg_hit / self.n_seg if self.n_seg else 1.0

    @property
    def recall(self) -> float:
        """Share of the true boundary that is found; 1 where there is none."""
        return self.n_truth_hit / self.n_truth if self.n_truth else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def halo_of(tolerance_vx: int) -> XYZ:
    """Return how many voxels round a block :func:`score_boundaries` must see."""
    return (tolerance_vx + 1,) * 3


def score_boundaries(
    seg: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    core: tuple[slice, slice, slice],
    *,
    tolerance_vx: int,
    zero_is_boundary: bool = False,
) -> BoundaryScore:
    """Count the boundary voxels of a block.

    Parameters
    ----------
    seg, truth
        ``(x, y, z)`` ids over the block and :func:`halo_of` round it (less at the border of what is compared).
    core
        Where the block lies in them.
    tolerance_vx
        Steps from voxel to face neighbour that a partner may be away.
    zero_is_boundary
        What id 0 of the truth means: boundary, or unknown (boundaries of the segmentation do not count there). In the
        segmentation 0 is boundary, or a region like any other.
    """
    # To that function 0 is unknown.
    found, true = thick_boundary(seg if zero_is_boundary else seg + seg.dtype.type(1)), thick_boundary(truth)
    if zero_is_boundary:
        found |= seg == 0
        true |= truth == 0
    near_found, near_true = _widened(found, tolerance_vx), _widened(true, tolerance_vx)
    if not zero_is_boundary:
        found &= truth != 0
    f, t = found[core], true[core]
    return BoundaryScore(
        int(f.sum()), int((f & near_true[core]).sum()), int(t.sum()), int((t & near_found[core]).sum())
    )


def _widened(mask: Mask, steps: int) -> Mask:
    wide = mask.copy()
    for _ in range(steps):
        before = wide.copy()
        for axis in range(3):
            here: list[slice] = [slice(None)] * 3
            there = list(here)
            here[axis], there[axis] = slice(1, None), slice(None, -1)
            wide[tuple(here)] |= before[tuple(there)]
            wide[tuple(there)] |= before[tuple(here)]
    return wide
