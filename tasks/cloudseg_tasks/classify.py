"""Classes of objects by their size and shape: measure blocks, add up, decide, publish, paint.

Steps, each exact for any tiling, because an object is measured whole before it is judged:

1. ``measure``: additive sums of each block (see :mod:`cloudseg.ops.object_shape`);
2. ``decide``: the finished table, one task per partition of the objects, with the class of each;
3. ``publish``: properties for the viewer, one tag per class;
4. ``paint``: the layer ``classes``, the number of the class at each voxel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from cloudseg.errors import SpecError
from cloudseg.geometry import grid_box, grid_shape, tile
from cloudseg.ops.classes import ObjectClass, check_classes, classify
from cloudseg.ops.object_shape import ShapeTable
from cloudseg.ops.statistics import SegmentTable, partition_of
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.blocks import LabelsStage, block_name
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes import update_info
from cloudseg.volumes.protocol import Positive3, VolumeInfo
from cloudseg.volumes.segment_properties import KEY, segment_properties_info, write_segment_properties
from cloudseg.volumes.tables import Column, get_table, put_table

# Labels and runs; a row of the table with Python's integers; a row in the viewer's list; labels while painted.
_MEASURE_BYTES_PER_VOXEL = 20
_DECIDE_BYTES_PER_OBJECT = 4000
_PUBLISH_BYTES_PER_OBJECT = 900
_PAINT_BYTES_PER_VOXEL = 40
_THREE = ("sum_vx", "start_vx", "stop_vx", "n_faces")
_SECOND = ("xx", "yy", "zz", "xy", "xz", "yz")
_LISTED = ("volume_um3", "length_um", "thickness_um", "elongation", "sphericity")

Interval = tuple[float, float]


class ClassSpec(FrozenModel):
    """A class of objects: a name, and a closed interval for each property that matters.

    Attributes
    ----------
    name
        Becomes a tag in the viewer: no spaces.
    volume_um3, surface_um2
        Volume; surface towards other objects and background.
    extent_x_um, extent_y_um, extent_z_um
        Edges of the bounding box.
    length_um, width_um, thickness_um, elongation
        Axes of the ellipsoid with the same second moments, longest first; the longest over the shortest.
    fill
        Share of the bounding box that is object.
    sphericity
        Surface of the ball of the same volume over the surface: 1 is a ball, less is anything else.
    """

    name: Annotated[str, Field(pattern=r"^[^\s#][^\s]*$")]
    volume_um3: Interval | None = None
    surface_um2: Interval | None = None
    extent_x_um: Interval | None = None
    extent_y_um: Interval | None = None
    extent_z_um: Interval | None = None
    length_um: Interval | None = None
    width_um: Interval | None = None
    thickness_um: Interval | None = None
    elongation: Interval | None = None
    fill: Interval | None = None
    sphericity: Interval | None = None

    def rule(self) -> ObjectClass:
        """Return the same for the algorithm."""
        given = self.model_dump(exclude={"name"}, exclude_none=True)
        return ObjectClass(self.name, given)


class ShapesTask(BlockTask):
    """Store the additive sums of the objects of one block, one object per partition."""

    kind: Literal["shapes/1"] = "shapes/1"
    labels_uri: str
    graph_uri: str
    n_partitions: PositiveInt = 1

    def run(self, ctx: Context) -> None:
        """Read the block and one voxel more at its lower sides, measure, store."""
        from cloudseg.ops.object_shape import block_shapes

        volume = ctx.open_volume(self.labels_uri)
        box = self.core.with_lower_neighbours(bounds=volume.info.bounds)
        with ctx.step("read"):
            labels = volume.read(box)
        with ctx.step("compute"):
            table = block_shapes(labels, box=box, core=self.core)
            owner = partition_of(table.segments.ids, n_partitions=self.n_partitions)
        with ctx.step("write"):
            objects = ctx.open_objects(self.graph_uri)
            for part in range(self.n_partitions):
                put_table(
                    objects,
                    f"{part:04d}/{block_name(self.core.start)}.parquet",
                    _columns(table.take(owner == part)),
                )
        ctx.count(voxels=self.core.n_voxels, objects=len(table.segments))


class ClassifyTask(Task):
    """Add up one partition, decide the class of each object, store one part of the finished table."""

    kind: Literal["classify/1"] = "classify/1"
    graph_uri: str
    labels_uri: str
    bounds: BoxField
    block_shape: Positive3
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    classes: tuple[ClassSpec, ...]
    rest: str
    first_wins: bool
    partition: NonNegativeInt
    n_partitions: PositiveInt

    def run(self, ctx: Context) -> None:
        """Read the sums of all blocks; a block that is not there is an error, never a hole."""
        from cloudseg.ops.object_shape import merged_shapes

        objects = ctx.open_objects(self.graph_uri)
        with ctx.step("read"):
            tables = [
                _table(
                    get_table(objects, f"{self.partition:04d}/{block_name(core.start)}.parquet"), core.start
                )
                for core in tile(self.bounds, self.block_shape)
            ]
        with ctx.step("compute"):
            columns = dict(merged_shapes(tables, bounds=self.bounds, voxel_size_nm=self.voxel_size_nm))
            number = classify(columns, [c.rule() for c in self.classes], first_wins=self.first_wins)
        names = np.array([self.rest, *(c.name for c in self.classes)])
        columns["class"] = names[number]
        # What fits nowhere comes last, and 0 is background.
        columns["class_number"] = np.where(number == 0, len(self.classes) + 1, number).astype(np.uint8)
        with ctx.step("write"):
            key = part_key(self.partition, n_partitions=self.n_partitions)
            put_table(ctx.open_objects(self.labels_uri), key, columns)
        ctx.count(objects=len(number), **{f"class_{n}": int((columns["class"] == n).sum()) for n in names})


class ClassPropertiesTask(Task):
    """Publish the classes as Neuroglancer segment properties."""

    kind: Literal["class_properties/1"] = "class_properties/1"
    labels_uri: str
    names: tuple[str, ...]
    n_partitions: PositiveInt
    max_objects: PositiveInt

    def run(self, ctx: Context) -> None:
        """Keep the ``max_objects`` largest (a viewer loads the whole list at once) and write them."""
        objects = ctx.open_objects(self.labels_uri)
        wanted = ["id", "n_voxels", "class", *_LISTED]
        parts, n_all = [], 0
        with ctx.step("read"):
            for part in range(self.n_partitions):
                table = get_table(objects, part_key(part, n_partitions=self.n_partitions), columns=wanted)
                n_all += len(table["id"])
                parts.append(_largest(table, self.max_objects))
        table = _largest({n: np.concatenate([p[n] for p in parts]) for n in wanted}, self.max_objects)
        info = segment_properties_info(
            table["id"],
            labels=[str(name) for name in table["class"]],
            numbers={name: (table[name], name.replace("_", " ")) for name in _LISTED},
            tags={name: (table["class"] == name, f"classified as {name}") for name in self.names},
        )
        with ctx.step("write"):
            write_segment_properties(objects, info)
        ctx.count(objects=len(table["id"]), objects_left_out=n_all - len(table["id"]))


class PaintClassesTask(BlockTask):
    """Write the number of the class at each voxel of one block."""

    kind: Literal["paint_classes/1"] = "paint_classes/1"
    labels_uri: str
    classes_uri: str
    n_partitions: PositiveInt

    def run(self, ctx: Context) -> None:
        """Look up the ids of the block, partition by partition; write."""
        from cloudseg.ops.remap import distinct, remap

        objects = ctx.open_objects(self.labels_uri)
        with ctx.step("read"):
            labels = ctx.open_volume(self.labels_uri).read(self.core).astype(np.uint64, copy=False)
            ids = distinct(labels.reshape(-1))
            number = np.zeros(len(ids), np.uint64)
            for part in range(self.n_partitions):
                key = part_key(part, n_partitions=self.n_partitions)
                table = get_table(objects, key, columns=["id", "class_number"])
                here = np.isin(table["id"], ids)
                number[np.searchsorted(ids, table["id"][here])] = table["class_number"][here]
        if (number[ids != 0] == 0).any():
            lost = int(ids[(ids != 0) & (number == 0)][0])
            raise SpecError(
                f"segment {lost} in {self.labels_uri} has no class: the table was made of another segmentation; "
                "delete its receipts and run the stage again"
            )
        with ctx.step("compute"):
            painted = remap(labels, ids, number).astype(np.uint8)
        with ctx.step("write"):
            ctx.open_volume(self.classes_uri).write(self.core, painted)
        ctx.count(voxels=self.core.n_voxels)


class ClassifyStage(LabelsStage):
    """Sort the objects of a segmentation into classes, by intervals of their size and shape.

    Writes ``objects/part-*.parquet`` beside the segmentation (all properties and the class of each object), its
    segment properties (in place of those of ``statistics``) and the layer ``classes``: 1 for the first class,
    2 for the second ..., and the number after the last for the rest.

    Attributes
    ----------
    layer, output
        The segmentation; the layer of classes that is written.
    classes
        In order. See :class:`ClassSpec`.
    rest
        What an object is called that fits no class.
    overlap
        ``refuse``: two classes that one object could belong to are an error. ``first``: the first that fits wins.
    voxels_per_partition
        Objects are spread over one partition per so many voxels, so that a table fits in memory.
    max_properties
        How many objects, the largest first, the viewer gets to list.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["classify"] = "classify"
    layer: str = "segmentation"
    output: str = "classes"
    classes: Annotated[tuple[ClassSpec, ...], Field(min_length=1, max_length=254)]
    rest: Annotated[str, Field(pattern=r"^[^\s#][^\s]*$")] = "rest"
    overlap: Literal["refuse", "first"] = "refuse"
    voxels_per_partition: PositiveInt = 1 << 32
    max_properties: PositiveInt = 500_000

    def expand(self, site: Site) -> StagePlan:
        """Plan four steps."""
        source = site.layer(self.layer, wanted_by=self.label)
        info = source.info
        if info.layer != "segmentation" or info.dtype != "uint64" or info.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} classifies the objects of a segmentation of uint64; {source.uri} is a "
                f"{info.layer} layer of {info.dtype} with {info.n_channels} channel(s); put a stage "
                "'components' before it"
            )
        first_wins = self.overlap == "first"
        check_classes([c.rule() for c in self.classes], first_wins=first_wins)
        if self.rest in {c.name for c in self.classes}:
            raise SpecError(f"rest = {self.rest!r} is the name of a class, too; give it another")
        bounds, root = info.bounds, site.root.rstrip("/")
        graph_uri = f"{root}/graph/{self.label}"
        n_partitions = max(1, math.ceil(bounds.n_voxels / self.voxels_per_partition))
        painted = VolumeInfo(
            bounds=bounds,
            voxel_size_nm=info.voxel_size_nm,
            chunk_shape=self.chunk_shape,
            dtype="uint8",
            layer="segmentation",
        )
        output = Layer(self.output, f"{root}/{self.output}", painted, f"{self.label}.paint", self.block_shape)

        def measure() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield ShapesTask(
                    core=core, labels_uri=source.uri, graph_uri=graph_uri, n_partitions=n_partitions
                )

        def decide() -> Iterator[Task]:
            for part in range(n_partitions):
                yield ClassifyTask(
                    graph_uri=graph_uri,
                    labels_uri=source.uri,
                    bounds=bounds,
                    block_shape=self.block_shape,
                    voxel_size_nm=info.voxel_size_nm,
                    classes=self.classes,
                    rest=self.rest,
                    first_wins=first_wins,
                    partition=part,
                    n_partitions=n_partitions,
                )

        def publish() -> Iterator[Task]:
            yield ClassPropertiesTask(
                labels_uri=source.uri,
                names=(*(c.name for c in self.classes), self.rest),
                n_partitions=n_partitions,
                max_objects=self.max_properties,
            )

        def paint() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield PaintClassesTask(
                    core=core, labels_uri=source.uri, classes_uri=output.uri, n_partitions=n_partitions
                )

        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        n_voxels = grid_box(bounds, self.block_shape, (0, 0, 0)).n_voxels
        # As for statistics: about one object per 2^14 voxels.
        n_objects = min(bounds.n_voxels, self.voxels_per_partition) >> 14
        n_listed = min(self.max_properties, bounds.n_voxels >> 14)

        def step(
            name: str,
            n_tasks: int,
            tasks: Callable[[], Iterator[Task]],
            memory_bytes: int,
            prepare: Callable[[], None] | None = None,
        ) -> Step:
            return Step(
                f"{self.label}.{name}",
                n_tasks,
                tasks,
                prepare=prepare,
                task_memory_bytes=base_bytes(["numba"]) + memory_bytes,
                libraries=("numba",),
            )

        return StagePlan(
            self.label,
            (output,),
            (
                step("measure", n_blocks, measure, _MEASURE_BYTES_PER_VOXEL * n_voxels),
                step("decide", n_partitions, decide, _DECIDE_BYTES_PER_OBJECT * n_objects),
                step(
                    "publish",
                    1,
                    publish,
                    _PUBLISH_BYTES_PER_OBJECT * n_listed,
                    partial(_announce, site, source.uri),
                ),
                step("paint", n_blocks, paint, _PAINT_BYTES_PER_VOXEL * n_voxels),
            ),
            outputs_bytes=bounds.n_voxels // 10,
            sources=(source.uri,),
        )


def part_key(partition: int, *, n_partitions: int) -> str:
    """Name one part of the finished table, inside the segmentation's folder."""
    return f"objects/part-{partition:04d}-of-{n_partitions:04d}.parquet"


def _announce(site: Site, uri: str) -> None:
    """Name the properties in the segmentation's ``info``; an empty list stands there until the task has run."""
    empty = {"@type": "neuroglancer_segment_properties", "inline": {"ids": [], "properties": []}}
    site.open_objects(uri).put_if_absent(f"{KEY}/info", json.dumps(empty).encode())
    update_info(uri, **{KEY: KEY})


def _largest(table: Mapping[str, Column], n: int) -> dict[str, Column]:
    rows = np.lexsort((table["id"], -table["n_voxels"]))[:n]
    return {name: values[rows] for name, values in table.items()}


def _columns(table: ShapeTable) -> dict[str, Column]:
    segments = table.segments
    columns: dict[str, Column] = {"id": segments.ids, "n_voxels": segments.n_voxels}
    for name in _THREE:
        for axis, letter in enumerate("xyz"):
            columns[f"{name}_{letter}"] = getattr(segments, name)[:, axis]
    for column, name in enumerate(_SECOND):
        columns[f"second_{name}"] = table.second[:, column]
    return columns


def _table(columns: Mapping[str, Column], origin: tuple[int, int, int]) -> ShapeTable:
    def together(names: list[str]) -> npt.NDArray[Any]:
        return np.stack([columns[n] for n in names], axis=1)

    three = [together([f"{name}_{letter}" for letter in "xyz"]) for name in _THREE]
    second = together([f"second_{name}" for name in _SECOND])
    return ShapeTable(SegmentTable(columns["id"], columns["n_voxels"], *three), second, origin)
