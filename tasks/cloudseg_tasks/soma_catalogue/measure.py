"""Somas measured block by block, and added up: exact for any tiling (see :mod:`cloudseg.ops.soma_table`)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt, PositiveInt

from cloudseg.geometry import Box, tile
from cloudseg.ops.contingency import Contingency, contingency
from cloudseg.ops.soma_table import SomaTable, add_somas, measure_somas
from cloudseg.ops.statistics import partition_of
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3, Volume
from cloudseg.volumes.tables import get_table, put_table
from cloudseg_tasks.soma_catalogue.tables import (
    largest_shares,
    merged_key,
    overlap_columns,
    overlaps_key,
    overlaps_of,
    shares_key,
    soma_columns,
    somas_key,
    somas_of,
)

# Tables are added in batches, so that a merge holds few of them beside the growing sum.
_MERGE_BATCH = 64


class Map(FrozenModel):
    """One channel of a layer of probabilities."""

    uri: str
    channel: NonNegativeInt = 0


class SomaPartialsTask(BlockTask):
    """Measure what one block holds of each soma, and which segments lie there; one object per partition.

    Attributes
    ----------
    src_uri
        The somas.
    dst_uri
        Folder of the tables.
    interior, boundary
        Probabilities over the voxels of the somas, if there are any.
    missing
        What a chunk of those that was never written means; ``zero`` where they were computed with a mask.
    segments_uri, segments_mip
        Neurons, of any voxel size; empty: none.
    """

    kind: Literal["soma_partials/1"] = "soma_partials/1"
    src_uri: str
    dst_uri: str
    n_partitions: PositiveInt = 1
    interior: Map | None = None
    boundary: Map | None = None
    missing: Literal["error", "zero"] = "error"
    segments_uri: str = ""
    segments_mip: NonNegativeInt = 0

    def run(self, ctx: Context) -> None:
        """Read the block and one voxel more around it, measure, store."""
        volume = ctx.open_volume(self.src_uri)
        box = self.core.grow((1, 1, 1)).intersect(volume.info.bounds)
        with ctx.step("read"):
            labels = volume.read(box)
        inner = labels[self.core.slices_in(box)]
        pairs = Contingency.empty()
        # Most blocks of a brain hold no soma: nothing else is read for them.
        if inner.any():
            with ctx.step("read"):
                interior, boundary = self._map(ctx, self.interior), self._map(ctx, self.boundary)
                segments = self._segments(ctx, volume)
            with ctx.step("compute"):
                table = measure_somas(labels, box=box, core=self.core, interior=interior, boundary=boundary)
                if segments is not None:
                    pairs = contingency(inner, segments, mask=(inner != 0) & (segments != 0))
        else:
            table = add_somas([])
        with ctx.step("write"):
            objects = ctx.open_objects(self.dst_uri)
            owner = partition_of(table.ids, n_partitions=self.n_partitions)
            pair_owner = partition_of(pairs.seg_ids, n_partitions=self.n_partitions)
            for part in range(self.n_partitions):
                rows = table.take(owner == part)
                put_table(objects, somas_key(self.core, partition=part), soma_columns(rows, is_part=True))
                if self.segments_uri:
                    mine = pair_owner == part
                    shared = Contingency(pairs.seg_ids[mine], pairs.truth_ids[mine], pairs.counts[mine])
                    put_table(objects, overlaps_key(self.core, partition=part), overlap_columns(shared))
        ctx.count(voxels=self.core.n_voxels, somas=len(table))

    def _map(self, ctx: Context, which: Map | None) -> npt.NDArray[np.uint8] | None:
        if which is None:
            return None
        values = ctx.open_volume(which.uri).read(self.core, missing=self.missing)
        return values if values.ndim == 3 else values[which.channel]

    def _segments(self, ctx: Context, somas: Volume) -> npt.NDArray[np.uint64] | None:
        if not self.segments_uri:
            return None
        segments = ctx.open_volume(self.segments_uri, mip=self.segments_mip)
        return read_at_centres(segments, self.core, somas.info.voxel_size_nm)


class SomaMergeTask(Task):
    """Add what the blocks hold of the somas of one partition."""

    kind: Literal["soma_merge/1"] = "soma_merge/1"
    src_uri: str
    bounds: BoxField
    block_shape: Positive3
    partition: NonNegativeInt
    with_segments: bool = False

    def run(self, ctx: Context) -> None:
        """Add tables batch by batch; one that is not there is an error, never a hole."""
        objects = ctx.open_objects(self.src_uri)
        total, batch = add_somas([]), list[SomaTable]()
        with ctx.step("compute"):
            for core in tile(self.bounds, self.block_shape):
                batch.append(somas_of(get_table(objects, somas_key(core, partition=self.partition))))
                if len(batch) == _MERGE_BATCH:
                    total, batch = add_somas([total, *batch]), []
            total = add_somas([total, *batch])
        pairs = Contingency.empty()
        if self.with_segments:
            with ctx.step("compute"):
                pairs = Contingency.total(
                    overlaps_of(get_table(objects, overlaps_key(core, partition=self.partition)))
                    for core in tile(self.bounds, self.block_shape)
                )
        segment, shared, n_segments = largest_shares(total.ids, pairs)
        with ctx.step("write"):
            put_table(objects, shares_key(self.partition), overlap_columns(pairs))
            columns = soma_columns(total)
            columns |= {"segment": segment, "segment_voxels": shared, "n_segments": n_segments}
            put_table(objects, merged_key(self.partition), columns)
        ctx.count(somas=len(total))


def read_at_centres(
    volume: Volume, core: Box, voxel_size_nm: tuple[float, float, float]
) -> npt.NDArray[np.uint64]:
    """Return the ids of ``volume`` at the centres of the voxels of ``core``, whose voxels may have another size.

    Parameters
    ----------
    volume
        Ids; its voxel (0, 0, 0) begins where that of ``core``'s volume does. 0 where it has no voxels.
    core
        In voxels of ``voxel_size_nm``.
    voxel_size_nm
        Edge of a voxel of ``core`` along x, y, z.
    """
    if tuple(volume.info.voxel_size_nm) == tuple(voxel_size_nm):
        return volume.read(core, fill=0).astype(np.uint64, copy=False)
    at = [
        np.floor((np.arange(low, high) + 0.5) * (mine / other)).astype(np.int64)
        for low, high, mine, other in zip(
            core.start, core.stop, voxel_size_nm, volume.info.voxel_size_nm, strict=True
        )
    ]
    start = (int(at[0][0]), int(at[1][0]), int(at[2][0]))
    stop = (int(at[0][-1]) + 1, int(at[1][-1]) + 1, int(at[2][-1]) + 1)
    values = volume.read(Box(start, stop), fill=0)
    x, y, z = (axis - first for axis, first in zip(at, start, strict=True))
    return values[np.ix_(x, y, z)].astype(np.uint64, copy=False)
