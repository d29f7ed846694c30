"""What the memory of a warm worker is made of: the process, the libraries it has imported, and the task in hand.

The figures are resident memory of one worker process on Linux (x86-64), read from receipts; ``benchmarks/plan.py``
prints what a plan says beside what a run measures.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterable
from typing import Literal

Library = Literal["torch", "numba", "igneous"]

# Python, numpy, pyarrow, pydantic, tensorstore; and 20 MB by which the kernel's own count may lag behind.
WORKER_BYTES = 185_000_000
LIBRARY_BYTES: dict[Library, int] = {
    "torch": 305_000_000,  # with oneDNN, its scratch memory, and a model of a few million weights
    "numba": 160_000_000,  # with LLVM, the kernels of all stages, and what large tables leave behind
    "igneous": 110_000_000,  # with cloud-volume, kimimaro and zmesh
}


# Measured on fib25 (8 nm): voxels per edge of the region graph; the share of its edges that a node of 128 voxels edge
# passes up, and how that falls with its edge; bytes per edge while a node merges, and while its names are resolved.
_VOXELS_PER_EDGE = 18
_PASSED_UP_AT_128 = 0.285
_PASSED_UP_POWER = -0.42
MERGE_BYTES_PER_EDGE = 400
RESOLVE_BYTES_PER_EDGE = 70


def n_graph_edges(node_vx: int, child_vx: int = 0) -> int:
    """Estimate how many edges of the region graph a node of the octree gets.

    Parameters
    ----------
    node_vx
        Voxels under the node.
    child_vx
        Voxels under one of its children, which pass a part of their edges up; 0: a leaf gets all edges.

    Examples
    --------
    >>> n_graph_edges(128**3), n_graph_edges(256**3, 128**3)
    (116508, 265639)
    """
    edge_vx = child_vx ** (1 / 3)
    share = min(1.0, _PASSED_UP_AT_128 * (edge_vx / 128) ** _PASSED_UP_POWER) if child_vx else 1.0
    return int(node_vx / _VOXELS_PER_EDGE * share)


def base_bytes(libraries: Iterable[Library]) -> int:
    """Return the memory of a worker that has imported ``libraries`` and holds no task.

    Examples
    --------
    >>> base_bytes([])
    185000000
    >>> base_bytes(["torch", "torch"])
    490000000
    """
    return WORKER_BYTES + sum(LIBRARY_BYTES[name] for name in set(libraries))


def give_back() -> None:
    """Return to the system what this process has freed (Linux, glibc); it would keep up to hundreds of megabytes."""
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim  # glibc's; other C libraries have none
    except (AttributeError, OSError, TypeError):
        return None
