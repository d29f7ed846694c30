"""Stitch what overlapping blocks have found: decide on stored overlaps, then write.

Two steps (see :mod:`cloudseg.ops.soma_stitch`):

1. ``decide``: one task reads the edges and sizes of all blocks, and no voxel;
2. ``write``: the layer ``somas``.

Other thresholds are another ``soma_stitch`` with another ``output``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveFloat

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, grid_box, grid_shape, tile
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, LabelsStage, block_name, rename_block
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.tables import get_table, put_table

Share = Annotated[float, Field(ge=0, le=1)]
# An object in a block and its edges, read, joined and renamed.
_BYTES_PER_OBJECT = 800


class SomaStitchOptions(FrozenModel):
    """Which overlaps join, and what is dropped afterwards; see :class:`cloudseg.ops.soma_stitch.StitchRule`.

    Attributes
    ----------
    rule
        ``mutual``: each object is the one that the other shares most with. ``published``: as for FAFB.
    large_um3, least_um3, share_one, share_both
        Thresholds of the rules.
    min_size_um3
        Somas that are smaller when all is joined are dropped.
    """

    rule: Literal["mutual", "published"] = "mutual"
    large_um3: PositiveFloat = 4.096
    least_um3: NonNegativeFloat = 0.00512
    share_one: Share = 0.4
    share_both: Share = 0.3
    min_size_um3: NonNegativeFloat = 1.0


class SomaStitchTask(Task):
    """Decide which objects of all blocks are one, and store what each is called; reads no voxel.

    Attributes
    ----------
    pieces_uri
        The layer beside which edges and sizes lie.
    graph_uri
        Folder for the names.
    bounds, block_shape, voxel_size_nm
        Of the layer.
    options
        See :class:`SomaStitchOptions`.
    """

    kind: Literal["soma_stitch/1"] = "soma_stitch/1"
    pieces_uri: str
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    options: SomaStitchOptions

    def run(self, ctx: Context) -> None:
        """Read the tables of all blocks, decide face by face, join, drop, store."""
        from cloudseg.ops.soma_stitch import Overlaps, StitchRule, joins, stitched

        options = self.options
        rule = StitchRule(
            kind=options.rule,
            large_um3=options.large_um3,
            least_um3=options.least_um3,
            share_one=options.share_one,
            share_both=options.share_both,
        )
        voxel_um3 = math.prod(self.voxel_size_nm) / 1e9
        objects = ctx.open_objects(self.pieces_uri)
        ids, n = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        ends: list[npt.NDArray[Any]] = [np.zeros((2, 0), np.uint64)]
        n_edges = 0
        with ctx.step("decide"):
            for core in tile(self.bounds, self.block_shape):
                name = block_name(core.start)
                sizes = get_table(objects, f"stitching/sizes/{name}.parquet")
                ids.append(sizes["id"])
                n.append(sizes["n"])
                for axis, letter in enumerate("xyz"):
                    if core.start[axis] == self.bounds.start[axis]:
                        continue
                    edges = Overlaps(**get_table(objects, f"stitching/edges/{name}_{letter}.parquet"))
                    kept = joins(edges, rule, voxel_um3=voxel_um3)
                    ends.append(np.stack([edges.a[kept], edges.b[kept]]))
                    n_edges += len(edges)
            a, b = np.concatenate(ends, axis=1)
            old, new = stitched(
                (a, b),
                np.concatenate(ids),
                np.concatenate(n),
                min_size_um3=options.min_size_um3,
                voxel_um3=voxel_um3,
            )
        with ctx.step("write"):
            put_table(ctx.open_objects(self.graph_uri), "names.parquet", {"old": old, "new": new})
        ctx.count(edges=n_edges, joined=len(a), renamed=len(old))


class SomaRenameTask(BlockTask):
    """Write the stitched somas of one block."""

    kind: Literal["soma_rename/1"] = "soma_rename/1"
    pieces_uri: str
    somas_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read the block and the names, rename, write."""
        rename_block(
            ctx,
            self.core,
            src_uri=self.pieces_uri,
            dst_uri=self.somas_uri,
            tables_uri=self.graph_uri,
            tables=["names.parquet"],
        )


class SomaStitchStage(LabelsStage, SomaStitchOptions):
    """Join the somas of overlapping blocks into the layer ``somas``, by what ``soma_patches`` has counted.

    Attributes
    ----------
    layer
        The pieces; edges and sizes lie in its folder.
    output
        Name of the layer that is written.
    block_shape
        That of the stage that made the pieces; taken from there if it is in the same pipeline.
    chunk_shape
        Chunks of the output.
    """

    kind: Literal["soma_stitch"] = "soma_stitch"
    layer: str = "soma_pieces"
    output: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")] = "somas"
    block_shape: Positive3 = (448, 448, 192)

    def expand(self, site: Site) -> StagePlan:
        """Plan the two steps."""
        source = site.layer(self.layer, wanted_by=self.label)
        info, bounds = source.info, source.info.bounds
        if info.layer != "segmentation" or info.dtype != "uint64":
            raise SpecError(
                f"stage {self.label!r} needs the pieces of soma_patches: a segmentation of uint64; {source.uri} is a "
                f"{info.layer} layer of {info.dtype}"
            )
        block_shape = source.block_shape or self.block_shape
        for axis, edge, chunk in zip("xyz", block_shape, self.chunk_shape, strict=True):
            if edge % chunk:
                raise SpecError(
                    f"stage {self.label!r}: the pieces come in blocks of {edge} on {axis}, which is no multiple of "
                    f"the output's chunk of {chunk}; set chunk_shape to a divisor"
                )
        root = site.root.rstrip("/")
        graph_uri = f"{root}/graph/{self.label}"
        output = Layer(
            self.output, f"{root}/{self.output}", self.labels_info(info), f"{self.label}.write", block_shape
        )
        options = SomaStitchOptions(**{name: getattr(self, name) for name in SomaStitchOptions.model_fields})

        def decide() -> Iterator[Task]:
            yield SomaStitchTask(
                pieces_uri=source.uri,
                graph_uri=graph_uri,
                bounds=bounds,
                block_shape=block_shape,
                voxel_size_nm=info.voxel_size_nm,
                options=options,
            )

        def rename(core: Box) -> Task:
            return SomaRenameTask(core=core, pieces_uri=source.uri, somas_uri=output.uri, graph_uri=graph_uri)

        block = grid_box(bounds, block_shape, (0, 0, 0))
        # Somas of 20 um3 side by side.
        n_objects = math.ceil(bounds.n_voxels * math.prod(info.voxel_size_nm) / 1e9 / 20)
        return StagePlan(
            self.label,
            (output,),
            (
                Step(
                    f"{self.label}.decide",
                    1,
                    decide,
                    task_memory_bytes=base_bytes(["numba"]) + _BYTES_PER_OBJECT * n_objects,
                    libraries=("numba",),
                ),
                Step(
                    f"{self.label}.write",
                    math.prod(grid_shape(bounds, block_shape)),
                    lambda: map(rename, tile(bounds, block_shape)),
                    task_memory_bytes=base_bytes(["numba"]) + RENAME_BYTES_PER_VOXEL * block.n_voxels,
                    libraries=("numba",),
                ),
            ),
            outputs_bytes=bounds.n_voxels * 8 // 100,
            sources=(source.uri,),
        )
