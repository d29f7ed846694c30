"""Connected components of pairs of ids, each named by its smallest id."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint64]


def components(a: Ids, b: Ids) -> tuple[Ids, Ids]:
    """Return the ids that change their name when pairs ``a[i] - b[i]`` are joined, and their new names.

    Parameters
    ----------
    a, b
        ``(n,)`` uint64, the ends of each pair.

    Returns
    -------
    old, new
        ``(m,)`` uint64, sorted by ``old``; ``new`` is the smallest id of the component and never equals ``old``.
    """
    ids, ends = np.unique(np.concatenate([a, b]), return_inverse=True)
    n = len(a)
    root = roots(len(ids), ends[:n].astype(np.int64), ends[n:].astype(np.int64))
    changed = root != np.arange(len(ids))
    return ids[changed], ids[root[changed]]


def roots(n: int, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return, for each of ``n`` places, the smallest place that the pairs ``a[k] - b[k]`` join it with."""
    joined: npt.NDArray[np.int64] = _roots(n, a, b)
    return joined


@numba.njit(cache=True)
def _roots(n, a, b):  # type: ignore[no-untyped-def]
    parent = np.arange(n)
    for k in range(a.size):
        i, j = a[k], b[k]
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        while parent[j] != j:
            parent[j] = parent[parent[j]]
            j = parent[j]
        if i < j:
            parent[j] = i
        else:
            parent[i] = j
    for i in range(n):
        parent[i] = parent[parent[i]]  # parents precede children, so one step reaches the root
    return parent
