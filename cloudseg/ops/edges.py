"""Edges between numbered segments: what the kernels of a region graph work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Edges:
    """Undirected edges between segments 0, 1, 2 ...; the names behind the numbers are the caller's.

    Attributes
    ----------
    u, v
        ``(n,)`` int32.
    total, weight
        ``(n,)`` int64: see :class:`cloudseg.ops.region_graph.RegionGraph`.
    rank
        ``(n,)`` int32: place of the edge's key among all keys; of two equal means the lower rank goes first.
    """

    u: Places
    v: Places
    total: Counts
    weight: Counts
    rank: Places

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.u)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """``(n,)`` float64: total over weight, rounded once."""
        return self.total / self.weight

    @classmethod
    def drained(cls, parts: list[Self]) -> Self:
        """Return the edges of all ``parts``, as they are; the list is emptied, so that its memory can go."""
        columns: list[list[npt.NDArray[Any]]] = [
            [getattr(p, n) for p in parts] for n in cls.__dataclass_fields__
        ]
        parts.clear()
        joined = []
        for column in columns:
            joined.append(column[0] if len(column) == 1 else np.concatenate(column))
            column.clear()
        return cls(*joined)

    @classmethod
    def summed(cls, pair: npt.NDArray[np.uint64], total: Counts, weight: Counts) -> Self:
        """Return the edges of :func:`pairs` given in any order and number of pieces; ranked by their ends."""
        u, v, total, weight, _ = _pooled(pair, np.argsort(pair), total, weight, np.zeros(len(pair), np.int32))
        return cls(u, v, total, weight, np.arange(len(u), dtype=np.int32))

    def take(self, which: npt.NDArray[Any]) -> Edges:
        """Return the edges where ``which`` is True, or at these places; always a copy."""
        at = np.flatnonzero(which) if which.dtype == np.bool_ else which
        return Edges(*(getattr(self, n).take(at) for n in self.__dataclass_fields__))

    def between(self, name: npt.NDArray[Any]) -> Edges:
        """Return the same edges between ``name[u]`` and ``name[v]``."""
        u, v = name[self.u].astype(np.int32, copy=False), name[self.v].astype(np.int32, copy=False)
        return Edges(u, v, self.total, self.weight, self.rank)

    def pooled(self) -> Edges:
        """Return the edges sorted by ends, ``u < v``; loops dropped, parallel edges added up, the higher rank kept."""
        pair = pairs(np.minimum(self.u, self.v), np.maximum(self.u, self.v))
        order = np.argsort(pair)
        columns = _pooled(pair, order, self.total, self.weight, self.rank)
        return Edges(*columns)


def pairs(high: npt.NDArray[Any], low: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Return two columns of non-negative 32-bit numbers as one of 64 bits, which sorts like the pairs."""
    pair = high.astype(np.uint64)
    pair <<= np.uint64(32)
    pair |= low.astype(np.uint64)
    return pair


@numba.njit(cache=True)
def _pooled(pair, order, total, weight, rank):  # type: ignore[no-untyped-def]
    half = np.uint64(32)
    n, last = 0, np.uint64(0)  # the pair 0 - 0 is a loop
    for e in order:
        n += pair[e] != last and (pair[e] >> half) != (pair[e] & np.uint64(0xFFFFFFFF))
        last = pair[e]
    u, v = np.empty(n, np.int32), np.empty(n, np.int32)
    totals, weights, ranks = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int32)
    k, last = -1, np.uint64(0)
    for e in order:
        a, b = np.int32(pair[e] >> half), np.int32(pair[e] & np.uint64(0xFFFFFFFF))
        if a == b:
            continue
        if k < 0 or pair[e] != last:
            k += 1
            last = pair[e]
            u[k], v[k], totals[k], weights[k], ranks[k] = a, b, total[e], weight[e], rank[e]
        else:
            totals[k] += total[e]
            weights[k] += weight[e]
            ranks[k] = max(ranks[k], rank[e])
    return u, v, totals, weights, ranks
