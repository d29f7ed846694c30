"""Where a fast segmentation should be looked at again; see :mod:`cloudseg.ops.doubts`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from cloudseg.errors import SpecError
from cloudseg.geometry import grid_box, grid_shape, tile
from cloudseg.tasking.blocks import LabelsStage
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3

# Labels and their chunks while they are decoded, and the mask.
_BYTES_PER_VOXEL = 18


class DoubtsTask(BlockTask):
    """Write which cells of one block are doubtful."""

    kind: Literal["doubts/1"] = "doubts/1"
    labels_uri: str
    mask_uri: str
    cell: Positive3
    margin: NonNegativeInt
    end_px: PositiveInt
    conflict: NonNegativeFloat
    hole_vx: PositiveInt

    def run(self, ctx: Context) -> None:
        """Read the block and what is around it, look at each cell, write the block."""
        from cloudseg.ops.doubts import DoubtRule, doubts

        source = ctx.open_volume(self.labels_uri)
        bounds = source.info.bounds
        rule = DoubtRule(
            cell=self.cell,
            margin=self.margin,
            end_px=self.end_px,
            conflict=self.conflict,
            hole_vx=self.hole_vx,
        )
        with ctx.step("read"):
            labels = source.read(rule.box_of(self.core, bounds=bounds))
        with ctx.step("compute"):
            mask = doubts(labels, core=self.core, bounds=bounds, rule=rule)
        with ctx.step("write"):
            ctx.open_volume(self.mask_uri).write(self.core, mask)
        ctx.count(voxels=self.core.n_voxels, doubtful=int(mask.sum()))


class DoubtsStage(LabelsStage):
    """Which cells of a fast segmentation are probably wrong, into the layer ``doubts``; the receipts count the voxels.

    The layer is a mask for a slow pass: ``mask = ".../doubts"`` in the stage ``affinities``. Exact for any tiling.

    Attributes
    ----------
    layer, output
        The segmentation. The mask that is written: 1 in doubtful cells.
    cell_vx
        Edges of a cell in voxels.
    margin_vx
        How far around a cell objects are looked for within sections.
    end_um2
        Area of an object in its last section from which on the end is flat; area of a conflict.
    conflict
        Share of a piece that lies on another object in the next section; above 1: not looked for.
    hole_um3
        Volume without an object in a cell from which on it is doubtful.
    block_shape, chunk_shape
        Voxels per task, whole chunks and whole cells; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["doubts"] = "doubts"
    layer: str = "segmentation"
    output: str = "doubts"
    cell_vx: Positive3 = (32, 32, 32)
    margin_vx: NonNegativeInt = 8
    end_um2: Annotated[float, Field(gt=0)] = 0.004
    conflict: Annotated[float, Field(gt=0)] = 0.8
    hole_um3: Annotated[float, Field(gt=0)] = 0.0003

    @model_validator(mode="after")
    def _blocks_are_whole_cells(self) -> DoubtsStage:
        for axis, block, cell in zip("xyz", self.block_shape, self.cell_vx, strict=True):
            if block % cell:
                raise ValueError(f"block_shape[{axis}]={block} is not a multiple of cell_vx[{axis}]={cell}")
        return self

    def expand(self, site: Site) -> StagePlan:
        """Plan one task per block."""
        source = site.layer(self.layer, wanted_by=self.label)
        info = source.info
        if info.layer != "segmentation" or info.dtype != "uint64" or info.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} needs a segmentation of uint64; {source.uri} is a {info.layer} layer of "
                f"{info.dtype} with {info.n_channels} channel(s)"
            )
        x, y, z = info.voxel_size_nm
        output = self.mask_layer(site, self.output, info)

        def tasks() -> Iterator[Task]:
            for core in tile(info.bounds, self.block_shape):
                yield DoubtsTask(
                    core=core,
                    labels_uri=source.uri,
                    mask_uri=output.uri,
                    cell=self.cell_vx,
                    margin=self.margin_vx,
                    end_px=max(1, math.ceil(self.end_um2 * 1e6 / (x * y) - 1e-9)),
                    conflict=self.conflict,
                    hole_vx=max(1, math.ceil(self.hole_um3 * 1e9 / (x * y * z) - 1e-9)),
                )

        n_voxels = grid_box(info.bounds, self.block_shape, (0, 0, 0)).n_voxels
        step = Step(
            self.label,
            math.prod(grid_shape(info.bounds, self.block_shape)),
            tasks,
            task_memory_bytes=base_bytes([]) + _BYTES_PER_VOXEL * n_voxels,
        )
        return StagePlan(
            self.label, (output,), (step,), outputs_bytes=info.bounds.n_voxels // 100, sources=(source.uri,)
        )
