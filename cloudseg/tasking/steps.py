"""What a planned stage looks like: layers to create, then steps of tasks with a barrier between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ
from cloudseg.specs import FrozenModel
from cloudseg.tasking.memory import Library
from cloudseg.tasking.near import Grid, Near
from cloudseg.tasking.task import OpenVolume, Task
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import VolumeInfo


@dataclass(frozen=True, slots=True)
class Layer:
    """A volume that a stage reads or writes: its name in the pipeline, its address, its properties.

    ``made_by`` is the step that writes it, one task for each block of ``block_shape``, if there is such a step.
    """

    name: str
    uri: str
    info: VolumeInfo
    made_by: str = ""
    block_shape: XYZ | None = None

    @property
    def blocks(self) -> Grid:
        """The blocks of the step that writes it."""
        assert self.block_shape is not None, "a layer that no step writes block by block"
        return Grid(self.info.bounds, self.block_shape)


@dataclass(frozen=True, slots=True)
class Step:
    """Tasks that may run in any order, at once, and more than once.

    Attributes
    ----------
    name
        Unique in the pipeline: ``<stage>`` or ``<stage>.<step>``; receipts lie under it.
    n_tasks
        How many tasks :attr:`tasks` yields.
    tasks
        Yields the tasks, lazily, always the same ones in the same order.
    prepare
        Small idempotent writes that must precede the tasks (an ``info`` entry), or None.
    task_memory_bytes
        Estimated peak memory of a worker with one thread that runs this step only: its libraries and one task.
    thread_memory_bytes
        What each further thread of the worker adds.
    libraries
        Which large ones the task imports: the worker keeps them while it runs the steps that follow.
    near
        Which tasks of the step before each task reads the outputs of; None: of all.
    """

    name: str
    n_tasks: int
    tasks: Callable[[], Iterator[Task]]
    prepare: Callable[[], None] | None = None
    task_memory_bytes: int = 0
    thread_memory_bytes: int = 0
    libraries: tuple[Library, ...] = ()
    near: Near | None = None


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The deterministic expansion of one stage; making it touches nothing.

    Attributes
    ----------
    name
        The stage's name in the pipeline.
    layers
        Volumes to create before the first step; an existing one must have the same properties.
    steps
        In order; each starts when the one before has all its receipts.
    outputs_bytes
        Estimated size of what the stage writes.
    sources
        Addresses of the volumes that its layers are made from.
    provenance
        What else one must know to make them again, such as the digest of a model.
    """

    name: str
    layers: tuple[Layer, ...]
    steps: tuple[Step, ...]
    outputs_bytes: int = 0
    sources: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Site:
    """What a stage knows when it is planned.

    Attributes
    ----------
    root
        Address of the output folder; layers lie at ``<root>/<name>``, graphs at ``<root>/graph/<stage>/``.
    layers
        ``image``, and every layer of the stages before, by name; later ones need not exist yet.
    open_volume, open_objects
        For reading immutable inputs such as a mask, and for ``prepare``.
    """

    root: str
    layers: Mapping[str, Layer]
    open_volume: OpenVolume
    open_objects: Callable[[str], Objects]

    def layer(self, name: str, *, wanted_by: str) -> Layer:
        """Return the layer ``name``, or say which layers there are."""
        try:
            return self.layers[name]
        except KeyError as error:
            known = ", ".join(self.layers)
            raise SpecError(
                f"stage {wanted_by!r} needs a layer {name!r}, but the stages before it only make: {known}; "
                f"add the stage that makes {name!r}, or move {wanted_by!r} after it"
            ) from error


class Stage(FrozenModel):
    """One entry of a pipeline file: ``kind``, ``name`` (the kind, unless given), ``after`` and its own options.

    With ``barrier = "neighbours"`` a task of a step that says what it reads starts when the blocks that it reads are
    done, at most one step ahead; with ``"all"`` (the default) when the whole step before is. Results are the same.
    """

    kind: str
    name: str = ""
    after: tuple[str, ...] | None = None
    barrier: Literal["all", "neighbours"] = "all"

    @property
    def label(self) -> str:
        """The stage's name in the pipeline."""
        return self.name or self.kind

    def expand(self, site: Site) -> StagePlan:
        """Return what this stage would do; touches nothing."""
        raise NotImplementedError
