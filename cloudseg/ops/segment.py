"""Affinities to segments of one block in memory: what the pipeline computes block by block, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import Box
from cloudseg.ops.agglomerate import Rule, decide
from cloudseg.ops.region_graph import edges_of_runs
from cloudseg.ops.runs import Runs
from cloudseg.ops.watershed import supervoxels

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Segmented:
    """Supervoxels and segments of a volume.

    Attributes
    ----------
    runs
        Where the supervoxels are.
    names
        ``(n,)`` uint64: the segment of each supervoxel in ``runs.ids``.
    """

    runs: Runs
    names: Ids

    @property
    def supervoxels(self) -> Ids:
        """``(x, y, z)`` uint64 in Fortran order; 0 is background. Computed at each call."""
        return self.runs.labels()

    @property
    def segments(self) -> Ids:
        """``(x, y, z)`` uint64 in Fortran order; 0 is background. Computed at each call."""
        return self.runs.labels(self.names)


def segment(
    affinities: npt.NDArray[np.uint8],
    *,
    t_low: int,
    t_high: int,
    rule: Rule,
    emphasis: int = 0,
    mask: npt.NDArray[Any] | None = None,
) -> Segmented:
    """Return supervoxels and segments of a whole volume.

    Parameters
    ----------
    affinities
        ``(3, x, y, z)`` uint8; ``affinities[c, v]`` links ``v`` to its lower neighbour along axis ``c``.
    t_low, t_high
        See :func:`cloudseg.ops.watershed.supervoxels`.
    rule
        See :class:`cloudseg.ops.agglomerate.Rule`.
    emphasis
        See :func:`cloudseg.ops.region_graph.region_graph`.
    mask
        ``(x, y, z)``; 0 where there is no tissue.
    """
    _, nx, ny, nz = affinities.shape
    box = Box.of_shape((nx, ny, nz))
    fragments = supervoxels(affinities, core=box, bounds=box, t_low=t_low, t_high=t_high, mask=mask)
    edges = edges_of_runs(fragments.runs, affinities, core=box, bounds=box, emphasis=emphasis)
    nothing = np.zeros(len(fragments.n_voxels), np.bool_)
    decided = decide(edges, is_frozen=nothing, n_voxels=fragments.n_voxels, rule=rule)
    return Segmented(fragments.runs, fragments.runs.ids[decided.name])
