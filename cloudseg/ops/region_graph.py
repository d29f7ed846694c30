"""Which supervoxels touch, over how many voxel faces, with what total affinity: integers, so that parts add up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.remap import distinct, lookup

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RegionGraph:
    """Undirected edges between ids, sorted by ``(u, v)``, ``u < v``, each pair once.

    Attributes
    ----------
    u, v
        ``(n,)`` uint64.
    total, weight
        ``(n,)`` int64: weighted sum of the uint8 affinities over the shared voxel faces, and the sum of the weights
        (the number of faces where all weigh alike). Their ratio is the score of the edge.
    key_u, key_v
        ``(n,)`` uint64: the largest pair of original ids pooled in the edge. It breaks ties between equal means in a
        way that does not depend on the order of merges, so every tiling breaks them alike.
    """

    u: Ids
    v: Ids
    total: Counts
    weight: Counts
    key_u: Ids
    key_v: Ids

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.u)

    @classmethod
    def empty(cls) -> Self:
        """Return the graph without edges."""
        ids, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        return cls(ids, ids, counts, counts, ids, ids)

    @classmethod
    def pooled(cls, parts: Iterable[RegionGraph]) -> Self:
        """Return the union of ``parts``: totals and weights of the same pair add, keys take the larger."""
        listed = [p for p in parts if p.n_edges]
        if not listed:
            return cls.empty()
        columns = {n: np.concatenate([getattr(p, n) for p in listed]) for n in cls.__dataclass_fields__}
        return cls.of_pairs(**columns)

    @classmethod
    def of_pairs(cls, *, u: Ids, v: Ids, total: Counts, weight: Counts, key_u: Ids, key_v: Ids) -> Self:
        """Return the graph of edges given in any order, orientation and number of pieces."""
        if len(u) == 0:
            return cls.empty()
        low, high = np.minimum(u, v), np.maximum(u, v)
        # The key is the last of the sort keys, so that the last edge of a group carries the largest.
        order = np.lexsort((key_v, key_u, high, low))
        low, high = low[order], high[order]
        first = np.flatnonzero(np.concatenate([[True], (low[1:] != low[:-1]) | (high[1:] != high[:-1])]))
        last = np.concatenate([first[1:], [len(low)]]) - 1
        return cls(
            low[first],
            high[first],
            np.add.reduceat(total[order], first),
            np.add.reduceat(weight[order], first),
            key_u[order][last],
            key_v[order][last],
        )

    def in_order(self) -> RegionGraph:
        """Return the same edges sorted by ``(u, v)``; each pair is there once already."""
        order = np.lexsort((self.v, self.u))
        return RegionGraph(*(getattr(self, n)[order] for n in self.__dataclass_fields__))

    def take(self, which: npt.NDArray[np.bool_]) -> RegionGraph:
        """Return the edges where ``which`` is True."""
        return RegionGraph(*(getattr(self, n)[which] for n in self.__dataclass_fields__))

    def renamed(self, old: Ids, new: Ids) -> RegionGraph:
        """Rename both ends, drop edges that became loops, pool parallel ones; ``old`` is sorted."""
        u, v = lookup(self.u, old, new), lookup(self.v, old, new)
        apart = u != v
        g = self.take(apart)
        return RegionGraph.of_pairs(
            u=u[apart], v=v[apart], total=g.total, weight=g.weight, key_u=g.key_u, key_v=g.key_v
        )


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of voxels by id: ``ids`` sorted uint64, ``n`` int64."""

    ids: Ids
    n: Counts

    @classmethod
    def added(cls, parts: list[Sizes]) -> Sizes:
        """Return the sums of ``parts`` by id."""
        if not parts:
            return cls(np.zeros(0, np.uint64), np.zeros(0, np.int64))
        if len(parts) == 1:
            return parts[0]
        return cls._summed(np.concatenate([p.ids for p in parts]), np.concatenate([p.n for p in parts]))

    def renamed(self, old: Ids, new: Ids) -> Sizes:
        """Return the sizes after ``old[i]`` became ``new[i]``."""
        return self._summed(lookup(self.ids, old, new), self.n)

    @classmethod
    def _summed(cls, ids: Ids, n: Counts) -> Self:
        different, at = np.unique(ids, return_inverse=True)
        total = np.zeros(len(different), np.int64)
        np.add.at(total, at, n)
        return cls(different, total)

    def of(self, ids: Ids) -> Counts:
        """Return the size of each of ``ids``; 0 where unknown."""
        if len(self.ids) == 0:
            return np.zeros(len(ids), np.int64)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, self.n[at], 0)


def region_graph(
    labels: Ids, affinities: npt.NDArray[np.uint8], *, core: Box, bounds: Box, emphasis: int = 0
) -> RegionGraph:
    """Return the edges a block owns: those of each core voxel to its three lower neighbours.

    Parameters
    ----------
    labels
        ``(x, y, z)`` uint64 over the core and one voxel below it (inside the volume); 0 touches nothing.
    affinities
        ``(3, x, y, z)`` uint8 over the core.
    core, bounds
        The block, and the volume it belongs to.
    emphasis
        A face with affinity 1 weighs ``1 + emphasis`` times as much as one with affinity 0, in between linearly; 0 is
        the plain mean. Two pieces of one neurite often touch across much membrane and hang together through a thin
        neck, which the plain mean drowns. Towards large values the score becomes the contraharmonic mean
        (sum of squares over sum). Project-defined.

    Returns
    -------
    The block's share of the region graph; shares of all blocks add up to the graph of the volume.
    """
    outer = core.with_lower_neighbours(bounds=bounds)
    if labels.dtype != np.uint64 or labels.shape != outer.shape:
        raise SpecError(
            f"labels must be uint64 of shape {outer.shape}, got {labels.dtype} of shape {labels.shape}"
        )
    if affinities.dtype != np.uint8 or affinities.shape != (3, *core.shape):
        raise SpecError(
            f"affinities must be uint8 of shape {(3, *core.shape)}, got {affinities.dtype} of {affinities.shape}"
        )
    low = np.array([a - b for a, b in zip(core.start, outer.start, strict=True)], np.int64)
    edges = _collect(
        labels.reshape(-1, order="F"),
        affinities[0].reshape(-1, order="F"),
        affinities[1].reshape(-1, order="F"),
        affinities[2].reshape(-1, order="F"),
        np.array(outer.shape, np.int64),
        low,
        np.array(core.shape, np.int64),
        *_face_weights(emphasis),
    )
    u, v, total, weight = np.ascontiguousarray(edges[np.lexsort((edges[:, 1], edges[:, 0]))].T)
    return RegionGraph(u, v, total.astype(np.int64), weight.astype(np.int64), u, v)


def face_ids(labels: Ids, *, core: Box, bounds: Box) -> dict[str, Ids]:
    """Return, for each face of the block, the ids whose edges the block may not know completely.

    Parameters
    ----------
    labels
        As for :func:`region_graph`.

    Returns
    -------
    ``{"x-": ids, "x+": ids, "y-": ..., "z+": ...}``, sorted, without 0. Both sides of a lower face (its links belong
    to this block), the inner side of an upper one; nothing for a face that is the volume's own border.
    """
    outer = core.with_lower_neighbours(bounds=bounds)
    inner = core.slices_in(outer)
    faces: dict[str, Ids] = {}
    for axis, name in enumerate("xyz"):
        below = list(inner)
        if core.start[axis] > bounds.start[axis]:
            at = inner[axis].start
            below[axis] = slice(at - 1, at + 1)
            faces[f"{name}-"] = _ids(labels[tuple(below)])
        else:
            faces[f"{name}-"] = np.zeros(0, np.uint64)
        above = list(inner)
        if core.stop[axis] < bounds.stop[axis]:
            above[axis] = slice(inner[axis].stop - 1, inner[axis].stop)
            faces[f"{name}+"] = _ids(labels[tuple(above)])
        else:
            faces[f"{name}+"] = np.zeros(0, np.uint64)
    return faces


def sizes(labels: Ids) -> tuple[Ids, Counts]:
    """Return the ids of ``labels`` (any shape) except 0, sorted, and their numbers of voxels."""
    ids, n = _run_sizes(labels.reshape(-1, order="F"))
    order = np.argsort(ids, kind="stable")
    ids, n = ids[order], n[order]
    if len(ids) == 0:
        return ids, n
    first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    summed: Counts = np.add.reduceat(n, first)
    return ids[first], summed


def _face_weights(emphasis: int) -> tuple[Ids, Ids]:
    """``(256,)`` each: what a face of each affinity adds to ``total`` and to ``weight``; whole, so sums are exact."""
    affinity = np.arange(256, dtype=np.uint64)
    # Small weights keep the sums of large segments below 2**53, where floats are exact too.
    unit = math.gcd(255, emphasis)
    weight = np.uint64(255 // unit) + np.uint64(emphasis // unit) * affinity
    return weight * affinity, weight


def _ids(labels: Ids) -> Ids:
    ids = distinct(labels.reshape(-1))
    named: Ids = ids[ids != 0]
    return named


@numba.njit(cache=True)
def _run_sizes(flat):  # type: ignore[no-untyped-def]
    """Ids and lengths of the runs of equal non-zero ids; runs are few, so sorting them is cheap."""
    n = 0
    for i in range(flat.size):
        if flat[i] != 0 and (i == 0 or flat[i] != flat[i - 1]):
            n += 1
    ids, length = np.empty(n, np.uint64), np.empty(n, np.int64)
    k = -1
    for i in range(flat.size):
        if flat[i] == 0:
            continue
        if i == 0 or flat[i] != flat[i - 1]:
            k += 1
            ids[k], length[k] = flat[i], 0
        length[k] += 1
    return ids, length


@numba.njit(cache=True)
def _place(table, u, v):  # type: ignore[no-untyped-def]
    """Row of the pair in the open-addressing ``table`` of (u, v, total, weight), or the free row where it belongs.

    A record is one row, so that a lookup touches one cache line; ``u`` is never 0, which marks a free row.
    """
    mask = np.uint64(table.shape[0] - 1)
    h = (u * np.uint64(0x9E3779B97F4A7C15)) ^ (v * np.uint64(0xC2B2AE3D27D4EB4F))
    at = (h ^ (h >> np.uint64(32))) & mask
    while table[at, 0] != 0 and (table[at, 0] != u or table[at, 1] != v):
        at = (at + np.uint64(1)) & mask
    return at


@numba.njit(cache=True)
def _grown(table):  # type: ignore[no-untyped-def]
    larger = np.zeros((2 * table.shape[0], 4), np.uint64)
    for k in range(table.shape[0]):
        if table[k, 0] != 0:
            larger[_place(larger, table[k, 0], table[k, 1])] = table[k]
    return larger


@numba.njit(cache=True)
def _add(table, n, record):  # type: ignore[no-untyped-def]
    """Add one record to the table; return the table (a larger one if it was half full) and its number of rows."""
    at = _place(table, record[0], record[1])
    if table[at, 0] == 0:
        if 2 * n >= table.shape[0]:
            table = _grown(table)
            at = _place(table, record[0], record[1])
        table[at, 0], table[at, 1] = record[0], record[1]
        n += 1
    table[at, 2] += record[2]
    table[at, 3] += record[3]
    return table, n


@numba.njit(cache=True)
def _collect(labels, ax, ay, az, shape, low, size, worth, weight):  # type: ignore[no-untyped-def]
    """Sum ``worth`` and ``weight`` of the faces' affinities by pair.

    Faces of one pair lie together, so a small table that fits the processor's cache takes them first; what is pushed
    out of it, a few records a voxel row, goes to the large one.
    """
    table = np.zeros((1 << 12, 4), np.uint64)
    recent = np.zeros((1 << 13, 4), np.uint64)
    row = np.zeros(size[0], np.uint8)
    n = 0
    nx, ny = shape[0], shape[0] * shape[1]
    p = 0
    for cz in range(size[2]):
        for cy in range(size[1]):
            i = low[0] + nx * (cy + low[1]) + ny * (cz + low[2])
            # Which of the three lower neighbours differ, a whole row at a time and without a branch.
            has_y, has_z = cy + low[1] > 0, cz + low[2] > 0
            step_y, step_z = (nx if has_y else 0), (ny if has_z else 0)
            for cx in range(size[0]):
                b = labels[i + cx]
                before = labels[i + cx - 1] if cx + low[0] > 0 else b
                differs = np.uint8(before != b) | (np.uint8(labels[i + cx - step_y] != b) << np.uint8(1))
                differs |= np.uint8(labels[i + cx - step_z] != b) << np.uint8(2)
                row[cx] = differs * np.uint8(b != 0)
            for cx in range(size[0]):
                if row[cx] == 0:
                    continue
                b = labels[i + cx]
                for axis in range(3):
                    if not (row[cx] >> axis) & 1:
                        continue
                    if axis == 0:
                        a, link = labels[i + cx - 1], ax[p + cx]
                    elif axis == 1:
                        a, link = labels[i + cx - nx], ay[p + cx]
                    else:
                        a, link = labels[i + cx - ny], az[p + cx]
                    if a == 0:
                        continue
                    u, v = min(a, b), max(a, b)
                    h = (u * np.uint64(0x9E3779B97F4A7C15)) ^ (v * np.uint64(0xC2B2AE3D27D4EB4F))
                    at = h >> np.uint64(51)
                    if recent[at, 0] != u or recent[at, 1] != v:
                        if recent[at, 0] != 0:
                            table, n = _add(table, n, recent[at])
                        recent[at, 0], recent[at, 1] = u, v
                        recent[at, 2], recent[at, 3] = np.uint64(0), np.uint64(0)
                    recent[at, 2] += worth[link]
                    recent[at, 3] += weight[link]
            p += size[0]
    for at in range(recent.shape[0]):
        if recent[at, 0] != 0:
            table, n = _add(table, n, recent[at])
    edges = np.empty((n, 4), np.uint64)
    k = 0
    for at in range(table.shape[0]):
        if table[at, 0] != 0:
            edges[k] = table[at]
            k += 1
    return edges
