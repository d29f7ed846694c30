"""Heads of somas: run a network over an image, everywhere or round candidates only, on the volume's own lattice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveInt

from cloudseg.errors import ModelError, SpecError
from cloudseg.geometry import Box
from cloudseg.models.network import Network
from cloudseg.models.open_network import open_network
from cloudseg.models.package import ModelDescription, load_spec
from cloudseg.models.stream import predict_block
from cloudseg.ops.candidates import near_candidates
from cloudseg.ops.lattice import PatchLattice
from cloudseg.specs import FrozenModel
from cloudseg.tasking.blocks import LatticeStage, TissueBlocks
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.candidates import KEY, get_candidates
from cloudseg.volumes.mask import TissueMask
from cloudseg.volumes.protocol import VolumeInfo

_IMAGE_TYPES = ("uint8", "uint16", "float32")


class SomaHeadsOptions(FrozenModel):
    """How heads are predicted.

    Attributes
    ----------
    model
        Address of a model package whose output is ``heads``.
    mip
        Which scale of the image to read.
    grey_range
        Image values that mean black and white; by default the whole range of the type (0 to 1 for float32).
    missing
        What a chunk of the image that was never written means.
    mask, mask_mip
        Tissue mask (0 = none) whose voxels are whole multiples of the image's, and its scale. Blocks without tissue
        get no task, patches without tissue are not computed, and voxels without tissue get 0.
    margin_nm
        Round a candidate, how far beyond its radius the network looks for the rest of the soma.
    device, precision, batch_size
        As in the stage ``affinities``.
    """

    model: str
    mip: Annotated[int, Field(ge=0)] = 0
    grey_range: tuple[float, float] | None = None
    missing: Literal["error", "zero"] = "error"
    mask: str | None = None
    mask_mip: Annotated[int, Field(ge=0)] = 0
    margin_nm: NonNegativeFloat = 2000.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: PositiveInt = 2


class SomaHeadsTask(BlockTask):
    """Predict the heads of one block. Reads the patches that touch ``core``, writes ``core``.

    Attributes
    ----------
    image_uri, heads_uri
        Source and destination.
    candidates_uri
        Folder of the table of candidates; only round them is anything computed. None: everywhere.
    weights_sha256
        The model that the task was planned with; another one is refused.
    options
        See :class:`SomaHeadsOptions`.
    """

    kind: Literal["soma_heads/1"] = "soma_heads/1"
    image_uri: str
    heads_uri: str
    candidates_uri: str | None = None
    weights_sha256: str
    options: SomaHeadsOptions

    def run(self, ctx: Context) -> None:
        """Find what is to be looked at, read ahead, predict, blend and write behind."""
        options = self.options
        image = ctx.open_volume(self.image_uri, mip=options.mip)
        destination = ctx.open_volume(self.heads_uri)
        wanted = self._wanted(ctx, image.info)
        with ctx.step("model"):
            key = ("soma_heads", self.weights_sha256, options.device, options.precision)
            model = ctx.warm(key, lambda: self._load_model(ctx))
        lattice = lattice_of(model.spec, image.info.bounds)
        one_head = destination.info.n_channels == 1
        report = predict_block(
            model,
            lattice,
            self.core,
            read=partial(image.read, missing=options.missing),
            write=lambda box, slab: destination.write(box, slab[0] if one_head else slab),
            tissue=None if wanted is None else lambda box: wanted[box.slices_in(self.core)],
            grey_range=options.grey_range,
            batch_size=options.batch_size,
            write_grid_z=destination.info.write_grid[2],
        )
        for name, seconds in report.seconds.items():
            ctx.seconds[name] = ctx.seconds.get(name, 0.0) + seconds
        ctx.count(
            voxels=self.core.n_voxels,
            patches=report.n_patches,
            patches_left_out=report.n_skipped,
            network_voxels=report.n_patches * math.prod(lattice.patch_shape),
            read_bytes=report.n_read_bytes,
            written_bytes=report.n_written_bytes,
        )
        ctx.count(**{f"patches_{model.device_type}_{model.precision}": report.n_patches})

    def _wanted(self, ctx: Context, image: VolumeInfo) -> npt.NDArray[np.bool_] | None:
        """Return which voxels of the block are looked at; None: all."""
        options, wanted = self.options, None
        with ctx.step("mask"):
            if options.mask is not None:
                mask = TissueMask.open(
                    options.mask, mip=options.mask_mip, image=image, open_volume=ctx.open_volume
                )
                wanted = mask.read(self.core)
            if self.candidates_uri is not None:
                candidates = get_candidates(
                    ctx.open_objects(self.candidates_uri), KEY, voxel_size_nm=image.voxel_size_nm
                )
                near = near_candidates(
                    self.core, candidates, margin_nm=options.margin_nm, voxel_size_nm=image.voxel_size_nm
                )
                wanted = near if wanted is None else wanted & near
        return wanted

    def _load_model(self, ctx: Context) -> Network:
        return open_network(
            self.options.model,
            shared=ctx.network,
            sha256=self.weights_sha256,
            device=self.options.device,
            precision=self.options.precision,
            objects=ctx.open_objects,
        )


class SomaHeadsStage(LatticeStage, SomaHeadsOptions):
    """Predict the heads of somas into a layer of uint8, one channel a head in the order of the model package.

    Exact for any tiling: patches lie on a lattice of the volume, a block computes every patch that touches it, and
    which voxels are looked at depends on mask and candidates alone.

    Attributes
    ----------
    output
        Name of the layer; another one for a second, coarse network.
    candidates
        Name of the stage ``soma_locate`` round whose candidates alone the network looks; none: everywhere.
    block_shape
        Voxels per task, whole chunks. The default is two strides of the patches along x and y and four along z,
        rounded up to chunks.
    chunk_shape
        Chunks of the output.
    """

    kind: Literal["soma_heads"] = "soma_heads"
    output: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")] = "soma_heads"
    candidates: str = ""

    def expand(self, site: Site) -> StagePlan:
        """Return one task per block that holds tissue."""
        image = site.layer("image", wanted_by=self.label)
        info = image.info if self.mip == 0 else site.open_volume(image.uri, mip=self.mip).info
        spec = load_spec(self.model, objects=site.open_objects)
        self._check(info, spec, uri=image.uri)
        lattice = lattice_of(spec, info.bounds)
        block_shape = self.blocks_over(lattice.stride)
        mask = None
        if self.mask is not None:
            mask = TissueMask.open(self.mask, mip=self.mask_mip, image=info, open_volume=site.open_volume)
        root = site.root.rstrip("/")
        output = VolumeInfo(
            bounds=info.bounds,
            voxel_size_nm=info.voxel_size_nm,
            chunk_shape=self.chunk_shape,
            dtype="uint8",
            n_channels=len(spec.heads),
            layer="image",
            encoding="raw",
        )
        layer = Layer(
            self.output,
            f"{root}/{self.output}",
            output,
            # With a mask some blocks have no task: nobody can wait for one.
            made_by=self.label if mask is None else "",
            block_shape=block_shape,
        )
        options = SomaHeadsOptions(**{name: getattr(self, name) for name in SomaHeadsOptions.model_fields})
        blocks = TissueBlocks(info.bounds, block_shape, mask)
        candidates_uri = f"{root}/graph/{self.candidates}" if self.candidates else None

        def task(core: Box) -> Task:
            return SomaHeadsTask(
                core=core,
                image_uri=image.uri,
                heads_uri=layer.uri,
                candidates_uri=candidates_uri,
                weights_sha256=spec.weights.sha256,
                options=options,
            )

        def tasks() -> Iterator[Task]:
            return map(task, blocks)

        n_tasks, n_voxels = blocks.measure()
        # As in the stage boundaries: eight maps of the finest level at once; sums and slabs of each head.
        n_patch, n_heads = math.prod(lattice.patch_shape), len(spec.heads)
        features = spec.arguments.widths[0] / math.prod(spec.arguments.fold)
        thread_bytes = int(n_patch * (8 * 4 * features + 32 * n_heads))
        column = math.prod(min(b, s) for b, s in zip(block_shape[:2], info.bounds.shape[:2], strict=True))
        step = Step(
            self.label,
            n_tasks,
            tasks,
            task_memory_bytes=base_bytes(["torch"])
            + column * lattice.patch_shape[2] * (9 * n_heads + 2)
            + math.prod(block_shape) * (mask is not None or bool(self.candidates))
            + thread_bytes,
            thread_memory_bytes=thread_bytes,
            libraries=("torch",),
        )
        return StagePlan(
            self.label,
            (layer,),
            (step,),
            outputs_bytes=n_voxels * n_heads,
            sources=(image.uri, *([self.mask] if self.mask else [])),
            provenance={
                "weights_sha256": spec.weights.sha256,
                "block_shape": list(block_shape),
                "heads": list(spec.heads),
            },
        )

    def _check(self, info: VolumeInfo, spec: ModelDescription, *, uri: str) -> None:
        if info.n_channels != 1 or info.layer != "image" or info.dtype not in _IMAGE_TYPES:
            raise SpecError(
                f"stage {self.label!r} needs an image of one channel, {', '.join(_IMAGE_TYPES)}; {uri} is "
                f"a {info.layer} of {info.n_channels} channel(s), {info.dtype}"
            )
        if self.grey_range is not None and not self.grey_range[0] < self.grey_range[1]:
            raise SpecError(
                f"stage {self.label!r}: grey_range must rise from black to white, got {self.grey_range}"
            )
        if spec.output != "heads":
            raise ModelError(
                f"stage {self.label!r}: model {spec.name!r} predicts {spec.output}, not heads: run it in a stage of "
                f"kind {spec.output!r}, or train one of heads (see docs/train.md)"
            )
        spec.check_voxel_size(info.voxel_size_nm, uri=uri)


def lattice_of(model: ModelDescription, bounds: Box) -> PatchLattice:
    """Return the patches by which ``model`` covers ``bounds``."""
    return PatchLattice.fit(
        bounds,
        patch_shape=model.patch_shape,
        context=model.context,
        blend=model.blend,
        multiple=model.arguments.multiple,
    )
