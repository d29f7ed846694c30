"""Per-segment statistics: measure blocks, add the partials, publish tables and viewer properties."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, grid_shape, tile
from cloudseg.ops.statistics import SegmentTable, block_statistics, describe, merge_statistics, partition_of
from cloudseg.specs import BoxField
from cloudseg.tasking.blocks import block_name
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Site, Stage, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes import update_info
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.segment_properties import KEY, segment_properties_info, write_segment_properties
from cloudseg.volumes.tables import Column, get_table, put_table

# Partials are added in batches, so that a merge holds few of them beside the growing sum.
_MERGE_BATCH = 64
# Measured on fib25 (blocks) and on tables of a million rows.
_MEMORY_BYTES_PER_VOXEL = 10
_MERGE_BYTES_PER_SEGMENT = 500
_PUBLISH_BYTES_PER_SEGMENT = 600
_EMPTY_PROPERTIES = {"@type": "neuroglancer_segment_properties", "inline": {"ids": [], "properties": []}}


def block_key(core: Box, *, partition: int) -> str:
    """Name the partial of one block: ``<partition>/<x>_<y>_<z>.parquet``."""
    return f"{partition:04d}/{block_name(core.start)}.parquet"


def part_key(partition: int, *, n_partitions: int) -> str:
    """Name one part of the finished table, inside the segmentation's folder."""
    return f"statistics/part-{partition:04d}-of-{n_partitions:04d}.parquet"


class StatisticsTask(BlockTask):
    """Measure the segments of one block and store them as additive partials, one object per partition."""

    kind: Literal["statistics/1"] = "statistics/1"
    src_uri: str
    dst_uri: str
    n_partitions: PositiveInt = 1

    def run(self, ctx: Context) -> None:
        """Read the block and one voxel more at its lower sides, measure, store."""
        volume = ctx.open_volume(self.src_uri)
        # Each face between two voxels belongs to the block of the upper one.
        box = self.core.with_lower_neighbours(bounds=volume.info.bounds)
        with ctx.step("read"):
            labels = volume.read(box)
        with ctx.step("compute"):
            table = block_statistics(labels, box=box, core=self.core)
            owner = partition_of(table.ids, n_partitions=self.n_partitions)
        with ctx.step("write"):
            objects = ctx.open_objects(self.dst_uri)
            for part in range(self.n_partitions):
                put_table(
                    objects, block_key(self.core, partition=part), _partial_columns(table.take(owner == part))
                )
        ctx.count(voxels=self.core.n_voxels, segments=len(table))


class MergeStatisticsTask(Task):
    """Add the partials of one partition and store one part of the finished table."""

    kind: Literal["statistics_merge/1"] = "statistics_merge/1"
    src_uri: str
    dst_uri: str
    bounds: BoxField
    block_shape: Positive3
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    partition: NonNegativeInt
    n_partitions: PositiveInt

    def run(self, ctx: Context) -> None:
        """Add partials batch by batch; a partial that is not there is an error, never a hole."""
        objects = ctx.open_objects(self.src_uri)
        total = merge_statistics([])
        batch: list[SegmentTable] = []
        with ctx.step("compute"):
            for core in tile(self.bounds, self.block_shape):
                batch.append(_partial(get_table(objects, block_key(core, partition=self.partition))))
                if len(batch) == _MERGE_BATCH:
                    total, batch = merge_statistics([total, *batch]), []
            total = merge_statistics([total, *batch])
        if (total.n_voxels < 1).any():
            lost = int(total.ids[total.n_voxels < 1][0])
            raise SpecError(
                f"segment {lost} in {self.src_uri} has faces but no voxel: the partials come from another "
                f"segmentation or tiling; delete {self.src_uri} and run the stage again"
            )
        columns = describe(total, bounds=self.bounds, voxel_size_nm=self.voxel_size_nm)
        with ctx.step("write"):
            key = part_key(self.partition, n_partitions=self.n_partitions)
            put_table(ctx.open_objects(self.dst_uri), key, columns)
        ctx.count(segments=len(total))


class SegmentPropertiesTask(Task):
    """Publish the finished table as Neuroglancer segment properties."""

    kind: Literal["segment_properties/1"] = "segment_properties/1"
    uri: str
    n_partitions: PositiveInt
    max_segments: PositiveInt

    def run(self, ctx: Context) -> None:
        """Keep the ``max_segments`` largest segments (a viewer loads the whole list at once) and write them."""
        objects = ctx.open_objects(self.uri)
        wanted = {"id": np.uint64, "n_voxels": np.int64, "volume_um3": np.float64, "on_border": np.bool_}
        columns: dict[str, Column] = {name: np.empty(0, dtype) for name, dtype in wanted.items()}
        n_all = 0
        with ctx.step("read"):
            for part in range(self.n_partitions):
                key = part_key(part, n_partitions=self.n_partitions)
                table = get_table(objects, key, columns=wanted)
                n_all += len(table["id"])
                both = {name: np.concatenate([columns[name], table[name]]) for name in wanted}
                largest = np.lexsort((both["id"], -both["n_voxels"]))[: self.max_segments]
                columns = {name: values[largest] for name, values in both.items()}
        volume = columns["volume_um3"]
        on_border = columns["on_border"]
        info = segment_properties_info(
            columns["id"],
            labels=[f"{v:.3g} um3" for v in volume.tolist()],
            numbers={
                "n_voxels": (columns["n_voxels"], "number of voxels"),
                "volume_um3": (volume, "volume in cubic micrometres"),
            },
            tags={
                "on_border": (on_border, "touches the border of the volume"),
                "inside": (~on_border, "lies wholly inside the volume"),
            },
        )
        with ctx.step("write"):
            write_segment_properties(objects, info)
        ctx.count(segments=len(volume), segments_left_out=n_all - len(volume))


class StatisticsStage(Stage):
    """Per-segment statistics of a segmentation.

    Attributes
    ----------
    layer
        The segmentation to measure.
    block_shape
        Voxels that one task reads; the result does not depend on it.
    voxels_per_partition
        Segments are spread over one partition per so many voxels, so that a merge fits in memory.
    max_properties
        How many segments, the largest first, Neuroglancer gets to list; the Parquet table always has all.
    """

    kind: Literal["statistics"] = "statistics"
    layer: str = "segmentation"
    block_shape: Positive3 = (256, 256, 256)
    voxels_per_partition: PositiveInt = 1 << 34
    max_properties: PositiveInt = 500_000

    def expand(self, site: Site) -> StagePlan:
        """Plan three steps: measure blocks, merge partitions, publish."""
        layer = site.layer(self.layer, wanted_by=self.label)
        if layer.info.layer != "segmentation" or layer.info.dtype == "float32" or layer.info.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} measures segments, but layer {self.layer!r} at {layer.uri} is "
                f"{layer.info.n_channels} channel(s) of {layer.info.dtype}, a layer of type {layer.info.layer!r}; "
                "set layer to a segmentation"
            )
        bounds = layer.info.bounds
        n_partitions = max(1, math.ceil(bounds.n_voxels / self.voxels_per_partition))
        graph_uri = f"{site.root.rstrip('/')}/graph/{self.label}"

        def measure() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield StatisticsTask(
                    core=core, src_uri=layer.uri, dst_uri=graph_uri, n_partitions=n_partitions
                )

        def merge() -> Iterator[Task]:
            for part in range(n_partitions):
                yield MergeStatisticsTask(
                    src_uri=graph_uri,
                    dst_uri=layer.uri,
                    bounds=bounds,
                    block_shape=self.block_shape,
                    voxel_size_nm=layer.info.voxel_size_nm,
                    partition=part,
                    n_partitions=n_partitions,
                )

        def publish() -> Iterator[Task]:
            yield SegmentPropertiesTask(
                uri=layer.uri, n_partitions=n_partitions, max_segments=self.max_properties
            )

        # About one segment per 2^14 voxels of dense EM; its row in a table, and in a list for the viewer.
        n_segments = min(bounds.n_voxels, self.voxels_per_partition) >> 14
        n_listed = min(self.max_properties, bounds.n_voxels >> 14)
        core_voxels = math.prod(min(b, s) for b, s in zip(self.block_shape, bounds.shape, strict=True))
        return StagePlan(
            name=self.label,
            layers=(),
            steps=(
                Step(
                    name=f"{self.label}.measure",
                    n_tasks=math.prod(grid_shape(bounds, self.block_shape)),
                    tasks=measure,
                    task_memory_bytes=base_bytes(["numba"]) + core_voxels * _MEMORY_BYTES_PER_VOXEL,
                    libraries=("numba",),
                ),
                Step(
                    name=f"{self.label}.merge",
                    n_tasks=n_partitions,
                    tasks=merge,
                    task_memory_bytes=base_bytes(["numba"]) + n_segments * _MERGE_BYTES_PER_SEGMENT,
                    libraries=("numba",),
                ),
                Step(
                    name=f"{self.label}.publish",
                    n_tasks=1,
                    tasks=publish,
                    prepare=partial(_announce, site, layer.uri),
                    task_memory_bytes=base_bytes([]) + n_listed * _PUBLISH_BYTES_PER_SEGMENT,
                ),
            ),
        )


def _announce(site: Site, uri: str) -> None:
    """Name the properties in the segmentation's ``info``; an empty list stands there until the task has run."""
    objects = site.open_objects(uri)
    objects.put_if_absent(f"{KEY}/info", json.dumps(_EMPTY_PROPERTIES).encode())
    update_info(uri, **{KEY: KEY})


def _partial_columns(table: SegmentTable) -> dict[str, Column]:
    columns: dict[str, Column] = {"id": table.ids, "n_voxels": table.n_voxels}
    for name in ("sum_vx", "start_vx", "stop_vx", "n_faces"):
        for axis, letter in enumerate("xyz"):
            columns[f"{name}_{letter}"] = getattr(table, name)[:, axis]
    return columns


def _partial(columns: Mapping[str, Column]) -> SegmentTable:
    def three(name: str) -> npt.NDArray[np.int64]:
        return np.stack([columns[f"{name}_{letter}"] for letter in "xyz"], axis=1)

    return SegmentTable(
        columns["id"],
        columns["n_voxels"],
        three("sum_vx"),
        three("start_vx"),
        three("stop_vx"),
        three("n_faces"),
    )
