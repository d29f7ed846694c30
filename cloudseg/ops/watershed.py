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
from cloudseg.ops.runs import Runs, place_type

Links = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

_NONE = 6  # direction code of a voxel without any link of at least t_low


@dataclass(frozen=True, slots=True)
class BlockLabels:
    """Supervoxel fragments of one block.

    Attributes
    ----------
    runs
        Runs of fragments over the core. A fragment is called one more than the smallest global voxel index (x fastest,
        in the volume) in it; background where no link reaches ``t_low``.
    n_voxels
        Size of each fragment, by its place in ``runs.ids``.
    crossings
        For each axis, a bool array over the core's lower face: whether the link across it is kept.
    """

    runs: Runs
    n_voxels: npt.NDArray[np.int64]
    crossings: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]

    @property
    def labels(self) -> npt.NDArray[np.uint64]:
        """``(x, y, z)`` uint64 over the core, in Fortran order; 0 is background. Computed at each call."""
        return self.runs.labels()


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
    links = [_links(affinities[axis], axis=axis, outer=outer, masked=masked, mask=mask) for axis in range(3)]
    ax, ay, az = links
    # At the volume's lower border there are links in the array, but nothing to link to.
    open_below = np.array([a > b for a, b in zip(outer.start, bounds.start, strict=True)])
    low = np.array([a - b for a, b in zip(core.start, outer.start, strict=True)], np.int64)
    size = np.array(core.shape, np.int64)
    shape = np.array(outer.shape, np.int64)

    def picked(at: Places, of: Places) -> Links:
        codes = np.empty(int(of.prod()), np.uint8)
        _pick(ax, ay, az, shape, open_below, at, of, np.uint8(t_low), codes)
        return codes

    runs, n_voxels = _label(
        ax, ay, az, shape, low, picked(low, size), core=core, bounds=bounds, t_high=t_high
    )
    crossings = []
    for axis in range(3):
        thin = size.copy()
        thin[axis] = 1
        if low[axis] == 0:
            crossings.append(np.zeros(np.delete(size, axis), np.bool_))
            continue
        face = [slice(a, a + n) for a, n in zip(low, thin, strict=True)]
        kept = links[axis].reshape(outer.shape, order="F")[tuple(face)] >= t_high
        kept |= picked(low, thin).reshape(kept.shape, order="F") == axis
        # The voxels below belong to another block, which decides about them by the same rule.
        below = low.copy()
        below[axis] -= 1
        kept |= picked(below, thin).reshape(kept.shape, order="F") == axis + 3
        crossings.append(kept.squeeze(axis))
    return BlockLabels(runs, n_voxels, (crossings[0], crossings[1], crossings[2]))


def _label(
    ax: Links,
    ay: Links,
    az: Links,
    shape: Places,
    low: Places,
    codes: Links,
    *,
    core: Box,
    bounds: Box,
    t_high: int,
) -> tuple[Runs, npt.NDArray[np.int64]]:
    """Join the voxels of the core along kept links; return the fragments' runs and sizes."""
    size = np.array(core.shape, np.int64)
    events = np.empty(core.n_voxels, np.uint8)
    n_pieces = _mark(ax, ay, az, shape, low, size, np.uint8(t_high), codes, events)
    dtype = place_type(core.n_voxels)
    parent, start = np.empty(n_pieces, dtype), np.empty(n_pieces + 1, dtype)
    n_fragments = _join(events, size, parent, start)
    rows, begin = np.empty(size[1] * size[2] + 1, dtype), np.empty(n_pieces + 1, dtype)
    place, first = np.empty(n_pieces, dtype), np.empty(n_fragments, dtype)
    n_voxels = np.zeros(n_fragments, np.int64)
    n_runs = _settle(parent, start, core.shape[0], rows, begin, place, first, n_voxels)
    # The first voxel of a fragment in scan order has its smallest index, here and in the volume.
    x, y, z = (
        i + a - b
        for i, a, b in zip(
            np.unravel_index(first.astype(np.int64), core.shape, order="F"),
            core.start,
            bounds.start,
            strict=True,
        )
    )
    names = (x + bounds.shape[0] * (y + bounds.shape[1] * z) + 1).astype(np.uint64)
    return Runs(core.shape, rows, begin[: n_runs + 1].copy(), place[:n_runs].copy(), names), n_voxels


def _links(
    affinity: npt.NDArray[np.uint8], *, axis: int, outer: Box, masked: Box, mask: npt.NDArray[Any] | None
) -> Links:
    """Return one channel, flat with x fastest; links of masked voxels become 0."""
    if mask is None:
        return affinity.reshape(-1, order="F")
    links = np.array(affinity, order="F")
    links[mask[outer.slices_in(masked)] == 0] = 0
    # The lower partner of a link: the voxel before, where there is one (at the volume's border there is none).
    step = (-int(axis == 0), -int(axis == 1), -int(axis == 2))
    partner = outer.shift(step).intersect(masked)
    view = links[partner.shift((-step[0], -step[1], -step[2])).slices_in(outer)]
    view[mask[partner.slices_in(masked)] == 0] = 0
    return links.reshape(-1, order="F")


@numba.njit(cache=True)
def _root(parent, i):  # type: ignore[no-untyped-def]
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@numba.njit(cache=True)
def _pick_row(x0, x1, y0, y1, z0, z1, t_low, codes):  # type: ignore[no-untyped-def]
    """Directions of the strongest links of a row; the arguments hold its links to lower (0) and upper (1) neighbours.

    All values are bytes and no branch depends on them, so that the compiler turns the row into vector instructions.
    """
    for i in range(codes.size):
        best = max(x0[i], x1[i], y0[i], y1[i], z0[i], z1[i])
        code = np.uint8(5)
        code = np.uint8(4) if y1[i] == best else code
        code = np.uint8(3) if x1[i] == best else code
        code = np.uint8(2) if z0[i] == best else code
        code = np.uint8(1) if y0[i] == best else code
        code = np.uint8(0) if x0[i] == best else code
        codes[i] = np.uint8(_NONE) if best < t_low else code


@numba.njit(cache=True)
def _pick(ax, ay, az, shape, open_below, low, size, t_low, codes):  # type: ignore[no-untyped-def]
    """Fill in the direction of the strongest link of each voxel of the box at ``low``: 0-2 lower, 3-5 upper, 6 none."""
    nx, ny, width = shape[0], shape[0] * shape[1], size[0]
    none = np.zeros(width, np.uint8)
    x0, x1 = np.zeros(width, np.uint8), np.zeros(width, np.uint8)
    # The last voxel has an upper link unless the array ends there; then its entry stays 0.
    n_upper = width if low[0] + width < nx else width - 1
    p = 0
    for z in range(low[2], low[2] + size[2]):
        for y in range(low[1], low[1] + size[1]):
            i = low[0] + nx * y + ny * z
            x0[:] = ax[i : i + width]
            if low[0] == 0 and not open_below[0]:
                x0[0] = 0
            x1[:n_upper] = ax[i + 1 : i + 1 + n_upper]
            y0 = ay[i : i + width] if y > 0 or open_below[1] else none
            z0 = az[i : i + width] if z > 0 or open_below[2] else none
            y1 = ay[i + nx : i + nx + width] if y + 1 < shape[1] else none
            z1 = az[i + ny : i + ny + width] if z + 1 < shape[2] else none
            _pick_row(x0, x1, y0, y1, z0, z1, t_low, codes[p : p + width])
            p += width


_STARTS, _MEETS_Y, _MEETS_Z, _ALONE = 1, 2, 4, 8


@numba.njit(cache=True)
def _mark_row(  # type: ignore[no-untyped-def]
    x0, y0, z0, t_high, codes, codes_y, codes_z, below_y, below_z, has_y, has_z, kx, ky, kz, events
):
    """What happens at each voxel of a row; see :func:`_mark`. Vector instructions, as in :func:`_pick_row`."""
    one = np.uint8(1)
    for i in range(codes.size):
        ky[i] = np.uint8((y0[i] >= t_high) | (codes[i] == 1) | (codes_y[i] == 4)) & has_y
        kz[i] = np.uint8((z0[i] >= t_high) | (codes[i] == 2) | (codes_z[i] == 5)) & has_z
    for i in range(1, codes.size):
        kx[i] = (x0[i] >= t_high) | (codes[i] == 0) | (codes[i - 1] == 3)
    alone = np.uint8(codes[0] == _NONE)
    events[0] = one | (ky[0] << 1) | (kz[0] << 2) | (alone << 3)
    for i in range(1, codes.size):
        meets_y = ky[i] & ~(ky[i - 1] & kx[i] & ~below_y[i]) & one
        meets_z = kz[i] & ~(kz[i - 1] & kx[i] & ~below_z[i]) & one
        alone = np.uint8(codes[i] == _NONE)
        events[i] = (kx[i] ^ one) | (meets_y << 1) | (meets_z << 2) | (alone << 3)


@numba.njit(cache=True)
def _mark(ax, ay, az, shape, low, size, t_high, codes, events):  # type: ignore[no-untyped-def]
    """Mark where, among the voxels of the core, something happens in scan order; return the number of starts.

    ``_STARTS``: no link to the voxel before in x is kept, a new piece of row starts. ``_MEETS_Y``, ``_MEETS_Z``: a kept
    link joins this piece to one of the row below, and the voxel before did not join the same two. ``_ALONE``: the voxel
    has no link. A link is looked at from its upper end, when what the lower end picked is known.
    """
    nx, ny = shape[0], shape[0] * shape[1]
    width, plane = size[0], size[0] * size[1]
    none = np.full(width, _NONE, np.uint8)
    kx, ky, kz = np.zeros(width, np.uint8), np.zeros(width, np.uint8), np.zeros(width, np.uint8)
    p, n = 0, 0
    for cz in range(size[2]):
        for cy in range(size[1]):
            i = low[0] + nx * (cy + low[1]) + ny * (cz + low[2])
            has_y, has_z = cy > 0, cz > 0
            row = events[p : p + width]
            _mark_row(
                ax[i : i + width],
                ay[i : i + width],
                az[i : i + width],
                t_high,
                codes[p : p + width],
                codes[p - width : p] if has_y else none,
                codes[p - plane : p - plane + width] if has_z else none,
                events[p - width : p] if has_y else none,
                events[p - plane : p - plane + width] if has_z else none,
                np.uint8(has_y),
                np.uint8(has_z),
                kx,
                ky,
                kz,
                row,
            )
            starts = 0
            for x in range(width):
                starts += row[x] & np.uint8(_STARTS)
            n += starts
            p += width
    return n


@numba.njit(cache=True)
def _join(events, size, parent, start):  # type: ignore[no-untyped-def]
    """Unite the pieces of rows that kept links connect; pieces alone get parent -1. Return the number of components.

    A plane is first numbered and searched for events without a branch, which would be mispredicted every few voxels.
    """
    width, plane = size[0], size[0] * size[1]
    piece_of = np.zeros(2 * plane, parent.dtype)  # of the voxels of this plane and of the one below, in turn
    places = np.empty(plane + 1, np.int64)
    n_started, n = 0, parent.size
    for cz in range(size[2]):
        here = plane * (cz & 1)
        below = plane - here
        first = plane * cz
        n_places, started_before = 0, n_started
        for q in range(plane):
            event = events[first + q]
            start[n_started] = first + q
            n_started += event & 1
            piece_of[here + q] = n_started - 1
            places[n_places] = q
            n_places += event > _STARTS
        for r in range(started_before, n_started):
            parent[r] = r
        for k in range(n_places):
            q = places[k]
            event, r = events[first + q], piece_of[here + q]
            if event & _ALONE:
                parent[r] = -1
                n -= 1
            if event & _MEETS_Y:
                a, b = _root(parent, r), _root(parent, piece_of[here + q - width])
                parent[max(a, b)] = min(a, b)
                n -= a != b
            if event & _MEETS_Z:
                a, b = _root(parent, r), _root(parent, piece_of[below + q])
                parent[max(a, b)] = min(a, b)
                n -= a != b
    start[n_started] = events.size
    return n


@numba.njit(cache=True)
def _settle(parent, start, width, rows, begin, place, first, n_voxels):  # type: ignore[no-untyped-def]
    """Number the components in scan order and make runs of the pieces; return the number of runs.

    Roots come before their members in scan order. ``parent`` is used up.
    """
    n, k, row = 0, 0, 0
    last = -2
    for r in range(parent.size):
        if parent[r] < 0:
            here = -1
        elif parent[r] == r:
            here = n
            first[n] = start[r]
            n += 1
        else:
            here = parent[parent[r]]
        # From here on the entry holds the component, which its members look up.
        parent[r] = here
        if here >= 0:
            n_voxels[here] += start[r + 1] - start[r]
        if start[r] == row * width:
            rows[row] = k
            row += 1
            last = -2
        if here != last:
            begin[k], place[k] = start[r], here
            k += 1
            last = here
    rows[row], begin[k] = k, start[parent.size]
    return k
