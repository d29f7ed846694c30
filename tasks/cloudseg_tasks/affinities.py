"""Affinities: run a network over an image, block by block, on the volume's own lattice of patches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box
from cloudseg.models.network import Network
from cloudseg.models.package import ModelDescription, load_spec
from cloudseg.models.shared import SharedNetwork
from cloudseg.models.stream import predict_block
from cloudseg.ops.affinities import NEAREST
from cloudseg.ops.lattice import PatchLattice
from cloudseg.specs import FrozenModel
from cloudseg.tasking.blocks import LatticeStage, TissueBlocks
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.mask import TissueMask
from cloudseg.volumes.protocol import Volume, VolumeInfo

_IMAGE_TYPES = ("uint8", "uint16", "float32")


class AffinitiesOptions(FrozenModel):
    """How affinities are predicted.

    Attributes
    ----------
    model
        A name that comes with cloudseg (``fib25``), or the address of a model package.
    offsets
        Which affinities to keep, one channel each; the segmentation needs the three nearest (the default).
    mip
        Which scale of the image to read.
    grey_range
        Image values that mean black and white; by default the whole range of the type (0 to 1 for float32).
    missing
        What a chunk of the image that was never written means.
    mask
        Address of a tissue mask (0 = no tissue) at any scale whose voxels are whole multiples of the image's.
        Blocks without tissue get no task, patches without tissue are not computed, and voxels without tissue get
        affinity 0.
    mask_mip
        Which scale of the mask to read.
    device
        ``auto`` takes a CUDA GPU if the worker has one.
    precision
        ``auto`` computes in bfloat16 where the worker does so natively. The two give slightly different
        affinities: name one where workers of different kinds share a run. Receipts count the patches of each.
    batch_size
        Patches per forward pass on a GPU, of several tasks where a worker's tasks share a network; a CPU computes one
        patch per core at a time.
    """

    model: str = "fib25"
    offsets: Annotated[tuple[XYZ, ...], Field(min_length=1)] = NEAREST
    mip: Annotated[int, Field(ge=0)] = 0
    grey_range: tuple[float, float] | None = None
    missing: Literal["error", "zero"] = "error"
    mask: str | None = None
    mask_mip: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: PositiveInt = 2


class AffinitiesTask(BlockTask):
    """Predict the affinities of one block. Reads the patches that touch ``core``, writes ``core``.

    Attributes
    ----------
    image_uri, affinities_uri
        Source and destination.
    weights_sha256
        The model that the task was planned with; another one is refused.
    options
        See :class:`AffinitiesOptions`.
    """

    kind: Literal["affinities/1"] = "affinities/1"
    image_uri: str
    affinities_uri: str
    weights_sha256: str
    options: AffinitiesOptions = AffinitiesOptions()

    def run(self, ctx: Context) -> None:
        """Read ahead, predict, blend and write behind, each in threads of its own."""
        options = self.options
        image = ctx.open_volume(self.image_uri, mip=options.mip)
        destination = ctx.open_volume(self.affinities_uri)
        mask = _open_mask(options, image.info, ctx.open_volume)
        with ctx.step("model"):
            key = ("affinities", self.weights_sha256, options.offsets, options.device, options.precision)
            model = ctx.warm(key, lambda: self._load_model(ctx))
        n_shared = model.n_shared if isinstance(model, SharedNetwork) else 0
        lattice = lattice_of(model.spec, image.info.bounds)
        report = predict_block(
            model,
            lattice,
            self.core,
            read=partial(image.read, missing=options.missing),
            write=destination.write,
            tissue=None if mask is None else mask.read,
            grey_range=options.grey_range,
            batch_size=options.batch_size,
            write_grid_z=destination.info.write_grid[2],
        )
        for name, seconds in report.seconds.items():
            ctx.seconds[name] = ctx.seconds.get(name, 0.0) + seconds
        ctx.count(
            voxels=self.core.n_voxels,
            patches=report.n_patches,
            patches_without_tissue=report.n_skipped,
            read_bytes=report.n_read_bytes,
            written_bytes=report.n_written_bytes,
        )
        ctx.count(**{f"patches_{model.device_type}_{model.precision}": report.n_patches})
        if isinstance(model, SharedNetwork):
            ctx.count(patches_in_common_batches=model.n_shared - n_shared)

    def _load_model(self, ctx: Context) -> Network:
        options = self.options
        if ctx.network:
            return SharedNetwork(
                ctx.network,
                options.model,
                offsets=options.offsets,
                device=options.device,
                precision=options.precision,
                sha256=self.weights_sha256,
                objects=ctx.open_objects,
            )
        # torch loads here, in the worker: planning does without it.
        from cloudseg.models.predict import load_model

        return load_model(
            options.model,
            offsets=options.offsets,
            device=options.device,
            precision=options.precision,
            sha256=self.weights_sha256,
            objects=ctx.open_objects,
        )


class AffinitiesStage(LatticeStage, AffinitiesOptions):
    """Predict affinities over the whole image into the layer ``affinities``.

    Attributes
    ----------
    block_shape
        Voxels per task, whole chunks. A block computes every patch that touches it, so patches on its faces are
        computed again by its neighbour: with n strides of the lattice along an edge it computes n + 1. The default
        is two strides along x and y and four along z, rounded up to chunks: (256, 256, 512) for ``fib25``. Longer
        blocks save work; along z they cost no memory, because finished slabs are written as the block goes on.
    chunk_shape
        Chunks of the output.
    """

    kind: Literal["affinities"] = "affinities"

    def expand(self, site: Site) -> StagePlan:
        """Return one task per block that holds tissue."""
        image = site.layer("image", wanted_by=self.label)
        info = image.info if self.mip == 0 else site.open_volume(image.uri, mip=self.mip).info
        spec = load_spec(self.model, objects=site.open_objects)
        self._check_image(info, uri=image.uri)
        spec.check_voxel_size(info.voxel_size_nm, uri=image.uri)
        spec.select(self.offsets)
        lattice = lattice_of(spec, info.bounds)
        block_shape = self.blocks_over(lattice.stride)
        mask = _open_mask(self, info, site.open_volume)

        options = AffinitiesOptions(**{name: getattr(self, name) for name in AffinitiesOptions.model_fields})
        layer = Layer(
            "affinities",
            f"{site.root.rstrip('/')}/affinities",
            self._output_info(info),
            # With a mask some blocks have no task: nobody can wait for one.
            made_by=self.label if mask is None else "",
            block_shape=block_shape,
        )
        blocks = TissueBlocks(info.bounds, block_shape, mask)

        def tasks() -> Iterator[Task]:
            for core in blocks:
                yield AffinitiesTask(
                    core=core,
                    image_uri=image.uri,
                    affinities_uri=layer.uri,
                    weights_sha256=spec.weights.sha256,
                    options=options,
                )

        n_tasks, n_voxels = blocks.measure()
        block_bytes, thread_bytes = task_memory_bytes(
            spec, lattice, block_shape, n_channels=len(self.offsets), precision=self.precision
        )
        step = Step(
            self.label,
            n_tasks,
            tasks,
            task_memory_bytes=base_bytes(["torch"]) + block_bytes + thread_bytes,
            thread_memory_bytes=thread_bytes,
            libraries=("torch",),
        )
        return StagePlan(
            self.label,
            (layer,),
            (step,),
            outputs_bytes=n_voxels * len(self.offsets),
            sources=(image.uri, *([self.mask] if self.mask else [])),
            provenance={"weights_sha256": spec.weights.sha256, "block_shape": list(block_shape)},
        )

    def _output_info(self, image: VolumeInfo) -> VolumeInfo:
        return VolumeInfo(
            bounds=image.bounds,
            voxel_size_nm=image.voxel_size_nm,
            chunk_shape=self.chunk_shape,
            dtype="uint8",
            n_channels=len(self.offsets),
            layer="image",
            encoding="raw",
        )

    def _check_image(self, info: VolumeInfo, *, uri: str) -> None:
        if info.n_channels != 1 or info.layer != "image" or info.dtype not in _IMAGE_TYPES:
            raise SpecError(
                f"stage {self.label!r} needs an image of one channel, {', '.join(_IMAGE_TYPES)}; {uri} is "
                f"a {info.layer} of {info.n_channels} channel(s), {info.dtype}"
            )
        if self.grey_range is not None and not self.grey_range[0] < self.grey_range[1]:
            raise SpecError(
                f"stage {self.label!r}: grey_range must rise from black to white, got {self.grey_range}"
            )


def lattice_of(model: ModelDescription, bounds: Box) -> PatchLattice:
    """Return the patches by which ``model`` covers ``bounds``."""
    return PatchLattice.fit(
        bounds,
        patch_shape=model.patch_shape,
        context=model.context,
        blend=model.blend,
        multiple=model.arguments.multiple,
    )


def task_memory_bytes(
    model: ModelDescription,
    lattice: PatchLattice,
    block_shape: XYZ,
    *,
    n_channels: int,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> tuple[int, int]:
    """Estimate the peak memory of a task on a CPU: of its block, and of each thread of the network.

    ``auto`` means what the processor here computes in.
    """
    patch = lattice.patch_shape
    n_patch, n_folded = int(np.prod(patch)), int(np.prod(model.arguments.fold))
    if precision == "auto":
        precision = "bfloat16" if _processor_has_bfloat16() else "float32"
    itemsize = 2 if precision == "bfloat16" else 4
    # Six feature maps of the finest level live at once; later two of them, logits folded and unfolded, then as floats
    # and twice as probabilities.
    feature_map = n_patch * itemsize * model.arguments.widths[0] // n_folded
    logits = n_patch * n_channels * (2 * itemsize + 12)
    # Two predictions wait for each thread.
    thread = max(6 * feature_map, 2 * feature_map + logits) + 2 * 4 * n_patch * n_channels
    columns = [min(b, s) for b, s in zip(block_shape[:2], lattice.bounds.shape[:2], strict=True)]
    n_column = columns[0] * columns[1] * min(patch[2], block_shape[2])
    # Sums, the slab that is being written (floats, then bytes), and two slabs of image.
    return n_column * (9 * n_channels + 2), thread


def _processor_has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16, told without torch, which planning does not load."""
    try:
        flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return bool(flags) and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags[0].split())


def _open_mask(
    options: AffinitiesOptions, image: VolumeInfo, open_volume: Callable[..., Volume]
) -> TissueMask | None:
    if options.mask is None:
        return None
    return TissueMask.open(options.mask, mip=options.mask_mip, image=image, open_volume=open_volume)
