"""The h-minima watershed as a region graph: the same for every tiling.

Suppressing the minima of an image that are less than ``h`` deep and flooding the rest (h-minima transform, then
watershed) is the same as flooding all basins and joining two of them wherever the pass between them is less than ``h``
above the higher of their two minima, lowest pass first (persistence; Najman & Schmitt 1996,
https://doi.org/10.1109/34.546254, call it dynamics). Basins, minima and passes are found block by block and are exact
for any tiling; passes go in one order, by height and then by the names of the basins, so the outcome is exact too.

A flat plateau needs no care: its parts have passes of height 0 and are joined by any ``h`` above 0. A minimum of one
voxel is a basin of its own only if no neighbour as low as its lowest drains elsewhere: links, not voxels, are flooded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.boundaries import check_boundaries

Ids = npt.NDArray[np.uint64]
Heights = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Basins:
    """Basins of a boundary map and the passes between them.

    Attributes
    ----------
    ids, minimum
        ``(n,)``: each basin once, and the lowest boundary in it.
    u, v, saddle
        ``(m,)``: each pair of neighbours once, ``u < v``, and the lowest pass between them: over the faces they
        share, the least of the greater value of both voxels.
    """

    ids: Ids
    minimum: Heights
    u: Ids
    v: Ids
    saddle: Heights

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """Return the basins of all ``parts``; what several of them hold is the lowest of all."""
        ids, minimum = _lowest([np.concatenate([p.ids for p in parts])], _all(parts, "minimum"))
        (u, v), saddle = _lowest([_all(parts, "u"), _all(parts, "v")], _all(parts, "saddle"))
        return cls(ids[0], minimum, u, v, saddle)


def basins(labels: Ids, boundaries: Heights, *, core: Box, bounds: Box) -> Basins:
    """Return the basins of a block, and the passes across faces whose upper voxel lies in it.

    Parameters
    ----------
    labels
        ``(x, y, z)`` uint64 over ``core.with_lower_neighbours(bounds=bounds)``: the basins; 0 is none.
    boundaries
        ``(x, y, z)`` uint8 over the same box.
    core, bounds
        The block, and the volume it belongs to.

    Raises
    ------
    SpecError
        If the arrays have another shape or type.
    """
    outer = core.with_lower_neighbours(bounds=bounds)
    check_boundaries(boundaries, outer)
    if labels.shape != outer.shape:
        raise SpecError(f"labels must have the shape {outer.shape} of the boundaries, got {labels.shape}")
    inner = core.slices_in(outer)
    here, heights = labels[inner], boundaries[inner]
    inside = here != 0
    ids, minimum = _lowest([here[inside]], heights[inside])
    us, vs, passes = [], [], []
    for axis in range(3):
        first = inner[axis].start
        above, below = list(inner), list(inner)
        if first == 0:
            above[axis] = slice(1, inner[axis].stop)
            below[axis] = slice(0, inner[axis].stop - 1)
        else:
            below[axis] = slice(first - 1, inner[axis].stop - 1)
        a, b = labels[tuple(above)], labels[tuple(below)]
        differ = (a != b) & (a != 0) & (b != 0)
        us.append(np.minimum(a[differ], b[differ]))
        vs.append(np.maximum(a[differ], b[differ]))
        passes.append(np.maximum(boundaries[tuple(above)][differ], boundaries[tuple(below)][differ]))
    (u, v), saddle = _lowest([np.concatenate(us), np.concatenate(vs)], np.concatenate(passes))
    return Basins(ids[0], minimum, u, v, saddle)


def join_shallow(graph: Basins, *, h: float) -> tuple[Ids, Ids]:
    """Join every basin that is less than ``h`` deep with the one behind its lowest pass.

    Parameters
    ----------
    graph
        Of the whole volume.
    h
        Depth, on the scale of uint8, above 0.

    Returns
    -------
    old, new
        ``(n,)`` uint64, sorted by ``old``: basins that change their name, and the smallest id of what they belong to.
    """
    order = np.lexsort((graph.v, graph.u, graph.saddle))
    u, v = np.searchsorted(graph.ids, graph.u), np.searchsorted(graph.ids, graph.v)
    root = _join(u[order], v[order], graph.saddle[order], graph.minimum.copy(), float(h))
    changed = root != np.arange(len(root))
    return graph.ids[changed], graph.ids[root[changed]]


def _all(parts: list[Any], name: str) -> npt.NDArray[Any]:
    return np.concatenate([getattr(p, name) for p in parts])


def _lowest(keys: list[Ids], heights: Heights) -> tuple[list[Ids], Heights]:
    """Return each key once, sorted, with the least of its heights."""
    columns: list[npt.NDArray[Any]] = [heights, *reversed(keys)]
    order = np.lexsort(columns)
    keys, heights = [k[order] for k in keys], heights[order]
    first = np.ones(len(heights), np.bool_)
    if len(heights):
        first[1:] = np.logical_or.reduce([k[1:] != k[:-1] for k in keys])
    return [k[first] for k in keys], heights[first]


@numba.njit(cache=True)
def _join(u, v, saddle, minimum, h):  # type: ignore[no-untyped-def]
    parent = np.arange(minimum.size)
    for e in range(u.size):
        i, j = u[e], v[e]
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        while parent[j] != j:
            parent[j] = parent[parent[j]]
            j = parent[j]
        if i == j or np.float64(saddle[e]) - np.float64(max(minimum[i], minimum[j])) >= h:
            continue
        low, high = min(i, j), max(i, j)
        parent[high] = low
        minimum[low] = min(minimum[low], minimum[high])
    for i in range(parent.size):
        parent[i] = parent[parent[i]]  # parents precede children, so one step reaches the root
    return parent
