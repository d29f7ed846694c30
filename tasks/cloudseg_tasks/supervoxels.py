"""Supervoxels: label blocks, find what continues across their faces, name it alike everywhere.

Four steps, each exact for any tiling (see :mod:`cloudseg.ops.watershed`):

1. ``label``: fragments of supervoxels in each block, and which links across its lower faces are kept;
2. ``faces``: pairs of fragments that such a link joins;
3. ``names``: connected components of all pairs; the smallest id names the supervoxel;
4. ``rename``: the layer ``supervoxels``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, grid_box, grid_shape, tile
from cloudseg.specs import BoxField
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, LabelsStage, block_name, rename_block
from cloudseg.tasking.fragments import n_inner_faces, name_fragments
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.near import Grid, near
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.mask import TissueMask
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.tables import get_table, put_table

Threshold = Annotated[int, Field(ge=1, le=255)]
_AXES = "xyz"

# Measured on fib25. Affinities, their copies at the border, parents and labels; ids on a face and their places; and
# for all faces between blocks together: one voxel in eight has a pair, which takes 160 bytes while names are found.
_LABEL_BYTES_PER_VOXEL = 22
_FACE_BYTES_PER_VOXEL = 40
_NAMES_BYTES_PER_VOXEL = 20


class SupervoxelsTask(BlockTask):
    """Label the fragments of one block, and store what its neighbours need to join them."""

    kind: Literal["supervoxels/1"] = "supervoxels/1"
    affinities_uri: str
    fragments_uri: str
    graph_uri: str
    t_low: Threshold
    t_high: Threshold
    mask: str | None = None
    mask_mip: int = 0

    def run(self, ctx: Context) -> None:
        """Read the block and a halo of one voxel, label, write labels and faces."""
        from cloudseg.ops.watershed import halo_of, mask_halo_of, supervoxels

        source = ctx.open_volume(self.affinities_uri)
        bounds = source.info.bounds
        tissue: npt.NDArray[Any] | None = None
        with ctx.step("read"):
            affinities = source.read(
                halo_of(self.core, bounds=bounds), missing="zero" if self.mask else "error"
            )
            if self.mask is not None:
                mask = TissueMask.open(
                    self.mask, mip=self.mask_mip, image=source.info, open_volume=ctx.open_volume
                )
                tissue = mask.read(mask_halo_of(self.core, bounds=bounds))
        with ctx.step("compute"):
            part = supervoxels(
                affinities, core=self.core, bounds=bounds, t_low=self.t_low, t_high=self.t_high, mask=tissue
            )
        with ctx.step("write"):
            ctx.open_volume(self.fragments_uri).write(self.core, part.labels)
            objects = ctx.open_objects(self.graph_uri)
            for axis, name in enumerate(_AXES):
                key = f"faces/{block_name(self.core.start)}"
                last: list[slice | int] = [slice(None)] * 3
                last[axis] = -1
                put_table(
                    objects, f"{key}/{name}+.parquet", {"id": part.labels[tuple(last)].reshape(-1, order="F")}
                )
                first = list(last)
                first[axis] = 0
                kept = np.flatnonzero(part.crossings[axis].reshape(-1, order="F"))
                ids = part.labels[tuple(first)].reshape(-1, order="F")[kept]
                put_table(objects, f"{key}/{name}-.parquet", {"at": kept.astype(np.int64), "id": ids})
        ctx.count(voxels=self.core.n_voxels)


class SupervoxelFacesTask(BlockTask):
    """List the pairs of fragments that kept links join across the lower faces of one block."""

    kind: Literal["supervoxel_faces/1"] = "supervoxel_faces/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3

    def run(self, ctx: Context) -> None:
        """Look up both ends of each kept crossing; store each pair once."""
        objects = ctx.open_objects(self.graph_uri)
        mine, theirs = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for axis, name in enumerate(_AXES):
            if self.core.start[axis] == self.bounds.start[axis]:
                continue
            step = tuple(-self.block_shape[axis] if a == axis else 0 for a in range(3))
            below = block_name(self.core.shift((step[0], step[1], step[2])).start)
            kept = get_table(objects, f"faces/{block_name(self.core.start)}/{name}-.parquet")
            ids = get_table(objects, f"faces/{below}/{name}+.parquet")["id"]
            mine.append(kept["id"])
            theirs.append(ids[kept["at"]])
        pairs = np.unique(np.stack([np.concatenate(mine), np.concatenate(theirs)]), axis=1)
        put_table(objects, f"pairs/{block_name(self.core.start)}.parquet", {"a": pairs[0], "b": pairs[1]})
        ctx.count(pairs=pairs.shape[1])


class SupervoxelNamesTask(Task):
    """Join the pairs of all blocks and store, for each block, which of its fragments are renamed."""

    kind: Literal["supervoxel_names/1"] = "supervoxel_names/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3

    def run(self, ctx: Context) -> None:
        """Find connected components; a fragment's id tells the block it lies in."""
        name_fragments(ctx, graph_uri=self.graph_uri, bounds=self.bounds, block_shape=self.block_shape)


class SupervoxelRenameTask(BlockTask):
    """Write the supervoxels of one block under their final names."""

    kind: Literal["supervoxel_rename/1"] = "supervoxel_rename/1"
    fragments_uri: str
    supervoxels_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read fragments and names, rename, write."""
        rename_block(
            ctx,
            self.core,
            src_uri=self.fragments_uri,
            dst_uri=self.supervoxels_uri,
            tables_uri=self.graph_uri,
            tables=[f"names/{block_name(self.core.start)}.parquet"],
        )


class SupervoxelsStage(LabelsStage):
    """Supervoxels of an affinity layer.

    Attributes
    ----------
    layer
        The affinities: uint8, three channels.
    t_low, t_high
        Weakest affinity (1..255) that may hold a voxel; affinity that always joins two voxels.
    mask, mask_mip
        Tissue mask (0 = none) whose voxels are whole multiples of the image's; outside it everything is background.
    block_shape
        Voxels per task, whole chunks; the result does not depend on it.
    chunk_shape
        Chunks of the outputs.
    """

    kind: Literal["supervoxels"] = "supervoxels"
    layer: str = "affinities"
    t_low: Threshold = 1
    t_high: Threshold = 255
    mask: str | None = None
    mask_mip: int = 0

    @model_validator(mode="after")
    def _thresholds_are_in_order(self) -> SupervoxelsStage:
        if self.t_low > self.t_high:
            raise ValueError(f"t_low={self.t_low} is above t_high={self.t_high}")
        return self

    def expand(self, site: Site) -> StagePlan:
        """Plan the four steps."""
        source = site.layer(self.layer, wanted_by=self.label)
        check_affinities(source, wanted_by=self.label)
        if self.mask is not None:
            TissueMask.open(self.mask, mip=self.mask_mip, image=source.info, open_volume=site.open_volume)
        bounds, root = source.info.bounds, site.root.rstrip("/")
        graph_uri = f"{root}/graph/{self.label}"
        info = self.labels_info(source.info)
        fragments = Layer("fragments", f"{root}/fragments", info)
        output = Layer("supervoxels", f"{root}/supervoxels", info, f"{self.label}.rename", self.block_shape)
        blocks = Grid(bounds, self.block_shape)

        def label_block(core: Box) -> Task:
            return SupervoxelsTask(
                core=core,
                affinities_uri=source.uri,
                fragments_uri=fragments.uri,
                graph_uri=graph_uri,
                t_low=self.t_low,
                t_high=self.t_high,
                mask=self.mask,
                mask_mip=self.mask_mip,
            )

        def faces_of(core: Box) -> Task:
            return SupervoxelFacesTask(
                core=core, graph_uri=graph_uri, bounds=bounds, block_shape=self.block_shape
            )

        def label() -> Iterator[Task]:
            return map(label_block, tile(bounds, self.block_shape))

        def faces() -> Iterator[Task]:
            return map(faces_of, tile(bounds, self.block_shape))

        def names() -> Iterator[Task]:
            yield SupervoxelNamesTask(graph_uri=graph_uri, bounds=bounds, block_shape=self.block_shape)

        def rename() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield SupervoxelRenameTask(
                    core=core, fragments_uri=fragments.uri, supervoxels_uri=output.uri, graph_uri=graph_uri
                )

        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        block = grid_box(bounds, self.block_shape, (0, 0, 0))
        n_face = sum(block.n_voxels // n for n in block.shape)
        return StagePlan(
            name=self.label,
            layers=(fragments, output),
            steps=(
                Step(
                    f"{self.label}.label",
                    n_blocks,
                    label,
                    task_memory_bytes=base_bytes(["numba"]) + _LABEL_BYTES_PER_VOXEL * block.n_voxels,
                    libraries=("numba",),
                    near=near(
                        source.made_by,
                        blocks=blocks,
                        before=source.blocks,
                        reads=lambda core: core.grow((1, 1, 1)).intersect(bounds),
                        task=lambda n: label_block(blocks.box(n)),
                    )
                    if source.made_by
                    else None,
                ),
                Step(
                    f"{self.label}.faces",
                    n_blocks,
                    faces,
                    task_memory_bytes=base_bytes(["numba"]) + _FACE_BYTES_PER_VOXEL * n_face,
                    libraries=("numba",),
                    near=near(
                        f"{self.label}.label",
                        blocks=blocks,
                        before=blocks,
                        reads=lambda core: core.with_lower_neighbours(bounds=bounds),
                        task=lambda n: faces_of(blocks.box(n)),
                    ),
                ),
                Step(
                    f"{self.label}.names",
                    1,
                    names,
                    task_memory_bytes=base_bytes(["numba"])
                    + _NAMES_BYTES_PER_VOXEL * n_inner_faces(bounds, self.block_shape),
                    libraries=("numba",),
                ),
                Step(
                    f"{self.label}.rename",
                    n_blocks,
                    rename,
                    task_memory_bytes=base_bytes(["numba"]) + RENAME_BYTES_PER_VOXEL * block.n_voxels,
                    libraries=("numba",),
                ),
            ),
            # compressed_segmentation takes about a tenth of the raw ids (measured on fib25).
            outputs_bytes=2 * bounds.n_voxels * 8 // 10,
            sources=(source.uri, *([self.mask] if self.mask else [])),
        )


def check_affinities(layer: Layer, *, wanted_by: str) -> None:
    """Refuse a layer that does not hold nearest-neighbour affinities."""
    info = layer.info
    if info.dtype != "uint8" or info.n_channels != 3 or info.layer != "image":
        raise SpecError(
            f"stage {wanted_by!r} needs affinities: an image layer of uint8 with 3 channels (links along x, y, z); "
            f"{layer.uri} is a {info.layer} layer of {info.dtype} with {info.n_channels} channel(s)"
        )
