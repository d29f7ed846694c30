"""Somas from their middles: seeds grow along the cheapest way, and the blocks do not show.

A voxel of the extent belongs to the seed that is nearest along a path of face neighbours inside the extent, where a
step costs its length, and more within a boundary. This is the watershed by topographic distance (Meyer 1994,
https://doi.org/10.1016/0165-1684(94)90060-4) with a length in it, in integers; of two seeds equally near the one of
the smaller id gets the voxel. No path is longer than ``reach_nm``, so a voxel depends on nothing further away: a block
with a halo of that many voxels finds what the whole volume would give, bit for bit. Project-defined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ
from cloudseg.ops.runs import Runs

Labels = npt.NDArray[np.uint64]
Heads = dict[str, npt.NDArray[np.uint8]]
Size = tuple[float, float, float]

MAX_REACH_NM = 100_000.0
"""Costs are counted in lists, 255 of them for each nanometre."""


@dataclass(frozen=True, slots=True)
class SeedRule:
    """What of a network's heads is the middle of a soma, and what is soma at all; all on the scale of uint8.

    Attributes
    ----------
    interior, seed, distance
        A middle has at least so much of each of these heads that are given.
    boundary
        A middle has less boundary than this.
    extent
        A voxel is soma from this on: its interior, or with ``rim`` its interior and boundary together.
    rim
        Whether the interior leaves out the rim, as the published one does: then the boundary is soma, too.
    """

    interior: int = 128
    seed: int = 128
    distance: int = 128
    boundary: int = 128
    extent: int = 128
    rim: bool = False


def seed_mask(heads: Heads, rule: SeedRule) -> npt.NDArray[np.bool_]:
    """Return ``(x, y, z)``: the middles of somas.

    Parameters
    ----------
    heads
        ``interior``, ``boundary``, ``distance``, ``seed``: those that the network has, ``(x, y, z)`` uint8.
    rule
        See :class:`SeedRule`.

    Raises
    ------
    SpecError
        If none of ``interior``, ``distance`` and ``seed`` is there.
    """
    inside = [
        heads[name] >= getattr(rule, name) for name in ("interior", "distance", "seed") if name in heads
    ]
    if not inside:
        raise SpecError(
            f"seeds of somas need a head 'interior', 'distance' or 'seed', got {', '.join(heads) or 'none'}"
        )
    mask: npt.NDArray[np.bool_] = np.logical_and.reduce(inside)
    if "boundary" in heads:
        mask &= heads["boundary"] < rule.boundary
    return mask


def extent_mask(heads: Heads, rule: SeedRule) -> npt.NDArray[np.bool_]:
    """Return ``(x, y, z)``: where somas are.

    Raises
    ------
    SpecError
        If there is no interior, or ``rim`` wants a boundary that is not there.
    """
    wanted = ("interior", "boundary") if rule.rim else ("interior",)
    missing = [name for name in wanted if name not in heads]
    if missing:
        raise SpecError(
            f"the extent of somas needs the heads {', '.join(wanted)}, got {', '.join(heads) or 'none'}"
        )
    if not rule.rim:
        return heads["interior"] >= rule.extent
    mask: npt.NDArray[np.bool_] = heads["interior"].astype(np.uint16) + heads["boundary"] >= rule.extent
    return mask


def halo_of_reach(reach_nm: float, voxel_size_nm: Size) -> XYZ:
    """Return how many voxels a block must see on each side so that :func:`grow` gives what the volume would.

    Examples
    --------
    >>> halo_of_reach(1000, (64, 64, 40))
    (15, 15, 25)
    """
    x, y, z = (int(reach_nm // step) for step in _steps(voxel_size_nm))
    return (x, y, z)


def grow(
    seeds: Labels,
    extent: npt.NDArray[np.bool_],
    boundary: npt.NDArray[np.uint8] | None = None,
    *,
    voxel_size_nm: Size,
    reach_nm: float,
    boundary_cost: int = 8,
) -> Labels:
    """Return which seed each voxel of the extent belongs to.

    Parameters
    ----------
    seeds
        ``(x, y, z)`` uint64; 0 is no seed. Seeds keep their voxels, in the extent or not.
    extent
        ``(x, y, z)``: where somas are.
    boundary
        ``(x, y, z)`` uint8, 255 is a sure boundary; None: every step costs its length.
    voxel_size_nm
        Edges of a voxel, rounded to whole nanometres.
    reach_nm
        No seed gets a voxel to which the path costs more.
    boundary_cost
        A step into a sure boundary costs this many lengths more.

    Returns
    -------
    ``(x, y, z)`` uint64 in Fortran order; 0 where no seed reaches.

    Raises
    ------
    SpecError
        If the arrays differ in shape, or a number is out of range.
    """
    shapes = [a.shape for a in (seeds, extent, boundary) if a is not None]
    if len(set(shapes)) != 1 or seeds.ndim != 3:
        raise SpecError(f"seeds, extent and boundary must be (x, y, z) of one shape, got {shapes}")
    if seeds.dtype != np.uint64:
        raise SpecError(f"seeds must be uint64, got {seeds.dtype}")
    if not 0 <= reach_nm <= MAX_REACH_NM or boundary_cost < 0:
        raise SpecError(
            f"reach_nm must lie between 0 and {MAX_REACH_NM:g} and boundary_cost must not be negative, got "
            f"{reach_nm:g} and {boundary_cost}"
        )
    nx, ny, nz = seeds.shape
    runs = Runs.of(np.asfortranarray(seeds))
    numbers = (
        runs.labels(np.arange(1, len(runs.ids) + 1, dtype=np.uint64)).reshape(-1, order="F").astype(np.int32)
    )
    owner = np.where(extent.reshape(-1, order="F") | (numbers > 0), numbers, np.int32(-1))
    slow = np.zeros(0, np.uint8) if boundary is None else boundary.reshape(-1, order="F")
    # Costs are in 1/255 nm, so that each level of the boundary counts.
    _grow(
        owner,
        np.ascontiguousarray(slow),
        nx,
        ny,
        nz,
        np.array(_steps(voxel_size_nm), np.int64),
        int(reach_nm * 255),
        boundary_cost,
    )
    names = np.concatenate([np.zeros(1, np.uint64), runs.ids])
    return names[np.maximum(owner, 0)].reshape(seeds.shape, order="F")


def _steps(voxel_size_nm: Size) -> XYZ:
    x, y, z = (max(1, round(size)) for size in voxel_size_nm)
    return (x, y, z)


@numba.njit(cache=True)
def _grow(owner, slow, nx, ny, nz, length, reach, boundary_cost):  # type: ignore[no-untyped-def]
    """Fill ``owner``: -1 is outside, 0 free, else the seed's number.

    Dijkstra with one list of voxels for each cost (Dial 1969). All that offer a voxel its cost come before its turn,
    so that the smallest of them is known by then.
    """
    n = owner.size
    stride = np.array([1, nx, nx * ny])
    cost = np.full(n, np.int32(2**31 - 1))
    first = np.full(reach + 1, np.int64(-1))  # of each cost's list
    entry, after = np.empty(4096, np.int64), np.empty(4096, np.int64)
    n_entries = 0
    for at in range(n):
        if owner[at] <= 0:
            continue
        cost[at] = 0
        x, y, z = at % nx, at // nx % ny, at // (nx * ny)
        if (
            (x > 0 and owner[at - 1] == 0)
            or (x < nx - 1 and owner[at + 1] == 0)
            or (y > 0 and owner[at - nx] == 0)
            or (y < ny - 1 and owner[at + nx] == 0)
            or (z > 0 and owner[at - nx * ny] == 0)
            or (z < nz - 1 and owner[at + nx * ny] == 0)
        ):  # only a seed's rim has anything to give
            if n_entries == entry.size:
                entry, after = _doubled(entry), _doubled(after)
            entry[n_entries], after[n_entries] = at, first[0]
            first[0] = n_entries
            n_entries += 1
    for spent in range(reach + 1):
        e = first[spent]
        while e >= 0:
            at = entry[e]
            e = after[e]
            if cost[at] != spent:
                continue  # a cheaper way was found since
            x, y, z = at % nx, at // nx % ny, at // (nx * ny)
            for axis in range(3):
                low = (axis == 0 and x > 0) or (axis == 1 and y > 0) or (axis == 2 and z > 0)
                high = (axis == 0 and x < nx - 1) or (axis == 1 and y < ny - 1) or (axis == 2 and z < nz - 1)
                for up in range(2):
                    if (up == 0 and not low) or (up == 1 and not high):
                        continue
                    to = at + stride[axis] if up == 1 else at - stride[axis]
                    if owner[to] < 0 or cost[to] <= spent:
                        continue
                    step = 255 * length[axis]
                    if slow.size > 0:
                        step += boundary_cost * np.int64(slow[to]) * length[axis]
                    total = spent + step
                    if total > reach or total > cost[to]:
                        continue
                    if total == cost[to]:
                        owner[to] = min(owner[to], owner[at])
                        continue
                    cost[to] = total
                    owner[to] = owner[at]
                    if n_entries == entry.size:
                        entry, after = _doubled(entry), _doubled(after)
                    entry[n_entries], after[n_entries] = to, first[total]
                    first[total] = n_entries
                    n_entries += 1


@numba.njit(cache=True)
def _doubled(column):  # type: ignore[no-untyped-def]
    longer = np.empty(2 * column.size, column.dtype)
    longer[: column.size] = column
    return longer
