"""What the stages have in common that work block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import model_validator

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box, grid_box, grid_shape
from cloudseg.tasking.steps import Layer, Site, Stage
from cloudseg.tasking.task import Context
from cloudseg.volumes.mask import TissueMask
from cloudseg.volumes.protocol import Positive3, VolumeInfo
from cloudseg.volumes.tables import get_table

# Memory of a task that renames: labels, renamed labels, and the chunks that are being coded (measured on fib25).
RENAME_BYTES_PER_VOXEL = 24


class LabelsStage(Stage):
    """A stage that writes a layer of ids, each block by one task.

    Attributes
    ----------
    block_shape
        Voxels per task, whole chunks; the result does not depend on it.
    chunk_shape
        Chunks of the outputs.
    """

    block_shape: Positive3 = (256, 256, 256)
    chunk_shape: Positive3 = (64, 64, 64)

    @model_validator(mode="after")
    def _blocks_are_whole_chunks(self) -> Self:
        for axis, block, chunk in zip("xyz", self.block_shape, self.chunk_shape, strict=True):
            if block % chunk:
                raise ValueError(
                    f"block_shape[{axis}]={block} is not a multiple of chunk_shape[{axis}]={chunk}"
                )
        return self

    def labels_info(self, source: VolumeInfo) -> VolumeInfo:
        """Return what a layer of ids over the voxels of ``source`` is."""
        return VolumeInfo(
            bounds=source.bounds,
            voxel_size_nm=source.voxel_size_nm,
            chunk_shape=self.chunk_shape,
            dtype="uint64",
            layer="segmentation",
            encoding="compressed_segmentation",
        )

    def mask_layer(self, site: Site, name: str, source: VolumeInfo) -> Layer:
        """Return the layer ``name`` of this stage: 0 or 1 for each voxel of ``source``."""
        info = VolumeInfo(
            bounds=source.bounds,
            voxel_size_nm=source.voxel_size_nm,
            chunk_shape=self.chunk_shape,
            dtype="uint8",
            layer="segmentation",
        )
        return Layer(
            name, f"{site.root.rstrip('/')}/{name}", info, made_by=self.label, block_shape=self.block_shape
        )


class LatticeStage(Stage):
    """A stage whose tasks compute the patches of a lattice that touch their block.

    Attributes
    ----------
    block_shape
        Voxels per task, whole chunks; None: see :meth:`blocks_over`.
    chunk_shape
        Chunks of the output.
    """

    block_shape: Positive3 | None = None
    chunk_shape: Positive3 = (64, 64, 64)

    def blocks_over(self, stride: XYZ) -> XYZ:
        """Return the shape of blocks: by default two strides along x and y and four along z, rounded up to chunks.

        Raises
        ------
        SpecError
            If ``block_shape`` is not made of whole chunks.
        """
        if self.block_shape is None:
            x, y, z = (
                -(-n * s // c) * c for n, s, c in zip((2, 2, 4), stride, self.chunk_shape, strict=True)
            )
            return (x, y, z)
        for axis, block, chunk in zip("xyz", self.block_shape, self.chunk_shape, strict=True):
            if block % chunk:
                raise SpecError(
                    f"stage {self.label!r}: block_shape on {axis} is {block}, which is no multiple of the output's "
                    f"chunk of {chunk}: two tasks would write the same chunk; take {-(-block // chunk) * chunk}"
                )
        return self.block_shape


@dataclass(frozen=True)
class TissueBlocks:
    """The blocks of a volume that hold tissue, X fastest; the mask is read again at each pass, one row at a time.

    Attributes
    ----------
    bounds, block_shape
        The volume and its blocks.
    mask
        Where there is tissue; None: everywhere.
    """

    bounds: Box
    block_shape: XYZ
    mask: TissueMask | None

    def __iter__(self) -> Iterator[Box]:
        """Yield the blocks."""
        n_x, n_y, n_z = grid_shape(self.bounds, self.block_shape)
        for k in range(n_z):
            for j in range(n_y):
                row = [grid_box(self.bounds, self.block_shape, (i, j, k)) for i in range(n_x)]
                if self.mask is None:
                    yield from row
                    continue
                whole = row[0].union(row[-1])
                tissue = self.mask.read(whole)
                yield from (core for core in row if tissue[core.slices_in(whole)].any())

    def measure(self) -> tuple[int, int]:
        """Return how many blocks and voxels there are."""
        if self.mask is None:
            return math.prod(grid_shape(self.bounds, self.block_shape)), self.bounds.n_voxels
        sizes = [core.n_voxels for core in self]
        return len(sizes), sum(sizes)


def block_name(at: XYZ) -> str:
    """Name a block in object keys, by its lowest corner or its place in a grid: ``<x>_<y>_<z>``."""
    return "_".join(map(str, at))


def rename_block(
    ctx: Context, core: Box, *, src_uri: str, dst_uri: str, tables_uri: str, tables: Sequence[str]
) -> None:
    """Write the ids of ``core`` under other names.

    Parameters
    ----------
    ctx
        Of the task that does it.
    core
        Whole chunks of both volumes.
    src_uri, dst_uri
        The volume that is read, the volume that is written.
    tables_uri, tables
        A folder of objects, and the keys of tables with the columns ``old`` and ``new``: applied one after the other.
    """
    from cloudseg.ops.remap import compose, remap

    objects = ctx.open_objects(tables_uri)
    with ctx.step("read"):
        labels = ctx.open_volume(src_uri).read(core)
        first, *others = [get_table(objects, key) for key in tables]
    with ctx.step("compute"):
        old, new = first["old"], first["new"]
        for then in others:
            old, new = compose(old, new, then["old"], then["new"])
        renamed = remap(labels, old, new)
    with ctx.step("write"):
        ctx.open_volume(dst_uri).write(core, renamed)
    ctx.count(voxels=core.n_voxels)
