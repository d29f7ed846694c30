"""Affinities to segments of one block in memory: what the pipeline computes block by block, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import Box
from cloudseg.ops.agglomerate import Rule, agglomerate
from cloudseg.ops.region_graph import Sizes, region_graph, sizes
from cloudseg.ops.remap import remap
from cloudseg.ops.watershed import supervoxels

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Segmented:
    """Supervoxels and segments, both ``(x, y, z)`` uint64 in Fortran order; 0 is background."""

    supervoxels: Ids
    segments: Ids


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
    labels = supervoxels(affinities, core=box, bounds=box, t_low=t_low, t_high=t_high, mask=mask).labels
    graph = region_graph(labels, affinities, core=box, bounds=box, emphasis=emphasis)
    n_voxels = Sizes(*sizes(labels)) if rule.min_size_vx or rule.guard_affinity else Sizes.added([])
    merged = agglomerate(graph, frozen=np.zeros(0, np.uint64), sizes=n_voxels, rule=rule)
    return Segmented(labels, remap(labels, merged.old, merged.new))
