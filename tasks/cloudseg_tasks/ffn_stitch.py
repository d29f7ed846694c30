"""Objects of flooded subvolumes, made one over the whole volume (see :mod:`cloudseg.ops.flood_stitch`).

Three steps; run again with other thresholds, only the last two have anything to do:

1. ``overlaps``: which objects share how many voxels with those of the lower neighbours;
2. ``names``: pairs that are joined, connected over the whole volume; and a table of the seams;
3. ``rename``: the layer ``segmentation``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box, grid_box, grid_shape, tile
from cloudseg.models.package import Natural3
from cloudseg.specs import BoxField
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, LabelsStage, block_name, rename_block
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.tables import get_table, put_table

# Two subvolumes, and the pairs of their overlap while they are counted.
_OVERLAP_BYTES_PER_VOXEL = 60
_NAMES_BYTES_PER_OBJECT = 2_000


class FloodOverlapsTask(BlockTask):
    """Count what the subvolume of one block shares with those of its lower neighbours."""

    kind: Literal["ffn_overlaps/1"] = "ffn_overlaps/1"
    flood_uri: str
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    halo: Natural3
    margin: Natural3

    def run(self, ctx: Context) -> None:
        """Read both subvolumes of each face, count pairs, store."""
        from cloudseg.ops.flood_stitch import Overlap, common_box

        flood, objects = ctx.open_objects(self.flood_uri), ctx.open_objects(self.graph_uri)
        mine = _Subvolume(flood, self.core, halo=self.halo, bounds=self.bounds)
        for axis, name in enumerate("xyz"):
            if self.core.start[axis] == self.bounds.start[axis]:
                continue
            x, y, z = (-self.block_shape[a] if a == axis else 0 for a in range(3))
            low = Box.of_shape(self.block_shape, at=self.core.shift((x, y, z)).start).intersect(self.bounds)
            theirs = _Subvolume(flood, low, halo=self.halo, bounds=self.bounds)
            box = common_box(theirs.box, mine.box, margin=self.margin, bounds=self.bounds)
            overlap = Overlap.of(theirs.cut(box), mine.cut(box))
            put_table(
                objects,
                f"overlaps/{block_name(self.core.start)}/{name}.parquet",
                {"a": overlap.a, "b": overlap.b, "n": overlap.n},
            )


class FloodNamesTask(Task):
    """Decide every overlap; store who is renamed, and what became of the seams."""

    kind: Literal["ffn_names/1"] = "ffn_names/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    min_vx: int
    min_share: float

    def run(self, ctx: Context) -> None:
        """Read all overlaps, join, store names and the table of seams."""
        from cloudseg.ops.flood_stitch import VERDICTS, Overlap, decide, seam_totals
        from cloudseg.ops.union_find import components

        objects = ctx.open_objects(self.graph_uri)
        faces, seams = [], []
        for core in tile(self.bounds, self.block_shape):
            for axis, name in enumerate("xyz"):
                if core.start[axis] == self.bounds.start[axis]:
                    continue
                table = get_table(objects, f"overlaps/{block_name(core.start)}/{name}.parquet")
                overlap = Overlap(table["a"], table["b"], table["n"])
                faces.append((*core.start, axis))
                seams.append(decide(overlap, min_vx=self.min_vx, min_share=self.min_share))
        none = np.zeros(0, np.uint64)
        old, new = components(
            np.concatenate([none, *(s.a for s in seams)]), np.concatenate([none, *(s.b for s in seams)])
        )
        put_table(objects, "names.parquet", {"old": old, "new": new})
        where = np.array(faces, np.int64).reshape(-1, 4)
        put_table(
            objects,
            "seams.parquet",
            {name: where[:, n] for n, name in enumerate(("x", "y", "z", "axis"))}
            | {v: np.array([s.objects[v] for s in seams], np.int64) for v in VERDICTS}
            | {
                "agreeing_vx": np.array([s.agreeing_vx for s in seams], np.int64),
                "overlap_vx": np.array([s.n_vx for s in seams], np.int64),
            },
        )
        ctx.count(renamed=len(old), seams=len(seams), **seam_totals(seams))


class FloodRenameTask(BlockTask):
    """Write the objects of one block under their final names."""

    kind: Literal["ffn_rename/1"] = "ffn_rename/1"
    objects_uri: str
    segmentation_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read objects and names, rename, write."""
        rename_block(
            ctx,
            self.core,
            src_uri=self.objects_uri,
            dst_uri=self.segmentation_uri,
            tables_uri=self.graph_uri,
            tables=["names.parquet"],
        )


class FloodStitchStage(LabelsStage):
    """Join the objects of overlapping subvolumes, into the layer ``segmentation``.

    The table ``graph/<stage>/seams.parquet`` says for each seam how many objects were matched, split, conflicting or
    alone, and where both sides agree.

    Attributes
    ----------
    flood
        Name of the stage that grew the objects.
    layer, output
        Names of the layers that are read and written.
    halo
        As in that stage.
    margin_nm
        At either end of an overlap so much is not compared; by default half a field of view of 33 voxels of 8 nm.
    min_overlap_um3, min_share
        What two objects must share: so much, and such a share of the smaller one of them within the overlap.
    block_shape, chunk_shape
        As in that stage. Chunks of the output.
    """

    kind: Literal["ffn_stitch"] = "ffn_stitch"
    flood: str = "ffn"
    layer: str = "objects"
    output: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")] = "segmentation"
    halo: Natural3 = (32, 32, 32)
    margin_nm: NonNegativeFloat = 128.0
    min_overlap_um3: NonNegativeFloat = 0.0005
    min_share: Annotated[float, Field(ge=0, le=1)] = 0.3

    def expand(self, site: Site) -> StagePlan:
        """Plan the three steps."""
        source = site.layer(self.layer, wanted_by=self.label)
        info = source.info
        if info.layer != "segmentation" or info.dtype != "uint64":
            raise SpecError(
                f"stage {self.label!r} needs objects: a segmentation of uint64; {source.uri} is a {info.layer} "
                f"layer of {info.dtype}"
            )
        if source.block_shape not in (None, self.block_shape):
            raise SpecError(
                f"stage {self.label!r} has block_shape {self.block_shape}, but {self.flood!r} grew objects in blocks "
                f"of {source.block_shape}: both must be the same"
            )
        size = info.voxel_size_nm
        margin = tuple(math.ceil(self.margin_nm / s) for s in size)
        for axis, m, h in zip("xyz", margin, self.halo, strict=True):
            if m >= h:
                raise SpecError(
                    f"stage {self.label!r}: on {axis} a margin of {m} voxels ({self.margin_nm:g} nm) uses up the "
                    f"overlap of twice {h}: take a larger halo in both stages"
                )
        root, bounds = site.root.rstrip("/"), info.bounds
        graph_uri, flood_uri = f"{root}/graph/{self.label}", f"{root}/graph/{self.flood}"
        output = Layer(
            self.output,
            f"{root}/{self.output}",
            self.labels_info(info),
            made_by=f"{self.label}.rename",
            block_shape=self.block_shape,
        )

        def overlaps() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield FloodOverlapsTask(
                    core=core,
                    flood_uri=flood_uri,
                    graph_uri=graph_uri,
                    bounds=bounds,
                    block_shape=self.block_shape,
                    halo=self.halo,
                    margin=margin,
                )

        def names() -> Iterator[Task]:
            yield FloodNamesTask(
                graph_uri=graph_uri,
                bounds=bounds,
                block_shape=self.block_shape,
                min_vx=math.ceil(self.min_overlap_um3 * 1e9 / math.prod(size)),
                min_share=self.min_share,
            )

        def rename() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield FloodRenameTask(
                    core=core, objects_uri=source.uri, segmentation_uri=output.uri, graph_uri=graph_uri
                )

        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        block = grid_box(bounds, self.block_shape, (0, 0, 0))
        base = base_bytes(["numba"])
        n_outer = block.grow(self.halo).intersect(bounds).n_voxels
        memory = {
            "overlaps": _OVERLAP_BYTES_PER_VOXEL * n_outer,
            "names": _NAMES_BYTES_PER_OBJECT * bounds.n_voxels // 50_000,
            "rename": RENAME_BYTES_PER_VOXEL * block.n_voxels,
        }
        steps = tuple(
            Step(
                f"{self.label}.{name}", n, tasks, task_memory_bytes=base + memory[name], libraries=("numba",)
            )
            for name, n, tasks in (
                ("overlaps", n_blocks, overlaps),
                ("names", 1, names),
                ("rename", n_blocks, rename),
            )
        )
        return StagePlan(self.label, (output,), steps, outputs_bytes=bounds.n_voxels * 8 // 10)


class _Subvolume:
    """Labels of a block and its halo, as the task stored them."""

    def __init__(self, flood: Objects, core: Box, *, halo: XYZ, bounds: Box) -> None:
        from cloudseg.ops.flood_stitch import from_runs

        self.box = core.grow(halo).intersect(bounds)
        table = get_table(flood, f"subvolumes/{block_name(core.start)}.parquet")
        self._labels = from_runs(table["begin"], table["id"], shape=self.box.shape)

    def cut(self, box: Box) -> npt.NDArray[np.uint64]:
        """Return the labels of a box inside."""
        labels: npt.NDArray[np.uint64] = self._labels[box.slices_in(self.box)]
        return labels
