"""Segment somas from their heads: seeds, names over the whole volume, growth, a filter of sizes.

Six steps, each exact for any tiling (see :mod:`cloudseg.ops.soma_growth`):

1. ``seeds``: fragments of middles in each block;
2. ``faces``: pairs of fragments that touch across a face;
3. ``names``: what the fragments of each block are called; seeds that are too small lose their name;
4. ``grow``: seeds grow to the full extent of their somas;
5. ``sizes``: somas that are too small;
6. ``write``: the layer ``somas`` without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box, grid_box, grid_shape, tile
from cloudseg.models.package import Head
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, LabelsStage, block_name, rename_block
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import Positive3, VolumeInfo
from cloudseg.volumes.tables import get_table, put_table

if TYPE_CHECKING:
    from cloudseg.ops.soma_growth import SeedRule

Share = Annotated[float, Field(ge=0, le=1)]
Columns = dict[str, npt.NDArray[Any]]

# Heads, masks and labels; seeds, numbers, costs and lists of a block and its halo; chunks that a face lies in.
_SEED_BYTES_PER_VOXEL = 30
_GROW_BYTES_PER_VOXEL = 60
_FACE_BYTES_PER_VOXEL = 40
_SOMA_BYTES = 4000


class SomaSegmentOptions(FrozenModel):
    """How somas are told apart; all heads from 0 to 1.

    Attributes
    ----------
    heads
        What the channels of the layer are, in order.
    seed_interior, seed, seed_distance
        A middle has at least so much of each of these heads that there are.
    seed_boundary
        A middle has less boundary than this.
    extent
        A voxel is soma from so much interior on.
    rim
        Whether interior and boundary count together for the extent, as with networks whose interior leaves out the rim.
    reach_nm
        How far a seed may grow; within a boundary a nanometre counts ``1 + boundary_cost`` times.
    boundary_cost
        See ``reach_nm``.
    min_seed_um3, min_size_um3
        Smaller seeds, and smaller somas, are dropped.
    missing
        What a chunk of the heads that was never written means; ``zero`` where they were computed with a mask.
    """

    heads: Annotated[tuple[Head, ...], Field(min_length=1)] = ("interior", "boundary", "distance")
    seed_interior: Share = 0.5
    seed: Share = 0.5
    seed_distance: Share = 0.3
    seed_boundary: Share = 0.5
    extent: Share = 0.5
    rim: bool = False
    reach_nm: Annotated[float, Field(ge=0, le=100_000)] = 3000.0
    boundary_cost: Annotated[int, Field(ge=0, le=1000)] = 4
    min_seed_um3: NonNegativeFloat = 0.2
    min_size_um3: NonNegativeFloat = 1.0
    missing: Literal["error", "zero"] = "error"

    @model_validator(mode="after")
    def _each_head_once(self) -> Self:
        if len(set(self.heads)) != len(self.heads):
            raise ValueError(f"each head may be named once, got {self.heads}")
        return self

    @model_validator(mode="after")
    def _heads_suffice(self) -> Self:
        wanted = ("interior", "boundary") if self.rim else ("interior",)
        missing = [name for name in wanted if name not in self.heads]
        if missing:
            raise ValueError(
                f"somas grow in the head(s) {', '.join(wanted)}, but heads has no {missing[0]!r}"
            )
        return self

    def split(self, values: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.uint8]]:
        """Return the channels of ``values`` by their names."""
        channels = values[None] if values.ndim == 3 else values
        return dict(zip(self.heads, channels, strict=True))


class SomaSeedsTask(BlockTask):
    """Label the fragments of seeds in one block, and store their sizes."""

    kind: Literal["soma_seeds/1"] = "soma_seeds/1"
    heads_uri: str
    seeds_uri: str
    graph_uri: str
    options: SomaSegmentOptions

    def run(self, ctx: Context) -> None:
        """Read the block, threshold, label, store."""
        from cloudseg.ops.components import label_components
        from cloudseg.ops.runs import Runs
        from cloudseg.ops.soma_growth import seed_mask

        source, options = ctx.open_volume(self.heads_uri), self.options
        with ctx.step("read"):
            heads = options.split(source.read(self.core, missing=options.missing))
        with ctx.step("compute"):
            labels = label_components(
                seed_mask(heads, rule_of(options)), core=self.core, bounds=source.info.bounds, connectivity=6
            )
            runs = Runs.of(labels)
        with ctx.step("write"):
            ctx.open_volume(self.seeds_uri).write(self.core, labels)
            put_table(
                ctx.open_objects(self.graph_uri),
                f"sizes/{block_name(self.core.start)}.parquet",
                {"id": runs.ids, "n": runs.sizes()},
            )
        ctx.count(voxels=self.core.n_voxels, fragments=len(runs.ids))


class SomaSeedFacesTask(BlockTask):
    """List the pairs of fragments of seeds that touch across the lower faces of one block."""

    kind: Literal["soma_seed_faces/1"] = "soma_seed_faces/1"
    seeds_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read two planes at each lower face; store each pair once."""
        from cloudseg.ops.components import slab_of, touching_pairs

        volume = ctx.open_volume(self.seeds_uri)
        bounds = volume.info.bounds
        found = [np.zeros((2, 0), np.uint64)]
        for axis in range(3):
            if self.core.start[axis] == bounds.start[axis]:
                continue
            with ctx.step("read"):
                labels = volume.read(slab_of(self.core, axis, bounds=bounds))
            with ctx.step("compute"):
                pairs = touching_pairs(labels, core=self.core, axis=axis, bounds=bounds, connectivity=6)
            found.append(np.stack(pairs))
        a, b = np.unique(np.concatenate(found, axis=1), axis=1)
        put_table(
            ctx.open_objects(self.graph_uri), f"pairs/{block_name(self.core.start)}.parquet", {"a": a, "b": b}
        )
        ctx.count(pairs=len(a))


class SomaSeedNamesTask(Task):
    """Join the fragments of all blocks, drop small seeds, and store what each block's fragments are called."""

    kind: Literal["soma_seed_names/1"] = "soma_seed_names/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    min_seed_um3: NonNegativeFloat

    def run(self, ctx: Context) -> None:
        """Find connected components, add up their sizes, store the names block by block."""
        from cloudseg.ops.remap import lookup
        from cloudseg.ops.union_find import components

        objects = ctx.open_objects(self.graph_uri)
        names = [block_name(b.start) for b in tile(self.bounds, self.block_shape)]
        with ctx.step("read"):
            pairs = [get_table(objects, f"pairs/{name}.parquet") for name in names]
            sizes = [get_table(objects, f"sizes/{name}.parquet") for name in names]
        with ctx.step("compute"):
            old, new = components(_all(pairs, "a", np.uint64), _all(pairs, "b", np.uint64))
            ids, n = _all(sizes, "id", np.uint64), _all(sizes, "n", np.int64)
            seeds, small = small_ones(
                lookup(ids, old, new), n, um3=self.min_seed_um3, voxel_size_nm=self.voxel_size_nm
            )
        with ctx.step("write"):
            for name, table in zip(names, sizes, strict=True):
                called = lookup(table["id"], old, new)
                called[np.isin(called, small)] = 0
                moved = called != table["id"]
                put_table(objects, f"names/{name}.parquet", {"old": table["id"][moved], "new": called[moved]})
        ctx.count(seeds=len(seeds) - len(small), small_seeds=len(small))


class SomaGrowTask(BlockTask):
    """Grow the seeds of one block and its halo, write the block, store the sizes of what lies in it."""

    kind: Literal["soma_grow/1"] = "soma_grow/1"
    heads_uri: str
    seeds_uri: str
    grown_uri: str
    graph_uri: str
    block_shape: Positive3
    options: SomaSegmentOptions

    def run(self, ctx: Context) -> None:
        """Read seeds, their names and the heads as far as a seed may reach, grow, write."""
        from cloudseg.ops.remap import remap
        from cloudseg.ops.runs import Runs
        from cloudseg.ops.soma_growth import extent_mask, grow, halo_of_reach

        heads_volume, options = ctx.open_volume(self.heads_uri), self.options
        info = heads_volume.info
        outer = self.core.grow(halo_of_reach(options.reach_nm, info.voxel_size_nm)).intersect(info.bounds)
        objects = ctx.open_objects(self.graph_uri)
        with ctx.step("read"):
            fragments = ctx.open_volume(self.seeds_uri).read(outer)
            old, new = self._names(objects, outer, info.bounds)
            heads = None
            if fragments.any():
                heads = options.split(heads_volume.read(outer, missing=options.missing))
        with ctx.step("compute"):
            labels = np.zeros(self.core.shape, np.uint64, order="F")
            if heads is not None:
                grown = grow(
                    remap(fragments, old, new),
                    extent_mask(heads, rule_of(options)),
                    heads.get("boundary"),
                    voxel_size_nm=info.voxel_size_nm,
                    reach_nm=options.reach_nm,
                    boundary_cost=options.boundary_cost,
                )
                labels = np.asfortranarray(grown[self.core.slices_in(outer)])
            runs = Runs.of(labels)
        with ctx.step("write"):
            ctx.open_volume(self.grown_uri).write(self.core, labels)
            put_table(
                objects,
                f"grown/{block_name(self.core.start)}.parquet",
                {"id": runs.ids, "n": runs.sizes()},
            )
        ctx.count(voxels=self.core.n_voxels, somas=len(runs.ids))

    def _names(self, objects: Objects, outer: Box, bounds: Box) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the names of all fragments in ``outer``, sorted."""
        blocks = tile(outer.align_out(self.block_shape, bounds=bounds), self.block_shape)
        tables = [get_table(objects, f"names/{block_name(b.start)}.parquet") for b in blocks]
        old, new = _all(tables, "old", np.uint64), _all(tables, "new", np.uint64)
        order = np.argsort(old)
        return old[order], new[order]


class SomaSizesTask(Task):
    """Add up the sizes of all somas and store which are too small to be kept."""

    kind: Literal["soma_sizes/1"] = "soma_sizes/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    min_size_um3: NonNegativeFloat

    def run(self, ctx: Context) -> None:
        """Read the sizes of all blocks, add up, store."""
        objects = ctx.open_objects(self.graph_uri)
        with ctx.step("read"):
            tables = [
                get_table(objects, f"grown/{block_name(b.start)}.parquet")
                for b in tile(self.bounds, self.block_shape)
            ]
        with ctx.step("compute"):
            somas, small = small_ones(
                _all(tables, "id", np.uint64),
                _all(tables, "n", np.int64),
                um3=self.min_size_um3,
                voxel_size_nm=self.voxel_size_nm,
            )
        with ctx.step("write"):
            put_table(objects, "small.parquet", {"old": small, "new": np.zeros(len(small), np.uint64)})
        ctx.count(somas=len(somas) - len(small), small_somas=len(small))


class SomaWriteTask(BlockTask):
    """Write the somas of one block that are large enough."""

    kind: Literal["soma_write/1"] = "soma_write/1"
    grown_uri: str
    somas_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read the block, drop what is too small, write."""
        rename_block(
            ctx,
            self.core,
            src_uri=self.grown_uri,
            dst_uri=self.somas_uri,
            tables_uri=self.graph_uri,
            tables=["small.parquet"],
        )


class SomaSegmentStage(LabelsStage, SomaSegmentOptions):
    """Split and grow somas from their heads into the layer ``somas``. Exact for any tiling.

    Attributes
    ----------
    layer
        The heads: uint8, one channel each.
    output
        Name of the layer that is written; its parts before the filter are ``<output>_seeds`` and ``<output>_grown``.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the outputs.
    """

    kind: Literal["soma_segment"] = "soma_segment"
    layer: str = "soma_heads"
    output: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")] = "somas"
    # Blocks are read with a halo of ``reach_nm`` on each side.
    block_shape: Positive3 = (256, 256, 256)

    def expand(self, site: Site) -> StagePlan:
        """Plan the steps."""
        source = site.layer(self.layer, wanted_by=self.label)
        info, bounds = source.info, source.info.bounds
        self._check(info, source.uri)
        root = site.root.rstrip("/")
        graph_uri = f"{root}/graph/{self.label}"
        labels = self.labels_info(info)
        seeds = Layer(f"{self.output}_seeds", f"{root}/{self.output}_seeds", labels)
        grown = Layer(f"{self.output}_grown", f"{root}/{self.output}_grown", labels)
        output = Layer(self.output, f"{root}/{self.output}", labels, f"{self.label}.write", self.block_shape)
        options = SomaSegmentOptions(
            **{name: getattr(self, name) for name in SomaSegmentOptions.model_fields}
        )

        def one(make: Callable[..., Task], **fields: Any) -> Callable[[], Iterator[Task]]:
            def tasks() -> Iterator[Task]:
                yield make(
                    graph_uri=graph_uri,
                    bounds=bounds,
                    block_shape=self.block_shape,
                    voxel_size_nm=info.voxel_size_nm,
                    **fields,
                )

            return tasks

        def each(make: Callable[..., Task], **fields: Any) -> Callable[[], Iterator[Task]]:
            def tasks() -> Iterator[Task]:
                for core in tile(bounds, self.block_shape):
                    yield make(core=core, graph_uri=graph_uri, **fields)

            return tasks

        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        block = grid_box(bounds, self.block_shape, (0, 0, 0))
        n_outer = block.grow(_halo(self.reach_nm, info.voxel_size_nm)).intersect(bounds).n_voxels
        n_face = sum(block.n_voxels // n for n in block.shape)
        # Somas side by side, each in a few blocks.
        n_somas = bounds.n_voxels * math.prod(info.voxel_size_nm) / 1e9 / max(self.min_size_um3, 20.0)

        def step(name: str, n_tasks: int, tasks: Callable[[], Iterator[Task]], memory_bytes: float) -> Step:
            return Step(
                f"{self.label}.{name}",
                n_tasks,
                tasks,
                task_memory_bytes=base_bytes(["numba"]) + int(memory_bytes),
                libraries=("numba",),
            )

        return StagePlan(
            self.label,
            (seeds, grown, output),
            (
                step(
                    "seeds",
                    n_blocks,
                    each(SomaSeedsTask, heads_uri=source.uri, seeds_uri=seeds.uri, options=options),
                    _SEED_BYTES_PER_VOXEL * block.n_voxels,
                ),
                step(
                    "faces",
                    n_blocks,
                    each(SomaSeedFacesTask, seeds_uri=seeds.uri),
                    _FACE_BYTES_PER_VOXEL * n_face,
                ),
                step(
                    "names", 1, one(SomaSeedNamesTask, min_seed_um3=self.min_seed_um3), _SOMA_BYTES * n_somas
                ),
                step(
                    "grow",
                    n_blocks,
                    each(
                        SomaGrowTask,
                        heads_uri=source.uri,
                        seeds_uri=seeds.uri,
                        grown_uri=grown.uri,
                        block_shape=self.block_shape,
                        options=options,
                    ),
                    _GROW_BYTES_PER_VOXEL * n_outer,
                ),
                step("sizes", 1, one(SomaSizesTask, min_size_um3=self.min_size_um3), _SOMA_BYTES * n_somas),
                step(
                    "write",
                    n_blocks,
                    each(SomaWriteTask, grown_uri=grown.uri, somas_uri=output.uri),
                    RENAME_BYTES_PER_VOXEL * block.n_voxels,
                ),
            ),
            # Somas are few and smooth: a hundredth of the raw ids each, and the empty chunks.
            outputs_bytes=3 * bounds.n_voxels * 8 // 100,
            sources=(source.uri,),
        )

    def _check(self, info: VolumeInfo, uri: str) -> None:
        if info.dtype != "uint8" or info.layer != "image" or info.n_channels != len(self.heads):
            raise SpecError(
                f"stage {self.label!r} needs heads of somas: an image layer of uint8 with {len(self.heads)} "
                f"channel(s), {', '.join(self.heads)}; {uri} is a {info.layer} layer of {info.dtype} with "
                f"{info.n_channels} channel(s); set heads to what they are, in order"
            )


def rule_of(options: SomaSegmentOptions) -> SeedRule:
    """Return the thresholds on the scale of uint8."""
    from cloudseg.ops.soma_growth import SeedRule

    def level(share: float) -> int:
        return math.ceil(share * 255 - 1e-9)

    return SeedRule(
        interior=level(options.seed_interior),
        seed=level(options.seed),
        distance=level(options.seed_distance),
        boundary=level(options.seed_boundary),
        extent=max(1, level(options.extent)),
        rim=options.rim,
    )


def small_ones(
    ids: npt.NDArray[np.uint64],
    n: npt.NDArray[np.int64],
    *,
    um3: float,
    voxel_size_nm: tuple[float, float, float],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return all different ``ids``, and those whose ``n`` add up to less than ``um3``."""
    different, place = np.unique(ids, return_inverse=True)
    total = np.zeros(len(different), np.int64)
    np.add.at(total, place, n)
    least = math.ceil(um3 * 1e9 / math.prod(voxel_size_nm) - 1e-9)
    return different, different[total < least]


def _all(tables: list[Columns], name: str, dtype: type[Any]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *(t[name] for t in tables)])


def _halo(reach_nm: float, voxel_size_nm: tuple[float, float, float]) -> XYZ:
    # As in ops.soma_growth, which planning does without.
    x, y, z = (int(reach_nm // max(1, round(size))) for size in voxel_size_nm)
    return (x, y, z)
