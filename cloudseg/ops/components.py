"""Connected components of a mask, by 6, 18 or 26 neighbours, the same for every tiling.

A block labels its own voxels: each component is called one more than the smallest index (in the volume, x fastest) of
its voxels. What touches across the faces, edges and corners of blocks is listed as pairs; joined by
:func:`cloudseg.ops.union_find.components`, the smallest name wins, and that depends on the volume alone.
"""

from __future__ import annotations

from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box

Ids = npt.NDArray[np.uint64]
Connectivity = Literal[6, 18, 26]
"""How many of the voxels around it a voxel hangs together with: through faces, edges too, corners too."""

# Along how many axes neighbours may differ.
_N_AXES: dict[int, int] = {6: 1, 18: 2, 26: 3}


def label_components(mask: npt.NDArray[Any], *, core: Box, bounds: Box, connectivity: Connectivity) -> Ids:
    """Return the components inside one block.

    Parameters
    ----------
    mask
        ``(x, y, z)`` over the core; everything but 0 is foreground.
    core, bounds
        The block, and the volume it belongs to.
    connectivity
        6, 18 or 26.

    Returns
    -------
    ``(x, y, z)`` uint64 in Fortran order; 0 is background.
    """
    if mask.shape != core.shape:
        raise SpecError(f"the mask must have shape {core.shape}, got {mask.shape}")
    flat = np.asfortranarray(mask != 0).reshape(-1, order="F")
    starts, stops, name, first = _components(flat, core.shape, connectivity)
    x, y, z = np.unravel_index(first, core.shape, order="F")
    low = tuple(a - b for a, b in zip(core.start, bounds.start, strict=True))
    n_x, n_y, _ = bounds.shape
    names = x + low[0] + n_x * ((y + low[1]) + n_y * (z + low[2])) + 1
    labels = np.zeros(flat.size, np.uint64)
    _fill(labels, starts, stops, name, names.astype(np.uint64))
    return labels.reshape(core.shape, order="F")


def component_sizes(
    mask: npt.NDArray[Any], *, connectivity: Connectivity
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the component of each voxel of a mask, numbered from 1 (0: not in the mask), and their sizes.

    Returns
    -------
    numbers, sizes
        ``(x, y, z)`` int64 in Fortran order, and ``(n + 1,)`` int64 by number; the size of 0 is 0.
    """
    x, y, z = mask.shape
    flat = np.asfortranarray(mask != 0).reshape(-1, order="F")
    starts, stops, name, first = _components(flat, (x, y, z), connectivity)
    numbers = np.zeros(flat.size, np.int64)
    _fill(numbers, starts, stops, name, np.arange(1, len(first) + 1))
    sizes = np.zeros(len(first) + 1, np.int64)
    np.add.at(sizes, name + 1, stops - starts)
    return numbers.reshape(mask.shape, order="F"), sizes


def slab_of(core: Box, axis: int, *, bounds: Box) -> Box:
    """Return the two voxel planes at the lower face of a block, wide enough for the neighbours across its edges."""
    grown = core.grow((1, 1, 1)).intersect(bounds)
    start, stop = list(grown.start), list(grown.stop)
    start[axis], stop[axis] = core.start[axis] - 1, core.start[axis] + 1
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def touching_pairs(
    labels: Ids, *, core: Box, axis: int, bounds: Box, connectivity: Connectivity
) -> tuple[Ids, Ids]:
    """Return which components touch across the lower face of a block, each pair once.

    Parameters
    ----------
    labels
        ``(x, y, z)`` uint64 over :func:`slab_of` ``(core, axis, bounds=bounds)``.
    core, axis, bounds
        The block, the axis of the face, the volume.
    connectivity
        As the components were made.

    Returns
    -------
    Names above the face, names below it.
    """
    slab = slab_of(core, axis, bounds=bounds)
    if labels.shape != slab.shape:
        raise SpecError(f"labels must have shape {slab.shape}, got {labels.shape}")
    across = [a for a in range(3) if a != axis]
    below, above = np.take(labels, 0, axis), np.take(labels, 1, axis)
    inner = [(core.start[a] - slab.start[a], core.stop[a] - slab.start[a]) for a in across]
    found = [np.zeros((2, 0), np.uint64)]
    mine = above[inner[0][0] : inner[0][1], inner[1][0] : inner[1][1]]
    for u in (-1, 0, 1):
        for v in (-1, 0, 1):
            if 1 + abs(u) + abs(v) > _N_AXES[connectivity]:
                continue
            # The part of the face whose neighbours at this offset lie inside the volume.
            (a0, a1), (b0, b1) = inner
            low = (max(0, -(a0 + u)), max(0, -(b0 + v)))
            high = (
                min(a1 - a0, below.shape[0] - a0 - u),
                min(b1 - b0, below.shape[1] - b0 - v),
            )
            here = mine[low[0] : high[0], low[1] : high[1]].ravel()
            there = below[a0 + u + low[0] : a0 + u + high[0], b0 + v + low[1] : b0 + v + high[1]].ravel()
            both = (here != 0) & (there != 0)
            found.append(np.stack([here[both], there[both]]))
    pairs = np.unique(np.concatenate(found, axis=1), axis=1)
    return pairs[0], pairs[1]


def _components(
    flat: npt.NDArray[np.bool_], shape: XYZ, connectivity: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return runs along x (starts, stops), the component of each, and the first voxel of each component."""
    if connectivity not in _N_AXES:
        raise SpecError(
            f"connectivity must be 6 (faces), 18 (and edges) or 26 (and corners), got {connectivity}"
        )
    nx, ny, nz = shape
    n = _N_AXES[connectivity]
    # Rows of x that come before a row, and how far in x their neighbours reach.
    reach = np.array([(-1, 0, n > 1), (0, -1, n > 1), (-1, -1, n > 2), (1, -1, n > 2)], np.int64)
    steps = reach[: 2 if n == 1 else 4]
    rows, starts, stops = _runs(flat, nx)
    name, first_run = _join(rows, starts, stops, nx, ny, nz, steps)
    return starts, stops, name, starts[first_run]


@numba.njit(cache=True)
def _runs(flat, nx):  # type: ignore[no-untyped-def]
    n = 0
    for low in range(0, flat.size, nx):
        before = False
        for i in range(low, low + nx):
            n += flat[i] and not before
            before = flat[i]
    rows = np.empty(flat.size // nx + 1, np.int64)
    starts, stops = np.empty(n, np.int64), np.empty(n, np.int64)
    k = 0
    for low in range(0, flat.size, nx):
        rows[low // nx] = k
        before = False
        for i in range(low, low + nx):
            if flat[i] and not before:
                starts[k] = i
            elif before and not flat[i]:
                stops[k] = i
                k += 1
            before = flat[i]
        if before:
            stops[k] = low + nx
            k += 1
    rows[-1] = k
    return rows, starts, stops


@numba.njit(cache=True)
def _join(rows, starts, stops, nx, ny, nz, steps):  # type: ignore[no-untyped-def]
    """Number the components of runs in scan order; return the number of each run, and the first run of each number."""
    parent = np.arange(starts.size)
    for z in range(nz):
        for y in range(ny):
            row = y + ny * z
            for s in range(steps.shape[0]):
                y_below, z_below = y + steps[s, 0], z + steps[s, 1]
                if y_below < 0 or y_below >= ny or z_below < 0:
                    continue
                below = y_below + ny * z_below
                shift, reach = (row - below) * nx, steps[s, 2]
                j = rows[below]
                for k in range(rows[row], rows[row + 1]):
                    low, high = starts[k] - shift - reach, stops[k] - shift + reach
                    while j < rows[below + 1] and stops[j] <= low:
                        j += 1
                    m = j
                    while m < rows[below + 1] and starts[m] < high:
                        a, b = k, m
                        while parent[a] != a:
                            parent[a] = parent[parent[a]]
                            a = parent[a]
                        while parent[b] != b:
                            parent[b] = parent[parent[b]]
                            b = parent[b]
                        if a < b:
                            parent[b] = a
                        else:
                            parent[a] = b
                        m += 1
    n = 0
    for k in range(parent.size):
        n += parent[k] == k
    name, first = np.empty(parent.size, np.int64), np.empty(n, np.int64)
    n = 0
    for k in range(parent.size):
        root = k
        while parent[root] != root:
            root = parent[root]
        if root == k:
            name[k], first[n] = n, k
            n += 1
        else:
            name[k] = name[root]
    return name, first


@numba.njit(cache=True)
def _fill(out, starts, stops, name, names):  # type: ignore[no-untyped-def]
    for k in range(starts.size):
        out[starts[k] : stops[k]] = names[name[k]]
