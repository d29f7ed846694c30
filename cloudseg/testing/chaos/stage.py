"""A stage that copies the image onto a disk of its own, which a chaos run can fill up."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from cloudseg.geometry import XYZ, grid_shape, tile
from cloudseg.tasking.steps import Layer, Site, Stage, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task

KINDS = "chaos_copy/1=cloudseg.testing.chaos.stage:CopyTask"
STAGES = "chaos_copy=cloudseg.testing.chaos.stage:CopyStage"


class CopyTask(BlockTask):
    """Copy one block."""

    kind: Literal["chaos_copy/1"] = "chaos_copy/1"
    src_uri: str
    dst_uri: str

    def run(self, ctx: Context) -> None:
        """Read and write."""
        ctx.open_volume(self.dst_uri).write(self.core, ctx.open_volume(self.src_uri).read(self.core))
        ctx.count(voxels=self.core.n_voxels)


class CopyStage(Stage):
    """Copy the image to ``uri``."""

    kind: Literal["chaos_copy"] = "chaos_copy"
    uri: str
    block_shape: XYZ

    def expand(self, site: Site) -> StagePlan:
        """One task a block."""
        image = site.layer("image", wanted_by=self.label)
        info = image.info.model_copy(update={"chunk_shape": self.block_shape})
        copy = Layer("copy", self.uri, info)

        def tasks() -> Iterator[Task]:
            for core in tile(info.bounds, self.block_shape):
                yield CopyTask(core=core, src_uri=image.uri, dst_uri=copy.uri)

        n_tasks = math.prod(grid_shape(info.bounds, self.block_shape))
        step = Step(self.label, n_tasks, tasks, task_memory_bytes=200_000_000)
        return StagePlan(self.label, (copy,), (step,), outputs_bytes=info.bounds.n_voxels)
