"""Mean-affinity agglomeration that an octree of blocks computes exactly as one machine would.

The edge with the highest mean affinity is merged first, until the mean falls below a threshold. The mean is the
quotient of integer sums, rounded once to double precision; equal quotients rank by the smaller key, the largest pair
of original ids pooled in the edge. A pooled edge never ranks above the better of its parts in this order (the mean
of a pool lies between the means of its parts, correct rounding is monotone, and the larger key ranks lower), so the
linkage is *reducible*: two segments that are each other's best may be merged at any time, and the outcome does not
depend on when.

That is what lets a block merge early. Segments that touch the outside of the block are *frozen*: their edges are not
all known. An edge with a frozen end is not merged but passed up, and freezes its other end. The block's parent, which
knows more, goes on (after Lu, Zlateski & Seung 2021, arXiv 2106.10795; integers and keys are project-defined).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.ops.absorb import absorb_complete
from cloudseg.ops.region_graph import RegionGraph, Sizes
from cloudseg.ops.remap import compose, distinct

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rule:
    """When two segments become one.

    Attributes
    ----------
    threshold
        Lowest mean affinity that is merged, 0..255 (the uint8 scale, not rounded).
    guard_affinity, guard_min_vx, guard_sum_vx
        Below ``guard_affinity`` an edge is refused for good when the smaller segment has more than ``guard_min_vx``
        voxels and both together more than ``guard_sum_vx``: two large neurons need better evidence than a twig does
        (abiss uses 0.35 * 255, 1e6, 1e7). ``guard_affinity`` = 0: no guard.
    min_size_vx
        Segments under this size are small: :func:`cloudseg.ops.absorb.absorb_small` gives them away. 0: none is.
    """

    threshold: float
    guard_affinity: float = 0.0
    guard_min_vx: int = 0
    guard_sum_vx: int = 0
    min_size_vx: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 255:
            raise SpecError(f"the agglomeration threshold is on the scale 0..255, got {self.threshold}")


@dataclass(frozen=True, slots=True)
class Merged:
    """What one node of the octree decides, and what it passes up.

    Attributes
    ----------
    old, new
        Ids that got another name here, sorted; the name is the smallest id of the segment.
    residual
        Edges that a node above must decide: both ends frozen.
    small
        Edges with an end that is, or may turn out, smaller than ``rule.min_size_vx``, and that a node above must
        absorb: the small segment, or one that hangs together with it through small ones, touches a frozen segment.
    sizes
        Sizes (so far) of the segments in ``residual`` and ``small``, and of the frozen ones.
    """

    old: Ids
    new: Ids
    residual: RegionGraph
    small: RegionGraph
    sizes: Sizes


def agglomerate(
    graph: RegionGraph, *, frozen: Ids, sizes: Sizes, rule: Rule, small: RegionGraph | None = None
) -> Merged:
    """Merge what a node of the octree can decide, then give away the small segments that nothing outside can change.

    Parameters
    ----------
    graph
        All edges the node knows and has not decided yet.
    frozen
        Ids that touch the outside of the node (sorted or not); empty at the root, or for one block that is the volume.
    sizes
        Voxels inside the node, at least of every id in ``graph``, ``small`` and ``frozen``.
    rule
        Threshold, guards, smallest size.
    small
        Edges of small segments passed up by the children; renamed and pooled here.

    Returns
    -------
    Decisions and what remains.

    Raises
    ------
    SpecError
        If an edge's end has no size although the rule needs sizes.
    """
    frozen = distinct(frozen)
    ids = distinct(np.concatenate([graph.u, graph.v]))
    u = np.searchsorted(ids, graph.u).astype(np.int32)
    v = np.searchsorted(ids, graph.v).astype(np.int32)
    n_voxels = sizes.of(ids)
    # Edges are sorted by (u, v), not by key, once edges were pooled: rank them by key.
    fresh = np.array_equal(graph.key_u, graph.u) and np.array_equal(graph.key_v, graph.v)
    by_key = np.arange(graph.n_edges) if fresh else np.lexsort((graph.key_v, graph.key_u))
    rank = np.empty(len(by_key), np.int64)
    rank[by_key] = np.arange(len(by_key))
    is_frozen = np.isin(ids, frozen)
    unknown = (n_voxels == 0) & ~is_frozen
    if (rule.min_size_vx or rule.guard_affinity) and unknown.any():
        raise SpecError(
            f"segment {ids[unknown][0]} has edges but no size; the guards need the size of each segment"
        )
    score = graph.total / graph.weight
    candidates = np.flatnonzero(score >= rule.threshold)
    listed = candidates[np.lexsort((rank[candidates], -score[candidates]))]
    total, weight = graph.total.copy(), graph.weight.copy()
    root, state_of_edge, segment_vx = _merge(
        u, v, total, weight, rank, score, listed, is_frozen, n_voxels.copy(),
        rule.threshold, rule.guard_affinity, rule.guard_min_vx, rule.guard_sum_vx,
    )  # fmt: skip
    changed = root != np.arange(len(ids))
    old, new = ids[changed], ids[root[changed]]
    edges = RegionGraph(
        ids[np.minimum(u, v)], ids[np.maximum(u, v)], total, weight,
        graph.key_u[by_key][rank], graph.key_v[by_key][rank],
    )  # fmt: skip
    alive = state_of_edge == _ALIVE
    both = alive & is_frozen[u] & is_frozen[v]
    residual = edges.take(both).in_order()
    may_be_small = (segment_vx[u] < rule.min_size_vx) | (segment_vx[v] < rule.min_size_vx)
    kept_small = [edges.take(alive & ~both & may_be_small).in_order()]
    all_sizes = Sizes.added([Sizes(ids[~changed], segment_vx[~changed]), _others(sizes, known=ids)])
    if small is not None and small.n_edges:
        renamed = small.renamed(old, new)
        size_u, size_v = all_sizes.of(renamed.u), all_sizes.of(renamed.v)
        kept_small.append(renamed.take((size_u < rule.min_size_vx) | (size_v < rule.min_size_vx)))
    small_out = kept_small[0] if len(kept_small) == 1 else RegionGraph.pooled(kept_small)
    open_ids = np.union1d(ids[is_frozen & ~changed], frozen)
    small_out, absorbed = absorb_complete(
        small_out, open_ids=open_ids, sizes=all_sizes, min_size_vx=rule.min_size_vx
    )
    if len(absorbed[0]):
        old, new = compose(old, new, *absorbed)
        all_sizes = all_sizes.renamed(*absorbed)
    needed = distinct(np.concatenate([residual.u, residual.v, small_out.u, small_out.v, frozen]))
    present = needed[all_sizes.of(needed) > 0]
    return Merged(old, new, residual, small_out, Sizes(present, all_sizes.of(present)))


def _others(sizes: Sizes, *, known: Ids) -> Sizes:
    other = ~np.isin(sizes.ids, known)
    return Sizes(sizes.ids[other], sizes.n[other])


_ALIVE, _GONE = 0, 1


@numba.njit(cache=True)
def _before(score_a, rank_a, score_b, rank_b):  # type: ignore[no-untyped-def]
    return score_a > score_b or (score_a == score_b and rank_a < rank_b)


@numba.njit(cache=True)
def _push(score, rank, edge, n, s, r, e):  # type: ignore[no-untyped-def]
    i = n
    while i > 0:
        up = (i - 1) >> 1
        if not _before(s, r, score[up], rank[up]):
            break
        score[i], rank[i], edge[i] = score[up], rank[up], edge[up]
        i = up
    score[i], rank[i], edge[i] = s, r, e


@numba.njit(cache=True)
def _pop(score, rank, edge, n):  # type: ignore[no-untyped-def]
    """Remove the first of ``n`` heap entries; the caller has read it."""
    n -= 1
    s, r, e = score[n], rank[n], edge[n]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and _before(score[child + 1], rank[child + 1], score[child], rank[child]):
            child += 1
        if not _before(score[child], rank[child], s, r):
            break
        score[i], rank[i], edge[i] = score[child], rank[child], edge[child]
        i = child
    score[i], rank[i], edge[i] = s, r, e


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
def _merge(  # type: ignore[no-untyped-def]
    eu, ev, total, weight, rank, score, listed, frozen, size, threshold, guard_affinity, guard_min, guard_sum
):
    """Greedy merging with a sorted list of the first scores and a heap of the changed ones.

    Returns the root of each segment, the state of each edge, the size at each root. ``eu, ev, total, weight, rank`` of
    edges that live on are updated in place; ``frozen`` too.
    """
    n_edges, n_nodes = eu.size, frozen.size
    state = np.zeros(n_edges, np.int8)
    decided = np.zeros(n_edges, np.bool_)  # passed up: never to be merged here
    parent = np.arange(n_nodes)
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
    listed_score, listed_rank = score[listed], rank[listed]
    heap_score, heap_rank = np.empty(64, np.float64), np.empty(64, np.int64)
    heap_edge = np.empty(64, np.int32)
    n_heap, at_list = 0, 0
    while True:
        if at_list < listed.size and (
            n_heap == 0 or _before(listed_score[at_list], listed_rank[at_list], heap_score[0], heap_rank[0])
        ):
            e, s, r = np.int64(listed[at_list]), listed_score[at_list], listed_rank[at_list]
            at_list += 1
        elif n_heap > 0:
            e, s, r = np.int64(heap_edge[0]), heap_score[0], heap_rank[0]
            _pop(heap_score, heap_rank, heap_edge, n_heap)
            n_heap -= 1
        else:
            break
        if state[e] != _ALIVE or decided[e] or score[e] != s or rank[e] != r:
            continue
        a, b = np.int64(eu[e]), np.int64(ev[e])
        if frozen[a] or frozen[b]:
            frozen[a] = True
            frozen[b] = True
            decided[e] = True
            continue
        if s < guard_affinity and min(size[a], size[b]) > guard_min and size[a] + size[b] > guard_sum:
            state[e] = _GONE
            _remove(slots, eu, ev, _find(slots, eu, ev, a, b))
            continue
        state[e] = _GONE
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
            if state[f] == _ALIVE:
                w = np.int64(ev[f]) if (link & 1) == 0 else np.int64(eu[f])
                _remove(slots, eu, ev, _find(slots, eu, ev, b, w))
                at = _find(slots, eu, ev, a, w)
                if slots[at] > 0:
                    g = np.int64(slots[at]) - 1
                    total[g] += total[f]
                    weight[g] += weight[f]
                    if rank[f] > rank[g]:
                        rank[g] = rank[f]
                    state[f] = _GONE
                    score[g] = total[g] / weight[g]
                    if score[g] >= threshold:
                        if n_heap == heap_score.size:
                            heap_score = np.append(heap_score, heap_score)
                            heap_rank = np.append(heap_rank, heap_rank)
                            heap_edge = np.append(heap_edge, heap_edge)
                        _push(heap_score, heap_rank, heap_edge, n_heap, score[g], rank[g], g)
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
    smallest = np.arange(n_nodes)
    top = np.empty(n_nodes, np.int64)
    for i in range(n_nodes):
        j = i
        while parent[j] != j:
            parent[j] = parent[parent[j]]
            j = parent[j]
        top[i] = j
        if i < smallest[j]:
            smallest[j] = i
    name = np.empty(n_nodes, np.int64)
    size_by_name = np.zeros(n_nodes, np.int64)
    frozen_at_top = frozen.copy()
    for i in range(n_nodes):
        name[i] = smallest[top[i]]
    for i in range(n_nodes):
        if top[i] == i:
            size_by_name[name[i]] = size[i]
            frozen[name[i]] = frozen_at_top[i]
    for e in range(n_edges):
        if state[e] == _ALIVE:
            eu[e], ev[e] = name[eu[e]], name[ev[e]]
    return name, state, size_by_name
