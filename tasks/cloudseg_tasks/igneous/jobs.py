"""The jobs of an :class:`IgneousTask`: igneous computes, reading and writing are ours."""

from __future__ import annotations

from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue, NonNegativeInt, model_validator

from cloudseg.errors import ConflictError, SpecError, UnknownTaskError
from cloudseg.geometry import tile
from cloudseg.ops.downsample import downsample_mean, downsample_mode, fine_box
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.task import Context, Task
from cloudseg.volumes.protocol import Positive3
from cloudseg_tasks.igneous.engine import collecting_mesh_task, engine
from cloudseg_tasks.igneous.fragments import Pieces
from cloudseg_tasks.igneous.options import MeshOptions, SkeletonOptions

MESH_FOLDER: Final = "mesh"
SKELETON_FOLDER: Final = "skeletons"
RADIUS = ({"id": "radius", "data_type": "float32", "num_components": 1},)


class Job(FrozenModel):
    """What one IgneousTask does; its fields are the task's ``params``."""

    def run(self, ctx: Context) -> None:
        """Do the work."""
        raise NotImplementedError


class DownsampleJob(Job):
    """Write ``core`` of scale ``mip + 1`` from scale ``mip``."""

    uri: str
    mip: NonNegativeInt
    factor: Positive3
    core: BoxField

    def run(self, ctx: Context) -> None:
        """Read, pool, write."""
        src, dst = ctx.open_volume(self.uri, mip=self.mip), ctx.open_volume(self.uri, mip=self.mip + 1)
        box = fine_box(self.core, self.factor).intersect(src.info.bounds)
        with ctx.step("read"):
            data = src.read(box)
        with ctx.step("compute"):
            # Not igneous's kernels: they round means down (half a grey level darker at each scale) and start cells
            # at the block, not at voxel 0, so an odd offset would shift the coarse scale.
            pool = downsample_mode if src.info.layer == "segmentation" else downsample_mean
            coarse = pool(data, self.factor, start=box.start)
        with ctx.step("write"):
            # Nor its writer: cloud-volume is not atomic on disks and leaves .gz files that other readers do not see.
            dst.write(self.core, coarse)
        ctx.count(voxels=box.n_voxels)


class MeshForgeJob(Job):
    """Mesh the segments of one block."""

    uri: str
    mip: NonNegativeInt
    core: BoxField
    pieces: Pieces
    options: MeshOptions

    def run(self, ctx: Context) -> None:
        """Run igneous's MeshTask and keep its pieces."""
        task = collecting_mesh_task()(
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


class MeshMergeJob(Job):
    """Join the meshes of one shard and write it: several levels of detail, Draco-coded."""

    uri: str
    shard: NonNegativeInt
    pieces: Pieces
    options: MeshOptions

    def run(self, ctx: Context) -> None:
        """Collect the pieces of the shard, join, code, write."""
        multires = engine("igneous.tasks.mesh.multires")
        with ctx.step("read"):
            found = self.pieces.collect(ctx, self.shard)
        n_found = len(found)
        meshes: dict[int, bytes] = {}
        manifest_at: dict[int, int] = {}
        data = None
        with ctx.step("compute"):
            volume = multires.CloudVolume(self.uri, progress=False)
            for label in sorted(found):
                parts = [multires.Mesh.from_precomputed(piece) for piece in found.pop(label)]
                manifest, binary = multires.process_mesh(
                    volume,
                    label,
                    multires.Mesh.concatenate(*parts, segid=label).consolidate(),
                    num_lod=self.options.n_lods - 1,
                    min_chunk_size=self.options.lod_chunk_vx,
                    draco_compression_level=self.options.draco_level,
                )
                if manifest is None or not binary:
                    continue  # simplified to nothing: single voxels
                manifest_at[label] = len(manifest)
                meshes[label] = binary + manifest.to_binary()
            n_meshes = len(meshes)
            if meshes:
                files = multires.synthesize_shard_files(volume.mesh.reader.spec, meshes, manifest_at)
                ((_, data),) = files.items()
        _put_shard(ctx, f"{self.uri}/{MESH_FOLDER}", self.pieces.shards.name(self.shard), data)
        ctx.count(meshes=n_meshes, too_small_to_mesh=n_found - n_meshes)


class SkeletonForgeJob(Job):
    """Skeletonise the segments of one block."""

    uri: str
    mip: NonNegativeInt
    core: BoxField
    pieces: Pieces
    options: SkeletonOptions

    def run(self, ctx: Context) -> None:
        """Run igneous's SkeletonTask and keep its pieces."""
        o = self.options
        x, y, z = self.core.shape
        task = engine("igneous.tasks.skeleton").SkeletonTask(
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


class SkeletonMergeJob(Job):
    """Join the skeletons of one shard and write it."""

    uri: str
    shard: NonNegativeInt
    pieces: Pieces
    options: SkeletonOptions

    def run(self, ctx: Context) -> None:
        """Collect the pieces of the shard, join, prune, write."""
        module = engine("igneous.tasks.skeleton")
        name = self.pieces.shards.name(self.shard)
        with ctx.step("read"):
            found = self.pieces.collect(ctx, self.shard)
        with ctx.step("compute"):
            unfused = {
                label: [module.Skeleton.from_precomputed(p, vertex_attributes=list(RADIUS)) for p in parts]
                for label, parts in found.items()
            }
            task = module.ShardedSkeletonMergeTask(
                cloudpath=self.uri,
                shard_no=name,
                dust_threshold=self.options.min_cable_nm,
                tick_threshold=self.options.tick_nm,
            )
            n_found = len(unfused)
            finished = task.process_skeletons(unfused)
            # A skeleton without vertices is one that was all dust.
            finished = {label: data for label, data in finished.items() if int.from_bytes(data[:4], "little")}
            n_finished = len(finished)
            data = None
            if finished:
                creation = engine("igneous.task_creation.mesh")
                spec = creation.ShardingSpecification.from_dict(
                    self.pieces.shards.document(data_encoding="raw")
                )
                ((_, data),) = module.synthesize_shard_files(spec, finished).items()
        _put_shard(ctx, f"{self.uri}/{SKELETON_FOLDER}", name, data)
        ctx.count(skeletons=n_finished, all_dust=n_found - n_finished)


class CheckJob(Job):
    """Read some labels of a finished shard back, as any user would, and see that they lie inside the volume."""

    uri: str
    what: Literal["mesh", "skeletons"]
    mip: NonNegativeInt
    shard_name: str
    n_labels: NonNegativeInt

    def run(self, ctx: Context) -> None:
        """Load through cloud-volume, compare with the bounds."""
        objects = ctx.open_objects(f"{self.uri}/{self.what}")
        if not objects.exists(f"{self.shard_name}.shard"):
            return  # no label hashes to it
        info = ctx.open_volume(self.uri, mip=self.mip).info
        volume = engine("igneous.tasks.mesh.multires").CloudVolume(self.uri, progress=False)
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


class CleanJob(Job):
    """Delete the fragments of one shard."""

    shard: NonNegativeInt
    pieces: Pieces

    def run(self, ctx: Context) -> None:
        """Delete one object per block; what is gone already is left so."""
        objects = ctx.open_objects(self.pieces.fragments_uri)
        for core in tile(self.pieces.bounds, self.pieces.block_shape):
            objects.delete(self.pieces.key(core, self.shard))


class TransferJob(Job):
    """igneous's own TransferTask: copy a box from one volume to another, uncompressed so that all readers see it."""

    src_uri: str
    dst_uri: str
    mip: NonNegativeInt
    core: BoxField

    def run(self, ctx: Context) -> None:
        """Refuse boxes that cut chunks, then run igneous's task."""
        # The destination is checked by us first: igneous would accept a box that cuts chunks, and lose the rest.
        dst = ctx.open_volume(self.dst_uri, mip=self.mip).info
        if dst.sharding is not None or not self.core.is_aligned(dst.chunk_shape, bounds=dst.bounds):
            raise SpecError(
                f"transfer of {self.core} to {self.dst_uri}: the destination must be unsharded and the box must "
                f"cover whole chunks of {dst.chunk_shape} voxels that start at {dst.bounds.start}"
            )
        engine("igneous.tasks.image.image").TransferTask(
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


JOBS: dict[str, type[Job]] = {
    "downsample": DownsampleJob,
    "mesh_forge": MeshForgeJob,
    "mesh_merge": MeshMergeJob,
    "skeleton_forge": SkeletonForgeJob,
    "skeleton_merge": SkeletonMergeJob,
    "check": CheckJob,
    "clean": CleanJob,
    "transfer": TransferJob,
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
        if self.name not in JOBS:
            raise UnknownTaskError(f"unknown igneous job {self.name!r}; this worker has: {', '.join(JOBS)}")
        JOBS[self.name].load(self.params, where=f"igneous job {self.name}")
        return self

    def run(self, ctx: Context) -> None:
        """Run the job."""
        JOBS[self.name].load(self.params, where=f"igneous job {self.name}").run(ctx)


def igneous_task(name: str, job: Job) -> IgneousTask:
    """Return the task that runs ``job``."""
    return IgneousTask(name=name, params=job.model_dump(mode="json"))


def _put_shard(ctx: Context, uri: str, name: str, data: bytes | None) -> None:
    objects = ctx.open_objects(uri)
    with ctx.step("write"):
        if data is None:
            objects.delete(f"{name}.shard")
        else:
            objects.put(f"{name}.shard", data)
