"""Supervoxels from affinities, exactly the same for every tiling.

Each voxel keeps the strongest of its six links, if that reaches ``t_low``; every link of at least ``t_high`` is kept
as well. Supervoxels are the connected components of kept links. This is the first round of Boruvka's minimum-tree
algorithm, whose components are the catchment basins of the watershed cut (Cousty et al. 2009, "Watershed cuts:
minimum spanning forests and the drop of water principle"), plus the plateau rule ``t_high`` of zwatershed
(Zlateski & Seung 2015, arXiv 1505.00249).

Whether a link is kept depends on nothing further than one voxel away, and ties go to the lower direction code, which
is the same order as "lower global link index first". So a block decides its own links from its voxels and a halo of
one, and a component's name, one more than the smallest global voxel index in it, depends on the volume alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box

_NONE = 6  # direction code of a voxel without any link of at least t_low


@dataclass(frozen=True, slots=True)
class BlockLabels:
    """Supervoxel fragments of one block.

    Attributes
    ----------
    labels
        ``(x, y, z)`` uint64 over the core: one more than the smallest global voxel index (x fastest, in the volume)
        of the fragment; 0 where no link reaches ``t_low``.
    crossings
        For each axis, a bool array over the core's lower face: whether the link across it is kept.
    """

    labels: npt.NDArray[np.uint64]
    crossings: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


def halo_of(core: Box, *, bounds: Box) -> Box:
    """Return the box whose affinities a block needs: one voxel more on every side, inside the volume."""
    return core.grow((1, 1, 1)).intersect(bounds)


def mask_halo_of(core: Box, *, bounds: Box) -> Box:
    """Return the box whose mask a block needs: the links of the halo reach one voxel further down."""
    start = core.grow((2, 2, 2)).start
    return Box(start, core.grow((1, 1, 1)).stop).intersect(bounds)


def supervoxels(
    affinities: npt.NDArray[np.uint8],
    *,
    core: Box,
    bounds: Box,
    t_low: int,
    t_high: int,
    mask: npt.NDArray[Any] | None = None,
) -> BlockLabels:
    """Label the fragments of supervoxels inside ``core``.

    Parameters
    ----------
    affinities
        ``(3, x, y, z)`` uint8 over :func:`halo_of` ``(core, bounds=bounds)``; ``affinities[c, v]`` links ``v`` to its
        lower neighbour along axis ``c``.
    core, bounds
        The block, and the volume it belongs to, in the same voxel coordinates.
    t_low, t_high
        Weakest link that may hold a voxel, weakest link that always holds; ``1 <= t_low <= t_high``.
    mask
        ``(x, y, z)`` over :func:`mask_halo_of` ``(core, bounds=bounds)``; voxels where it is 0 have no links. None: no
        mask.

    Returns
    -------
    The fragments of the block, named globally.

    Raises
    ------
    SpecError
        If an array has another shape or type, or the thresholds are out of order.
    """
    outer = halo_of(core, bounds=bounds)
    if affinities.dtype != np.uint8 or affinities.shape != (3, *outer.shape):
        raise SpecError(
            f"affinities must be uint8 of shape {(3, *outer.shape)} (the block and one voxel around it), "
            f"got {affinities.dtype} of shape {affinities.shape}"
        )
    masked = mask_halo_of(core, bounds=bounds)
    if mask is not None and mask.shape != masked.shape:
        raise SpecError(
            f"the mask must have shape {masked.shape} (the block, two voxels below and one above it), got {mask.shape}"
        )
    if not 1 <= t_low <= t_high:
        raise SpecError(
            f"thresholds must satisfy 1 <= t_low <= t_high (uint8 scale), got {t_low} and {t_high}"
        )
    ax, ay, az = (
        _existing_links(affinities[axis], axis=axis, outer=outer, masked=masked, bounds=bounds, mask=mask)
        for axis in range(3)
    )
    low = np.array([a - b for a, b in zip(core.start, outer.start, strict=True)], np.int64)
    size = np.array(core.shape, np.int64)
    outer_shape = np.array(outer.shape, np.int64)
    parent = np.empty(core.n_voxels, np.int64 if core.n_voxels >= 2**31 else np.int32)
    _join(ax, ay, az, outer_shape, low, size, np.uint8(t_low), np.int32(t_high), parent)
    labels = np.empty(core.n_voxels, np.uint64)
    at = np.array([a - b for a, b in zip(core.start, bounds.start, strict=True)], np.int64)
    _name(parent, labels, size, at, np.array(bounds.shape, np.int64))
    crossings = tuple(
        _crossings(ax, ay, az, outer_shape, low, size, np.uint8(t_low), np.int32(t_high), axis)
        for axis in range(3)
    )
    return BlockLabels(labels.reshape(core.shape, order="F"), crossings)


def _existing_links(
    affinity: npt.NDArray[np.uint8],
    *,
    axis: int,
    outer: Box,
    masked: Box,
    bounds: Box,
    mask: npt.NDArray[Any] | None,
) -> npt.NDArray[np.uint8]:
    """Return one channel, flat with x fastest; links out of the volume or to masked voxels become 0."""
    at_border = outer.start[axis] == bounds.start[axis]
    if not at_border and mask is None:
        return affinity.reshape(-1, order="F")
    links = np.array(affinity, order="F")
    if at_border:
        links[(slice(None),) * axis + (0,)] = 0
    if mask is not None:
        here = outer.slices_in(masked)
        links[mask[here] == 0] = 0
        # The lower partner of a link: the voxel before, where the mask reaches that far (else the link is 0 already).
        step = (-int(axis == 0), -int(axis == 1), -int(axis == 2))
        x, y, z = (s + 1 if a == axis and at_border else s for a, s in enumerate(outer.start))
        linked = Box((x, y, z), outer.stop)
        partner = linked.shift(step)
        view = links[linked.slices_in(outer)]
        view[mask[partner.slices_in(masked)] == 0] = 0
    return links.reshape(-1, order="F")


@numba.njit(cache=True)
def _strongest(ax, ay, az, i, x, y, z, shape, t_low):  # type: ignore[no-untyped-def]
    """Direction of the strongest link of voxel ``i``: 0-2 to the lower neighbour, 3-5 to the upper, 6 for none."""
    nx, ny = shape[0], shape[0] * shape[1]
    best, code = t_low, _NONE
    if ax[i] >= best:
        best, code = ax[i], 0
    if ay[i] > best or (code == _NONE and ay[i] >= best):
        best, code = ay[i], 1
    if az[i] > best or (code == _NONE and az[i] >= best):
        best, code = az[i], 2
    if x + 1 < shape[0]:
        a = ax[i + 1]
        if a > best or (code == _NONE and a >= best):
            best, code = a, 3
    if y + 1 < shape[1]:
        a = ay[i + nx]
        if a > best or (code == _NONE and a >= best):
            best, code = a, 4
    if z + 1 < shape[2]:
        a = az[i + ny]
        if a > best or (code == _NONE and a >= best):
            best, code = a, 5
    return code


@numba.njit(cache=True)
def _root(parent, i):  # type: ignore[no-untyped-def]
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@numba.njit(cache=True)
def _unite(parent, i, j):  # type: ignore[no-untyped-def]
    if parent[i] == parent[j]:  # most links lie inside a basin that is one already
        return
    a, b = _root(parent, i), _root(parent, j)
    if a < b:
        parent[b] = a
    elif b < a:
        parent[a] = b


@numba.njit(cache=True)
def _join(ax, ay, az, shape, low, size, t_low, t_high, parent):  # type: ignore[no-untyped-def]
    """Unite the core voxels that kept links connect; isolated voxels get parent -1."""
    nx, ny = shape[0], shape[0] * shape[1]
    mx, my = size[0], size[0] * size[1]
    for p in range(parent.size):
        parent[p] = p
    p = 0
    for cz in range(size[2]):
        for cy in range(size[1]):
            i = low[0] + nx * (cy + low[1]) + ny * (cz + low[2])
            for cx in range(size[0]):
                code = _strongest(ax, ay, az, i, cx + low[0], cy + low[1], cz + low[2], shape, t_low)
                if code == 0:
                    if cx > 0:
                        _unite(parent, p, p - 1)
                elif code == 1:
                    if cy > 0:
                        _unite(parent, p, p - mx)
                elif code == 2:
                    if cz > 0:
                        _unite(parent, p, p - my)
                elif code == 3:
                    if cx + 1 < size[0]:
                        _unite(parent, p, p + 1)
                elif code == 4:
                    if cy + 1 < size[1]:
                        _unite(parent, p, p + mx)
                elif code == 5:
                    if cz + 1 < size[2]:
                        _unite(parent, p, p + my)
                if cx > 0 and ax[i] >= t_high:
                    _unite(parent, p, p - 1)
                if cy > 0 and ay[i] >= t_high:
                    _unite(parent, p, p - mx)
                if cz > 0 and az[i] >= t_high:
                    _unite(parent, p, p - my)
                if code == _NONE:
                    parent[p] = -1  # no link of a neighbour can reach it either: links are symmetric
                p += 1
                i += 1


@numba.njit(cache=True)
def _name(parent, labels, size, at, volume):  # type: ignore[no-untyped-def]
    """Give each voxel its component's name; roots come before their members in scan order."""
    p = 0
    for cz in range(size[2]):
        for cy in range(size[1]):
            name = np.uint64(at[0] + volume[0] * (cy + at[1] + volume[1] * (cz + at[2])) + 1)
            for _ in range(size[0]):
                if parent[p] < 0:
                    labels[p] = 0
                else:
                    root = _root(parent, p)
                    labels[p] = name if root == p else labels[root]
                name += np.uint64(1)
                p += 1


@numba.njit(cache=True)
def _crossings(ax, ay, az, shape, low, size, t_low, t_high, axis):  # type: ignore[no-untyped-def]
    """Whether the link across the lower face of the core is kept, for each voxel of that face."""
    u, v = (1 if axis == 0 else 0), (1 if axis == 2 else 2)
    kept = np.zeros((size[u], size[v]), np.bool_)
    if low[axis] == 0:
        return kept
    stride = (1, shape[0], shape[0] * shape[1])
    at = np.zeros(3, np.int64)
    at[axis] = low[axis]
    for b in range(size[v]):
        for a in range(size[u]):
            at[u], at[v] = a + low[u], b + low[v]
            i = at[0] + at[1] * stride[1] + at[2] * stride[2]
            if axis == 0:
                link = ax[i]
            elif axis == 1:
                link = ay[i]
            else:
                link = az[i]
            keep = link >= t_high
            if not keep:
                keep = _strongest(ax, ay, az, i, at[0], at[1], at[2], shape, t_low) == axis
            if not keep:
                at[axis] -= 1
                j = i - stride[axis]
                keep = _strongest(ax, ay, az, j, at[0], at[1], at[2], shape, t_low) == axis + 3
                at[axis] += 1
            kept[a, b] = keep
    return kept
