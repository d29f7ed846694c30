"""MaxExtend: segments of single sections become objects; see :mod:`cloudseg.ops.max_extend`.

Four steps, each exact for any tiling:

1. ``overlaps``: what the segments of a block share with the section before;
2. ``links``: one task per layer of blocks adds them up and decides who continues whom;
3. ``names``: what links hold together, called by its smallest id;
4. ``rename``: the layer ``segmentation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box, grid_box, grid_shape, tile
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, LabelsStage, block_name
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.tables import get_table, put_table

Share = Annotated[float, Field(ge=0, le=1)]
_COLUMNS = (("z", "id", "n"), ("upper_z", "a", "b", "shared"))
# Labels and their pairs; rows of a layer (a segment per 200 pixels, four overlaps each); rows of all layers.
_OVERLAPS_BYTES_PER_VOXEL = 24
_LINKS_BYTES_PER_VOXEL = 4
_NAMES_BYTES_PER_VOXEL = 1


class ExtendRule(FrozenModel):
    """As in :class:`cloudseg.ops.max_extend.LinkRule`."""

    min_iou: Share
    min_overlap: Share
    branch_overlap: NonNegativeFloat


class SectionOverlapsTask(BlockTask):
    """Store what the segments of one block share with the section before."""

    kind: Literal["section_overlaps/1"] = "section_overlaps/1"
    labels_uri: str
    graph_uri: str
    missing: tuple[int, ...] = ()

    def run(self, ctx: Context) -> None:
        """Read the block and the section below it, count, store."""
        from cloudseg.ops.max_extend import box_of, section_overlaps

        volume, missing = ctx.open_volume(self.labels_uri), frozenset(self.missing)
        bounds = volume.info.bounds
        with ctx.step("read"):
            labels = volume.read(box_of(self.core, bounds=bounds, missing=missing))
        with ctx.step("compute"):
            found = section_overlaps(labels, core=self.core, bounds=bounds, missing=missing)
        with ctx.step("write"):
            objects, name = ctx.open_objects(self.graph_uri), block_name(self.core.start)
            for part, columns in zip(("sizes", "overlaps"), _COLUMNS, strict=True):
                put_table(objects, f"{part}/{name}.parquet", {c: getattr(found, c) for c in columns})
        skipped = sum(self.core.start[2] <= z < self.core.stop[2] for z in missing)
        ctx.count(voxels=self.core.n_voxels, sections_skipped=skipped)


class SectionLinksTask(Task):
    """Decide who continues whom in the sections of one layer of blocks."""

    kind: Literal["section_links/1"] = "section_links/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    layer: NonNegativeInt
    rule: ExtendRule

    def run(self, ctx: Context) -> None:
        """Add up the blocks of the layer, link, store the pairs and the segments of the layer."""
        from cloudseg.ops.max_extend import LinkRule, SectionOverlaps, links

        objects = ctx.open_objects(self.graph_uri)
        parts = []
        with ctx.step("read"):
            for core in layer_blocks(self.bounds, self.block_shape, self.layer):
                name = block_name(core.start)
                sizes, overlaps = (get_table(objects, f"{p}/{name}.parquet") for p in ("sizes", "overlaps"))
                parts.append(SectionOverlaps(*(sizes | overlaps).values()))
        with ctx.step("compute"):
            total = SectionOverlaps.total(parts)
            a, b = links(total, LinkRule(**self.rule.model_dump()))
        with ctx.step("write"):
            own = total.z >= core.start[2]
            put_table(objects, f"links/{self.layer}.parquet", {"a": a, "b": b})
            put_table(objects, f"segments/{self.layer}.parquet", {"id": np.sort(total.id[own])})
        ctx.count(segments=int(own.sum()), links=len(a))


class SectionNamesTask(Task):
    """Join the links of all layers and store, for each layer, which of its segments are renamed."""

    kind: Literal["section_names/1"] = "section_names/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3

    def run(self, ctx: Context) -> None:
        """Find what links hold together."""
        from cloudseg.ops.union_find import components

        objects = ctx.open_objects(self.graph_uri)
        layers = range(grid_shape(self.bounds, self.block_shape)[2])
        with ctx.step("read"):
            pairs = [get_table(objects, f"links/{n}.parquet") for n in layers]
        with ctx.step("compute"):
            old, new = components(
                np.concatenate([p["a"] for p in pairs]), np.concatenate([p["b"] for p in pairs])
            )
        with ctx.step("write"):
            for n in layers:
                here = np.isin(old, get_table(objects, f"segments/{n}.parquet")["id"])
                put_table(objects, f"names/{n}.parquet", {"old": old[here], "new": new[here]})
        ctx.count(renamed=len(old))


class SectionRenameTask(BlockTask):
    """Write the objects of one block."""

    kind: Literal["section_rename/1"] = "section_rename/1"
    labels_uri: str
    segmentation_uri: str
    graph_uri: str
    layer: NonNegativeInt
    missing: tuple[int, ...] = ()

    def run(self, ctx: Context) -> None:
        """Read segments and names, rename, leave missing sections empty, write."""
        from cloudseg.ops.remap import remap

        with ctx.step("read"):
            labels = ctx.open_volume(self.labels_uri).read(self.core)
            names = get_table(ctx.open_objects(self.graph_uri), f"names/{self.layer}.parquet")
        with ctx.step("compute"):
            renamed = remap(labels, names["old"], names["new"])
            for z in self.missing:
                if self.core.start[2] <= z < self.core.stop[2]:
                    renamed[:, :, z - self.core.start[2]] = 0
        with ctx.step("write"):
            ctx.open_volume(self.segmentation_uri).write(self.core, renamed)
        ctx.count(voxels=self.core.n_voxels)


class MaxExtendStage(LabelsStage):
    """Link segments of single sections into objects, into the layer ``segmentation``.

    Project-defined, and exact for any tiling. The segments usually come from ``distance_watershed`` with ``stacked``
    and blocks that hold whole sections.

    Attributes
    ----------
    layer, output
        The segments: uint64, each id in one section. The layer that is written.
    min_iou, min_overlap
        Two segments that are each other's best continuation are linked if their intersection is at least this share
        of their union, or this share of the smaller one.
    branch_overlap
        A segment that is the best of another, but not the other way round, is linked if the intersection is at least
        this share of the smaller one. Above 1: no branches, as slivers along membranes would bridge cells.
    missing_sections
        Sections (z in voxels) that are passed over and left empty: those around them become neighbours. The receipts
        count them.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["max_extend"] = "max_extend"
    layer: str = "supervoxels"
    output: str = "segmentation"
    min_iou: Share = 0.2
    min_overlap: Share = 0.5
    branch_overlap: NonNegativeFloat = 2.0
    missing_sections: tuple[int, ...] = ()

    def expand(self, site: Site) -> StagePlan:
        """Plan the four steps."""
        source = site.layer(self.layer, wanted_by=self.label)
        info = source.info
        if info.layer != "segmentation" or info.dtype != "uint64" or info.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} needs segments of single sections: a segmentation of uint64; {source.uri} is a "
                f"{info.layer} layer of {info.dtype} with {info.n_channels} channel(s)"
            )
        bounds, root = info.bounds, site.root.rstrip("/")
        missing = tuple(sorted(set(self.missing_sections)))
        for z in missing:
            if not bounds.start[2] <= z < bounds.stop[2]:
                raise SpecError(
                    f"missing_sections has {z}, but the sections of {source.uri} are {bounds.start[2]} to "
                    f"{bounds.stop[2] - 1}"
                )
        graph_uri = f"{root}/graph/{self.label}"
        output = Layer(
            self.output,
            f"{root}/{self.output}",
            self.labels_info(info),
            f"{self.label}.rename",
            self.block_shape,
        )
        rule = ExtendRule(
            min_iou=self.min_iou, min_overlap=self.min_overlap, branch_overlap=self.branch_overlap
        )
        n_layers = grid_shape(bounds, self.block_shape)[2]

        def overlaps() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                # What lies between the block and the section that it is linked with travels along.
                near = tuple(z for z in missing if z < core.stop[2])
                yield SectionOverlapsTask(core=core, labels_uri=source.uri, graph_uri=graph_uri, missing=near)

        def link() -> Iterator[Task]:
            for n in range(n_layers):
                yield SectionLinksTask(
                    graph_uri=graph_uri, bounds=bounds, block_shape=self.block_shape, layer=n, rule=rule
                )

        def names() -> Iterator[Task]:
            yield SectionNamesTask(graph_uri=graph_uri, bounds=bounds, block_shape=self.block_shape)

        def rename() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield SectionRenameTask(
                    core=core,
                    labels_uri=source.uri,
                    segmentation_uri=output.uri,
                    graph_uri=graph_uri,
                    layer=(core.start[2] - bounds.start[2]) // self.block_shape[2],
                    missing=tuple(z for z in missing if core.start[2] <= z < core.stop[2]),
                )

        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        block = grid_box(bounds, self.block_shape, (0, 0, 0))
        in_layer = bounds.n_voxels // bounds.shape[2] * block.shape[2]

        def step(name: str, n_tasks: int, tasks: Callable[[], Iterator[Task]], memory_bytes: int) -> Step:
            return Step(
                f"{self.label}.{name}",
                n_tasks,
                tasks,
                task_memory_bytes=base_bytes(["numba"]) + memory_bytes,
                libraries=("numba",),
            )

        return StagePlan(
            self.label,
            (output,),
            (
                step("overlaps", n_blocks, overlaps, _OVERLAPS_BYTES_PER_VOXEL * block.n_voxels),
                step("links", n_layers, link, _LINKS_BYTES_PER_VOXEL * in_layer),
                step("names", 1, names, _NAMES_BYTES_PER_VOXEL * bounds.n_voxels),
                step("rename", n_blocks, rename, RENAME_BYTES_PER_VOXEL * block.n_voxels),
            ),
            outputs_bytes=bounds.n_voxels * 8 // 10,
            sources=(source.uri,),
        )


def layer_blocks(bounds: Box, block_shape: XYZ, layer: int) -> Iterator[Box]:
    """Yield the blocks of one layer of a tiling."""
    n_x, n_y, _ = grid_shape(bounds, block_shape)
    for j in range(n_y):
        for i in range(n_x):
            yield grid_box(bounds, block_shape, (i, j, layer))
