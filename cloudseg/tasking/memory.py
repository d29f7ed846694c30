"""What the memory of a warm worker is made of: the process, the libraries it has imported, and the task in hand.

The figures are resident memory of one worker process on Linux (x86-64), read from receipts; ``benchmarks/plan.py``
prints what a plan says beside what a run measures.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Library = Literal["torch", "numba", "igneous"]

# Python, numpy, pyarrow, pydantic, tensorstore; and 20 MB by which the kernel's own count may lag behind.
WORKER_BYTES = 185_000_000
LIBRARY_BYTES: dict[Library, int] = {
    "torch": 305_000_000,  # with oneDNN, its scratch memory, and a model of a few million weights
    "numba": 200_000_000,  # with LLVM, the kernels of all stages, and what large tables leave in pyarrow's pool
    "igneous": 110_000_000,  # with cloud-volume, kimimaro and zmesh
}


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
