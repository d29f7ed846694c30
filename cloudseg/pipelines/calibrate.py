"""Run a few real blocks of each step in a scratch root, and take down what they take.

Stages that read nothing but what is there (the image, given layers) run real blocks of the real plan. What they wrote,
and the image, is then cut out and becomes a small pipeline of the other stages, which runs to its end. One worker does
it all, kept warm; the first task of a step does not count, because it loads and compiles.
"""

from __future__ import annotations

import queue
import shutil
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cloudseg.errors import CloudsegError, SpecError, TaskFailedError
from cloudseg.geometry import XYZ, Box
from cloudseg.pipelines.calibration import KEY, Calibration, StepFigures, pipeline_digest
from cloudseg.pipelines.plan import PipelinePlan, PlannedStage, given_layers, plan
from cloudseg.pipelines.spec import PipelineSpec
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.queue import open_queue
from cloudseg.tasking.receipts import Receipt
from cloudseg.tasking.run_task import versions
from cloudseg.tasking.steps import Layer, Site, Step
from cloudseg.tasking.task import BlockTask, Task
from cloudseg.tasking.worker import WorkerEvent, WorkerOptions, work
from cloudseg.volumes import create_volume, open_objects, open_volume, scales
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.protocol import VolumeInfo

# Where no stage says by its blocks how much to take.
PART_SHAPE: XYZ = (512, 256, 256)
# A step with one task runs it twice, for the first time does not count; one that takes longer is believed at once.
BELIEVED_SECONDS = 60.0


def calibrate(
    expanded: PipelinePlan, *, at: XYZ | None = None, say: Callable[[str], None] = lambda _text: None
) -> Calibration:
    """Measure a pipeline on one part of its volume; nothing but the figures is left in its root.

    Parameters
    ----------
    expanded
        The plan.
    at
        A voxel of the part; None is the middle of the image.
    say
        Told in one line what is being measured.

    Returns
    -------
    The figures, which also lie in the root for later plans.

    Raises
    ------
    SpecError
        If the image or the root lives in this process only, or ``at`` lies outside the image.
    MissingChunkError
        If there is no image at ``at``.
    TaskFailedError
        If a task fails; the message is the task's own.
    """
    spec, bounds = expanded.spec, expanded.image.info.bounds
    for uri in (spec.image, spec.root):
        if Address.parse(uri).scheme == "memory":
            raise SpecError(f"{uri} lives in this process only, and a worker measures; use file:// instead")
    middle = Box(bounds.start, bounds.stop)
    point = at or tuple((a + b) // 2 for a, b in zip(middle.start, middle.stop, strict=True))
    place = Box.of_shape((1, 1, 1), at=(point[0], point[1], point[2]))
    if not bounds.contains(place):
        raise SpecError(f"calibration at {place.start} is outside the image, which is {bounds}")
    with _scratch(spec.root) as scratch, _Worker(spec) as worker:
        part = _measure(expanded, place, scratch=scratch, worker=worker, say=say)
    found = Calibration(
        pipeline_digest=pipeline_digest(spec),
        threads_per_worker=spec.threads_per_worker,
        box=part,
        host=socket.gethostname(),
        measured=datetime.now(UTC),
        versions=versions(),
        steps=tuple(worker.figures),
    )
    open_objects(spec.root).put(KEY, found.canonical_json().encode())
    return found


def _measure(
    expanded: PipelinePlan, place: Box, *, scratch: str, worker: _Worker, say: Callable[[str], None]
) -> Box:
    """Run the stages on a part round ``place``; return the part."""
    elsewhere = expanded.spec.model_copy(update={"root": f"{scratch}/blocks"})
    whole = plan(elsewhere)
    leading = [stage for stage in whole.stages if _is_leading(stage, elsewhere)]
    part: Box | None = None
    layers = given_layers(elsewhere, open_volume)
    for stage in leading:
        (step,) = stage.plan.steps
        tasks = list(_touching(step, place if part is None else part))
        if not tasks:
            raise SpecError(
                f"stage {stage.label!r} has no task at {place.start}: there is no tissue; name a place that has some"
            )
        part = part or tasks[0].core
        say(f"{step.name}: {len(tasks)} of {step.n_tasks} tasks")
        covered = sum(task.core.n_voxels for task in tasks)
        _run_step(step, tasks, stage.plan.layers, root=elsewhere.root, n_voxels=covered, worker=worker)
        layers.update({layer.name: layer for layer in stage.plan.layers})
    part = part or _part_of(expanded.image.info, place)
    others = [stage.stage for stage in whole.stages if stage not in leading]
    if others:
        names = {stage.label for stage in others}
        cut = {name: _cut_out(layer, part, uri=f"{scratch}/cut/{name}") for name, layer in layers.items()}
        small = PipelineSpec(
            image=cut.pop("image"),
            root=f"{scratch}/part",
            inputs=cut,
            threads_per_worker=expanded.spec.threads_per_worker,
            stages=tuple(
                stage
                if stage.after is None
                else stage.model_copy(update={"after": tuple(name for name in stage.after if name in names)})
                for stage in others
            ),
        )
        for planned in plan(small).stages:
            for step in planned.plan.steps:
                say(f"{step.name}: {step.n_tasks} tasks")
                _run_step(
                    step,
                    list(step.tasks()),
                    planned.plan.layers,
                    root=small.root,
                    n_voxels=part.n_voxels,
                    worker=worker,
                )
    return part


def _is_leading(stage: PlannedStage, spec: PipelineSpec) -> bool:
    """Whether a stage is one step of blocks that reads what is there before the run."""
    if len(stage.plan.steps) != 1:
        return False
    site = Site(
        root=spec.root,
        layers=given_layers(spec, open_volume),
        open_volume=open_volume,
        open_objects=open_objects,
    )
    try:
        (step,) = stage.stage.expand(site).steps
    except CloudsegError:
        return False
    return isinstance(next(iter(step.tasks()), None), BlockTask)


def _touching(step: Step, box: Box) -> Iterator[BlockTask]:
    return (t for t in step.tasks() if isinstance(t, BlockTask) and not t.core.intersect(box).is_empty)


def _part_of(info: VolumeInfo, place: Box) -> Box:
    """Return whole chunks round a voxel, ``PART_SHAPE`` of them or what there is."""
    half = tuple(n // 2 for n in PART_SHAPE)
    return (
        place.grow((half[0], half[1], half[2]))
        .intersect(info.bounds)
        .align_out(info.chunk_shape, bounds=info.bounds)
    )


def _cut_out(layer: Layer, part: Box, *, uri: str) -> str:
    """Copy a part of a layer, all its scales, and return its address."""
    finest = layer.info
    for mip, info in enumerate(scales(layer.uri)):
        factor = [round(a / b) for a, b in zip(info.voxel_size_nm, finest.voxel_size_nm, strict=True)]
        start = [a // f for a, f in zip(part.start, factor, strict=True)]
        stop = [-(-b // f) for b, f in zip(part.stop, factor, strict=True)]
        box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])).intersect(info.bounds)
        copy = info.model_copy(update={"bounds": box, "sharding": None})
        create_volume(uri, copy, mip=mip).write(box, open_volume(layer.uri, mip=mip).read(box))
    return uri


def _run_step(
    step: Step, tasks: Sequence[Task], layers: Sequence[Layer], *, root: str, n_voxels: int, worker: _Worker
) -> None:
    for layer in layers:
        create_volume(layer.uri, layer.info)
    if step.prepare is not None:
        step.prepare()
    if not tasks:
        return
    receipts = worker.run(tasks, root=root, step=step.name)
    timed = receipts[1:]
    if not timed:
        timed = receipts
        if _seconds(receipts[0]) < BELIEVED_SECONDS:
            open_objects(root).delete(f"pipeline/receipts/{step.name}/{receipts[0].task_id}.json")
            timed = worker.run(tasks, root=root, step=step.name)
    worker.figures.append(
        StepFigures(
            name=step.name,
            n_tasks=len(receipts),
            n_voxels=n_voxels,
            seconds_per_task=sum(map(_seconds, timed)) / len(timed),
            peak_memory_bytes=max(r.peak_memory_bytes for r in receipts),
        )
    )


def _seconds(receipt: Receipt) -> float:
    # A model is loaded once in the life of a worker.
    return receipt.wall_s - receipt.seconds.get("model", 0.0)


@dataclass
class _Worker:
    """One worker with one warm process, and a queue of its own."""

    spec: PipelineSpec
    figures: list[StepFigures] = field(default_factory=list)

    def __enter__(self) -> _Worker:
        self._folder = tempfile.mkdtemp(prefix="calibration-")
        self._queue = open_queue(f"fq://{self._folder}")
        self._events: queue.Queue[WorkerEvent | BaseException] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="calibration")
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, tasks: Sequence[Task], *, root: str, step: str) -> list[Receipt]:
        """Run tasks one after the other; return their receipts in that order."""
        self._queue.insert(Envelope.of(task, root=root, step=step, max_attempts=1) for task in tasks)
        receipts: list[Receipt] = []
        while len(receipts) < len(tasks):
            event = self._events.get()
            if isinstance(event, BaseException):
                raise event
            if event.name == "dead":
                raise TaskFailedError(f"calibration: a task of step {step!r} failed: {event.message}")
            if event.receipt is not None:
                receipts.append(event.receipt)
        return receipts

    def _work(self) -> None:
        options = WorkerOptions(n_processes=1, threads_per_process=self.spec.threads_per_worker)
        try:
            work(self._queue.uri, options, on_event=self._events.put, stop=self._stop)
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
            self._events.put(error)


@contextmanager
def _scratch(root: str) -> Iterator[str]:
    """Give a root beside the real one, on the same storage, that is removed afterwards."""
    address = Address.parse(root)
    mark = f"calibration-{uuid.uuid4().hex[:8]}"
    uri = f"{root.rstrip('/')}-{mark}" if address.path.strip("/") else f"{root.rstrip('/')}/{mark}"
    try:
        yield uri
    finally:
        if address.scheme == "file":
            shutil.rmtree(Address.parse(uri).path, ignore_errors=True)
        else:
            objects = open_objects(uri)
            for key in list(objects.list()):
                objects.delete(key)
