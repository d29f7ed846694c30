"""The stages downsample, meshes and skeletons: what they would do, worked out without touching anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from cloudseg.errors import ConflictError, SpecError
from cloudseg.geometry import XYZ, Box, grid_shape, tile
from cloudseg.ops.downsample import coarse_box, next_factor
from cloudseg.specs import FrozenModel
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, Stage, StagePlan, Step
from cloudseg.tasking.task import Task
from cloudseg.volumes import create_volume, scales, sharding_for, update_info
from cloudseg.volumes.protocol import Positive3, VolumeInfo
from cloudseg_tasks.igneous.fragments import Pieces, Shards
from cloudseg_tasks.igneous.jobs import (
    MESH_FOLDER,
    RADIUS,
    SKELETON_FOLDER,
    CheckJob,
    CleanJob,
    DownsampleJob,
    MeshForgeJob,
    MeshMergeJob,
    SkeletonForgeJob,
    SkeletonMergeJob,
    igneous_task,
)
from cloudseg_tasks.igneous.options import MeshOptions, ShardingOptions, SkeletonOptions

Options = TypeVar("Options", bound=FrozenModel)

# Bytes per voxel, measured on fib25: labels, igneous's renumbered and bordered copies of them, and the pieces;
# the pieces of a shard, joined and coded.
_FORGE_BYTES_PER_VOXEL = 40
_MERGE_BYTES_PER_VOXEL = 3
# A byte of fine labels is read, decoded and pooled: measured on fib25.
_POOL_BYTES_PER_BYTE = 2.4


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
            outputs_bytes=sum(
                i.bounds.n_voxels * i.numpy_dtype.itemsize // 10 for p in pyramids for i, _ in p
            ),
        )

    def _step(self, mip: int, jobs: list[tuple[Layer, VolumeInfo, VolumeInfo, XYZ]]) -> Step:
        def blocks(info: VolumeInfo) -> XYZ:
            x, y, z = (-(-b // g) * g for b, g in zip(self.block_shape, info.write_grid, strict=True))
            return (x, y, z)

        def tasks() -> Iterator[Task]:
            for layer, _, info, factor in jobs:
                for core in tile(info.bounds, blocks(info)):
                    job = DownsampleJob(uri=layer.uri, mip=mip, factor=factor, core=core)
                    yield igneous_task("downsample", job)

        def prepare() -> None:
            for layer, _, info, _ in jobs:
                create_volume(layer.uri, info, mip=mip + 1)

        return Step(
            name=f"{self.label}.mip{mip + 1}",
            n_tasks=sum(math.prod(grid_shape(info.bounds, blocks(info))) for _, _, info, _ in jobs),
            tasks=tasks,
            prepare=prepare,
            task_memory_bytes=base_bytes(["numba"])
            + max(
                int(
                    _POOL_BYTES_PER_BYTE
                    * math.prod(
                        min(s, b * f) for s, b, f in zip(fine.shape, blocks(info), factor, strict=True)
                    )
                    * fine.numpy_dtype.itemsize
                    * fine.n_channels
                )
                for _, fine, info, factor in jobs
            ),
            libraries=("numba",),
        )


class _FragmentStage(Stage, ShardingOptions):
    """A product of all segments that blocks leave in pieces and that is finished shard by shard.

    Subclasses say which jobs make it and what its own ``info`` says.
    """

    layer: str = "segmentation"
    mip: NonNegativeInt = 0
    block_shape: Positive3 = (256, 256, 256)

    _folder: ClassVar[Literal["mesh", "skeletons"]]

    def expand(self, site: Site) -> StagePlan:
        """Plan forge (a task per block), merge, check and clean (a task per shard each)."""
        layer = site.layer(self.layer, wanted_by=self.label)
        if layer.info.layer != "segmentation" or layer.info.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} needs a segmentation, but layer {self.layer!r} at {layer.uri} is of type "
                f"{layer.info.layer!r} with {layer.info.n_channels} channel(s); set layer to a segmentation"
            )
        if layer.uri.startswith("memory://"):
            raise SpecError(
                f"stage {self.label!r} runs igneous, which cannot read {layer.uri}: set root to a file://, gs:// or "
                "s3:// address, or leave the stage out"
            )
        coarser = pyramid(layer.info, n_mips=self.mip) if self.mip else []
        if self.mip and len(coarser) < self.mip:
            raise SpecError(
                f"stage {self.label!r} asks for mip {self.mip} of {self.layer!r}, which can have {len(coarser)} "
                "coarser scales; lower mip"
            )
        info = coarser[-1][0] if coarser else layer.info
        shards = Shards.for_voxels(info.bounds.n_voxels, voxels_per_shard=self.voxels_per_shard)
        pieces = Pieces(
            fragments_uri=f"{site.root.rstrip('/')}/fragments/{self.label}",
            bounds=info.bounds,
            block_shape=_without_thin_blocks(info.bounds, self.block_shape),
            shards=shards,
        )

        def forge_tasks() -> Iterator[Task]:
            for core in tile(pieces.bounds, pieces.block_shape):
                yield self._forge(uri=layer.uri, mip=self.mip, core=core, pieces=pieces)

        def merge_tasks() -> Iterator[Task]:
            for shard in range(shards.n):
                yield self._merge(uri=layer.uri, shard=shard, pieces=pieces)

        def check_tasks() -> Iterator[Task]:
            for shard in range(shards.n):
                yield igneous_task(
                    "check",
                    CheckJob(
                        uri=layer.uri,
                        what=self._folder,
                        mip=self.mip,
                        shard_name=shards.name(shard),
                        n_labels=self.check_labels,
                    ),
                )

        def clean_tasks() -> Iterator[Task]:
            for shard in range(shards.n):
                yield igneous_task("clean", CleanJob(shard=shard, pieces=pieces))

        n_block = math.prod(min(b, s) for b, s in zip(pieces.block_shape, info.shape, strict=True))
        steps = [
            Step(
                f"{self.label}.forge",
                pieces.n_blocks,
                forge_tasks,
                prepare=lambda: _require_scale(layer, info, mip=self.mip, wanted_by=self.label),
                task_memory_bytes=base_bytes(["igneous"]) + _FORGE_BYTES_PER_VOXEL * n_block,
                libraries=("igneous",),
            ),
            Step(
                f"{self.label}.merge",
                shards.n,
                merge_tasks,
                prepare=lambda: _publish(site, layer.uri, self._folder, self._document(info, shards)),
                task_memory_bytes=base_bytes(["igneous"])
                + _MERGE_BYTES_PER_VOXEL * min(info.bounds.n_voxels, self.voxels_per_shard),
                libraries=("igneous",),
            ),
        ]
        if self.check_labels:
            steps.append(
                Step(
                    f"{self.label}.check",
                    shards.n,
                    check_tasks,
                    task_memory_bytes=base_bytes(["igneous"]),
                    libraries=("igneous",),
                )
            )
        if not self.keep_fragments:
            steps.append(Step(f"{self.label}.clean", shards.n, clean_tasks, task_memory_bytes=base_bytes([])))
        return StagePlan(
            name=self.label, layers=(), steps=tuple(steps), outputs_bytes=info.bounds.n_voxels // 4
        )

    def _forge(self, **where: Any) -> Task:
        """Return the task that leaves the pieces of one block."""
        raise NotImplementedError

    def _merge(self, **where: Any) -> Task:
        """Return the task that finishes one shard."""
        raise NotImplementedError

    def _document(self, info: VolumeInfo, shards: Shards) -> dict[str, Any]:
        """Return the product's own ``info``."""
        raise NotImplementedError


class MeshesStage(_FragmentStage, MeshOptions):
    """Meshes of all segments: sharded, several levels of detail, Draco-coded. Also takes the options it inherits.

    Attributes
    ----------
    layer, mip
        The segmentation, and the scale of it that is meshed.
    block_shape
        Voxels of that scale that one task meshes.
    """

    kind: Literal["meshes"] = "meshes"

    _folder: ClassVar[Literal["mesh"]] = MESH_FOLDER

    def _forge(self, **where: Any) -> Task:
        return igneous_task("mesh_forge", MeshForgeJob(options=_pick(MeshOptions, self), **where))

    def _merge(self, **where: Any) -> Task:
        return igneous_task("mesh_merge", MeshMergeJob(options=_pick(MeshOptions, self), **where))

    def _document(self, info: VolumeInfo, shards: Shards) -> dict[str, Any]:
        x, y, z = info.voxel_size_nm
        return {
            "@type": "neuroglancer_multilod_draco",
            "vertex_quantization_bits": self.quantization_bits,
            "transform": [x, 0, 0, 0, 0, y, 0, 0, 0, 0, z, 0],
            "lod_scale_multiplier": 1.0,
            "mip": self.mip,
            "sharding": shards.document(data_encoding="raw"),
        }


class SkeletonsStage(_FragmentStage, SkeletonOptions):
    """Skeletons of all segments, sharded. Also takes the options it inherits.

    Attributes
    ----------
    layer, mip
        The segmentation, and the scale of it that is skeletonised.
    block_shape
        Voxels of that scale that one task skeletonises.
    """

    kind: Literal["skeletons"] = "skeletons"

    _folder: ClassVar[Literal["skeletons"]] = SKELETON_FOLDER

    def _forge(self, **where: Any) -> Task:
        return igneous_task("skeleton_forge", SkeletonForgeJob(options=_pick(SkeletonOptions, self), **where))

    def _merge(self, **where: Any) -> Task:
        return igneous_task("skeleton_merge", SkeletonMergeJob(options=_pick(SkeletonOptions, self), **where))

    def _document(self, info: VolumeInfo, shards: Shards) -> dict[str, Any]:  # noqa: ARG002
        return {
            "@type": "neuroglancer_skeletons",
            "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
            "vertex_attributes": list(RADIUS),
            "mip": self.mip,
            "sharding": shards.document(data_encoding="raw"),
        }


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
