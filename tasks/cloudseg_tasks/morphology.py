"""Cleaning of a mask, each block with a halo; see :mod:`cloudseg.ops.morphology`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from cloudseg.errors import SpecError
from cloudseg.geometry import grid_box, grid_shape, tile
from cloudseg.ops.morphology import MorphologyRule
from cloudseg.specs import FrozenModel
from cloudseg.tasking.blocks import LabelsStage
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task

# The mask several times over; runs, numbers and sizes of its components.
_BYTES_PER_VOXEL = 40
# A halo further than this is a mistake: every block would read many times its own voxels.
_MAX_HALO_VX = 512


class MorphologyOptions(FrozenModel):
    """As in :class:`cloudseg.ops.morphology.MorphologyRule`."""

    opening_nm: NonNegativeFloat
    closing_nm: NonNegativeFloat
    hole_vx: NonNegativeInt
    speck_vx: NonNegativeInt
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    planar: bool

    def rule(self) -> MorphologyRule:
        """Return the same for the algorithm."""
        return MorphologyRule(**self.model_dump())


class MorphologyTask(BlockTask):
    """Write the cleaned mask of one block."""

    kind: Literal["morphology/1"] = "morphology/1"
    src_uri: str
    dst_uri: str
    options: MorphologyOptions

    def run(self, ctx: Context) -> None:
        """Read the block and its halo, clean, write the block."""
        from cloudseg.ops.morphology import clean_mask, halo_of

        source, rule = ctx.open_volume(self.src_uri), self.options.rule()
        bounds = source.info.bounds
        with ctx.step("read"):
            mask = source.read(halo_of(self.core, bounds=bounds, rule=rule))
        with ctx.step("compute"):
            cleaned = clean_mask(mask, core=self.core, bounds=bounds, rule=rule)
        with ctx.step("write"):
            ctx.open_volume(self.dst_uri).write(self.core, cleaned)
        ctx.count(voxels=self.core.n_voxels, foreground=int(cleaned.sum()))


class MorphologyStage(LabelsStage):
    """Opening, closing, filling of small holes and removal of specks, in this order, into the layer ``cleaned``.

    Exact for any tiling: each operation looks only so far, and blocks read so much more. Large objects are better
    left out by ``classify``, which sees them whole.

    Attributes
    ----------
    layer, output
        The mask (all but 0 is foreground), and the layer that is written.
    opening_nm, closing_nm
        Radius of the ball: what is thinner than twice that vanishes, gaps that are narrower close. 0: not at all.
    max_hole_um3, max_speck_um3
        Holes, and specks, of at most this volume are filled, and removed.
    planar
        Whether each section is cleaned alone; a volume is then that of a section's thickness.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["morphology"] = "morphology"
    layer: str = "foreground"
    output: str = "cleaned"
    opening_nm: NonNegativeFloat = 0.0
    closing_nm: NonNegativeFloat = 0.0
    max_hole_um3: NonNegativeFloat = 0.0
    max_speck_um3: NonNegativeFloat = 0.0
    planar: bool = False

    def expand(self, site: Site) -> StagePlan:
        """Plan one task per block."""
        source = site.layer(self.layer, wanted_by=self.label)
        info = source.info
        if info.dtype == "float32" or info.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} needs a mask of whole numbers with 1 channel; {source.uri} has "
                f"{info.n_channels} channel(s) of {info.dtype}"
            )
        voxel_um3 = math.prod(info.voxel_size_nm) * 1e-9
        options = MorphologyOptions(
            opening_nm=self.opening_nm,
            closing_nm=self.closing_nm,
            hole_vx=int(self.max_hole_um3 / voxel_um3 + 1e-6),
            speck_vx=int(self.max_speck_um3 / voxel_um3 + 1e-6),
            voxel_size_nm=info.voxel_size_nm,
            planar=self.planar,
        )
        halo = options.rule().halo
        if max(halo) > _MAX_HALO_VX:
            raise SpecError(
                f"with these sizes each block would have to read {halo} voxels around it (at most {_MAX_HALO_VX}): a "
                "hole or speck may reach as far as it has voxels. Make max_hole_um3 and max_speck_um3 smaller, and "
                "leave large objects out by class"
            )
        output = self.mask_layer(site, self.output, info)

        def tasks() -> Iterator[Task]:
            for core in tile(info.bounds, self.block_shape):
                yield MorphologyTask(core=core, src_uri=source.uri, dst_uri=output.uri, options=options)

        block = grid_box(info.bounds, self.block_shape, (0, 0, 0)).grow(halo).intersect(info.bounds)
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
