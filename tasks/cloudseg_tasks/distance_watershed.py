"""Distance-transform watershed of boundaries, each block with a halo; see :mod:`cloudseg.ops.distance_watershed`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from cloudseg.errors import SpecError
from cloudseg.geometry import grid_box, grid_shape, tile
from cloudseg.models.package import Natural3
from cloudseg.specs import FrozenModel
from cloudseg.tasking.blocks import LabelsStage
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3

# Distances in double precision, nearest places, smoothed, heights, seeds, labels, and the queue of the flood.
_BYTES_PER_VOXEL = 130


class DistanceOptions(FrozenModel):
    """How seeds are found and flooded.

    Attributes
    ----------
    threshold
        Boundary, 0..1, from which on a voxel is boundary.
    sigma
        Smoothing of the distance, in voxels along x.
    alpha
        Share of the boundary in the height that is flooded; the rest is the distance.
    min_size_vx
        Smaller regions are given to those around them.
    stacked
        Whether each section is segmented alone.
    halo
        Voxels read round a block on each side.
    """

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.4
    sigma: NonNegativeFloat = 2.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    min_size_vx: NonNegativeInt = 50
    stacked: bool = False
    halo: Natural3 = (32, 32, 32)


class DistanceWatershedTask(BlockTask):
    """Write the regions of one block."""

    kind: Literal["distance_watershed/1"] = "distance_watershed/1"
    boundaries_uri: str
    labels_uri: str
    options: DistanceOptions

    def run(self, ctx: Context) -> None:
        """Read the block and its halo, segment, write the block."""
        from cloudseg.ops.distance_watershed import DistanceRule, distance_watershed

        source, options = ctx.open_volume(self.boundaries_uri), self.options
        bounds, size = source.info.bounds, source.info.voxel_size_nm
        x, y, z = options.halo
        outer = self.core.grow((x, y, 0 if options.stacked else z)).intersect(bounds)
        with ctx.step("read"):
            boundaries = source.read(outer)
        with ctx.step("compute"):
            labels = distance_watershed(
                boundaries,
                box=outer,
                bounds=bounds,
                rule=DistanceRule(
                    threshold=math.ceil(options.threshold * 255 - 1e-9),
                    sigma=options.sigma,
                    alpha=options.alpha,
                    min_size_vx=options.min_size_vx,
                    stacked=options.stacked,
                    spacing=(1.0, size[1] / size[0], size[2] / size[0]),
                ),
            )
        with ctx.step("write"):
            ctx.open_volume(self.labels_uri).write(self.core, labels[self.core.slices_in(outer)])
        ctx.count(voxels=self.core.n_voxels)


class DistanceWatershedStage(LabelsStage, DistanceOptions):
    """Regions round the maxima of the distance to the nearest boundary, into the layer ``supervoxels``.

    Not exact for any tiling: which block a voxel lies in may decide its region where the halo is small against the
    regions. Exact with ``stacked`` and blocks that hold whole sections. Usually followed by ``agglomerate`` on
    ``boundary_affinities``, which also joins what a face of a block has cut.

    Attributes
    ----------
    layer
        The boundaries: uint8, one channel.
    output
        Name of the layer that is written.
    block_shape, chunk_shape
        Voxels per task, whole chunks. Chunks of the output.
    """

    kind: Literal["distance_watershed"] = "distance_watershed"
    layer: str = "boundaries"
    output: Literal["supervoxels", "segmentation"] = "supervoxels"
    block_shape: Positive3 = (192, 192, 192)  # of 130 bytes a voxel, halo included

    def expand(self, site: Site) -> StagePlan:
        """Plan one task per block."""
        source = site.layer(self.layer, wanted_by=self.label)
        info = source.info
        if info.dtype != "uint8" or info.n_channels != 1 or info.layer != "image":
            raise SpecError(
                f"stage {self.label!r} needs boundaries: an image layer of uint8 with 1 channel; {source.uri} is "
                f"a {info.layer} layer of {info.dtype} with {info.n_channels} channel(s)"
            )
        output = Layer(
            self.output,
            f"{site.root.rstrip('/')}/{self.output}",
            self.labels_info(info),
            made_by=self.label,
            block_shape=self.block_shape,
        )
        options = DistanceOptions(**{name: getattr(self, name) for name in DistanceOptions.model_fields})

        def tasks() -> Iterator[Task]:
            for core in tile(info.bounds, self.block_shape):
                yield DistanceWatershedTask(
                    core=core, boundaries_uri=source.uri, labels_uri=output.uri, options=options
                )

        block = grid_box(info.bounds, self.block_shape, (0, 0, 0))
        x, y, z = options.halo
        n_voxels = block.grow((x, y, 0 if options.stacked else z)).intersect(info.bounds).n_voxels
        if options.stacked:  # one section at a time, and all labels
            n_voxels = n_voxels // block.shape[2] + n_voxels // 10
        step = Step(
            self.label,
            math.prod(grid_shape(info.bounds, self.block_shape)),
            tasks,
            task_memory_bytes=base_bytes(["numba"]) + _BYTES_PER_VOXEL * n_voxels,
            libraries=("numba",),
        )
        return StagePlan(self.label, (output,), (step,), outputs_bytes=info.bounds.n_voxels * 8 // 10)
