"""What the steps of a catalogue hand to one another, as tables in the graph folder of the stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import Box
from cloudseg.ops.contingency import Contingency
from cloudseg.ops.soma_table import SomaTable, add_somas
from cloudseg.tasking.blocks import block_name
from cloudseg.volumes.tables import Column

_PRODUCTS = ("xx", "yy", "zz", "xy", "xz", "yz")
_COLUMNS = (
    "n_voxels",
    *(f"sum_{a}_vx" for a in "xyz"),
    *(f"products_{ab}_vx" for ab in _PRODUCTS),
    *(f"start_{a}_vx" for a in "xyz"),
    *(f"stop_{a}_vx" for a in "xyz"),
    "sum_interior",
    "n_surface",
    "sum_boundary",
    "n_blocks",
)


def somas_key(core: Box, *, partition: int) -> str:
    """Name what one block holds of the somas of one partition."""
    return f"{partition:04d}/{block_name(core.start)}-somas.parquet"


def overlaps_key(core: Box, *, partition: int) -> str:
    """Name how many voxels the somas of one partition share with segments in one block."""
    return f"{partition:04d}/{block_name(core.start)}-overlaps.parquet"


def merged_key(partition: int) -> str:
    """Name the summed somas of one partition."""
    return f"merged/somas-{partition:04d}.parquet"


def shares_key(partition: int) -> str:
    """Name the segments of the somas of one partition: every overlap, and which is the largest."""
    return f"merged/overlaps-{partition:04d}.parquet"


def places_key(partition: int, portion: int) -> str:
    """Name the deepest voxels of one portion of a partition."""
    return f"places/{partition:04d}-{portion:04d}.parquet"


def soma_columns(table: SomaTable, *, is_part: bool = False) -> dict[str, Column]:
    """Return ``table`` as columns to store. Of an empty part (most blocks have no soma) the ids will do."""
    if is_part and not len(table):
        return {"id": table.ids}
    columns = table.columns
    return {"id": table.ids, **{name: columns[:, i] for i, name in enumerate(_COLUMNS)}}


def somas_of(columns: Mapping[str, Column]) -> SomaTable:
    """Return the table that :func:`soma_columns` turned into columns."""
    if not len(columns["id"]):
        return add_somas([])
    return SomaTable.of_columns(columns["id"], np.column_stack([columns[name] for name in _COLUMNS]))


def overlap_columns(pairs: Contingency) -> dict[str, Column]:
    """Return pairs of somas and segments as columns to store."""
    return {"soma": pairs.seg_ids, "segment": pairs.truth_ids, "n_voxels": pairs.counts}


def overlaps_of(columns: Mapping[str, Column]) -> Contingency:
    """Return the pairs that :func:`overlap_columns` turned into columns."""
    return Contingency(columns["soma"], columns["segment"], columns["n_voxels"])


def largest_shares(
    ids: npt.NDArray[np.uint64], pairs: Contingency
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return for each soma the segment that it shares most voxels with, how many, and the number of segments.

    Parameters
    ----------
    ids
        ``(n,)`` somas, sorted.
    pairs
        Voxels shared; no pair with a 0.

    Returns
    -------
    ``(n,)`` each; 0, 0, 0 for a soma without a segment. Of equal shares the smaller segment counts.
    """
    segment = np.zeros(len(ids), np.uint64)
    shared, n_segments = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    if not len(pairs.counts) or not len(ids):
        return segment, shared, n_segments
    order = np.lexsort((pairs.truth_ids, -pairs.counts, pairs.seg_ids))
    somas = pairs.seg_ids[order]
    first = np.flatnonzero(np.concatenate([[True], somas[1:] != somas[:-1]]))
    at = np.searchsorted(ids, somas[first])
    segment[at] = pairs.truth_ids[order][first]
    shared[at] = pairs.counts[order][first]
    n_segments[at] = np.diff(np.append(first, len(somas)))
    return segment, shared, n_segments
