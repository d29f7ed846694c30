"""Which supervoxels touch, over how many voxel faces, with what total affinity: integers, so that parts add up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.edges import Edges, pairs
from cloudseg.ops.remap import distinct, places
from cloudseg.ops.runs import Runs

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


@dataclass(frozen=True, slots=True)
class Numbering:
    """Numbers for the ids and keys of some region graphs, in the order of the ids and keys themselves.

    Attributes
    ----------
    ids
        ``(n,)`` uint64, sorted: id by number.
    key_ids, keys
        ``(k,)`` uint64, sorted: the ids that occur in keys; ``(r,)`` uint64, sorted: key by rank, as the pair of the
        places of its ids in ``key_ids``.
    """

    ids: Ids
    key_ids: Ids
    keys: Ids

    @classmethod
    def of(cls, *groups: Collection[RegionGraph], and_ids: Ids | None = None) -> tuple[Self, list[Edges]]:
        """Number what occurs in some groups of graphs; return the numbering, and each group's edges as they are.

        Each group is gone through twice, one graph at a time, so that graphs may be read as they are needed: numbered
        edges take half the memory.
        """
        ids, key_ids = [np.zeros(0, np.uint64) if and_ids is None else distinct(and_ids)], []
        for graph in itertools.chain(*groups):
            ids += [distinct(graph.u), distinct(graph.v)]
            key_ids += [distinct(graph.key_u), distinct(graph.key_v)]
        all_ids, all_key_ids = _union(ids), _union(key_ids)
        del ids, key_ids
        read = [_Columns.of(group, all_ids, all_key_ids) for group in groups]
        keys = _union([columns.key for columns in read])
        return cls(all_ids, all_key_ids, keys), [read.pop(0).edges(keys) for _ in groups]

    def named(self, edges: Edges) -> RegionGraph:
        """Return ``edges`` with ids and keys; they are sorted, ``u < v``."""
        key = self.keys[edges.rank]
        return RegionGraph(
            self.ids[edges.u],
            self.ids[edges.v],
            edges.total,
            edges.weight,
            self.key_ids[key >> np.uint64(32)],
            self.key_ids[key & np.uint64(0xFFFFFFFF)],
        )


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of some graphs, one below the other: numbered ends, and keys as pairs of numbers."""

    u: npt.NDArray[np.int32]
    v: npt.NDArray[np.int32]
    total: Counts
    weight: Counts
    key: Ids

    @classmethod
    def of(cls, graphs: Collection[RegionGraph], ids: Ids, key_ids: Ids) -> Self:
        columns: list[list[npt.NDArray[Any]]] = [[], [], [], [], []]
        for g in itertools.chain(graphs, [RegionGraph.empty()]):
            columns[0].append(places(g.u, ids))
            columns[1].append(places(g.v, ids))
            columns[2].append(g.total.copy())
            columns[3].append(g.weight.copy())
            columns[4].append(pairs(places(g.key_u, key_ids), places(g.key_v, key_ids)))
        joined = []
        for parts in columns:
            joined.append(np.concatenate(parts))
            parts.clear()
        return cls(*joined)

    def edges(self, keys: Ids) -> Edges:
        return Edges(self.u, self.v, self.total, self.weight, places(self.key, keys))


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
) -> tuple[RegionGraph, Sizes]:
    """Return what a block owns: the edges of each core voxel to its three lower neighbours, and the core's voxels.

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
    graph, sizes
        The block's share of the region graph, and of the sizes of its supervoxels; shares of all blocks add up to those
        of the volume.
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
    runs = Runs.of(labels)
    edges = edges_of_runs(runs, affinities, core=core, bounds=bounds, emphasis=emphasis)
    u, v = runs.ids[edges.u], runs.ids[edges.v]
    x, y, z = (a - b for a, b in zip(core.start, outer.start, strict=True))
    n = runs.sizes((x, y, z))
    return RegionGraph(u, v, edges.total, edges.weight, u, v), Sizes(runs.ids[n > 0], n[n > 0])


def edges_of_runs(
    runs: Runs, affinities: npt.NDArray[np.uint8], *, core: Box, bounds: Box, emphasis: int
) -> Edges:
    """Return what :func:`region_graph` returns, between places in ``runs.ids``; the rank is the edge's own place."""
    x, y, z = (
        a - b for a, b in zip(core.start, core.with_lower_neighbours(bounds=bounds).start, strict=True)
    )
    # Small weights keep the sums of large segments below 2**53, where floats are exact too.
    unit = math.gcd(255, emphasis)
    ax, ay, az = (affinities[axis].reshape(-1, order="F") for axis in range(3))
    nx, ny, nz = runs.shape
    pair, total, weight = _collect(
        runs.rows, runs.begin, runs.place, ax, ay, az, nx, ny, nz, x, y, z, 255 // unit, emphasis // unit
    )
    return Edges.summed(pair, total, weight)


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


def _ids(labels: Ids) -> Ids:
    ids = distinct(labels.reshape(-1))
    named: Ids = ids[ids != 0]
    return named


def _union(columns: list[Ids]) -> Ids:
    """Return the different values of some columns, sorted."""
    return distinct(np.concatenate(columns)) if columns else np.zeros(0, np.uint64)


@numba.njit(cache=True)
def _note(recent, listed, n, a, b, total, weight):  # type: ignore[no-untyped-def]
    """Add to the pair's row of ``recent``; list what another pair pushes out of it. Return the length of the list."""
    pair = (np.uint64(min(a, b)) << np.uint64(32)) | np.uint64(max(a, b))
    at = (pair * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(51)
    if recent[at, 0] != pair:
        if recent[at, 2] != 0:  # weights are positive: the row is not free
            listed[n, 0], listed[n, 1], listed[n, 2] = recent[at, 0], recent[at, 1], recent[at, 2]
            n += 1
        recent[at, 0], recent[at, 1], recent[at, 2] = pair, np.uint64(0), np.uint64(0)
    recent[at, 1] += np.uint64(total)
    recent[at, 2] += np.uint64(weight)
    return n


@numba.njit(cache=True)
def _note_row(recent, listed, n, begin, place, j, k, high, first, step, link, shift, plain, emphasis):  # type: ignore[no-untyped-def]
    """Note the faces between runs ``k ... high - 1`` of a row, from voxel ``first``, and ``j ...`` of the row below."""
    p = first
    while begin[k + 1] <= p:
        k += 1
    while begin[j + 1] + step <= p:
        j += 1
    while k < high:
        end, end_below = begin[k + 1], begin[j + 1] + step
        stop = min(end, end_below)
        a, b = place[j], place[k]
        if a != b and a >= 0 and b >= 0:
            once, twice = np.int64(0), np.int64(0)
            for q in range(p - shift, stop - shift):
                affinity = np.int64(link[q])
                once += affinity
                twice += affinity * affinity
            n = _note(
                recent, listed, n, a, b, plain * once + emphasis * twice, plain * (stop - p) + emphasis * once
            )
        p = stop
        if end == stop:
            k += 1
        if end_below == stop:
            j += 1
    return n


@numba.njit(cache=True)
def _collect(rows, begin, place, ax, ay, az, nx, ny, nz, low_x, low_y, low_z, plain, emphasis):  # type: ignore[no-untyped-def]
    """Sum weighted affinities and weights of the faces between runs of different labels; rows of pair, total, weight.

    ``rows``, ``begin``, ``place``, ``nx``, ``ny``, ``nz`` describe labels that reach ``low`` voxels further down than
    the affinities. Faces of one pair lie together, so a small table that fits the processor's cache adds most of them
    up; what is pushed out of it goes to the list, where a pair may stand several times.
    """
    recent = np.zeros((1 << 13, 3), np.uint64)
    listed = np.empty((max(1024, begin.size), 3), np.uint64)
    n = 0
    for z in range(low_z, nz):
        for y in range(low_y, ny):
            if n + 3 * nx > listed.shape[0]:
                listed = np.concatenate((listed, np.empty((listed.shape[0] + 3 * nx, 3), np.uint64)))
            row = y + ny * z
            low, high, first = rows[row], rows[row + 1], row * nx + low_x
            # A voxel of this row has the affinity at its own index less this: rows of affinities are shorter.
            shift = first - (nx - low_x) * (y - low_y + (ny - low_y) * (z - low_z))
            for k in range(low + 1, high):
                a, b = place[k - 1], place[k]
                if a != b and a >= 0 and b >= 0 and begin[k] >= first:
                    affinity = np.int64(ax[begin[k] - shift])
                    weight = plain + emphasis * affinity
                    n = _note(recent, listed, n, a, b, weight * affinity, weight)
            if y > 0:
                n = _note_row(
                    recent,
                    listed,
                    n,
                    begin,
                    place,
                    rows[row - 1],
                    low,
                    high,
                    first,
                    nx,
                    ay,
                    shift,
                    plain,
                    emphasis,
                )
            if z > 0:
                n = _note_row(
                    recent,
                    listed,
                    n,
                    begin,
                    place,
                    rows[row - ny],
                    low,
                    high,
                    first,
                    nx * ny,
                    az,
                    shift,
                    plain,
                    emphasis,
                )
    n_recent = np.sum(recent[:, 2] != 0)
    pair, total, weight = (
        np.empty(n + n_recent, np.uint64),
        np.empty(n + n_recent, np.int64),
        np.empty(n + n_recent, np.int64),
    )
    for k in range(n):
        pair[k], total[k], weight[k] = listed[k, 0], listed[k, 1], listed[k, 2]
    for at in range(recent.shape[0]):
        if recent[at, 2] != 0:
            pair[n], total[n], weight[n] = recent[at, 0], recent[at, 1], recent[at, 2]
            n += 1
    return pair, total, weight
