"""What a pipeline would do: its stages expanded, checked and counted. Planning touches nothing."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from cloudseg.errors import CloudsegError, ConflictError, MissingChunkError, SpecError
from cloudseg.geometry import Box
from cloudseg.pipelines.spec import PipelineSpec
from cloudseg.specs import FrozenModel
from cloudseg.tasking.memory import Library, base_bytes
from cloudseg.tasking.run_task import versions
from cloudseg.tasking.steps import Layer, Site, Stage, StagePlan, Step
from cloudseg.tasking.task import OpenVolume, Task
from cloudseg.volumes import open_objects as _open_objects
from cloudseg.volumes import open_volume as _open_volume
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import VolumeInfo

_STEP_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage and its expansion."""

    stage: Stage
    plan: StagePlan

    @property
    def label(self) -> str:
        """The stage's name in the pipeline."""
        return self.stage.label


@dataclass(frozen=True, slots=True)
class PipelinePlan:
    """A pipeline, expanded.

    Attributes
    ----------
    spec
        What was asked.
    image
        The input, as it is now.
    stages
        In the order in which they run.
    image_is_absent
        Whether the image's first voxel was never written; only a plan that allows it says so.
    """

    spec: PipelineSpec
    image: Layer
    stages: tuple[PlannedStage, ...]
    image_is_absent: bool = False

    def steps(self) -> Iterator[Step]:
        """Yield every step, in the order in which they run."""
        for stage in self.stages:
            yield from stage.plan.steps

    @property
    def n_tasks(self) -> int:
        """Tasks of all steps."""
        return sum(step.n_tasks for step in self.steps())

    @property
    def outputs_bytes(self) -> int:
        """Estimated size of everything that is written."""
        return sum(stage.plan.outputs_bytes for stage in self.stages)

    def ahead(self) -> dict[str, Step]:
        """Return, by the name of a step, the step behind it whose tasks may start before it is complete."""
        pairs = itertools.pairwise((stage, step) for stage in self.stages for step in stage.plan.steps)
        return {
            before.name: step
            for (_, before), (stage, step) in pairs
            if stage.stage.barrier == "neighbours"
            and step.near is not None
            and step.near.after == before.name
        }

    def memory_bytes(self) -> dict[str, int]:
        """Estimate, for each step, the peak memory of a worker process that has run the steps before it.

        A worker that runs this step only needs less: the libraries of the others.
        """
        found: dict[str, int] = {}
        libraries: set[Library] = set()
        for step in self.steps():
            libraries.update(step.libraries)
            threads = (self.spec.threads_per_worker - 1) * step.thread_memory_bytes
            kept = base_bytes(libraries) - base_bytes(step.libraries)
            found[step.name] = kept + step.task_memory_bytes + threads
        return found


def plan(
    spec: PipelineSpec,
    *,
    open_volume: OpenVolume = _open_volume,
    open_objects: Callable[[str], Objects] = _open_objects,
    absent_image: Literal["error", "allow"] = "error",
) -> PipelinePlan:
    """Expand every stage against the real image and the layers that earlier stages will make.

    Parameters
    ----------
    spec
        The pipeline.
    open_volume, open_objects
        How addresses become volumes and folders.
    absent_image
        What an image means that is announced by its ``info`` but has no voxels yet: it can be planned, not run.

    Raises
    ------
    NotFoundError
        If the image does not exist.
    MissingChunkError
        If its first voxel does not.
    SpecError
        If a stage does not fit: the message begins with the stage's name.
    """
    if Address.parse(spec.root).is_read_only:
        raise SpecError(
            f"root {spec.root} is a web address, which is read-only; use file://, gs:// or s3:// instead"
        )
    volume = open_volume(spec.image)
    # One voxel proves that the address, the rights and the codec work: better now than in each of the tasks.
    image_is_absent = False
    try:
        volume.read(Box.of_shape((1, 1, 1), at=volume.info.bounds.start))
    except MissingChunkError:
        if absent_image == "error":
            raise
        image_is_absent = True
    given = given_layers(spec, open_volume)
    made: dict[str, tuple[Layer, ...]] = {}
    owners = {
        spec.image: "the input image",
        **{uri: f"the input {name!r}" for name, uri in spec.inputs.items()},
    }
    step_names: set[str] = set()
    planned = []
    for stage in spec.ordered():
        layers = dict(given)
        earlier = spec.before(stage.label)
        for label, outputs in made.items():
            if label in earlier:
                layers.update({layer.name: layer for layer in outputs})
        site = Site(root=spec.root, layers=layers, open_volume=open_volume, open_objects=open_objects)
        try:
            expansion = stage.expand(site)
        except CloudsegError as error:
            raise type(error)(f"stage {stage.label!r}: {error}") from error
        _check(expansion, stage=stage, owners=owners, step_names=step_names)
        made[stage.label] = expansion.layers
        planned.append(PlannedStage(stage=stage, plan=expansion))
    return PipelinePlan(
        spec=spec, image=given["image"], stages=tuple(planned), image_is_absent=image_is_absent
    )


def given_layers(spec: PipelineSpec, open_volume: OpenVolume = _open_volume) -> dict[str, Layer]:
    """Return the layers that are there before a run: the image, and the inputs."""
    addresses = {"image": spec.image, **spec.inputs}
    return {name: Layer(name=name, uri=uri, info=open_volume(uri).info) for name, uri in addresses.items()}


def _check(expansion: StagePlan, *, stage: Stage, owners: dict[str, str], step_names: set[str]) -> None:
    """Refuse an expansion that would overwrite another stage's layers or mix up receipts."""
    for layer in expansion.layers:
        owner = owners.setdefault(layer.uri, f"stage {stage.label!r}")
        if owner != f"stage {stage.label!r}":
            raise ConflictError(
                f"stage {stage.label!r} would write {layer.uri}, which is made by {owner}; "
                "give the stage another output name, or take one of the two out"
            )
    if stage.barrier == "neighbours" and not any(step.near for step in expansion.steps):
        raise SpecError(
            f"stage {stage.label!r} cannot start block by block: each of its steps reads all that the step before has "
            "made, or what it reads was not made block by block (a tissue mask leaves blocks out); take barrier = "
            '"neighbours" out'
        )
    for step in expansion.steps:
        if not _STEP_NAME.match(step.name) or step.name in step_names:
            raise SpecError(
                f"stage {stage.label!r} has a step {step.name!r}: step names are unique in a pipeline and "
                "made of letters, digits, '.', '-' and '_'; name the stage differently"
            )
        step_names.add(step.name)


class StepRecord(FrozenModel):
    """One step in ``plan.json``: how many tasks, the digest of their ids in order, a worker's estimated peak memory."""

    name: str
    n_tasks: int
    tasks_digest: str
    task_memory_bytes: int = 0


class LayerRecord(FrozenModel):
    """One layer in ``plan.json``."""

    name: str
    uri: str
    info: VolumeInfo


class StageRecord(FrozenModel):
    """One stage in ``plan.json``."""

    label: str
    kind: str
    outputs_bytes: int
    layers: tuple[LayerRecord, ...]
    steps: tuple[StepRecord, ...]


class PlanRecord(FrozenModel):
    """``pipeline/plan.json``: what a run consists of; enough to follow it without expanding anything."""

    format: Literal["cloudseg-plan/1"] = "cloudseg-plan/1"
    root: str
    image: LayerRecord
    stages: tuple[StageRecord, ...]
    versions: dict[str, str]

    def steps(self) -> Iterator[tuple[StageRecord, StepRecord]]:
        """Yield every step with its stage, in the order in which they run."""
        for stage in self.stages:
            for step in stage.steps:
                yield stage, step


def record(expanded: PipelinePlan, *, on_task: Callable[[int], None] | None = None) -> PlanRecord:
    """Count and digest every task list.

    Parameters
    ----------
    expanded
        The plan; its tasks are enumerated once, none is kept.
    on_task
        Called with 1 for each task, for a progress bar.

    Raises
    ------
    SpecError
        If a step yields another number of tasks than it announced.
    """
    stages = []
    memory = expanded.memory_bytes()
    for stage in expanded.stages:
        steps = []
        for step in stage.plan.steps:
            n_tasks, digest = digest_of(step.tasks(), on_task=on_task)
            if n_tasks != step.n_tasks:
                raise SpecError(
                    f"step {step.name!r} announced {step.n_tasks} tasks but yields {n_tasks}: its stage kind "
                    f"{stage.stage.kind!r} is broken; please report it"
                )
            steps.append(
                StepRecord(
                    name=step.name,
                    n_tasks=n_tasks,
                    tasks_digest=digest,
                    task_memory_bytes=memory[step.name],
                )
            )
        layers = tuple(LayerRecord(name=x.name, uri=x.uri, info=x.info) for x in stage.plan.layers)
        stages.append(
            StageRecord(
                label=stage.label,
                kind=stage.stage.kind,
                outputs_bytes=stage.plan.outputs_bytes,
                layers=layers,
                steps=tuple(steps),
            )
        )
    image = LayerRecord(name="image", uri=expanded.image.uri, info=expanded.image.info)
    return PlanRecord(root=expanded.spec.root, image=image, stages=tuple(stages), versions=versions())


def digest_of(tasks: Iterable[Task], *, on_task: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Return how many tasks there are and a digest of their ids in order; no task is kept."""
    digest = hashlib.sha256()
    n_tasks = 0
    for task in tasks:
        digest.update(task.id.encode())
        n_tasks += 1
        if on_task is not None:
            on_task(1)
    return n_tasks, digest.hexdigest()
