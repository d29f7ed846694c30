"""Thresholds by the neighbourhood, each block with a halo; see :mod:`cloudseg.ops.threshold`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, grid_box, grid_shape, tile
from cloudseg.models.package import Natural3
from cloudseg.ops.threshold import CONTRAST_STEPS, NeighbourhoodRule, check_rule
from cloudseg.tasking.blocks import LabelsStage
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task

# The image and its chunks while they are decoded, and the mask.
_BYTES_PER_VOXEL = 6


class ThresholdTask(BlockTask):
    """Write the foreground of one block."""

    kind: Literal["threshold/1"] = "threshold/1"
    image_uri: str
    mask_uri: str
    radius: Natural3
    contrast: NonNegativeInt
    polarity: Literal["dark", "bright"]

    def run(self, ctx: Context) -> None:
        """Read the block and its halo, compare each voxel with its neighbourhood, write the block."""
        from cloudseg.ops.threshold import halo_of, neighbourhood_threshold

        source = ctx.open_volume(self.image_uri)
        bounds = source.info.bounds
        rule = NeighbourhoodRule(self.radius, self.contrast, self.polarity)
        with ctx.step("read"):
            image = source.read(halo_of(self.core, bounds=bounds, rule=rule))
        with ctx.step("compute"):
            mask = neighbourhood_threshold(image, core=self.core, bounds=bounds, rule=rule)
        with ctx.step("write"):
            ctx.open_volume(self.mask_uri).write(self.core, mask)
        ctx.count(voxels=self.core.n_voxels, foreground=int(mask.sum()))


class ThresholdStage(LabelsStage):
    """What is darker, or brighter, than its neighbourhood, into the layer ``foreground``; the first stage of FLoRIN.

    Exact for any tiling. Works where the structure of interest differs in brightness from what surrounds it: stained
    cells, vessels, nuclei. It cannot part the neurites of dense tissue.

    Attributes
    ----------
    layer, output
        The image: uint8 or uint16, one channel. The layer that is written: 1 is foreground.
    neighbourhood_nm
        Edges of the box around a voxel with whose mean it is compared; 0 along z: each section alone. About twice the
        width of the structures.
    contrast
        How far below the mean (``dark``) or above it (``bright``) a voxel must lie, as a share of the mean.
    polarity
        Whether ``dark`` or ``bright`` structures are foreground.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["threshold"] = "threshold"
    layer: str = "image"
    output: str = "foreground"
    neighbourhood_nm: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    contrast: Annotated[float, Field(ge=0, le=10)] = 0.25
    polarity: Literal["dark", "bright"] = "dark"

    def expand(self, site: Site) -> StagePlan:
        """Plan one task per block."""
        source = site.layer(self.layer, wanted_by=self.label)
        info = source.info
        if info.dtype not in ("uint8", "uint16") or info.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} needs an image of uint8 or uint16 with 1 channel; {source.uri} is a "
                f"{info.layer} layer of {info.dtype} with {info.n_channels} channel(s)"
            )
        rule = NeighbourhoodRule(
            self._radius(info.voxel_size_nm), round(self.contrast * CONTRAST_STEPS), self.polarity
        )
        check_rule(rule, bounds=info.bounds)
        output = self.mask_layer(site, self.output, info)

        def tasks() -> Iterator[Task]:
            for core in tile(info.bounds, self.block_shape):
                yield ThresholdTask(
                    core=core,
                    image_uri=source.uri,
                    mask_uri=output.uri,
                    radius=rule.radius,
                    contrast=rule.contrast,
                    polarity=self.polarity,
                )

        block = grid_box(info.bounds, self.block_shape, (0, 0, 0)).grow(rule.radius).intersect(info.bounds)
        step = Step(
            self.label,
            math.prod(grid_shape(info.bounds, self.block_shape)),
            tasks,
            task_memory_bytes=base_bytes(["numba"]) + _BYTES_PER_VOXEL * block.n_voxels,
            libraries=("numba",),
        )
        return StagePlan(
            self.label, (output,), (step,), outputs_bytes=info.bounds.n_voxels // 10, sources=(source.uri,)
        )

    def _radius(self, voxel_size_nm: tuple[float, float, float]) -> XYZ:
        x, y, z = (
            int(edge / 2 / size + 0.5)
            for edge, size in zip(self.neighbourhood_nm, voxel_size_nm, strict=True)
        )
        return (x, y, z)
