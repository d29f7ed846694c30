"""Boundaries: run one network or several over an image, block by block, on the volume's own lattice of patches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from cloudseg.errors import ModelError, SpecError
from cloudseg.geometry import grid_shape, tile
from cloudseg.models.network import Network
from cloudseg.models.package import ModelDescription, ModelSpec, load_spec
from cloudseg.models.stream import predict_block
from cloudseg.ops.lattice import PatchLattice
from cloudseg.specs import FrozenModel
from cloudseg.tasking.blocks import LatticeStage
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import VolumeInfo

_IMAGE_TYPES = ("uint8", "uint16", "float32")


class BoundariesOptions(FrozenModel):
    """How boundaries are predicted.

    Attributes
    ----------
    models
        Addresses of model packages that predict boundaries; of several, the greatest probability counts. They must
        have the same patches and rims.
    views
        Whether each patch is seen from 16 sides (turned and mirrored) and averaged: 16 times the work.
    mip
        Which scale of the image to read.
    grey_range
        Image values that mean black and white; by default the whole range of the type (0 to 1 for float32).
    missing
        What a chunk of the image that was never written means.
    device, precision, batch_size
        As in the stage ``affinities``.
    """

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    views: bool = False
    mip: Annotated[int, Field(ge=0)] = 0
    grey_range: tuple[float, float] | None = None
    missing: Literal["error", "zero"] = "error"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: PositiveInt = 2


class BoundariesTask(BlockTask):
    """Predict the boundaries of one block. Reads the patches that touch ``core``, writes ``core``.

    Attributes
    ----------
    image_uri, boundaries_uri
        Source and destination.
    weights_sha256
        The models that the task was planned with, in order; others are refused.
    options
        See :class:`BoundariesOptions`.
    """

    kind: Literal["boundaries/1"] = "boundaries/1"
    image_uri: str
    boundaries_uri: str
    weights_sha256: tuple[str, ...]
    options: BoundariesOptions

    def run(self, ctx: Context) -> None:
        """Read ahead, predict, blend and write behind, each in threads of its own."""
        options = self.options
        image = ctx.open_volume(self.image_uri, mip=options.mip)
        destination = ctx.open_volume(self.boundaries_uri)
        with ctx.step("model"):
            key = ("boundaries", self.weights_sha256, options.views, options.device, options.precision)
            model = ctx.warm(key, lambda: self._load(ctx))
        report = predict_block(
            model,
            lattice_of(model.spec, image.info),
            self.core,
            read=partial(image.read, missing=options.missing),
            write=lambda box, slab: destination.write(box, slab[0]),
            grey_range=options.grey_range,
            batch_size=options.batch_size,
            write_grid_z=destination.info.write_grid[2],
        )
        for name, seconds in report.seconds.items():
            ctx.seconds[name] = ctx.seconds.get(name, 0.0) + seconds
        ctx.count(
            voxels=self.core.n_voxels,
            patches=report.n_patches,
            read_bytes=report.n_read_bytes,
            written_bytes=report.n_written_bytes,
        )
        ctx.count(**{f"patches_{model.device_type}_{model.precision}": report.n_patches})

    def _load(self, ctx: Context) -> Network:
        # torch loads here, in the worker: planning does without it.
        from cloudseg.models.ensemble import Maximum, Views
        from cloudseg.models.predict import load_model

        options = self.options
        networks: list[Network] = [
            load_model(
                uri,
                offsets=(),
                device=options.device,
                precision=options.precision,
                sha256=sha256,
                objects=ctx.open_objects,
            )
            for uri, sha256 in zip(options.models, self.weights_sha256, strict=True)
        ]
        if options.views:
            networks = [Views(network) for network in networks]
        return Maximum(networks)


class BoundariesStage(LatticeStage, BoundariesOptions):
    """Predict boundaries over the whole image into the layer ``boundaries``: uint8, 255 is a sure boundary.

    Exact for any tiling: patches lie on a lattice of the volume, and a block computes every patch that touches it.

    Attributes
    ----------
    block_shape
        Voxels per task, whole chunks. The default is two strides of the patches along x and y and four along z,
        rounded up to chunks.
    chunk_shape
        Chunks of the output.
    """

    kind: Literal["boundaries"] = "boundaries"

    def expand(self, site: Site) -> StagePlan:
        """Return one task per block."""
        image = site.layer("image", wanted_by=self.label)
        info = image.info if self.mip == 0 else site.open_volume(image.uri, mip=self.mip).info
        specs = [load_spec(uri, objects=site.open_objects) for uri in self.models]
        self._check(info, specs, uri=image.uri)
        lattice = lattice_of(specs[0], info)
        block_shape = self.blocks_over(lattice.stride)
        output = VolumeInfo(
            bounds=info.bounds,
            voxel_size_nm=info.voxel_size_nm,
            chunk_shape=self.chunk_shape,
            dtype="uint8",
            layer="image",
            encoding="raw",
        )
        layer = Layer(
            "boundaries",
            f"{site.root.rstrip('/')}/boundaries",
            output,
            made_by=self.label,
            block_shape=block_shape,
        )
        options = BoundariesOptions(**{name: getattr(self, name) for name in BoundariesOptions.model_fields})

        def tasks() -> Iterator[Task]:
            for core in tile(info.bounds, block_shape):
                yield BoundariesTask(
                    core=core,
                    image_uri=image.uri,
                    boundaries_uri=layer.uri,
                    weights_sha256=tuple(spec.weights.sha256 for spec in specs),
                    options=options,
                )

        # Eight maps of the finest level live at once, as floats, in the largest of the networks.
        n_patch = math.prod(lattice.patch_shape)
        widest = max(s.arguments.widths[0] / math.prod(s.arguments.fold) for s in specs)
        thread_bytes = int(n_patch * (8 * 4 * widest + 32))
        column = min(block_shape[0], info.bounds.shape[0]) * min(block_shape[1], info.bounds.shape[1])
        step = Step(
            self.label,
            math.prod(grid_shape(info.bounds, block_shape)),
            tasks,
            task_memory_bytes=base_bytes(["torch"]) + column * lattice.patch_shape[2] * 11 + thread_bytes,
            thread_memory_bytes=thread_bytes,
            libraries=("torch",),
        )
        return StagePlan(self.label, (layer,), (step,), outputs_bytes=info.bounds.n_voxels)

    def _check(self, info: VolumeInfo, specs: list[ModelSpec], *, uri: str) -> None:
        if info.n_channels != 1 or info.layer != "image" or info.dtype not in _IMAGE_TYPES:
            raise SpecError(
                f"stage {self.label!r} needs an image of one channel, {', '.join(_IMAGE_TYPES)}; {uri} is "
                f"a {info.layer} of {info.n_channels} channel(s), {info.dtype}"
            )
        if self.grey_range is not None and not self.grey_range[0] < self.grey_range[1]:
            raise SpecError(
                f"stage {self.label!r}: grey_range must rise from black to white, got {self.grey_range}"
            )
        for spec in specs:
            spec.check_voxel_size(info.voxel_size_nm, uri=uri)
            spec.select(())
            if spec.output != "boundaries":
                raise ModelError(
                    f"stage {self.label!r}: model {spec.name!r} predicts {spec.output}, not boundaries: run it in a "
                    "stage of kind 'soma_heads'"
                )
            for what in ("patch_shape", "context", "blend"):
                first, other = getattr(specs[0], what), getattr(spec, what)
                if first != other:
                    raise ModelError(
                        f"stage {self.label!r}: models {specs[0].name!r} and {spec.name!r} cannot be joined, as "
                        f"{what} is {first} in the first and {other} in the second; write one of them into both "
                        "packages"
                    )
            if self.views and spec.arguments.multiple[0] != spec.arguments.multiple[1]:
                raise SpecError(
                    f"stage {self.label!r}: the patches of model {spec.name!r} cannot be turned; set views = false"
                )


def lattice_of(model: ModelDescription, info: VolumeInfo) -> PatchLattice:
    """Return the patches by which ``model`` covers the volume."""
    return PatchLattice.fit(
        info.bounds,
        patch_shape=model.patch_shape,
        context=model.context,
        blend=model.blend,
        multiple=model.arguments.multiple,
    )
