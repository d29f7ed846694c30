"""Two small real stages: one inverts an image block by block, the other sums what the first one wrote.

Both leave a line in a log for each time a task really runs, so that a test can count the runs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from cloudseg.geometry import XYZ, Box, tile
from cloudseg.specs import FrozenModel
from cloudseg.tasking.near import Grid, near
from cloudseg.tasking.steps import Layer, Site, Stage, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes import create_volume

KINDS = "toy_invert/1=toy_kinds:InvertTask,toy_sum/1=toy_kinds:SumTask"
STAGES = "toy_invert=toy_kinds:InvertStage,toy_sum=toy_kinds:SumStage"


def log_run(task: Task) -> None:
    """Append the task's id to the file named by TOY_LOG; a short append is atomic."""
    with open(os.environ["TOY_LOG"], "a") as log:
        log.write(f"{task.kind} {task.id} {os.getpid()}\n")


class InvertOptions(FrozenModel):
    """How to invert."""

    ceiling: int = 255


class InvertTask(BlockTask):
    """Write ``ceiling - image`` into one block."""

    kind: Literal["toy_invert/1"] = "toy_invert/1"
    src_uri: str
    dst_uri: str
    options: InvertOptions
    sleep_s: float
    poison: bool

    def run(self, ctx: Context) -> None:
        """Read, invert, write; a poisoned block fails for as long as the file TOY_POISON exists."""
        if self.poison and Path(os.environ["TOY_POISON"]).exists():
            raise RuntimeError(f"block {self.core} is poisoned")
        time.sleep(self.sleep_s)
        image = ctx.open_volume(self.src_uri).read(self.core)
        ctx.open_volume(self.dst_uri).write(self.core, self.options.ceiling - image)
        ctx.count(voxels=self.core.n_voxels)
        log_run(self)


class InvertStage(Stage):
    """Invert the image."""

    kind: Literal["toy_invert"] = "toy_invert"
    block_shape: XYZ = (16, 16, 16)
    output: str = "inverted"
    options: InvertOptions = InvertOptions()
    sleep_s: float = 0.0
    poison: tuple[int, ...] = ()
    extra_bytes: int = 0
    skip: tuple[int, ...] = ()

    def expand(self, site: Site) -> StagePlan:
        """One task a block; blocks named in ``skip`` get none, those in ``poison`` can be made to fail."""
        image = site.layer("image", wanted_by=self.label)
        out = Layer(
            name=self.output,
            uri=f"{site.root}/{self.output}",
            info=image.info.model_copy(update={"chunk_shape": self.block_shape}),
            made_by="" if self.skip else self.label,
            block_shape=self.block_shape,
        )

        def tasks() -> Iterator[Task]:
            for n, core in enumerate(tile(image.info.bounds, self.block_shape)):
                if n in self.skip:
                    continue
                yield InvertTask(
                    core=core,
                    src_uri=image.uri,
                    dst_uri=out.uri,
                    options=self.options,
                    sleep_s=self.sleep_s,
                    poison=n in self.poison,
                )

        n_tasks = sum(1 for _ in tile(image.info.bounds, self.block_shape)) - len(self.skip)
        step = Step(name=self.label, n_tasks=n_tasks, tasks=tasks, task_memory_bytes=200_000_000)
        n_bytes = image.info.bounds.n_voxels + self.extra_bytes
        return StagePlan(name=self.label, layers=(out,), steps=(step,), outputs_bytes=n_bytes)


class SumTask(Task):
    """Store the sum of one box, or of the sums of several."""

    kind: Literal["toy_sum/1"] = "toy_sum/1"
    src_uri: str
    root: str
    name: str
    box: str = ""
    parts: tuple[str, ...] = ()

    def run(self, ctx: Context) -> None:
        """Write ``sums/<name>.json``."""
        objects = ctx.open_objects(self.root)
        if self.parts:
            value = sum(int(json.loads(objects.get(f"sums/{p}.json"))) for p in self.parts)
        else:
            value = int(ctx.open_volume(self.src_uri).read(Box.parse(self.box)).sum(dtype="uint64"))
        objects.put(f"sums/{self.name}.json", json.dumps(value).encode())
        log_run(self)


class SumStage(Stage):
    """Sum a layer: blocks first, then everything."""

    kind: Literal["toy_sum"] = "toy_sum"
    layer: str = "inverted"
    block_shape: XYZ = (16, 16, 32)

    def expand(self, site: Site) -> StagePlan:
        """Two steps with a barrier between them, and a layer made in ``prepare``."""
        layer = site.layer(self.layer, wanted_by=self.label)
        boxes = [str(box) for box in tile(layer.info.bounds, self.block_shape)]

        def block(n: int) -> Task:
            return SumTask(src_uri=layer.uri, root=site.root, name=str(n), box=boxes[n])

        def blocks() -> Iterator[Task]:
            return map(block, range(len(boxes)))

        def total() -> Iterator[Task]:
            names = tuple(str(n) for n in range(len(boxes)))
            yield SumTask(src_uri=layer.uri, root=site.root, name="total", parts=names)

        def prepare() -> None:
            create_volume(f"{site.root}/prepared", layer.info)

        steps = (
            Step(
                name=f"{self.label}.blocks",
                n_tasks=len(boxes),
                tasks=blocks,
                prepare=prepare,
                near=near(
                    layer.made_by,
                    blocks=Grid(layer.info.bounds, self.block_shape),
                    before=layer.blocks,
                    reads=lambda box: box,
                    task=block,
                )
                if layer.made_by
                else None,
            ),
            Step(name=f"{self.label}.total", n_tasks=1, tasks=total),
        )
        return StagePlan(name=self.label, layers=(), steps=steps, outputs_bytes=100 * len(boxes))
