"""Look at everything that a run should have made: receipts, and each chunk of each layer, by two libraries."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cloudseg.errors import CloudsegError, NotFoundError
from cloudseg.geometry import Box, grid_box, grid_shape
from cloudseg.pipelines import advance
from cloudseg.pipelines.plan import PipelinePlan, plan
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
            except (NotFoundError, CloudsegError) as error:
                problems.append(f"layer {layer.name!r}: {error}")
                continue
            if infos[0] != layer.info:
                problems.append(
                    f"layer {layer.name!r} at {layer.uri} is {infos[0]}, but the plan says {layer.info}"
                )
            for mip, info in enumerate(infos):
                wanted = list(_chosen(info, sample=sample, seed=seed))
                if on_layer is not None:
                    on_layer(f"{layer.name} mip {mip}", len(wanted))
                problems.extend(_compare(layer.uri, wanted, mip=mip, on_chunk=on_chunk))
                checks.append(
                    LayerCheck(name=layer.name, mip=mip, n_chunks=_n_chunks(info), n_read=len(wanted))
                )
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


def _compare(
    uri: str, boxes: list[Box], *, mip: int, on_chunk: Callable[[int], None] | None
) -> Iterator[str]:
    ours, theirs = open_volume(uri, mip=mip), SecondOpinion(uri, mip=mip)
    tolerance = JPEG_TOLERANCE if ours.info.encoding == "jpeg" else 0
    for box in boxes:
        try:
            a, b = ours.read(box), theirs.read(box)
        except CloudsegError as error:
            yield f"{uri} mip {mip}, chunk {box}: {error}"
        else:
            n_differing = count_differing(a, b, tolerance=tolerance)
            if n_differing:
                yield f"{uri} mip {mip}, chunk {box}: tensorstore and cloud-volume differ in {n_differing} values"
        if on_chunk is not None:
            on_chunk(1)


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
