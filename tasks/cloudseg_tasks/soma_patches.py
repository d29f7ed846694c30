"""Somas by the published scheme: patches round seeds and at the faces of overlapping blocks, each block on its own.

For comparison: the result depends on the blocks, and most of the work is done many times over. Two steps:

1. ``patches``: what the patches of each block call soma, cleaned and labelled, into the layer ``soma_pieces``;
2. ``edges``: how much of one another the objects of neighbouring blocks hold, for ``soma_stitch``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from cloudseg.errors import ModelError, SpecError
from cloudseg.geometry import XYZ, Box, grid_box, grid_shape, tile
from cloudseg.models.network import Network
from cloudseg.models.open_network import open_network
from cloudseg.models.package import ModelSpec, load_spec
from cloudseg.specs import FrozenModel
from cloudseg.tasking.blocks import LabelsStage, block_name
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.candidates import KEY, get_candidates
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import Positive3, Volume, VolumeInfo
from cloudseg.volumes.tables import get_table, put_table

Share = Annotated[float, Field(ge=0, le=1)]
Positive3Nm = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
# Image, masks, numbers of components, labels; two blocks of labels for an edge.
_PATCHES_BYTES_PER_VOXEL = 45
_EDGES_BYTES_PER_VOXEL = 60
# Objects of a block are counted in so many bits of their id.
_BITS = 24


class SomaPatchesOptions(FrozenModel):
    """The published scheme, in nm; the defaults are its numbers, at whatever voxel size.

    Attributes
    ----------
    model
        Address of a model package with a head ``interior``.
    mip, missing, grey_range, device, precision
        As in the stage ``soma_heads``.
    patch_nm
        Edges of a patch, rounded up to what the network takes.
    stride_nm
        Distance between windows at the faces of a block; windows begin one stride before it, two along z.
    shift_nm
        How far six of the seven patches of a seed are shifted.
    overlap_nm
        How far two neighbouring blocks overlap.
    interior, boundary
        Soma has more interior than the first and, where the network has that head, less boundary than the second; 1:
        whatever the boundary.
    max_hole_um2, min_piece_um2
        In single sections, smaller holes are filled and smaller pieces dropped.
    min_object_um3
        Smaller objects of a block are dropped, cut ones too; 0 leaves that to ``soma_stitch``.
    """

    model: str
    mip: Annotated[int, Field(ge=0)] = 0
    missing: Literal["error", "zero"] = "error"
    grey_range: tuple[float, float] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    patch_nm: Positive3Nm = (6144.0, 6144.0, 5120.0)
    stride_nm: Positive3Nm = (1936.0, 1936.0, 1160.0)
    shift_nm: Positive3Nm = (3872.0, 3872.0, 2320.0)
    overlap_nm: Positive3Nm = (1600.0, 1600.0, 1200.0)
    interior: Share = 0.97
    boundary: Share = 1.0
    max_hole_um2: NonNegativeFloat = 0.524
    min_piece_um2: NonNegativeFloat = 0.262
    min_object_um3: NonNegativeFloat = 1.05

    def halo(self, voxel_size_nm: tuple[float, float, float]) -> XYZ:
        """Return how far a block reaches beyond its share, in voxels: half of the overlap."""
        x, y, z = (math.ceil(n / s / 2) for n, s in zip(self.overlap_nm, voxel_size_nm, strict=True))
        return (x, y, z)


class SomaPatchesTask(BlockTask):
    """Segment one block by patches; store its objects, also those in the overlap with other blocks."""

    kind: Literal["soma_patches/1"] = "soma_patches/1"
    image_uri: str
    pieces_uri: str
    candidates_uri: str
    weights_sha256: str
    number: Annotated[int, Field(ge=0)]
    options: SomaPatchesOptions

    def run(self, ctx: Context) -> None:
        """Lay the patches, run the network on each, clean the mask, label, store."""
        from cloudseg.ops.runs import Runs
        from cloudseg.ops.soma_patches import objects_of, without_specks

        options = self.options
        image = ctx.open_volume(self.image_uri, mip=options.mip)
        size, bounds = image.info.voxel_size_nm, image.info.bounds
        outer = self.core.grow(options.halo(size)).intersect(bounds)
        with ctx.step("model"):
            key = ("soma_patches", self.weights_sha256, options.device, options.precision)
            model = ctx.warm(key, lambda: self._load_model(ctx))
        boxes = self._patches(ctx, outer, size, model)
        mask = self._mask(ctx, image, outer, boxes, model)
        with ctx.step("clean"):
            area_um2 = size[0] * size[1] / 1e6
            clean = without_specks(
                mask,
                max_hole_vx=math.ceil(options.max_hole_um2 / area_um2),
                min_piece_vx=math.ceil(options.min_piece_um2 / area_um2),
            )
            least = math.ceil(options.min_object_um3 * 1e9 / math.prod(size))
            labels = objects_of(clean, min_size_vx=least).astype(np.uint64)
            labels[labels > 0] += np.uint64(self.number << _BITS)
            runs = Runs.of(np.asfortranarray(labels))
            core = Runs.of(np.asfortranarray(labels[self.core.slices_in(outer)]))
        with ctx.step("write"):
            volume = ctx.open_volume(self.pieces_uri)
            volume.write(self.core, labels[self.core.slices_in(outer)])
            objects, name = ctx.open_objects(self.pieces_uri), block_name(self.core.start)
            inside = runs.place >= 0
            put_table(
                objects,
                f"stitching/runs/{name}.parquet",
                {
                    "at": runs.begin[:-1][inside].astype(np.int64),
                    "n": np.diff(runs.begin)[inside].astype(np.int64),
                    "id": runs.ids[runs.place[inside]],
                },
            )
            put_table(objects, f"stitching/sizes/{name}.parquet", {"id": core.ids, "n": core.sizes()})
        ctx.count(
            voxels=self.core.n_voxels,
            patches=len(boxes),
            network_voxels=sum(box.n_voxels for box in boxes),
            objects=len(runs.ids),
        )

    def _patches(
        self, ctx: Context, outer: Box, size: tuple[float, float, float], model: Network
    ) -> list[Box]:
        """Return the windows at the faces of the block, and seven patches for each seed in it."""
        from cloudseg.ops.soma_patches import seed_boxes, window_boxes

        options = self.options
        multiple = model.spec.arguments.multiple
        patch = _voxels(options.patch_nm, size, multiple)
        stride = _voxels(options.stride_nm, size, (1, 1, 1))
        candidates = get_candidates(ctx.open_objects(self.candidates_uri), KEY, voxel_size_nm=size)
        inside = np.all((candidates.at >= outer.start) & (candidates.at < outer.stop), axis=1)
        boxes = window_boxes(outer, patch=patch, stride=stride, pad=(stride[0], stride[1], 2 * stride[2]))
        for x, y, z in candidates.at[inside].tolist():
            boxes += seed_boxes((x, y, z), patch=patch, shift=_voxels(options.shift_nm, size, (1, 1, 1)))
        return boxes

    def _mask(
        self, ctx: Context, image: Volume, outer: Box, boxes: list[Box], model: Network
    ) -> npt.NDArray[np.bool_]:
        """Return what any patch calls soma, over ``outer``; beyond it the image is mirrored."""
        from cloudseg.ops.lattice import mirror

        options = self.options
        with ctx.step("read"):
            grey = image.read(outer, missing=options.missing)
        heads = model.spec.heads
        interior = heads.index("interior")
        boundary = heads.index("boundary") if "boundary" in heads and options.boundary < 1 else None
        mask = np.zeros(outer.shape, np.bool_, order="F")
        lanes = model.lanes(boxes[0].shape, batch_size=1)

        def predict(box: Box) -> npt.NDArray[np.bool_]:
            at = [
                mirror(a, b, low=low, high=high) - low
                for a, b, low, high in zip(box.start, box.stop, outer.start, outer.stop, strict=True)
            ]
            patches = np.zeros((lanes.padded_to, *box.shape), grey.dtype)
            patches[0] = grey[np.ix_(*at)]
            found = model.predict(patches, grey_range=options.grey_range)[0]
            soma: npt.NDArray[np.bool_] = found[interior] > options.interior
            return soma if boundary is None else soma & (found[boundary] < options.boundary)

        with (
            ctx.step("network"),
            ThreadPoolExecutor(lanes.n_threads, initializer=lanes.initializer) as threads,
        ):
            for box, soma in zip(boxes, threads.map(predict, boxes), strict=True):
                part = box.intersect(outer)
                mask[part.slices_in(outer)] |= soma[part.slices_in(box)]
        return mask

    def _load_model(self, ctx: Context) -> Network:
        return open_network(
            self.options.model,
            shared=ctx.network,
            sha256=self.weights_sha256,
            device=self.options.device,
            precision=self.options.precision,
            objects=ctx.open_objects,
        )


class SomaEdgesTask(BlockTask):
    """Count what the objects of a block and of its lower neighbours share."""

    kind: Literal["soma_edges/1"] = "soma_edges/1"
    pieces_uri: str
    block_shape: Positive3
    halo: Positive3

    def run(self, ctx: Context) -> None:
        """Read the runs of both blocks, lay them over each other in the slab, count, store."""
        from cloudseg.ops.soma_stitch import overlaps

        bounds = ctx.open_volume(self.pieces_uri).info.bounds
        objects = ctx.open_objects(self.pieces_uri)
        mine = self._outer(self.core, bounds)
        labels = None
        for axis, letter in enumerate("xyz"):
            if self.core.start[axis] == bounds.start[axis]:
                continue
            step = [0, 0, 0]
            step[axis] = -self.block_shape[axis]
            there = Box.of_shape(self.block_shape, at=self.core.shift((step[0], step[1], step[2])).start)
            theirs = self._outer(there.intersect(bounds), bounds)
            slab = mine.intersect(theirs)
            with ctx.step("read"):
                if labels is None:
                    labels = _labels(objects, self.core, mine)
                other = _labels(objects, there, theirs)
            with ctx.step("compute"):
                edges = overlaps(other[slab.slices_in(theirs)], labels[slab.slices_in(mine)])
            put_table(
                objects,
                edges_key(self.core, letter),
                {name: getattr(edges, name) for name in ("a", "b", "n_ab", "n_a", "n_b")},
            )
            ctx.count(edges=len(edges))

    def _outer(self, core: Box, bounds: Box) -> Box:
        return core.grow(self.halo).intersect(bounds)


class SomaPatchesStage(LabelsStage, SomaPatchesOptions):
    """Somas by patches round seeds and at the faces of blocks, into the layer ``soma_pieces``; then ``soma_stitch``.

    Not exact: the result depends on the blocks. ``soma_heads`` and ``soma_segment`` are, at a fraction of the work.

    Attributes
    ----------
    candidates
        Name of the stage ``soma_locate`` that found the seeds.
    block_shape
        Share of a block, whole chunks, without the overlap; by default the published one, rounded up to chunks.
    chunk_shape
        Chunks of the output.
    """

    kind: Literal["soma_patches"] = "soma_patches"
    candidates: str = "soma_locate"
    # 29.4 x 29.4 x 7.4 um of 64 x 64 x 40 nm, less the overlap.
    block_shape: Positive3 = (448, 448, 192)

    @model_validator(mode="after")
    def _thresholds_leave_something(self) -> SomaPatchesStage:
        if self.interior >= 1 or self.boundary <= 0:
            raise ValueError(
                f"interior={self.interior:g} and boundary={self.boundary:g} leave no voxel: soma has more interior and "
                "less boundary"
            )
        return self

    def expand(self, site: Site) -> StagePlan:
        """Plan the two steps."""
        image = site.layer("image", wanted_by=self.label)
        info = image.info if self.mip == 0 else site.open_volume(image.uri, mip=self.mip).info
        spec = load_spec(self.model, objects=site.open_objects)
        self._check(info, spec, uri=image.uri)
        bounds, root = info.bounds, site.root.rstrip("/")
        layer = Layer(
            "soma_pieces",
            f"{root}/soma_pieces",
            self.labels_info(info),
            made_by=f"{self.label}.patches",
            block_shape=self.block_shape,
        )
        options = SomaPatchesOptions(
            **{name: getattr(self, name) for name in SomaPatchesOptions.model_fields}
        )
        halo = self.halo(info.voxel_size_nm)

        def patches() -> Iterator[Task]:
            for number, core in enumerate(tile(bounds, self.block_shape)):
                yield SomaPatchesTask(
                    core=core,
                    image_uri=image.uri,
                    pieces_uri=layer.uri,
                    candidates_uri=f"{root}/graph/{self.candidates}",
                    weights_sha256=spec.weights.sha256,
                    number=number,
                    options=options,
                )

        def edges() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield SomaEdgesTask(core=core, pieces_uri=layer.uri, block_shape=self.block_shape, halo=halo)

        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        n_outer = grid_box(bounds, self.block_shape, (0, 0, 0)).grow(halo).intersect(bounds).n_voxels
        n_patch = math.prod(_voxels(self.patch_nm, info.voxel_size_nm, spec.arguments.multiple))
        features = spec.arguments.widths[0] / math.prod(spec.arguments.fold)
        thread_bytes = int(n_patch * (8 * 4 * features + 32 * len(spec.heads)))
        return StagePlan(
            self.label,
            (layer,),
            (
                Step(
                    f"{self.label}.patches",
                    n_blocks,
                    patches,
                    task_memory_bytes=base_bytes(["torch", "numba"])
                    + _PATCHES_BYTES_PER_VOXEL * n_outer
                    + thread_bytes,
                    thread_memory_bytes=thread_bytes,
                    libraries=("torch", "numba"),
                ),
                Step(
                    f"{self.label}.edges",
                    n_blocks,
                    edges,
                    task_memory_bytes=base_bytes(["numba"]) + _EDGES_BYTES_PER_VOXEL * n_outer,
                    libraries=("numba",),
                ),
            ),
            outputs_bytes=bounds.n_voxels * 8 // 100,
            sources=(image.uri,),
            provenance={"weights_sha256": spec.weights.sha256, "block_shape": list(self.block_shape)},
        )

    def _check(self, info: VolumeInfo, spec: ModelSpec, *, uri: str) -> None:
        if info.n_channels != 1 or info.layer != "image":
            raise SpecError(
                f"stage {self.label!r} needs an image of one channel; {uri} is a {info.layer} of {info.n_channels}"
            )
        if "interior" not in spec.heads:
            raise ModelError(
                f"stage {self.label!r} needs a model with a head 'interior'; {spec.name!r} predicts {spec.output} "
                f"({', '.join(spec.heads) or 'no heads'})"
            )
        spec.check_voxel_size(info.voxel_size_nm, uri=uri)


def edges_key(core: Box, letter: str) -> str:
    """Name the edges of a block's lower face across an axis."""
    return f"stitching/edges/{block_name(core.start)}_{letter}.parquet"


def _labels(objects: Objects, core: Box, outer: Box) -> npt.NDArray[np.uint64]:
    """Return the stored labels of a block over ``outer``."""
    table = get_table(objects, f"stitching/runs/{block_name(core.start)}.parquet")
    flat = np.zeros(outer.n_voxels, np.uint64)
    first = np.repeat(table["at"], table["n"])
    within = np.arange(len(first)) - np.repeat(np.cumsum(table["n"]) - table["n"], table["n"])
    flat[first + within] = np.repeat(table["id"], table["n"])
    return flat.reshape(outer.shape, order="F")


def _voxels(length_nm: Any, voxel_size_nm: tuple[float, float, float], multiple: XYZ) -> XYZ:
    """Return lengths in voxels, rounded, at least 1, up to whole multiples."""
    x, y, z = (
        -(-max(1, round(n / s)) // m) * m for n, s, m in zip(length_nm, voxel_size_nm, multiple, strict=True)
    )
    return (x, y, z)
