"""Look at everything that a run should have made: receipts, and each chunk of each layer, by two libraries."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cloudseg.errors import CloudsegError, MissingChunkError
from cloudseg.geometry import Box, grid_box, grid_shape
from cloudseg.pipelines import advance
from cloudseg.pipelines.plan import PipelinePlan, PlannedStage, plan
from cloudseg.tasking.task import BlockTask
from cloudseg.volumes import open_volume, scales
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import Array, VolumeInfo
from cloudseg.volumes.second_opinion import SecondOpinion

# Below this many chunks all are read: a minute's work.
ALL_CHUNKS = 4096
# Two JPEG decoders may round the inverse transform and the colour conversion differently.
JPEG_TOLERANCE = 3


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """What was looked at in one scale of a layer."""

    name: str
    mip: int
    n_chunks: int
    n_read: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and what is wrong.

    Attributes
    ----------
    n_tasks
        Tasks whose receipts were looked for.
    layers
        The scales that were read.
    problems
        One sentence each; empty if everything is as it must be.
    """

    n_tasks: int
    layers: tuple[LayerCheck, ...]
    problems: tuple[str, ...]


def verify(
    objects: Objects,
    *,
    sample: float | None = None,
    seed: int = 0,
    on_layer: Callable[[str, int], None] | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Check a finished run; nothing is written.

    Parameters
    ----------
    objects
        The root.
    sample
        Share of each layer's chunks to read, over 0 to 1; None reads all, or 4096 of a larger layer.
    seed
        Chooses the sample.
    on_layer, on_chunk
        Called with a layer's name and how many of its chunks will be read, and with 1 for each of them.

    Raises
    ------
    NotFoundError
        If no pipeline was run there.
    """
    spec = advance.load_spec_of(objects)
    expanded = plan(spec)
    problems = list(_check_steps(expanded, objects))
    checks = []
    for stage in expanded.stages:
        for layer in stage.plan.layers:
            try:
                infos = scales(layer.uri)
            except CloudsegError as error:
                problems.append(f"layer {layer.name!r}: {error}")
                continue
            if infos[0] != layer.info:
                problems.append(
                    f"layer {layer.name!r} at {layer.uri} is {infos[0]}, but the plan says {layer.info}"
                )
            absent: list[_Absent] = []
            for mip, info in enumerate(infos):
                wanted = list(_chosen(info, sample=sample, seed=seed))
                if on_layer is not None:
                    on_layer(f"{layer.name} mip {mip}", len(wanted))
                for found in _compare(layer.uri, wanted, mip=mip, on_chunk=on_chunk):
                    if isinstance(found, str):
                        problems.append(found)
                    else:
                        absent.append(_Absent(_at_mip_0(found.box, info, infos[0]), found.problem))
                checks.append(
                    LayerCheck(name=layer.name, mip=mip, n_chunks=_n_chunks(info), n_read=len(wanted))
                )
            problems.extend(_not_excused(absent, stage))
    return VerifyReport(n_tasks=expanded.n_tasks, layers=tuple(checks), problems=tuple(problems))


def _check_steps(expanded: PipelinePlan, objects: Objects) -> Iterator[str]:
    record = advance.load_record(objects)
    digests = {step.name: step.tasks_digest for _, step in record.steps()} if record else {}
    for step in expanded.steps():
        try:
            state = advance.survey(step, objects, digest=digests.get(step.name, ""))
        except CloudsegError as error:
            yield str(error)
            continue
        if not state.is_complete:
            yield (
                f"step {step.name!r} has {state.n_done} receipts for {state.n_tasks} tasks"
                + (f" ({len(state.dead)} gave up)" if state.dead else "")
                + "; run it to its end first"
            )


@dataclass(frozen=True, slots=True)
class _Absent:
    """A chunk that was never written."""

    box: Box
    problem: str


def _compare(
    uri: str, boxes: list[Box], *, mip: int, on_chunk: Callable[[int], None] | None
) -> Iterator[str | _Absent]:
    ours, theirs = open_volume(uri, mip=mip), SecondOpinion(uri, mip=mip)
    tolerance = JPEG_TOLERANCE if ours.info.encoding == "jpeg" else 0
    for box in boxes:
        where = f"{uri} mip {mip}, chunk {box}"
        try:
            a = ours.read(box)
            n_differing = count_differing(a, theirs.read(box), tolerance=tolerance)
        except MissingChunkError as error:
            yield _Absent(box, f"{where}: {error}")
        except CloudsegError as error:
            yield f"{where}: {error}"
        else:
            if n_differing:
                yield f"{where}: tensorstore and cloud-volume differ in {n_differing} values"
        if on_chunk is not None:
            on_chunk(1)


def _not_excused(absent: list[_Absent], stage: PlannedStage) -> list[str]:
    """Return the complaints about chunks that a task should have written.

    Blocks without tissue get no task, and their chunks are rightly absent.
    """
    if not absent:
        return []
    cores = [t.core for step in stage.plan.steps for t in step.tasks() if isinstance(t, BlockTask)]
    return [
        x.problem for x in absent if not cores or any(not x.box.intersect(core).is_empty for core in cores)
    ]


def _at_mip_0(box: Box, info: VolumeInfo, finest: VolumeInfo) -> Box:
    """Return which voxels of the finest scale ``box`` covers."""
    factor = [round(a / b) for a, b in zip(info.voxel_size_nm, finest.voxel_size_nm, strict=True)]
    start = [v * f for v, f in zip(box.start, factor, strict=True)]
    stop = [v * f for v, f in zip(box.stop, factor, strict=True)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def count_differing(a: Array, b: Array, *, tolerance: int = 0) -> int:
    """Return in how many values two arrays differ by more than ``tolerance``; all, if their shapes do."""
    if a.shape != b.shape:
        return max(a.size, b.size)
    if not tolerance:
        return int((a != b).sum())
    # Unsigned differences wrap around: the larger minus the smaller does not.
    return int((np.maximum(a, b) - np.minimum(a, b) > tolerance).sum())


def _n_chunks(info: VolumeInfo) -> int:
    return math.prod(grid_shape(info.bounds, info.chunk_shape))


def _chosen(info: VolumeInfo, *, sample: float | None, seed: int) -> Iterator[Box]:
    """Yield the boxes of the chosen chunks, in storage order."""
    n_chunks = _n_chunks(info)
    n_wanted = min(n_chunks, ALL_CHUNKS) if sample is None else max(1, math.ceil(n_chunks * sample))
    # Chosen by number, so that a layer of a billion chunks needs no list of them.
    numbers = sorted(random.Random(seed).sample(range(n_chunks), min(n_wanted, n_chunks)))
    n_x, n_y, _ = grid_shape(info.bounds, info.chunk_shape)
    for number in numbers:
        index = (number % n_x, number // n_x % n_y, number // (n_x * n_y))
        yield grid_box(info.bounds, info.chunk_shape, index)
