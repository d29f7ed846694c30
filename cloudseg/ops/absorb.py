"""Give small segments to their neighbours, with a result that does not depend on the tiling."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.ops.region_graph import RegionGraph, Sizes
from cloudseg.ops.remap import distinct
from cloudseg.ops.union_find import roots

Ids = npt.NDArray[np.uint64]


def absorb_complete(
    small: RegionGraph, *, open_ids: Ids, sizes: Sizes, min_size_vx: int
) -> tuple[RegionGraph, tuple[Ids, Ids]]:
    """Absorb the small segments that no open segment has a say in; return the edges that are left, and the renaming.

    Small segments that touch decide together, as they may join. Such a group looks at nothing but its own edges, so
    once neither a member nor a neighbour can grow any more, its outcome is the one that the whole volume would give.
    """
    if small.n_edges == 0:
        return small, (np.zeros(0, np.uint64), np.zeros(0, np.uint64))
    ids = distinct(np.concatenate([small.u, small.v]))
    u, v = np.searchsorted(ids, small.u), np.searchsorted(ids, small.v)
    is_open = np.isin(ids, open_ids)
    is_small = ~is_open & (sizes.of(ids) < min_size_vx)
    touching = is_small[u] & is_small[v]
    group = roots(len(ids), u[touching], v[touching])
    must_wait = np.zeros(len(ids), np.bool_)
    must_wait[group[u[is_small[u] & is_open[v]]]] = True
    must_wait[group[v[is_small[v] & is_open[u]]]] = True
    ready = is_small & ~must_wait[group]
    mine = ready[u] | ready[v]
    renaming = absorb_small(small.take(mine), sizes=sizes, min_size_vx=min_size_vx)
    return small.take(~mine).renamed(*renaming), renaming


def absorb_small(
    small: RegionGraph, *, sizes: Sizes, min_size_vx: int, threshold: float = 0.0
) -> tuple[Ids, Ids]:
    """Give each small segment to the neighbour it is best connected to, round after round.

    In a round each segment under ``min_size_vx`` picks the neighbour with the highest mean affinity (ties: the smaller
    key); picks are joined, edges pooled, and what is still small picks again. The rule looks at the whole volume's
    segments only, so it does not depend on tiling. Project-defined; zwatershed's clean-up has the same purpose.

    Parameters
    ----------
    small
        Every edge with a small end, between final segments.
    sizes
        Final sizes of every segment in ``small``.
    min_size_vx
        What counts as small.
    threshold
        Lowest mean affinity (0..255) across which a small segment may be given away.

    Returns
    -------
    old, new
        Renamed ids, sorted by ``old``; a joined segment is named by its smallest id.
    """
    ids = distinct(np.concatenate([small.u, small.v]))
    name = np.arange(len(ids))
    size = sizes.of(ids)
    u, v = np.searchsorted(ids, small.u), np.searchsorted(ids, small.v)
    graph = RegionGraph(
        u.astype(np.uint64), v.astype(np.uint64), small.total, small.weight, small.key_u, small.key_v
    )
    while True:
        usable = graph.total >= threshold * graph.weight
        picks = _best_neighbours(graph.take(usable), size < min_size_vx)
        if len(picks[0]) == 0:
            break
        root = roots(len(ids), *picks)
        name = root[name]
        size = np.bincount(root, weights=size, minlength=len(ids)).astype(np.int64)
        graph = graph.renamed(np.arange(len(ids), dtype=np.uint64), root.astype(np.uint64))
    changed = name != np.arange(len(ids))
    return ids[changed], ids[name[changed]]


def _best_neighbours(
    graph: RegionGraph, is_small: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], ...]:
    """For each small segment with a neighbour: itself and the neighbour it picks."""
    u, v = graph.u.astype(np.int64), graph.v.astype(np.int64)
    best = _best_edges(u, v, graph.total / graph.weight, graph.key_u, graph.key_v, is_small)
    small = np.flatnonzero(best >= 0)
    edge = best[small]
    return small, np.where(u[edge] == small, v[edge], u[edge])


@numba.njit(cache=True)
def _best_edges(u, v, mean, key_u, key_v, is_small):  # type: ignore[no-untyped-def]
    """Edge with the highest mean (ties: the smaller key) of each small node; -1 where there is none."""
    best = np.full(is_small.size, -1, np.int64)
    for e in range(u.size):
        for end in range(2):
            node = u[e] if end == 0 else v[e]
            if not is_small[node]:
                continue
            f = best[node]
            if (
                f < 0
                or mean[e] > mean[f]
                or (
                    mean[e] == mean[f]
                    and (key_u[e] < key_u[f] or (key_u[e] == key_u[f] and key_v[e] < key_v[f]))
                )
            ):
                best[node] = e
    return best
