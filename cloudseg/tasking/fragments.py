"""Names for what blocks have labelled on their own: fragments that touch become one, called by its smallest id."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ, Box, grid_shape, tile
from cloudseg.tasking.blocks import block_name
from cloudseg.tasking.task import Context
from cloudseg.volumes.tables import get_table, put_table


def name_fragments(ctx: Context, *, graph_uri: str, bounds: Box, block_shape: XYZ) -> None:
    """Join the pairs of all blocks and store, for each block, which of its fragments are renamed.

    Parameters
    ----------
    ctx
        Of the task that does it.
    graph_uri
        Holds ``pairs/<block>.parquet`` with the columns ``a`` and ``b``; gets ``names/<block>.parquet`` with ``old``
        and ``new``.
    bounds, block_shape
        The volume, and the blocks that it was cut into. A fragment is called one more than the index of one of its
        voxels, which tells the block it lies in.
    """
    from cloudseg.ops.union_find import components

    objects = ctx.open_objects(graph_uri)
    with ctx.step("read"):
        pairs = [
            get_table(objects, f"pairs/{block_name(b.start)}.parquet") for b in tile(bounds, block_shape)
        ]
    with ctx.step("compute"):
        old, new = components(
            np.concatenate([p["a"] for p in pairs]), np.concatenate([p["b"] for p in pairs])
        )
        owner = block_of(old, bounds=bounds, block_shape=block_shape)
        order = np.argsort(owner, kind="stable")
        old, new, owner = old[order], new[order], owner[order]
    with ctx.step("write"):
        for n, block in enumerate(tile(bounds, block_shape)):
            low, high = np.searchsorted(owner, [n, n + 1])
            put_table(
                objects,
                f"names/{block_name(block.start)}.parquet",
                {"old": old[low:high], "new": new[low:high]},
            )
    ctx.count(renamed=len(old))


def block_of(ids: npt.NDArray[np.uint64], *, bounds: Box, block_shape: XYZ) -> npt.NDArray[np.int64]:
    """Return which block (in the order of ``tile``) holds the voxel that names each id."""
    index = (ids - np.uint64(1)).astype(np.int64)
    n_x, n_y, _ = bounds.shape
    at = (index % n_x, index // n_x % n_y, index // (n_x * n_y))
    i, j, k = (a // b for a, b in zip(at, block_shape, strict=True))
    g_x, g_y, _ = grid_shape(bounds, block_shape)
    return np.asarray(i + g_x * (j + g_y * k), np.int64)


def n_inner_faces(bounds: Box, block_shape: XYZ) -> int:
    """Return how many voxel faces lie between blocks."""
    n_cuts = (n - 1 for n in grid_shape(bounds, block_shape))
    return sum(cuts * bounds.n_voxels // n for cuts, n in zip(n_cuts, bounds.shape, strict=True))
