"""Per-segment statistics as integers that add up: any tiling gives the same table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box

Ints = npt.NDArray[np.int64]

_NEVER_START = np.iinfo(np.int64).max
_NEVER_STOP = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class SegmentTable:
    """Additive statistics of ``n`` segments, sorted by id. Coordinates are voxel indices in x, y, z.

    Attributes
    ----------
    ids
        ``(n,)`` uint64, ascending, without 0 (background).
    n_voxels
        ``(n,)`` int64. 0 where a block saw the segment only across its border.
    sum_vx
        ``(n, 3)`` int64, sums of the voxels' coordinates.
    start_vx, stop_vx
        ``(n, 3)`` int64, the half-open bounding box; start above stop where ``n_voxels`` is 0.
    n_faces
        ``(n, 3)`` int64, voxel faces across x, y, z towards another label or background. Faces on the
        border of the volume do not count: what lies behind them is unknown.
    """

    ids: npt.NDArray[np.uint64]
    n_voxels: Ints
    sum_vx: Ints
    start_vx: Ints
    stop_vx: Ints
    n_faces: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: npt.NDArray[Any]) -> SegmentTable:
        """Return the chosen rows (indices or a mask), in that order."""
        return SegmentTable(
            self.ids[rows],
            self.n_voxels[rows],
            self.sum_vx[rows],
            self.start_vx[rows],
            self.stop_vx[rows],
            self.n_faces[rows],
        )


def block_statistics(labels: npt.NDArray[Any], *, box: Box, core: Box) -> SegmentTable:
    """Measure the segments of ``core``.

    Parameters
    ----------
    labels
        ``(x, y, z)``, any unsigned integer type; 0 is background. Not changed.
    box
        What ``labels`` covers: ``core``, and one voxel more at each lower side that is not the border of the
        volume, so that each face between two voxels belongs to exactly one block.
    core
        The voxels to measure.

    Returns
    -------
    The partial table of this block. :func:`merge_statistics` of the partials of any tiling equals the table of
    the whole volume.

    Raises
    ------
    SpecError
        If ``labels`` does not cover ``box``, is not unsigned, or ``core`` is not the upper part of ``box``.
    """
    if labels.shape != box.shape:
        raise SpecError(f"labels of shape {labels.shape} do not cover the box {box} of shape {box.shape}")
    if labels.dtype.kind != "u":
        raise SpecError(
            f"labels must be unsigned integers, got dtype {labels.dtype}: ids never pass through floats"
        )
    if core.stop != box.stop or not box.contains(core):
        raise SpecError(f"core {core} must be the upper part of the box {box} that was read")
    skip = tuple(c - b for c, b in zip(core.start, box.start, strict=True))
    ids, table = _accumulate(
        np.asfortranarray(labels, dtype=np.uint64),
        np.asarray(skip, np.int64),
        np.asarray(box.start, np.int64),
    )
    order = np.argsort(ids)
    ids, table = ids[order], table[order]
    return SegmentTable(ids, table[:, 0], table[:, 1:4], table[:, 4:7], table[:, 7:10], table[:, 10:13])


def merge_statistics(tables: Sequence[SegmentTable]) -> SegmentTable:
    """Add partial tables; the order does not matter.

    Parameters
    ----------
    tables
        Any number of tables, empty ones included.
    """
    if not tables:
        none = np.empty((0, 3), np.int64)
        return SegmentTable(np.empty(0, np.uint64), np.empty(0, np.int64), none, none, none, none)
    every = SegmentTable(
        np.concatenate([t.ids for t in tables]),
        np.concatenate([t.n_voxels for t in tables]),
        np.concatenate([t.sum_vx for t in tables]),
        np.concatenate([t.start_vx for t in tables]),
        np.concatenate([t.stop_vx for t in tables]),
        np.concatenate([t.n_faces for t in tables]),
    )
    if not len(every):
        return every
    every = every.take(np.argsort(every.ids, kind="stable"))
    ids, first = np.unique(every.ids, return_index=True)
    return SegmentTable(
        ids,
        np.add.reduceat(every.n_voxels, first),
        np.add.reduceat(every.sum_vx, first, axis=0),
        np.minimum.reduceat(every.start_vx, first, axis=0),
        np.maximum.reduceat(every.stop_vx, first, axis=0),
        np.add.reduceat(every.n_faces, first, axis=0),
    )


def describe(
    table: SegmentTable, *, bounds: Box, voxel_size_nm: tuple[float, float, float]
) -> Mapping[str, npt.NDArray[Any]]:
    """Turn the merged table of a volume into the columns that users read.

    Parameters
    ----------
    table
        The merged table of all blocks; each row has voxels.
    bounds
        Of the volume, in voxels: a segment whose box reaches them is on the border.
    voxel_size_nm
        Edge of a voxel along x, y, z.

    Returns
    -------
    ``id`` (uint64), ``n_voxels`` (int64), ``volume_um3``, ``surface_um2`` (inner faces only),
    ``centroid_{x,y,z}_nm`` (a voxel's centre lies at index + 0.5), ``start_…_vx``/``stop_…_vx`` (int64),
    ``start_…_nm``/``stop_…_nm`` and ``on_border`` (bool).
    """
    size = np.asarray(voxel_size_nm, np.float64)
    face_nm2 = np.asarray([size[1] * size[2], size[0] * size[2], size[0] * size[1]])
    centroid = (table.sum_vx / np.maximum(table.n_voxels, 1)[:, None] + 0.5) * size
    at_border = (table.start_vx <= np.asarray(bounds.start)) | (table.stop_vx >= np.asarray(bounds.stop))
    columns: dict[str, npt.NDArray[Any]] = {
        "id": table.ids,
        "n_voxels": table.n_voxels,
        "volume_um3": table.n_voxels * (float(np.prod(size)) * 1e-9),
        "surface_um2": (table.n_faces * face_nm2).sum(axis=1) * 1e-6,
    }
    for axis, name in enumerate("xyz"):
        columns[f"centroid_{name}_nm"] = centroid[:, axis]
    for what, corner in (("start", table.start_vx), ("stop", table.stop_vx)):
        for axis, name in enumerate("xyz"):
            columns[f"{what}_{name}_vx"] = corner[:, axis]
    for what, corner in (("start", table.start_vx), ("stop", table.stop_vx)):
        for axis, name in enumerate("xyz"):
            columns[f"{what}_{name}_nm"] = corner[:, axis] * size[axis]
    columns["on_border"] = np.asarray(at_border.any(axis=1))
    return columns


def partition_of(ids: npt.NDArray[np.uint64], *, n_partitions: int) -> Ints:
    """Return which of ``n_partitions`` each id belongs to: even however the ids were given out.

    The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    mixed = np.asarray(ids, np.uint64).copy()
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed % np.uint64(n_partitions)).astype(np.int64)


@numba.njit(cache=True)
def _slot(key: int, keys: Any, slots: Any, ids: Any, table: Any, n: int) -> tuple[int, int]:
    # Open addressing; capacity is a power of two and never more than half full.
    mask = np.uint64(len(keys) - 1)
    place = (key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20) & mask
    while slots[place] >= 0:
        if keys[place] == key:
            return slots[place], n
        place = (place + np.uint64(1)) & mask
    keys[place] = key
    slots[place] = n
    ids[n] = key
    for axis in range(3):
        table[n, 4 + axis] = _NEVER_START
        table[n, 7 + axis] = _NEVER_STOP
    return n, n + 1


@numba.njit(cache=True)
def _grow(ids: Any, table: Any, n: int, capacity: int) -> tuple[Any, Any, Any, Any]:
    new_keys = np.zeros(capacity, np.uint64)
    new_slots = np.full(capacity, -1, np.int64)
    new_ids = np.zeros(capacity // 2, np.uint64)
    new_table = np.zeros((capacity // 2, 13), np.int64)
    new_ids[:n] = ids[:n]
    new_table[:n] = table[:n]
    mask = np.uint64(capacity - 1)
    for i in range(n):
        place = (ids[i] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20) & mask
        while new_slots[place] >= 0:
            place = (place + np.uint64(1)) & mask
        new_keys[place] = ids[i]
        new_slots[place] = i
    return new_keys, new_slots, new_ids, new_table


@numba.njit(cache=True)
def _accumulate(labels: Any, skip: Any, origin: Any) -> tuple[Any, Any]:
    """Columns: count, sums x y z, starts, stops, faces across x y z."""
    nx, ny, nz = labels.shape
    zero = np.uint64(0)
    n = 0
    capacity = 1 << 12
    keys = np.zeros(capacity, np.uint64)
    slots = np.full(capacity, -1, np.int64)
    ids = np.zeros(capacity // 2, np.uint64)
    table = np.zeros((capacity // 2, 13), np.int64)
    for k in range(skip[2], nz):
        for j in range(skip[1], ny):
            # A row can bring at most 4 new labels a voxel: itself and three lower neighbours.
            while n + 4 * nx > capacity // 2:
                capacity *= 2
                keys, slots, ids, table = _grow(ids, table, n, capacity)
            i = skip[0]
            while i < nx:
                label = labels[i, j, k]
                end = i + 1
                while end < nx and labels[end, j, k] == label:
                    end += 1
                slot = -1
                if label != zero:
                    slot, n = _slot(label, keys, slots, ids, table, n)
                    length = end - i
                    table[slot, 0] += length
                    table[slot, 1] += length * origin[0] + (i + end - 1) * length // 2
                    table[slot, 2] += length * (origin[1] + j)
                    table[slot, 3] += length * (origin[2] + k)
                    table[slot, 4] = min(table[slot, 4], origin[0] + i)
                    table[slot, 5] = min(table[slot, 5], origin[1] + j)
                    table[slot, 6] = min(table[slot, 6], origin[2] + k)
                    table[slot, 7] = max(table[slot, 7], origin[0] + end)
                    table[slot, 8] = max(table[slot, 8], origin[1] + j + 1)
                    table[slot, 9] = max(table[slot, 9], origin[2] + k + 1)
                if i > 0 and labels[i - 1, j, k] != label:
                    if slot >= 0:
                        table[slot, 10] += 1
                    if labels[i - 1, j, k] != zero:
                        other, n = _slot(labels[i - 1, j, k], keys, slots, ids, table, n)
                        table[other, 10] += 1
                for axis in range(1, 3):
                    if (axis == 1 and j == 0) or (axis == 2 and k == 0):
                        continue
                    last = zero
                    last_slot = -1
                    for m in range(i, end):
                        below = labels[m, j - 1, k] if axis == 1 else labels[m, j, k - 1]
                        if below == label:
                            continue
                        if slot >= 0:
                            table[slot, 10 + axis] += 1
                        if below != zero:
                            if below != last:
                                last_slot, n = _slot(below, keys, slots, ids, table, n)
                                last = below
                            table[last_slot, 10 + axis] += 1
                i = end
    return ids[:n].copy(), table[:n].copy()
