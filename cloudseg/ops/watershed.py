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

Links = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

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
    codes = _strongest(ax, ay, az, outer_shape, low, size, t_low=t_low)
    _join(ax, ay, az, outer_shape, low, size, np.int32(t_high), codes, parent)
    labels = np.empty(core.n_voxels, np.uint64)
    at = np.array([a - b for a, b in zip(core.start, bounds.start, strict=True)], np.int64)
    _name(parent, labels, size, at, np.array(bounds.shape, np.int64))
    crossings = []
    for axis, links in enumerate((ax, ay, az)):
        face = [slice(a, a + n) for a, n in zip(low, size, strict=True)]
        face[axis] = slice(low[axis], low[axis] + 1)
        kept = links.reshape(outer.shape, order="F")[tuple(face)] >= t_high
        kept |= codes.reshape(core.shape, order="F")[(slice(None),) * axis + (slice(0, 1),)] == axis
        if low[axis] > 0:
            # The voxels below belong to another block, which decides about them by the same rule.
            below, thin = low.copy(), size.copy()
            below[axis], thin[axis] = low[axis] - 1, 1
            picked = _strongest(ax, ay, az, outer_shape, below, thin, t_low=t_low)
            kept |= picked.reshape(kept.shape, order="F") == axis + 3
        crossings.append(kept.squeeze(axis))
    return BlockLabels(labels.reshape(core.shape, order="F"), (crossings[0], crossings[1], crossings[2]))


def _strongest(
    ax: Links, ay: Links, az: Links, shape: Places, low: Places, size: Places, *, t_low: int
) -> Links:
    """Return the direction of the strongest link of each voxel of a box, flat: 0-2 lower, 3-5 upper, 6 for none."""
    codes = np.empty(int(size.prod()), np.uint8)
    _pick(ax, ay, az, shape, low, size, np.int32(t_low), codes)
    return codes


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
def _root(parent, i):  # type: ignore[no-untyped-def]
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@numba.njit(cache=True)
def _union(parent, a, i):  # type: ignore[no-untyped-def]
    """Unite the set with root ``a`` (-1: none yet) with the set of ``i``; return the root, the smaller index."""
    b = _root(parent, i)
    if a < 0 or a == b:
        return b
    if a < b:
        parent[b] = a
        return a
    parent[a] = b
    return b


@numba.njit(cache=True)
def _pick(ax, ay, az, shape, low, size, t_low, codes):  # type: ignore[no-untyped-def]
    """Fill in the direction of the strongest link of each voxel of the box at ``low``.

    Each link becomes one number, its affinity above its inverted code, so that the strongest with the lowest code is a
    plain maximum: no branch depends on the data, which would be mispredicted half of the time, and the compiler turns
    a row into vector instructions. A link that would leave the volume is multiplied by 0.
    """
    nx, ny = shape[0], shape[0] * shape[1]
    width, floor = size[0], np.uint16(t_low << 3)
    beyond = low[0] + width < nx
    for cz in range(size[2]):
        for cy in range(size[1]):
            base = low[0] + nx * (cy + low[1]) + ny * (cz + low[2])
            row = width * (cy + size[1] * cz)
            has_y, has_z = cy + low[1] + 1 < shape[1], cz + low[2] + 1 < shape[2]
            step_y, step_z = (nx if has_y else 0), (ny if has_z else 0)
            fy, fz = np.uint16(has_y), np.uint16(has_z)
            for x in range(width):
                i = base + x
                next_x = i + 1 if (x + 1 < width or beyond) else i
                fx = np.uint16(next_x - i)
                best = (np.uint16(ax[i]) << np.uint16(3)) | np.uint16(6)
                best = max(best, (np.uint16(ay[i]) << np.uint16(3)) | np.uint16(5))
                best = max(best, (np.uint16(az[i]) << np.uint16(3)) | np.uint16(4))
                best = max(best, ((np.uint16(ax[next_x]) << np.uint16(3)) | np.uint16(3)) * fx)
                best = max(best, ((np.uint16(ay[i + step_y]) << np.uint16(3)) | np.uint16(2)) * fy)
                best = max(best, ((np.uint16(az[i + step_z]) << np.uint16(3)) | np.uint16(1)) * fz)
                codes[row + x] = (
                    np.uint8(_NONE) - np.uint8(best & np.uint16(7)) if best >= floor else np.uint8(_NONE)
                )


@numba.njit(cache=True)
def _join(ax, ay, az, shape, low, size, t_high, codes, parent):  # type: ignore[no-untyped-def]
    """Unite the core voxels that kept links connect; isolated voxels get parent -1.

    One pass: a link is looked at from its upper end, when what the lower end picked is known.
    """
    nx, ny = shape[0], shape[0] * shape[1]
    sx, sy, sz = size[0], size[1], size[2]
    lx, ly, lz = low[0], low[1], low[2]
    mx, my = sx, sx * sy
    p = 0
    for cz in range(sz):
        for cy in range(sy):
            i = lx + nx * (cy + ly) + ny * (cz + lz)
            for cx in range(sx):
                code = codes[p]
                root = -1
                if cx > 0 and ((ax[i] >= t_high) | (code == 0) | (codes[p - 1] == 3)):
                    root = _union(parent, root, p - 1)
                if cy > 0 and ((ay[i] >= t_high) | (code == 1) | (codes[p - mx] == 4)):
                    root = _union(parent, root, p - mx)
                if cz > 0 and ((az[i] >= t_high) | (code == 2) | (codes[p - my] == 5)):
                    root = _union(parent, root, p - my)
                # No link of a neighbour can reach a voxel that has none itself: links are symmetric.
                parent[p] = -1 if code == _NONE else (p if root < 0 else root)
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
