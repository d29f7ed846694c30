"""Give small segments to their neighbours, with a result that does not depend on the tiling."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.ops.edges import Edges
from cloudseg.ops.union_find import roots

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Names = npt.NDArray[np.int64]


def absorb_complete(
    small: Edges, *, is_open: Flags, n_voxels: Counts, min_size_vx: int
) -> tuple[Edges, Names]:
    """Absorb the small segments that no open segment has a say in.

    Small segments that touch decide together, as they may join. Such a group looks at nothing but its own edges, so
    once neither a member nor a neighbour can grow any more, its outcome is the one that the whole volume would give.

    Parameters
    ----------
    small
        Every edge with a small end that a node knows; each pair once.
    is_open, n_voxels
        ``(n,)``, by segment: whether it may still grow, its size.
    min_size_vx
        What counts as small.

    Returns
    -------
    edges, name
        The edges that are left, sorted; ``(n,)``: the new name of each segment, the smallest of those that became one.
    """
    n = len(is_open)
    if small.n_edges == 0:
        return small, np.arange(n)
    u, v = small.u, small.v
    is_small = ~is_open & (n_voxels < min_size_vx)
    touching = np.flatnonzero(is_small[u] & is_small[v])
    group = roots(n, u[touching], v[touching])
    must_wait = np.zeros(n, np.bool_)
    must_wait[group[u[is_small[u] & is_open[v]]]] = True
    must_wait[group[v[is_small[v] & is_open[u]]]] = True
    ready = is_small & ~must_wait[group]
    mine = ready[u] | ready[v]
    rest, chosen = small.take(~mine), small.take(mine)
    del small, u, v
    name = absorb_small(chosen, n_voxels=n_voxels, min_size_vx=min_size_vx)
    return rest.between(name).pooled(), name


def absorb_small(small: Edges, *, n_voxels: Counts, min_size_vx: int) -> Names:
    """Give each small segment to the neighbour it is best connected to, round after round.

    In a round each segment under ``min_size_vx`` picks the neighbour with the highest mean affinity (ties: the lower
    rank); picks are joined, edges pooled, and what is still small picks again. The rule looks at the whole volume's
    segments only, so it does not depend on tiling. Project-defined; zwatershed's clean-up has the same purpose.

    Parameters
    ----------
    small
        Every edge with a small end, between final segments; each pair once.
    n_voxels
        ``(n,)``: final size of every segment in ``small``.
    min_size_vx
        What counts as small.

    Returns
    -------
    ``(n,)``: the new name of each segment; a joined segment is named by its smallest.
    """
    name = np.arange(len(n_voxels))
    size = n_voxels
    is_small = size < min_size_vx
    edges = small
    del small
    while True:
        best = _best_edges(edges.u, edges.v, edges.mean, edges.rank, is_small)
        picking = np.flatnonzero(best >= 0)
        if len(picking) == 0:
            return name
        u, v = edges.u[best[picking]], edges.v[best[picking]]
        root = roots(len(name), u, v)
        name = root[name]
        size = np.bincount(root, weights=size, minlength=len(name)).astype(np.int64)
        is_small = size < min_size_vx
        edges = edges.between(root).pooled()
        edges = edges.take(is_small[edges.u] | is_small[edges.v])


@numba.njit(cache=True)
def _best_edges(u, v, mean, rank, is_small):  # type: ignore[no-untyped-def]
    """Edge with the highest mean (ties: the lower rank) of each small segment; -1 where there is none."""
    best = np.full(is_small.size, -1, np.int64)
    for e in range(u.size):
        for node in (u[e], v[e]):
            if is_small[node]:
                f = best[node]
                if f < 0 or mean[e] > mean[f] or (mean[e] == mean[f] and rank[e] < rank[f]):
                    best[node] = e
    return best
