"""Boundary maps as affinities: what is exact for affinities then is exact for boundaries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from cloudseg.errors import SpecError
from cloudseg.geometry import grid_box, grid_shape, tile
from cloudseg.tasking.blocks import LabelsStage
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import VolumeInfo

_BYTES_PER_VOXEL = 12


class BoundaryAffinitiesTask(BlockTask):
    """Write the affinities of one block of a boundary map."""

    kind: Literal["boundary_affinities/1"] = "boundary_affinities/1"
    boundaries_uri: str
    affinities_uri: str
    join: Literal["max", "mean"] = "mean"
    threshold: Annotated[int, Field(ge=1, le=255)] | None = None
    planar: bool = False

    def run(self, ctx: Context) -> None:
        """Read the block and one voxel further down, compare neighbours, write."""
        from cloudseg.ops.boundaries import boundary_affinities

        source = ctx.open_volume(self.boundaries_uri)
        bounds = source.info.bounds
        with ctx.step("read"):
            boundaries = source.read(self.core.with_lower_neighbours(bounds=bounds))
        with ctx.step("compute"):
            affinities = boundary_affinities(
                boundaries,
                core=self.core,
                bounds=bounds,
                join=self.join,
                threshold=self.threshold,
                planar=self.planar,
            )
        with ctx.step("write"):
            ctx.open_volume(self.affinities_uri).write(self.core, affinities)
        ctx.count(voxels=self.core.n_voxels)


class BoundaryAffinitiesStage(LabelsStage):
    """Turn boundaries into the layer ``affinities``, for the stages ``supervoxels`` and ``agglomerate``.

    Exact for any tiling, and so is what follows. With supervoxels of ``t_low = 1`` and agglomeration by the mean this
    is GASP average linkage of the basins. With a ``threshold`` and supervoxels of ``t_low = 255, t_high = 255``,
    supervoxels are the connected components of what lies below the threshold (single voxels are background).

    Attributes
    ----------
    layer
        The boundaries: uint8, one channel.
    join
        Which boundary lies between two voxels: with the ``mean`` of their values a voxel belongs where it is steepest
        down, so that wide ridges are cut in their middle. The greater one (``max``) keeps a boundary of a single voxel
        as strong as it is, and gives slopes of wide ones to either side.
    threshold
        Boundary, 0..1, from which on nothing is linked; below it all is. None: affinities are graded.
    planar
        Whether sections stay apart: then supervoxels and agglomeration give segments of single sections.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["boundary_affinities"] = "boundary_affinities"
    layer: str = "boundaries"
    join: Literal["max", "mean"] = "mean"
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    planar: bool = False

    def expand(self, site: Site) -> StagePlan:
        """Plan one task per block."""
        source = site.layer(self.layer, wanted_by=self.label)
        check_boundary_layer(source, wanted_by=self.label)
        bounds = source.info.bounds
        info = VolumeInfo(
            bounds=bounds,
            voxel_size_nm=source.info.voxel_size_nm,
            chunk_shape=self.chunk_shape,
            dtype="uint8",
            n_channels=3,
            layer="image",
            encoding="raw",
        )
        output = Layer(
            "affinities",
            f"{site.root.rstrip('/')}/affinities",
            info,
            made_by=self.label,
            block_shape=self.block_shape,
        )
        threshold = None if self.threshold is None else max(1, math.ceil(self.threshold * 255 - 1e-9))

        def tasks() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield BoundaryAffinitiesTask(
                    core=core,
                    boundaries_uri=source.uri,
                    affinities_uri=output.uri,
                    join=self.join,
                    threshold=threshold,
                    planar=self.planar,
                )

        n_voxels = grid_box(bounds, self.block_shape, (0, 0, 0)).n_voxels
        step = Step(
            self.label,
            math.prod(grid_shape(bounds, self.block_shape)),
            tasks,
            task_memory_bytes=base_bytes([]) + _BYTES_PER_VOXEL * n_voxels,
        )
        return StagePlan(self.label, (output,), (step,), outputs_bytes=3 * bounds.n_voxels)


def check_boundary_layer(layer: Layer, *, wanted_by: str) -> None:
    """Refuse a layer that is no boundary map."""
    info = layer.info
    if info.dtype != "uint8" or info.n_channels != 1 or info.layer != "image":
        raise SpecError(
            f"stage {wanted_by!r} needs boundaries: an image layer of uint8 with 1 channel; "
            f"{layer.uri} is a {info.layer} layer of {info.dtype} with {info.n_channels} channel(s)"
        )
