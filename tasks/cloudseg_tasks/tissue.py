"""Where an image holds tissue, as a coarse mask that keeps other stages from looking at resin and black borders."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box, grid_box, grid_shape, tile
from cloudseg.models.package import Natural3
from cloudseg.tasking.blocks import LatticeStage
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3, VolumeInfo

# The image and its chunks while they are decoded; of one layer of cells, sums and their terms as float64.
_BYTES_PER_VOXEL = 3
_BYTES_PER_VOXEL_OF_LAYER = 48
# Longest edge of a cell in voxels.
_MAX_CELL = 64


class TissueTask(BlockTask):
    """Write the mask of one block; its box is in cells, which are the voxels of the mask."""

    kind: Literal["tissue/1"] = "tissue/1"
    image_uri: str
    mip: NonNegativeInt
    mask_uri: str
    cell: Positive3
    reach: Natural3
    grey_range: tuple[float, float]
    min_deviation: NonNegativeFloat
    fill: Literal[0, 255] | None
    missing: Literal["zero", "error"]

    def run(self, ctx: Context) -> None:
        """Judge the cells of the block and round it, grow what is tissue, write the block."""
        from cloudseg.ops.candidates import tissue_cells

        source = ctx.open_volume(self.image_uri, mip=self.mip)
        mask = ctx.open_volume(self.mask_uri)
        cells = self.core.grow(self.reach).intersect(mask.info.bounds)
        whole = _in_voxels(cells, self.cell)
        part = whole.intersect(source.info.bounds)
        with ctx.step("read"):
            grey = source.read(part, missing=self.missing)
        x, y, z = (a - b for a, b in zip(part.start, whole.start, strict=True))
        with ctx.step("compute"):
            layers = []
            # One layer of cells after the other: sums as float64 of the whole block would be eight times the image.
            tops = range(self.cell[2] - z, grey.shape[2] + self.cell[2], self.cell[2])
            for top in tops:
                low = max(0, top - self.cell[2])
                layers.append(
                    tissue_cells(
                        grey[:, :, low:top],
                        cell=self.cell,
                        min_deviation=self.min_deviation,
                        grey_range=self.grey_range,
                        fill=self.fill,
                        missing=(x, y, 0),
                    )
                )
            tissue = _grown(np.concatenate(layers, axis=2), self.reach)[self.core.slices_in(cells)]
        with ctx.step("write"):
            mask.write(self.core, np.asfortranarray(tissue, np.uint8))
        ctx.count(voxels=part.n_voxels, cells=self.core.n_voxels, cells_of_tissue=int(tissue.sum()))


class TissueStage(LatticeStage):
    """Where the image holds tissue, into the layer ``tissue``, one voxel a cell of ``cell_nm``; 1 is tissue.

    A cell is tissue if it has texture and is neither too dark nor too bright: not resin, the inside of vessels or a
    black border. Run it as a pipeline of its own on a coarse scale: the stages that take a ``mask`` read it when they
    are planned, and make no tasks where there is no tissue. Exact for any tiling.

    Attributes
    ----------
    mip
        Scale of the image that is read; a coarse one will do.
    cell_nm
        Edge of a cell, about the size of a small soma; rounded to whole voxels of the scale.
    grey_range
        Least and greatest mean of a cell of tissue.
    min_deviation
        Least deviation of its grey levels.
    fill
        Voxels of exactly this value were never imaged: a cell of mostly them is no tissue. None: all count.
    margin_nm
        How far the mask is grown, in whole cells, so that what lies at the rim of tissue is looked at whole.
    missing
        What to do where chunks of the image are missing.
    output
        The layer that is written.
    block_shape, chunk_shape
        Cells per task, whole chunks; the result does not depend on it. The default is about 256 voxels of the image
        along each axis. Chunks of the output.
    """

    kind: Literal["tissue"] = "tissue"
    mip: NonNegativeInt = 0
    cell_nm: PositiveFloat = 1000.0
    grey_range: tuple[float, float] = (1.0, 254.0)
    min_deviation: NonNegativeFloat = 4.0
    fill: Literal[0, 255] | None = 0
    margin_nm: NonNegativeFloat = 0.0
    missing: Literal["zero", "error"] = "error"
    output: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")] = "tissue"
    chunk_shape: Positive3 = (8, 8, 8)

    def expand(self, site: Site) -> StagePlan:
        """Plan one task per block of cells."""
        source = site.layer("image", wanted_by=self.label)
        info = source.info if self.mip == 0 else site.open_volume(source.uri, mip=self.mip).info
        if info.n_channels != 1 or info.layer != "image":
            raise SpecError(
                f"stage {self.label!r} needs an image of one channel; {source.uri} is a {info.layer} layer of "
                f"{info.n_channels} channel(s)"
            )
        if not self.grey_range[0] < self.grey_range[1]:
            raise SpecError(
                f"stage {self.label!r}: grey_range must rise from least to greatest mean, got {self.grey_range}"
            )
        x, y, z = (max(1, round(self.cell_nm / edge)) for edge in info.voxel_size_nm)
        if max(x, y, z) > _MAX_CELL:
            raise SpecError(
                f"stage {self.label!r}: cells of {self.cell_nm:g} nm are {x} x {y} x {z} voxels of {source.uri} at mip "
                f"{self.mip}; a coarser scale will do: take the mip whose voxels are at least "
                f"{self.cell_nm / _MAX_CELL:g} nm, or smaller cells"
            )
        cell, size = (x, y, z), tuple(n * edge for n, edge in zip((x, y, z), info.voxel_size_nm, strict=True))
        # Blocks of two strides along x and y, four along z.
        block_shape = self.blocks_over((max(1, 128 // x), max(1, 128 // y), max(1, 64 // z)))
        i, j, k = (math.ceil(self.margin_nm / edge) for edge in size)
        bounds = Box(
            tuple(a // n for a, n in zip(info.bounds.start, cell, strict=True)),  # type: ignore[arg-type]
            tuple(-(-b // n) for b, n in zip(info.bounds.stop, cell, strict=True)),  # type: ignore[arg-type]
        )
        output = Layer(
            self.output,
            f"{site.root.rstrip('/')}/{self.output}",
            VolumeInfo(
                bounds=bounds,
                voxel_size_nm=size,
                chunk_shape=self.chunk_shape,
                dtype="uint8",
                layer="segmentation",
            ),
            made_by=self.label,
            block_shape=block_shape,
        )

        def tasks() -> Iterator[Task]:
            for core in tile(bounds, block_shape):
                yield TissueTask(
                    core=core,
                    image_uri=source.uri,
                    mip=self.mip,
                    mask_uri=output.uri,
                    cell=cell,
                    reach=(i, j, k),
                    grey_range=self.grey_range,
                    min_deviation=self.min_deviation,
                    fill=self.fill,
                    missing=self.missing,
                )

        block = _in_voxels(grid_box(bounds, block_shape, (0, 0, 0)).grow((i, j, k)).intersect(bounds), cell)
        layer_share = cell[2] / block.shape[2]
        step = Step(
            self.label,
            math.prod(grid_shape(bounds, block_shape)),
            tasks,
            task_memory_bytes=base_bytes(["numba"])
            + int(block.n_voxels * (_BYTES_PER_VOXEL + _BYTES_PER_VOXEL_OF_LAYER * layer_share)),
            libraries=("numba",),
        )
        return StagePlan(
            self.label, (output,), (step,), outputs_bytes=bounds.n_voxels // 10, sources=(source.uri,)
        )


def _in_voxels(cells: Box, cell: XYZ) -> Box:
    low = tuple(a * n for a, n in zip(cells.start, cell, strict=True))
    high = tuple(b * n for b, n in zip(cells.stop, cell, strict=True))
    return Box(low, high)  # type: ignore[arg-type]


def _grown(tissue: npt.NDArray[np.bool_], reach: XYZ) -> npt.NDArray[np.bool_]:
    """Return the cells within ``reach`` of tissue along each axis."""
    from scipy.ndimage import maximum_filter

    return np.asarray(maximum_filter(tissue, [2 * n + 1 for n in reach], mode="constant", cval=0), np.bool_)
