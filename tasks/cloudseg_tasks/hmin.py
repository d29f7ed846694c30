"""The h-minima watershed in its exact form: basins of blocks, one decision, final names.

Three steps, each exact for any tiling (see :mod:`cloudseg.ops.basins`):

1. ``graph``: lowest boundary of each basin (supervoxel) in a block, and the lowest passes to its neighbours;
2. ``merge``: basins that are not deep enough are joined, over the whole volume;
3. ``rename``: the layer ``segmentation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from cloudseg.errors import SpecError
from cloudseg.geometry import grid_box, grid_shape, tile
from cloudseg.specs import BoxField
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, LabelsStage, block_name, rename_block
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.tables import get_table, put_table

Depth = Annotated[float, Field(gt=0, le=1)]
_GRAPH_BYTES_PER_VOXEL = 80
# A basin per 40 voxels with six passes, of 17 bytes in the tables and 60 while they are sorted.
_MERGE_BYTES_PER_VOXEL = 12


class BasinGraphTask(BlockTask):
    """Store the basins of one block and the passes across faces whose upper voxel lies in it."""

    kind: Literal["basin_graph/1"] = "basin_graph/1"
    supervoxels_uri: str
    boundaries_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read labels and boundaries one voxel further down, measure, store."""
        from cloudseg.ops.basins import basins

        labels_volume = ctx.open_volume(self.supervoxels_uri)
        bounds = labels_volume.info.bounds
        outer = self.core.with_lower_neighbours(bounds=bounds)
        with ctx.step("read"):
            labels = labels_volume.read(outer)
            boundaries = ctx.open_volume(self.boundaries_uri).read(outer)
        with ctx.step("compute"):
            graph = basins(labels, boundaries, core=self.core, bounds=bounds)
        with ctx.step("write"):
            objects, name = ctx.open_objects(self.graph_uri), block_name(self.core.start)
            put_table(objects, f"{name}/basins.parquet", {"id": graph.ids, "minimum": graph.minimum})
            put_table(objects, f"{name}/passes.parquet", {"u": graph.u, "v": graph.v, "saddle": graph.saddle})
        ctx.count(voxels=self.core.n_voxels, basins=len(graph.ids), passes=len(graph.u))


class BasinMergeTask(Task):
    """Join shallow basins over the whole volume."""

    kind: Literal["basin_merge/1"] = "basin_merge/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    h: Depth

    def run(self, ctx: Context) -> None:
        """Add up the blocks, join, store who is renamed."""
        from cloudseg.ops.basins import Basins, join_shallow

        objects = ctx.open_objects(self.graph_uri)
        parts = []
        with ctx.step("read"):
            for block in tile(self.bounds, self.block_shape):
                name = block_name(block.start)
                basins = get_table(objects, f"{name}/basins.parquet")
                passes = get_table(objects, f"{name}/passes.parquet")
                parts.append(
                    Basins(basins["id"], basins["minimum"], passes["u"], passes["v"], passes["saddle"])
                )
        with ctx.step("compute"):
            old, new = join_shallow(Basins.joined(parts), h=self.h * 255)
        with ctx.step("write"):
            put_table(objects, "names.parquet", {"old": old, "new": new})
        ctx.count(renamed=len(old))


class BasinRenameTask(BlockTask):
    """Write the regions of one block."""

    kind: Literal["basin_rename/1"] = "basin_rename/1"
    supervoxels_uri: str
    segmentation_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read basins and names, rename, write."""
        rename_block(
            ctx,
            self.core,
            src_uri=self.supervoxels_uri,
            dst_uri=self.segmentation_uri,
            tables_uri=self.graph_uri,
            tables=["names.parquet"],
        )


class HMinWatershedStage(LabelsStage):
    """Join basins of boundaries that are less than ``h`` deep, into the layer ``segmentation``.

    Exact for any tiling. The basins are the supervoxels (``t_low = 1``) of ``boundary_affinities``. One task holds all
    passes of the volume: about 12 bytes per voxel.

    Attributes
    ----------
    supervoxels, boundaries
        Names of the input layers.
    h
        Depth, 0..1, that a minimum needs to stay; DeepEM3D took 0.19.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["hmin_watershed"] = "hmin_watershed"
    supervoxels: str = "supervoxels"
    boundaries: str = "boundaries"
    h: Depth = 0.19

    def expand(self, site: Site) -> StagePlan:
        """Plan the three steps."""
        source = site.layer(self.supervoxels, wanted_by=self.label)
        boundaries = site.layer(self.boundaries, wanted_by=self.label)
        self._check(source, boundaries)
        bounds, root = source.info.bounds, site.root.rstrip("/")
        graph_uri = f"{root}/graph/{self.label}"
        output = Layer(
            "segmentation",
            f"{root}/segmentation",
            self.labels_info(source.info),
            made_by=f"{self.label}.rename",
            block_shape=self.block_shape,
        )

        def graph() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield BasinGraphTask(
                    core=core,
                    supervoxels_uri=source.uri,
                    boundaries_uri=boundaries.uri,
                    graph_uri=graph_uri,
                )

        def merge() -> Iterator[Task]:
            yield BasinMergeTask(graph_uri=graph_uri, bounds=bounds, block_shape=self.block_shape, h=self.h)

        def rename() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield BasinRenameTask(
                    core=core, supervoxels_uri=source.uri, segmentation_uri=output.uri, graph_uri=graph_uri
                )

        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        n_voxels = grid_box(bounds, self.block_shape, (0, 0, 0)).n_voxels
        base = base_bytes(["numba"])

        def step(name: str, n_tasks: int, tasks: Callable[[], Iterator[Task]], memory_bytes: int) -> Step:
            return Step(
                f"{self.label}.{name}",
                n_tasks,
                tasks,
                task_memory_bytes=base + memory_bytes,
                libraries=("numba",),
            )

        return StagePlan(
            self.label,
            (output,),
            (
                step("graph", n_blocks, graph, _GRAPH_BYTES_PER_VOXEL * n_voxels),
                step("merge", 1, merge, _MERGE_BYTES_PER_VOXEL * bounds.n_voxels),
                step("rename", n_blocks, rename, RENAME_BYTES_PER_VOXEL * n_voxels),
            ),
            outputs_bytes=bounds.n_voxels * 8 // 10,
        )

    def _check(self, source: Layer, boundaries: Layer) -> None:
        if source.info.layer != "segmentation" or source.info.dtype != "uint64":
            raise SpecError(
                f"stage {self.label!r} needs supervoxels: a segmentation of uint64; {source.uri} is a "
                f"{source.info.layer} layer of {source.info.dtype}"
            )
        info = boundaries.info
        if info.dtype != "uint8" or info.n_channels != 1 or info.layer != "image":
            raise SpecError(
                f"stage {self.label!r} needs boundaries: an image layer of uint8 with 1 channel; {boundaries.uri} is "
                f"a {info.layer} layer of {info.dtype} with {info.n_channels} channel(s)"
            )
        if source.info.bounds != info.bounds:
            raise SpecError(
                f"stage {self.label!r}: supervoxels cover {source.info.bounds}, boundaries {info.bounds}; "
                "both must cover the same box"
            )
