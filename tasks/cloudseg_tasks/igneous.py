"""The one door to igneous: downsampling, meshes and skeletons as tasks of our envelope.

igneous computes; storage, order and names are ours. Each block leaves its pieces as fragments, split by the shard
that each label belongs to, written atomically under ``<root>/fragments/<stage>/``; a merge task reads the fragments
of one shard in block order and writes that shard. So every byte is read once, no step lists or indexes the volume,
a missing fragment is an error and not a hole, and the outputs depend neither on the order of tasks nor on repeats.
Fragments are deleted by the stage's last step, after all shards have their receipts, unless ``keep_fragments``.

igneous, kimimaro and zmesh are GPL-3; they are imported here, inside functions, and nowhere else.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cloudseg.errors import ConflictError, MissingExtraError, NotFoundError, SpecError, UnknownTaskError
from cloudseg.geometry import XYZ, Box, grid_shape, tile
from cloudseg.ops.downsample import coarse_box, downsample_mean, downsample_mode, fine_box, next_factor
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.steps import Layer, Site, Stage, StagePlan, Step
from cloudseg.tasking.task import Context, Task
from cloudseg.volumes import create_volume, scales, sharding_for, update_info
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import Array, Positive3, VolumeInfo

Options = TypeVar("Options", bound=FrozenModel)

MESH_FOLDER = "mesh"
SKELETON_FOLDER = "skeletons"
# A minishard's index is read whole before its first label: 512 labels are 12 KiB.
_LABELS_PER_MINISHARD = 512
# Dense EM holds about one segment per so many voxels; it only sizes an index, any value is correct.
_VOXELS_PER_LABEL = 1 << 14
_RADIUS = ({"id": "radius", "data_type": "float32", "num_components": 1},)


# ------------------------------------------------------------------------------------------------ options


class ShardingOptions(FrozenModel):
    """How labels are spread over shard files.

    Attributes
    ----------
    voxels_per_shard
        One shard (rounded up to a power of two) per so many voxels: a merge task holds one shard's pieces.
    keep_fragments
        Leave ``<root>/fragments/<stage>/`` where it is instead of deleting it in the stage's last step.
    check_labels
        How many labels of each shard are read back and must lie inside the volume.
    """

    voxels_per_shard: PositiveInt = 1 << 30
    keep_fragments: bool = False
    check_labels: NonNegativeInt = 4


class MeshOptions(FrozenModel):
    """How a segment becomes a mesh.

    Attributes
    ----------
    simplification_error_nm
        How far simplification may move a surface.
    dust_vx
        Pieces below so many voxels inside one block get no mesh; 0 keeps all.
    n_lods
        Levels of detail, at most: coarser ones are made only while a mesh spans more than ``lod_chunk_vx``.
    lod_chunk_vx
        Smallest cell, in voxels, that a level of detail is cut into.
    draco_level
        Compression effort, 0 to 10.
    quantization_bits
        Precision of a vertex inside its cell.
    """

    simplification_error_nm: NonNegativeFloat = 40.0
    dust_vx: NonNegativeInt = 0
    n_lods: PositiveInt = 3
    lod_chunk_vx: Positive3 = (128, 128, 128)
    draco_level: Annotated[int, Field(ge=0, le=10)] = 7
    quantization_bits: Literal[10, 16] = 16


class SkeletonOptions(FrozenModel):
    """How a segment becomes a skeleton (TEASAR: Sato et al. 2000, as in kimimaro).

    Attributes
    ----------
    scale, const_nm
        A path claims all within ``scale`` times its distance to the border, plus ``const_nm``.
    soma_detection_nm, soma_acceptance_nm
        A distance to the border above the first makes a body be looked for; above the second it is one.
    soma_invalidation_scale, soma_invalidation_const_nm
        The same two numbers for the region around a body's centre.
    dust_vx
        Pieces below so many voxels inside one block get no skeleton.
    min_cable_nm
        Disconnected pieces of the finished skeleton that are shorter are dropped.
    tick_nm
        Side branches of the finished skeleton that are shorter are dropped.
    """

    scale: PositiveFloat = 1.5
    const_nm: PositiveFloat = 300.0
    soma_detection_nm: PositiveFloat = 750.0
    soma_acceptance_nm: PositiveFloat = 3500.0
    soma_invalidation_scale: PositiveFloat = 2.0
    soma_invalidation_const_nm: PositiveFloat = 300.0
    dust_vx: NonNegativeInt = 500
    min_cable_nm: NonNegativeFloat = 400.0
    tick_nm: NonNegativeFloat = 700.0


# ------------------------------------------------------------------------------------------------ fragments


class Shards(FrozenModel):
    """Which label lies in which shard: the hashed sharding of the Precomputed specification, fixed when planned."""

    shard_bits: NonNegativeInt
    minishard_bits: NonNegativeInt

    @classmethod
    def for_voxels(cls, n_voxels: int, *, voxels_per_shard: int) -> Self:
        """Choose the number of shards from the size of the volume, which is known before any label is."""
        shard_bits = max(0, math.ceil(math.log2(n_voxels / voxels_per_shard)))
        n_labels = (n_voxels >> shard_bits) / _VOXELS_PER_LABEL
        minishard_bits = min(12, max(0, math.ceil(math.log2(max(1.0, n_labels / _LABELS_PER_MINISHARD)))))
        return cls(shard_bits=shard_bits, minishard_bits=minishard_bits)

    @property
    def n(self) -> int:
        """Number of shards."""
        return 1 << self.shard_bits

    def name(self, shard: int) -> str:
        """Return the shard's name, as the specification writes it."""
        return f"{shard:0{-(-self.shard_bits // 4) or 1}x}"

    def document(self, *, data_encoding: str) -> dict[str, Any]:
        """Return the ``sharding`` entry of an info file."""
        # The index is left raw: gzip would bring in a time stamp wherever libdeflate is not installed.
        return {
            "@type": "neuroglancer_uint64_sharded_v1",
            "preshift_bits": 0,
            "hash": "murmurhash3_x86_128",
            "minishard_bits": self.minishard_bits,
            "shard_bits": self.shard_bits,
            "minishard_index_encoding": "raw",
            "data_encoding": data_encoding,
        }

    def owners(self, labels: Iterable[int]) -> dict[int, list[int]]:
        """Return the labels of each shard, sorted."""
        ids = np.fromiter(labels, dtype=np.uint64)
        if not len(ids):
            return {}
        computer = _igneous("igneous.task_creation.mesh").shardcomputer
        found = computer.assign_labels_to_shards(ids, 0, self.shard_bits, self.minishard_bits)
        return {int(name, 16): sorted(int(v) for v in members) for name, members in found.items()}


class Pieces(FrozenModel):
    """Where a stage's fragments lie: the grid of its blocks, and its shards."""

    fragments_uri: str
    bounds: BoxField
    block_shape: Positive3
    shards: Shards

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return math.prod(grid_shape(self.bounds, self.block_shape))

    def key(self, core: Box, shard: int) -> str:
        """Name the fragment of one block and shard."""
        return f"{self.shards.name(shard)}/{core.start[0]}_{core.start[1]}_{core.start[2]}.frags"

    def put(self, ctx: Context, core: Box, pieces: Mapping[int, bytes]) -> None:
        """Store a block's pieces, one object per shard: empty ones too, so that an absent one is a fault."""
        objects = ctx.open_objects(self.fragments_uri)
        owners = self.shards.owners(pieces)
        for shard in range(self.shards.n):
            members = {label: pieces[label] for label in owners.get(shard, ())}
            objects.put(self.key(core, shard), _map_buffer()(members, compress="zstd").tobytes() if members else b"")

    def collect(self, ctx: Context, shard: int) -> dict[int, list[bytes]]:
        """Return the pieces of each label of a shard, labels ascending, pieces in block order."""
        objects = ctx.open_objects(self.fragments_uri)
        found: dict[int, list[bytes]] = {}
        for core in tile(self.bounds, self.block_shape):
            key = self.key(core, shard)
            try:
                data = objects.get(key)
            except NotFoundError as error:
                raise NotFoundError(
                    f"fragment {key} is not in {objects.uri}: the block {core} was not processed, or its fragments "
                    "were deleted; run the stage again from its first step"
                ) from error
            if data:
                for label, piece in _map_buffer()(data).items():
                    found.setdefault(int(label), []).append(bytes(piece))
        return {label: found[label] for label in sorted(found)}


# ------------------------------------------------------------------------------------------------ jobs


class _Job(FrozenModel):
    """What one IgneousTask does; its fields are the task's ``params``."""

    def run(self, ctx: Context) -> None:
        raise NotImplementedError


class _Downsample(_Job):
    """Write ``core`` of scale ``mip + 1`` from scale ``mip``."""

    uri: str
    mip: NonNegativeInt
    factor: Positive3
    core: BoxField

    def run(self, ctx: Context) -> None:
        src, dst = ctx.open_volume(self.uri, mip=self.mip), ctx.open_volume(self.uri, mip=self.mip + 1)
        box = fine_box(self.core, self.factor).intersect(src.info.bounds)
        with ctx.step("read"):
            data = src.read(box)
        with ctx.step("compute"):
            if src.info.layer == "segmentation":
                coarse = _mode(data, box=box, core=self.core, factor=self.factor)
            else:
                # igneous rounds means down, half a grey level darker at each scale.
                coarse = downsample_mean(data, self.factor, start=box.start)
        with ctx.step("write"):
            # igneous writes through cloud-volume: not atomic, and with .gz twins that other readers do not see.
            dst.write(self.core, coarse)
        ctx.count(voxels=box.n_voxels)


class _MeshForge(_Job):
    """Mesh the segments of one block."""

    uri: str
    mip: NonNegativeInt
    core: BoxField
    pieces: Pieces
    options: MeshOptions

    def run(self, ctx: Context) -> None:
        task = _collecting_mesh_task()(
            shape=self.core.shape,
            offset=self.core.start,
            layer_path=self.uri,
            mip=self.mip,
            simplification_factor=100,
            max_simplification_error=self.options.simplification_error_nm,
            mesh_dir=MESH_FOLDER,
            dust_threshold=self.options.dust_vx or None,
            fill_missing=False,
            sharded=True,
            spatial_index=False,
            closed_dataset_edges=True,
            compress=None,
            progress=False,
        )
        with ctx.step("compute"):
            task.execute()
        with ctx.step("write"):
            self.pieces.put(ctx, self.core, task.collected)
        ctx.count(voxels=self.core.n_voxels, pieces=len(task.collected))


class _MeshMerge(_Job):
    """Join the meshes of one shard and write it: several levels of detail, Draco-coded."""

    uri: str
    shard: NonNegativeInt
    pieces: Pieces
    options: MeshOptions

    def run(self, ctx: Context) -> None:
        multires = _igneous("igneous.tasks.mesh.multires")
        with ctx.step("read"):
            found = self.pieces.collect(ctx, self.shard)
        meshes = {}
        with ctx.step("compute"):
            for label in list(found):
                parts = [multires.Mesh.from_precomputed(piece) for piece in found.pop(label)]
                meshes[label] = multires.Mesh.concatenate(*parts, segid=label).consolidate()
            _, data = multires.create_mesh_shard(
                multires.CloudVolume(self.uri, progress=False),
                meshes,
                num_lod=self.options.n_lods - 1,
                draco_compression_level=self.options.draco_level,
                progress=False,
                shard_no=self.pieces.shards.name(self.shard),
                min_chunk_size=self.options.lod_chunk_vx,
            )
        _put_shard(ctx, f"{self.uri}/{MESH_FOLDER}", self.pieces.shards.name(self.shard), data)
        ctx.count(meshes=len(meshes))


class _SkeletonForge(_Job):
    """Skeletonise the segments of one block."""

    uri: str
    mip: NonNegativeInt
    core: BoxField
    pieces: Pieces
    options: SkeletonOptions

    def run(self, ctx: Context) -> None:
        o = self.options
        x, y, z = self.core.shape
        task = _igneous("igneous.tasks.skeleton").SkeletonTask(
            cloudpath=self.uri,
            # One voxel of overlap: kimimaro ends paths at the same place on both sides of a shared plane.
            shape=(x + 1, y + 1, z + 1),
            offset=self.core.start,
            mip=self.mip,
            teasar_params={
                "scale": o.scale,
                "const": o.const_nm,
                "soma_detection_threshold": o.soma_detection_nm,
                "soma_acceptance_threshold": o.soma_acceptance_nm,
                "soma_invalidation_scale": o.soma_invalidation_scale,
                "soma_invalidation_const": o.soma_invalidation_const_nm,
                "pdrf_exponent": 4,
                "pdrf_scale": 100_000,
            },
            will_postprocess=True,
            fix_branching=True,
            fix_borders=True,
            dust_threshold=o.dust_vx,
            parallel=1,
            progress=False,
            fill_missing=False,
            sharded=True,
            spatial_index=False,
            spatial_grid_shape=self.core.shape,
            dry_run=True,
        )
        with ctx.step("compute"):
            skeletons = task.execute()
            shift = self._lattice_shift_nm(ctx)
            for skeleton in skeletons.values():
                skeleton.vertices += shift
        pieces = {int(label): skeleton.to_precomputed() for label, skeleton in skeletons.items()}
        with ctx.step("write"):
            self.pieces.put(ctx, self.core, pieces)
        ctx.count(voxels=self.core.n_voxels, pieces=len(pieces))

    def _lattice_shift_nm(self, ctx: Context) -> npt.NDArray[np.float32]:
        # igneous assumes that a coarse scale begins where scale 0 begins; ours lie on one lattice through
        # voxel 0 (as Neuroglancer reads them), so an odd offset begins up to a voxel earlier.
        fine, coarse = (ctx.open_volume(self.uri, mip=mip).info for mip in (0, self.mip))
        start = np.multiply(coarse.bounds.start, coarse.voxel_size_nm)
        return (start - np.multiply(fine.bounds.start, fine.voxel_size_nm)).astype(np.float32)


class _SkeletonMerge(_Job):
    """Join the skeletons of one shard and write it."""

    uri: str
    shard: NonNegativeInt
    pieces: Pieces
    options: SkeletonOptions

    def run(self, ctx: Context) -> None:
        module = _igneous("igneous.tasks.skeleton")
        name = self.pieces.shards.name(self.shard)
        with ctx.step("read"):
            found = self.pieces.collect(ctx, self.shard)
        with ctx.step("compute"):
            unfused = {
                label: [module.Skeleton.from_precomputed(p, vertex_attributes=list(_RADIUS)) for p in parts]
                for label, parts in found.items()
            }
            task = module.ShardedSkeletonMergeTask(
                cloudpath=self.uri,
                shard_no=name,
                dust_threshold=self.options.min_cable_nm,
                tick_threshold=self.options.tick_nm,
            )
            finished = task.process_skeletons(unfused)
            # A skeleton without vertices is one that was all dust.
            finished = {label: data for label, data in finished.items() if int.from_bytes(data[:4], "little")}
            data = None
            if finished:
                creation = _igneous("igneous.task_creation.mesh")
                spec = creation.ShardingSpecification.from_dict(self.pieces.shards.document(data_encoding="raw"))
                ((_, data),) = module.synthesize_shard_files(spec, finished).items()
        _put_shard(ctx, f"{self.uri}/{SKELETON_FOLDER}", name, data)
        ctx.count(skeletons=len(finished))


class _Check(_Job):
    """Read some labels of a finished shard back, as any user would, and see that they lie inside the volume."""

    uri: str
    what: Literal["mesh", "skeletons"]
    mip: NonNegativeInt
    shard_name: str
    n_labels: NonNegativeInt

    def run(self, ctx: Context) -> None:
        objects = ctx.open_objects(f"{self.uri}/{self.what}")
        if not objects.exists(f"{self.shard_name}.shard"):
            return  # no label hashes to it
        info = ctx.open_volume(self.uri, mip=self.mip).info
        volume = _igneous("igneous.tasks.mesh.multires").CloudVolume(self.uri, progress=False)
        source = volume.mesh if self.what == "mesh" else volume.skeleton
        labels = sorted(int(v) for v in source.reader.list_labels(f"{self.shard_name}.shard", path=self.what))
        low = (np.asarray(info.bounds.start) - 1) * info.voxel_size_nm
        high = (np.asarray(info.bounds.stop) + 1) * info.voxel_size_nm
        chosen = labels[:: max(1, len(labels) // max(1, self.n_labels))][: self.n_labels]
        for label in chosen:
            loaded = source.get(label)
            vertices = (loaded[label] if isinstance(loaded, dict) else loaded).vertices
            if not len(vertices) or (vertices < low).any() or (vertices > high).any():
                raise ConflictError(
                    f"{self.what} of segment {label} in {self.uri} lies outside the volume "
                    f"{low.tolist()}..{high.tolist()} nm; the folder holds the product of another volume: "
                    f"remove {self.uri}/{self.what} and run the stage again"
                )
        ctx.count(labels=len(labels), checked=len(chosen))


class _Clean(_Job):
    """Delete the fragments of one shard."""

    shard: NonNegativeInt
    pieces: Pieces

    def run(self, ctx: Context) -> None:
        objects = ctx.open_objects(self.pieces.fragments_uri)
        for core in tile(self.pieces.bounds, self.pieces.block_shape):
            objects.delete(self.pieces.key(core, self.shard))


class _Transfer(_Job):
    """igneous's own TransferTask: copy a box from one volume to another, uncompressed so that all readers see it."""

    src_uri: str
    dst_uri: str
    mip: NonNegativeInt
    core: BoxField

    def run(self, ctx: Context) -> None:
        # The destination is checked by us first: igneous would accept a box that cuts chunks, and lose the rest.
        dst = ctx.open_volume(self.dst_uri, mip=self.mip).info
        if dst.sharding is not None or not self.core.is_aligned(dst.chunk_shape, bounds=dst.bounds):
            raise SpecError(
                f"transfer of {self.core} to {self.dst_uri}: the destination must be unsharded and the box must "
                f"cover whole chunks of {dst.chunk_shape} voxels that start at {dst.bounds.start}"
            )
        _igneous("igneous.tasks.image.image").TransferTask(
            src_path=self.src_uri,
            dest_path=self.dst_uri,
            mip=self.mip,
            shape=self.core.shape,
            offset=self.core.start,
            skip_downsamples=True,
            fill_missing=False,
            delete_black_uploads=False,
            compress=False,
        )
        ctx.count(voxels=self.core.n_voxels)


_JOBS: dict[str, type[_Job]] = {
    "downsample": _Downsample,
    "mesh_forge": _MeshForge,
    "mesh_merge": _MeshMerge,
    "skeleton_forge": _SkeletonForge,
    "skeleton_merge": _SkeletonMerge,
    "check": _Check,
    "clean": _Clean,
    "transfer": _Transfer,
}


class IgneousTask(Task):
    """Work that igneous computes: which job, and its parameters by keyword.

    Attributes
    ----------
    name
        One of the jobs this worker knows.
    params
        Its parameters; unknown keys are refused by name.
    """

    kind: Literal["igneous/1"] = "igneous/1"
    name: str
    params: dict[str, JsonValue]

    @model_validator(mode="after")
    def _job_is_known(self) -> Self:
        if self.name not in _JOBS:
            raise UnknownTaskError(f"unknown igneous job {self.name!r}; this worker has: {', '.join(_JOBS)}")
        _JOBS[self.name].load(self.params, where=f"igneous job {self.name}")
        return self

    def run(self, ctx: Context) -> None:
        """Run the job."""
        _JOBS[self.name].load(self.params, where=f"igneous job {self.name}").run(ctx)


# ------------------------------------------------------------------------------------------------ foreign tasks

# What stock igneous clients may put into a queue that we serve. Left out: tasks that delete, and the unsharded
# skeleton merge, which unpickles what lies in the bucket.
FOREIGN: dict[str, str] = {
    "CCLEquivalancesTask": "igneous.tasks.image.ccl",
    "CCLFacesTask": "igneous.tasks.image.ccl",
    "CLAHETask": "igneous.tasks.image.image",
    "ContrastNormalizationTask": "igneous.tasks.image.image",
    "CountVoxelsTask": "igneous.tasks.image.image",
    "DownsampleTask": "igneous.tasks.image.image",
    "ImageShardDownsampleTask": "igneous.tasks.image.image",
    "ImageShardTransferTask": "igneous.tasks.image.image",
    "LuminanceLevelsTask": "igneous.tasks.image.image",
    "MeshManifestFilesystemTask": "igneous.tasks.mesh.mesh",
    "MeshManifestPrefixTask": "igneous.tasks.mesh.mesh",
    "MeshTask": "igneous.tasks.mesh.mesh",
    "MultiResShardedMeshMergeTask": "igneous.tasks.mesh.multires",
    "MultiResUnshardedMeshMergeTask": "igneous.tasks.mesh.multires",
    "RelabelCCLTask": "igneous.tasks.image.ccl",
    "ShardedSkeletonMergeTask": "igneous.tasks.skeleton",
    "SkeletonTask": "igneous.tasks.skeleton",
    "SpatialIndexTask": "igneous.tasks.spatial_index",
    "TouchTask": "igneous.tasks.image.image",
    "TransferTask": "igneous.tasks.image.image",
}


def run_foreign(payload: Mapping[str, Any] | list[Any]) -> None:
    """Run a task that a stock igneous client has queued.

    Parameters
    ----------
    payload
        task-queue's wire form: ``{"class": name, argument: value, ...}`` for a class, or
        ``[[module, name], positional, keywords, id]`` for a function.

    Raises
    ------
    UnknownTaskError
        If the name is not on the list of known igneous tasks; the list is in the message.
    SpecError
        If the arguments do not fit the task.
    """
    positional: list[Any] = []
    if isinstance(payload, Mapping):
        keywords = {str(k): v for k, v in payload.items() if k != "class"}
        name = str(payload.get("class"))
    else:
        try:
            (module, name), positional, keywords, _ = payload
        except (TypeError, ValueError) as error:
            raise UnknownTaskError(f"not a payload of task-queue: {str(payload)[:120]}") from error
        if FOREIGN.get(name) != module:
            name = f"{module}.{name}"
    if name not in FOREIGN:
        raise UnknownTaskError(f"unknown igneous task {name!r}; this worker runs: {', '.join(FOREIGN)}")
    target = getattr(_igneous(FOREIGN[name]), name)
    if not isinstance(target, type):
        # The function itself; calling task-queue's wrapper would be the same, but only inside a queue.
        run: Callable[..., Any] = target
    else:
        run = lambda *a, **k: target(*a, **k).execute()  # noqa: E731
    _check_arguments(target, name, positional, keywords)
    run(*positional, **keywords)


# ------------------------------------------------------------------------------------------------ stages


class DownsampleStage(Stage):
    """Coarser scales of finished layers, one step a scale.

    Attributes
    ----------
    layers
        Which layers get them.
    n_mips
        How many; None makes them until a scale fits into one chunk.
    factor
        Fine voxels in a coarse one; None brings voxels towards cubes (2, 2, 1 for thin sections).
    block_shape
        Coarse voxels that one task writes, rounded up to whole chunks (or shards).
    """

    kind: Literal["downsample"] = "downsample"
    layers: tuple[str, ...] = ("segmentation",)
    n_mips: PositiveInt | None = None
    factor: Positive3 | None = None
    block_shape: Positive3 = (128, 128, 128)

    def expand(self, site: Site) -> StagePlan:
        """Plan one step for each scale."""
        layers = [site.layer(name, wanted_by=self.label) for name in self.layers]
        pyramids = [pyramid(layer.info, n_mips=self.n_mips, factor=self.factor) for layer in layers]
        steps = []
        for mip in range(max((len(p) for p in pyramids), default=0)):
            jobs = [
                (layer, p[mip - 1][0] if mip else layer.info, *p[mip])
                for layer, p in zip(layers, pyramids, strict=True)
                if mip < len(p)
            ]
            steps.append(self._step(mip, jobs))
        return StagePlan(
            name=self.label,
            layers=(),
            steps=tuple(steps),
            outputs_bytes=sum(i.bounds.n_voxels * i.numpy_dtype.itemsize // 10 for p in pyramids for i, _ in p),
        )

    def _step(self, mip: int, jobs: list[tuple[Layer, VolumeInfo, VolumeInfo, XYZ]]) -> Step:
        def blocks(info: VolumeInfo) -> XYZ:
            x, y, z = (-(-b // g) * g for b, g in zip(self.block_shape, info.write_grid, strict=True))
            return (x, y, z)

        def tasks() -> Iterator[Task]:
            for layer, _, info, factor in jobs:
                for core in tile(info.bounds, blocks(info)):
                    job = _Downsample(uri=layer.uri, mip=mip, factor=factor, core=core)
                    yield _task("downsample", job)

        def prepare() -> None:
            for layer, _, info, _ in jobs:
                create_volume(layer.uri, info, mip=mip + 1)

        return Step(
            name=f"{self.label}.mip{mip + 1}",
            n_tasks=sum(math.prod(grid_shape(info.bounds, blocks(info))) for _, _, info, _ in jobs),
            tasks=tasks,
            prepare=prepare,
            task_memory_bytes=max(
                2 * math.prod(blocks(info)) * math.prod(factor) * fine.numpy_dtype.itemsize * fine.n_channels
                for _, fine, info, factor in jobs
            ),
        )


class MeshesStage(Stage, ShardingOptions, MeshOptions):
    """Meshes of all segments: sharded, several levels of detail, Draco-coded. Also takes the options it inherits.

    Attributes
    ----------
    layer, mip
        The segmentation, and the scale of it that is meshed.
    block_shape
        Voxels of that scale that one task meshes.
    """

    kind: Literal["meshes"] = "meshes"
    layer: str = "segmentation"
    mip: NonNegativeInt = 0
    block_shape: Positive3 = (256, 256, 256)

    def expand(self, site: Site) -> StagePlan:
        """Plan the steps forge, merge, check and clean."""
        options = _pick(MeshOptions, self)

        def document(info: VolumeInfo, shards: Shards) -> dict[str, Any]:
            x, y, z = info.voxel_size_nm
            return {
                "@type": "neuroglancer_multilod_draco",
                "vertex_quantization_bits": options.quantization_bits,
                "transform": [x, 0, 0, 0, 0, y, 0, 0, 0, 0, z, 0],
                "lod_scale_multiplier": 1.0,
                "mip": self.mip,
                "sharding": shards.document(data_encoding="raw"),
            }

        return _fragment_stage(
            self,
            site,
            sharding=_pick(ShardingOptions, self),
            what=MESH_FOLDER,
            forge=lambda **k: _task("mesh_forge", _MeshForge(options=options, **k)),
            merge=lambda **k: _task("mesh_merge", _MeshMerge(options=options, **k)),
            document=document,
        )


class SkeletonsStage(Stage, ShardingOptions, SkeletonOptions):
    """Skeletons of all segments, sharded. Also takes the options it inherits.

    Attributes
    ----------
    layer, mip
        The segmentation, and the scale of it that is skeletonised.
    block_shape
        Voxels of that scale that one task skeletonises.
    """

    kind: Literal["skeletons"] = "skeletons"
    layer: str = "segmentation"
    mip: NonNegativeInt = 0
    block_shape: Positive3 = (256, 256, 256)

    def expand(self, site: Site) -> StagePlan:
        """Plan the steps forge, merge, check and clean."""
        options = _pick(SkeletonOptions, self)

        def document(info: VolumeInfo, shards: Shards) -> dict[str, Any]:  # noqa: ARG001
            return {
                "@type": "neuroglancer_skeletons",
                "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
                "vertex_attributes": list(_RADIUS),
                "mip": self.mip,
                "sharding": shards.document(data_encoding="raw"),
            }

        return _fragment_stage(
            self,
            site,
            sharding=_pick(ShardingOptions, self),
            what=SKELETON_FOLDER,
            forge=lambda **k: _task("skeleton_forge", _SkeletonForge(options=options, **k)),
            merge=lambda **k: _task("skeleton_merge", _SkeletonMerge(options=options, **k)),
            document=document,
        )


def pyramid(
    info: VolumeInfo, *, n_mips: int | None = None, factor: XYZ | None = None
) -> list[tuple[VolumeInfo, XYZ]]:
    """Return the scales above ``info``, finest first, each with its factor to the one before.

    Parameters
    ----------
    info
        Scale 0.
    n_mips
        How many; None stops at the first that fits into one chunk. Stops anyway where no axis is left to halve.
    factor
        The same factor each time, or None for the one that brings voxels towards cubes.
    """
    found: list[tuple[VolumeInfo, XYZ]] = []
    while n_mips is None or len(found) < n_mips:
        if n_mips is None and all(s <= c for s, c in zip(info.shape, info.chunk_shape, strict=True)):
            break
        step = factor or next_factor(info.voxel_size_nm, info.shape)
        if step == (1, 1, 1):
            break
        x, y, z = (s * f for s, f in zip(info.voxel_size_nm, step, strict=True))
        fields = info.model_copy(
            update={"bounds": coarse_box(info.bounds, step), "voxel_size_nm": (x, y, z), "sharding": None}
        )
        info = fields.model_copy(update={"sharding": sharding_for(fields)}) if info.sharding else fields
        found.append((info, step))
    return found


def _fragment_stage(
    stage: MeshesStage | SkeletonsStage,
    site: Site,
    *,
    sharding: ShardingOptions,
    what: Literal["mesh", "skeletons"],
    forge: Callable[..., Task],
    merge: Callable[..., Task],
    document: Callable[[VolumeInfo, Shards], dict[str, Any]],
) -> StagePlan:
    """Plan forge (a task per block), merge, check and clean (a task per shard each)."""
    layer = site.layer(stage.layer, wanted_by=stage.label)
    if layer.info.layer != "segmentation" or layer.info.n_channels != 1:
        raise SpecError(
            f"stage {stage.label!r} needs a segmentation, but layer {stage.layer!r} at {layer.uri} is of type "
            f"{layer.info.layer!r} with {layer.info.n_channels} channel(s); set layer to a segmentation"
        )
    if layer.uri.startswith("memory://"):
        raise SpecError(
            f"stage {stage.label!r} runs igneous, which cannot read {layer.uri}: set root to a file://, gs:// or "
            "s3:// address, or leave the stage out"
        )
    coarser = pyramid(layer.info, n_mips=stage.mip) if stage.mip else []
    if stage.mip and len(coarser) < stage.mip:
        raise SpecError(
            f"stage {stage.label!r} asks for mip {stage.mip} of {stage.layer!r}, which can have {len(coarser)} coarser "
            "scales; lower mip"
        )
    info = coarser[-1][0] if coarser else layer.info
    shards = Shards.for_voxels(info.bounds.n_voxels, voxels_per_shard=sharding.voxels_per_shard)
    pieces = Pieces(
        fragments_uri=f"{site.root.rstrip('/')}/fragments/{stage.label}",
        bounds=info.bounds,
        block_shape=_without_thin_blocks(info.bounds, stage.block_shape),
        shards=shards,
    )

    def forge_tasks() -> Iterator[Task]:
        for core in tile(pieces.bounds, pieces.block_shape):
            yield forge(uri=layer.uri, mip=stage.mip, core=core, pieces=pieces)

    def merge_tasks() -> Iterator[Task]:
        for shard in range(shards.n):
            yield merge(uri=layer.uri, shard=shard, pieces=pieces)

    def check_tasks() -> Iterator[Task]:
        for shard in range(shards.n):
            yield _task(
                "check",
                _Check(
                    uri=layer.uri,
                    what=what,
                    mip=stage.mip,
                    shard_name=shards.name(shard),
                    n_labels=sharding.check_labels,
                ),
            )

    def clean_tasks() -> Iterator[Task]:
        for shard in range(shards.n):
            yield _task("clean", _Clean(shard=shard, pieces=pieces))

    block_bytes = math.prod(min(b, s) for b, s in zip(pieces.block_shape, info.shape, strict=True)) * 8
    steps = [
        # Labels, igneous's copy of them, and the pieces: measured at 3 to 5 times the labels.
        Step(
            f"{stage.label}.forge",
            pieces.n_blocks,
            forge_tasks,
            prepare=lambda: _require_scale(layer, info, mip=stage.mip, wanted_by=stage.label),
            task_memory_bytes=5 * block_bytes,
        ),
        Step(
            f"{stage.label}.merge",
            shards.n,
            merge_tasks,
            prepare=lambda: _publish(site, layer.uri, what, document(info, shards)),
            task_memory_bytes=2 * min(info.bounds.n_voxels, sharding.voxels_per_shard),
        ),
    ]
    if sharding.check_labels:
        steps.append(Step(f"{stage.label}.check", shards.n, check_tasks))
    if not sharding.keep_fragments:
        steps.append(Step(f"{stage.label}.clean", shards.n, clean_tasks))
    return StagePlan(
        name=stage.label, layers=(), steps=tuple(steps), outputs_bytes=info.bounds.n_voxels // 4
    )


# ------------------------------------------------------------------------------------------------ helpers


def _task(name: str, job: _Job) -> IgneousTask:
    return IgneousTask(name=name, params=job.model_dump(mode="json"))


def _pick(options: type[Options], stage: FrozenModel) -> Options:
    """Return the options that a stage inherits, as the one object that is passed on."""
    return options(**{name: getattr(stage, name) for name in options.model_fields})


def _without_thin_blocks(bounds: Box, block_shape: XYZ) -> XYZ:
    # A last block of one voxel would make igneous close the surface of the block before it twice.
    found = []
    for size, block in zip(bounds.shape, block_shape, strict=True):
        wide = block
        while wide < size and size % wide == 1:
            wide += 1
        found.append(wide)
    return (found[0], found[1], found[2])


def _require_scale(layer: Layer, info: VolumeInfo, *, mip: int, wanted_by: str) -> None:
    have = scales(layer.uri)
    if mip >= len(have):
        raise SpecError(
            f"stage {wanted_by!r} wants mip {mip} of {layer.uri}, which has {len(have)} scale(s); "
            f"put a downsample stage before {wanted_by!r}, or lower its mip"
        )
    if have[mip].bounds != info.bounds or not np.allclose(have[mip].voxel_size_nm, info.voxel_size_nm):
        raise ConflictError(
            f"stage {wanted_by!r} expects mip {mip} of {layer.uri} to cover {info.bounds} at {info.voxel_size_nm} nm, "
            f"but it covers {have[mip].bounds} at {have[mip].voxel_size_nm} nm; "
            "downsample with the default factor, or use mip 0"
        )


def _publish(site: Site, uri: str, what: str, document: dict[str, Any]) -> None:
    """Write the product's own ``info`` and name it in the segmentation's; the same again does nothing."""
    objects = site.open_objects(f"{uri}/{what}")
    text = json.dumps(document, indent=1)
    if not objects.put_if_absent("info", text.encode()):
        have = json.loads(objects.get("info"))
        if have != json.loads(text):
            differing = sorted(k for k in {*have, *document} if have.get(k) != json.loads(text).get(k))
            raise ConflictError(
                f"{objects.uri} holds a product made with other settings ({', '.join(differing)}); "
                "remove the folder, or ask for the same settings"
            )
    update_info(uri, **{what: what})


def _put_shard(ctx: Context, uri: str, name: str, data: bytes | None) -> None:
    objects: Objects = ctx.open_objects(uri)
    with ctx.step("write"):
        if data is None:
            objects.delete(f"{name}.shard")
        else:
            objects.put(f"{name}.shard", data)


def _mode(labels: Array, *, box: Box, core: Box, factor: XYZ) -> Array:
    """Downsample with the compiled kernel of igneous where it has one for the factor; the same result as ours."""
    if factor not in ((2, 2, 1), (2, 2, 2)) or box != fine_box(core, factor):
        return downsample_mode(labels, factor, start=box.start)
    image = _igneous("igneous.tasks.image.image")
    (coarse,) = image.tinybrain.downsample_segmentation(labels, factor, num_mips=1)
    return np.asfortranarray(coarse)


def _igneous(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("igneous-pipeline", extra="tasks") from error


def _map_buffer() -> Any:
    return _igneous("igneous.tasks.mesh.multires").MapBuffer


def _collecting_mesh_task() -> Any:
    """Return igneous's MeshTask, which hands over its meshes instead of uploading them."""
    mesh_task = _igneous("igneous.tasks.mesh.mesh").MeshTask

    class CollectingMeshTask(mesh_task):  # type: ignore[misc, valid-type]
        def __init__(self, shape: XYZ, offset: XYZ, layer_path: str, **options: Any) -> None:
            super().__init__(shape, offset, layer_path, **options)
            self.collected: dict[int, bytes] = {}

        def _upload_batch(self, meshes: dict[int, bytes], bbox: object) -> None:  # noqa: ARG002
            self.collected = {int(label): bytes(data) for label, data in meshes.items()}

    return CollectingMeshTask


def _check_arguments(target: Any, name: str, positional: list[Any], keywords: Mapping[str, Any]) -> None:
    import inspect

    try:
        inspect.signature(target).bind(*positional, **keywords)
    except TypeError as error:
        raise SpecError(f"igneous task {name} does not take these arguments: {error}") from error
