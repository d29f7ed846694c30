"""The merging of :mod:`cloudseg.ops.agglomerate`, compiled: segments are numbers, edges columns.

Because the linkage is reducible, the order of merges is free as long as the two are each other's best. So the first
phase works locally: from any segment it follows best neighbours until two are each other's best (the nearest-neighbour
chain, Benzecri 1982), with nothing but the lists of edges of segments that are in the processor's cache. Segments with
many edges, whose lists are long to search, are left to the second phase: a priority queue over what remains.

Edges below the threshold that lead from one group of segments joined by edges above it to another cannot matter to
any merge, since a pooled edge is never better than its best part; half of a typical graph is set aside like that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.ops.edges import Edges
from cloudseg.ops.union_find import roots

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

_LONG_LIST = 256  # edges; measured on fib25: 0.20 s in all for 256 to 1000, 0.26 s for 64 and for 2000


@dataclass(frozen=True, slots=True)
class Merging:
    """The outcome of :func:`merge`, by segment.

    Attributes
    ----------
    name
        ``(n,)`` int32: the smallest segment of those that became one.
    is_frozen, n_voxels
        By name: whether the segment is frozen, its size.
    edges
        Edges that are left, between names; parallel ones and the set-aside ones are not pooled yet.
    """

    name: npt.NDArray[np.int32]
    is_frozen: Flags
    n_voxels: Counts
    edges: Edges


def merge(
    edges: Edges,
    *,
    is_frozen: Flags,
    n_voxels: Counts,
    threshold: float,
    guard_affinity: float,
    guard_min_vx: int,
    guard_sum_vx: int,
) -> Merging:
    """Merge segments that are each other's best, while the mean is at least ``threshold``.

    Parameters
    ----------
    edges
        Each pair of segments once.
    is_frozen, n_voxels
        ``(n,)``, by segment.
    threshold, guard_affinity, guard_min_vx, guard_sum_vx
        See :class:`cloudseg.ops.agglomerate.Rule`.
    """
    n, guards = len(is_frozen), (guard_affinity, guard_min_vx, guard_sum_vx)
    inside = _in_one_group(edges, n, threshold)
    outside, near = edges.take(~inside), edges.take(inside)
    parent = np.arange(n, dtype=np.int32)
    is_frozen, n_voxels = is_frozen.copy(), n_voxels.copy()
    alive = _chains(
        near.u, near.v, near.total, near.weight, near.rank, near.mean, parent, is_frozen, n_voxels,
        threshold, *guards, _LONG_LIST,
    )  # fmt: skip
    near = near.take(alive)
    _flatten(parent)
    parts = [outside, *_merge_in_order(near.between(parent), parent, is_frozen, n_voxels, threshold, guards)]
    del outside, near
    name = _named(parent, is_frozen, n_voxels)
    return Merging(name, is_frozen, n_voxels, Edges.drained(parts).between(name))


def _in_one_group(edges: Edges, n: int, threshold: float) -> Flags:
    """Whether both ends of each edge hang together by edges that reach the threshold."""
    strong = np.flatnonzero(edges.mean >= threshold)
    group = roots(n, edges.u[strong], edges.v[strong])
    return np.asarray(group[edges.u] == group[edges.v])


def _merge_in_order(
    edges: Edges,
    parent: npt.NDArray[np.int32],
    is_frozen: Flags,
    n_voxels: Counts,
    threshold: float,
    guards: tuple[float, int, int],
) -> list[Edges]:
    """Merge the best edge first; update the arrays by segment and return the edges that are left, in two parts."""
    inside = _in_one_group(edges, len(parent), threshold)
    outside, near = edges.take(~inside), edges.take(inside)
    members = np.zeros(len(parent), np.bool_)
    members[near.u] = members[near.v] = True
    ids = np.flatnonzero(members)
    place = np.zeros(len(parent), np.int32)
    place[ids] = np.arange(len(ids))
    u, v, mean = place[near.u], place[near.v], near.mean
    strong = np.flatnonzero(mean >= threshold)
    listed = strong[np.lexsort((near.rank[strong], -mean[strong]))]
    frozen, size = is_frozen[ids], n_voxels[ids]
    top = np.arange(len(ids), dtype=np.int32)
    alive = _queue(
        u, v, near.total, near.weight, near.rank, mean, listed, top, frozen, size, threshold, *guards
    )
    _flatten(top)
    parent[ids] = ids[top]
    is_frozen[ids], n_voxels[ids] = frozen, size
    return [outside, Edges(u, v, near.total, near.weight, near.rank).take(alive).between(ids)]


@numba.njit(cache=True)
def _top(parent, i):  # type: ignore[no-untyped-def]
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@numba.njit(cache=True)
def _flatten(parent):  # type: ignore[no-untyped-def]
    for i in range(parent.size):
        parent[i] = _top(parent, i)


@numba.njit(cache=True)
def _named(parent, frozen, size):  # type: ignore[no-untyped-def]
    """Name each segment by its smallest member; move ``frozen`` and ``size`` from the top to the name."""
    n = parent.size
    smallest = np.full(n, -1, np.int32)
    name = np.empty(n, np.int32)
    frozen_at_top, size_at_top = frozen.copy(), size.copy()
    for i in range(n):
        top = _top(parent, i)
        if smallest[top] < 0:
            smallest[top] = i
            frozen[i], size[i] = frozen_at_top[top], size_at_top[top]
        name[i] = smallest[top]
    return name


@numba.njit(cache=True)
def _best(first, follow, edge_of, alive, mean, rank, threshold):  # type: ignore[no-untyped-def]
    """The best living edge of a list that reaches the threshold, or -1."""
    best = -1
    h = first
    while h >= 0:
        e = edge_of[h]
        if alive[e] and mean[e] >= threshold:
            if best < 0 or mean[e] > mean[best] or (mean[e] == mean[best] and rank[e] < rank[best]):
                best = e
        h = follow[h]
    return best


@numba.njit(cache=True)
def _chains(  # type: ignore[no-untyped-def]
    eu,
    ev,
    total,
    weight,
    rank,
    mean,
    parent,
    frozen,
    size,
    threshold,
    guard_affinity,
    guard_min,
    guard_sum,
    long,
):
    """Merge along chains of best neighbours, segments with at most ``long`` edges; return which edges are alive.

    ``total, weight, rank`` of living edges are those of the pools, ``frozen`` and ``size`` are right at the tops of
    ``parent``; ``eu, ev`` stay as they were.
    """
    n_nodes, n_edges = parent.size, eu.size
    degree = np.zeros(n_nodes, np.int32)
    for e in range(n_edges):
        degree[eu[e]] += 1
        degree[ev[e]] += 1
    # Edges of a node: a linked list of half-edges, which lie side by side in the beginning.
    head, tail = np.full(n_nodes, -1, np.int32), np.full(n_nodes, -1, np.int32)
    edge_of, follow = np.empty(2 * n_edges, np.int32), np.empty(2 * n_edges, np.int32)
    free = 0
    for i in range(n_nodes):
        if degree[i] > 0:
            head[i] = tail[i] = free
            free += degree[i]
    for e in range(n_edges):
        for node in (eu[e], ev[e]):
            edge_of[tail[node]] = e
            follow[tail[node]] = tail[node] + 1
            tail[node] += 1
    for i in range(n_nodes):
        if degree[i] > 0:
            tail[i] -= 1
            follow[tail[i]] = -1
    alive = np.ones(n_edges, np.bool_)
    best = np.full(n_nodes, -2, np.int32)  # -2: to be searched; -1: none
    seen, seen_edge = np.full(n_nodes, -1, np.int32), np.empty(n_nodes, np.int32)
    stack = np.empty(n_nodes, np.int32)
    for seed in range(n_nodes):
        if parent[seed] != seed or degree[seed] == 0:
            continue
        stack[0], n = seed, 1
        while n > 0:
            a = stack[n - 1]
            if frozen[a]:
                # Whoever likes a frozen segment best cannot be decided here.
                n -= 1
                if n > 0:
                    frozen[stack[n - 1]] = True
                continue
            if degree[a] > long:
                break
            if best[a] == -2:
                best[a] = _best(head[a], follow, edge_of, alive, mean, rank, threshold)
            e = best[a]
            if e < 0:
                break
            b = _top(parent, eu[e])
            if b == a:
                b = _top(parent, ev[e])
            if frozen[b]:
                frozen[a] = True
                continue
            if degree[b] > long:
                break
            if best[b] == -2:
                best[b] = _best(head[b], follow, edge_of, alive, mean, rank, threshold)
            if best[b] != e:
                stack[n] = b
                n += 1
                continue
            alive[e] = False
            best[a], best[b] = -2, -2
            if (
                mean[e] < guard_affinity
                and min(size[a], size[b]) > guard_min
                and size[a] + size[b] > guard_sum
            ):
                stack[0], n = a, 1
                continue
            parent[b] = a
            size[a] += size[b]
            follow[tail[a]] = head[b]
            # Walk both lists: unlink dead edges, pool parallel ones.
            degree[a] = 0
            last, h = -1, head[a]
            while h >= 0:
                f, after = edge_of[h], follow[h]
                if alive[f]:
                    w = _top(parent, eu[f])
                    if w == a:
                        w = _top(parent, ev[f])
                    if seen[w] == b:
                        g = seen_edge[w]
                        total[g] += total[f]
                        weight[g] += weight[f]
                        rank[g] = max(rank[g], rank[f])
                        mean[g] = total[g] / weight[g]
                        alive[f] = False
                        if best[w] == f or best[w] == g:
                            best[w] = -2
                    else:
                        seen[w], seen_edge[w] = b, f  # b is swallowed once: its number marks this walk
                        if last < 0:
                            head[a] = h
                        else:
                            follow[last] = h
                        last = h
                        degree[a] += 1
                h = after
            tail[a] = last
            if last < 0:
                head[a] = -1
            else:
                follow[last] = -1
            n -= 1
            if n > 0 and stack[n - 1] == b:
                n -= 1
            if n == 0:
                stack[0], n = a, 1
    return alive


@numba.njit(cache=True)
def _before(mean_a, rank_a, mean_b, rank_b):  # type: ignore[no-untyped-def]
    return mean_a > mean_b or (mean_a == mean_b and rank_a < rank_b)


@numba.njit(cache=True)
def _push(mean, rank, edge, n, s, r, e):  # type: ignore[no-untyped-def]
    i = n
    while i > 0:
        up = (i - 1) >> 1
        if not _before(s, r, mean[up], rank[up]):
            break
        mean[i], rank[i], edge[i] = mean[up], rank[up], edge[up]
        i = up
    mean[i], rank[i], edge[i] = s, r, e


@numba.njit(cache=True)
def _pop(mean, rank, edge, n):  # type: ignore[no-untyped-def]
    """Remove the first of ``n`` heap entries; the caller has read it."""
    n -= 1
    s, r, e = mean[n], rank[n], edge[n]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and _before(mean[child + 1], rank[child + 1], mean[child], rank[child]):
            child += 1
        if not _before(mean[child], rank[child], s, r):
            break
        mean[i], rank[i], edge[i] = mean[child], rank[child], edge[child]
        i = child
    mean[i], rank[i], edge[i] = s, r, e


@numba.njit(cache=True)
def _hash(a, b, mask):  # type: ignore[no-untyped-def]
    h = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F)
    return np.int64((h ^ (h >> np.uint64(31))) & np.uint64(mask))


@numba.njit(cache=True)
def _find(slots, eu, ev, a, b):  # type: ignore[no-untyped-def]
    """Slot of the edge between roots ``a`` and ``b``, or the free slot where it belongs; slots hold edge + 1, or 0."""
    at = _hash(min(a, b), max(a, b), slots.size - 1)
    while slots[at] != 0:
        e = slots[at] - 1
        if (eu[e] == a and ev[e] == b) or (eu[e] == b and ev[e] == a):
            break
        at = (at + 1) & (slots.size - 1)
    return at


@numba.njit(cache=True)
def _remove(slots, eu, ev, at):  # type: ignore[no-untyped-def]
    """Free slot ``at`` and move later entries of its run up, so that no search stops too early."""
    mask = slots.size - 1
    slots[at] = 0
    follow = (at + 1) & mask
    while slots[follow] != 0:
        e = slots[follow] - 1
        home = _hash(min(eu[e], ev[e]), max(eu[e], ev[e]), mask)
        if ((follow - home) & mask) >= ((follow - at) & mask):
            slots[at] = slots[follow]
            slots[follow] = 0
            at = follow
        follow = (follow + 1) & mask


@numba.njit(cache=True)
def _queue(  # type: ignore[no-untyped-def]
    eu,
    ev,
    total,
    weight,
    rank,
    mean,
    listed,
    parent,
    frozen,
    size,
    threshold,
    guard_affinity,
    guard_min,
    guard_sum,
):
    """Merge the best edge first, with a sorted list of the first means and a heap of the changed ones.

    Returns which edges are alive; their ``eu, ev, total, weight, rank`` are up to date, ``frozen`` and ``size`` right
    at the tops of ``parent``.
    """
    n_edges, n_nodes = eu.size, parent.size
    alive = np.ones(n_edges, np.bool_)
    decided = np.zeros(n_edges, np.bool_)  # passed up: never to be merged here
    capacity = 16
    while capacity < 2 * n_edges:
        capacity *= 2
    slots = np.zeros(capacity, np.int32)
    # Edges of a node: a linked list of half-edges; 2 * e belongs to eu[e], 2 * e + 1 to ev[e].
    head, tail = np.full(n_nodes, -1, np.int32), np.full(n_nodes, -1, np.int32)
    follow = np.full(2 * n_edges, -1, np.int32)
    degree = np.zeros(n_nodes, np.int32)
    for e in range(n_edges):
        slots[_find(slots, eu, ev, eu[e], ev[e])] = e + 1
        for half in range(2):
            node = eu[e] if half == 0 else ev[e]
            link = 2 * e + half
            if head[node] < 0:
                head[node] = link
            else:
                follow[tail[node]] = link
            tail[node] = link
            degree[node] += 1
    listed_mean, listed_rank = mean[listed], rank[listed]
    heap_mean, heap_rank = np.empty(64, np.float64), np.empty(64, np.int32)
    heap_edge = np.empty(64, np.int32)
    n_heap, at_list = 0, 0
    while True:
        if at_list < listed.size and (
            n_heap == 0 or _before(listed_mean[at_list], listed_rank[at_list], heap_mean[0], heap_rank[0])
        ):
            e, s, r = np.int64(listed[at_list]), listed_mean[at_list], listed_rank[at_list]
            at_list += 1
        elif n_heap > 0:
            e, s, r = np.int64(heap_edge[0]), heap_mean[0], heap_rank[0]
            _pop(heap_mean, heap_rank, heap_edge, n_heap)
            n_heap -= 1
        else:
            break
        if not alive[e] or decided[e] or mean[e] != s or rank[e] != r:
            continue
        a, b = np.int64(eu[e]), np.int64(ev[e])
        if frozen[a] or frozen[b]:
            frozen[a] = True
            frozen[b] = True
            decided[e] = True
            continue
        if s < guard_affinity and min(size[a], size[b]) > guard_min and size[a] + size[b] > guard_sum:
            alive[e] = False
            _remove(slots, eu, ev, _find(slots, eu, ev, a, b))
            continue
        alive[e] = False
        _remove(slots, eu, ev, _find(slots, eu, ev, a, b))
        # The busier node stays where its edges are; names are settled at the end by the smallest member.
        if degree[a] < degree[b]:
            a, b = b, a
        parent[b] = a
        size[a] += size[b]
        link = head[b]
        while link >= 0:
            f = link >> 1
            after = follow[link]
            follow[link] = -1
            if alive[f]:
                w = np.int64(ev[f]) if (link & 1) == 0 else np.int64(eu[f])
                _remove(slots, eu, ev, _find(slots, eu, ev, b, w))
                at = _find(slots, eu, ev, a, w)
                if slots[at] > 0:
                    g = np.int64(slots[at]) - 1
                    total[g] += total[f]
                    weight[g] += weight[f]
                    if rank[f] > rank[g]:
                        rank[g] = rank[f]
                    alive[f] = False
                    mean[g] = total[g] / weight[g]
                    if mean[g] >= threshold:
                        if n_heap == heap_mean.size:
                            heap_mean = np.append(heap_mean, heap_mean)
                            heap_rank = np.append(heap_rank, heap_rank)
                            heap_edge = np.append(heap_edge, heap_edge)
                        _push(heap_mean, heap_rank, heap_edge, n_heap, mean[g], rank[g], g)
                        n_heap += 1
                else:
                    if (link & 1) == 0:
                        eu[f] = a
                    else:
                        ev[f] = a
                    slots[at] = f + 1
                    if head[a] < 0:
                        head[a] = link
                    else:
                        follow[tail[a]] = link
                    tail[a] = link
                    degree[a] += 1
            link = after
    return alive
