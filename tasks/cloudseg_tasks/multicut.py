"""Multicut and mutex linkage of a region graph that ``agglomerate`` has counted: no voxel is looked at again.

Two steps: ``solve``, one task over the whole graph (see :mod:`cloudseg.ops.multicut`), and ``relabel``. The graph is
exact and its edges are sorted, so the result is the same for any tiling; but one machine holds all edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, grid_box, grid_shape, tile
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, LabelsStage, block_name, rename_block
from cloudseg.tasking.memory import MERGE_BYTES_PER_EDGE, base_bytes, n_graph_edges
from cloudseg.tasking.region_graphs import StoredGraphs
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.tables import get_table, put_table

Beta = Annotated[float, Field(gt=0, lt=1)]
Method = Literal["multicut", "mutex"]


class MulticutTask(Task):
    """Cut the whole region graph of another stage."""

    kind: Literal["multicut/1"] = "multicut/1"
    graph_uri: str
    names_uri: str
    grid: Positive3
    method: Method
    beta: Beta
    weigh_contacts: bool
    min_size_vx: NonNegativeInt
    max_edges: PositiveInt

    def run(self, ctx: Context) -> None:
        """Add up the blocks' graphs, solve, store who is renamed."""
        import numpy as np

        from cloudseg.ops.multicut import CutRule, partition
        from cloudseg.ops.region_graph import Numbering, Sizes

        objects = ctx.open_objects(self.graph_uri)
        blocks = [f"blocks/{block_name(b.start)}" for b in tile(Box.of_shape(self.grid), (1, 1, 1))]
        with ctx.step("read"):
            tables = [get_table(objects, f"{place}/sizes.parquet") for place in blocks]
            sizes = Sizes.added([Sizes(t["id"], t["n"]) for t in tables])
            stored = StoredGraphs(objects, [f"{place}/edges.parquet" for place in blocks])
            numbering, read = Numbering.of(stored, and_ids=sizes.ids)
            edges = read.pop().pooled()
        if edges.n_edges > self.max_edges:
            raise SpecError(
                f"the region graph under {self.graph_uri} has {edges.n_edges:,} edges, more than max_edges = "
                f"{self.max_edges:,}: one machine must hold and solve them all. Raise max_edges if it has some "
                f"{MERGE_BYTES_PER_EDGE * edges.n_edges / 2**30:.0f} GiB to spare, or take the segments of "
                "'agglomerate', which blocks decide"
            )
        rule = CutRule(self.method, self.beta, self.weigh_contacts, self.min_size_vx)
        with ctx.step("compute"):
            name = partition(edges, n_voxels=sizes.of(numbering.ids), rule=rule)
        with ctx.step("write"):
            moved = name != np.arange(len(name))
            old, new = numbering.ids[moved], numbering.ids[name[moved]]
            put_table(ctx.open_objects(self.names_uri), "names.parquet", {"old": old, "new": new})
        ctx.count(edges=edges.n_edges, renamed=int(moved.sum()), segments=int((~moved).sum()))


class MulticutRelabelTask(BlockTask):
    """Write the segments of one block."""

    kind: Literal["multicut_relabel/1"] = "multicut_relabel/1"
    supervoxels_uri: str
    segmentation_uri: str
    names_uri: str

    def run(self, ctx: Context) -> None:
        """Read supervoxels and names, rename, write."""
        rename_block(
            ctx,
            self.core,
            src_uri=self.supervoxels_uri,
            dst_uri=self.segmentation_uri,
            tables_uri=self.names_uri,
            tables=["names.parquet"],
        )


class MulticutStage(LabelsStage):
    """Cut the region graph of a stage ``agglomerate`` into the layer ``multicut``, by all its edges at once.

    The same for any tiling, but not decided by blocks: one task holds the whole graph, some 400 bytes an edge.
    Whether it is better than the mean depends on the tissue: ``cloudseg compare`` says.

    Attributes
    ----------
    graph
        Label of the stage ``agglomerate`` whose region graph is taken.
    supervoxels
        The layer that stage took.
    method
        ``multicut`` (greedy joining, then Kernighan-Lin) or ``mutex`` (mutex watershed of the graph).
    beta
        Above 0.5 more is cut, below less.
    weigh_contacts
        Whether large contacts count more (multicut only).
    min_size_um3
        Smaller segments are given to the neighbour they are best connected to.
    max_edges
        A larger graph is refused.
    block_shape, chunk_shape
        Voxels per relabelling task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["multicut"] = "multicut"
    graph: str = "agglomerate"
    supervoxels: str = "supervoxels"
    method: Method = "multicut"
    beta: Beta = 0.5
    weigh_contacts: bool = True
    min_size_um3: NonNegativeFloat = 0.0
    max_edges: PositiveInt = 50_000_000

    def expand(self, site: Site) -> StagePlan:
        """Plan one task that solves, and one per block that relabels."""
        source = site.layer(self.supervoxels, wanted_by=self.label)
        counted = self._counted(site)
        bounds, root = source.info.bounds, site.root.rstrip("/")
        names_uri = f"{root}/graph/{self.label}"
        info = self.labels_info(source.info)
        output = Layer("multicut", f"{root}/multicut", info, f"{self.label}.relabel", self.block_shape)
        assert counted.block_shape is not None
        grid = grid_shape(counted.info.bounds, counted.block_shape)
        voxel_um3 = math.prod(info.voxel_size_nm) * 1e-9

        def solve() -> Iterator[Task]:
            yield MulticutTask(
                graph_uri=f"{root}/graph/{self.graph}",
                names_uri=names_uri,
                grid=grid,
                method=self.method,
                beta=self.beta,
                weigh_contacts=self.weigh_contacts,
                min_size_vx=math.ceil(self.min_size_um3 / voxel_um3 - 1e-9),
                max_edges=self.max_edges,
            )

        def relabel() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield MulticutRelabelTask(
                    core=core,
                    supervoxels_uri=source.uri,
                    segmentation_uri=output.uri,
                    names_uri=names_uri,
                )

        base = base_bytes(["numba"])
        n_edges = min(n_graph_edges(bounds.n_voxels, 0), self.max_edges)
        n_voxels = grid_box(bounds, self.block_shape, (0, 0, 0)).n_voxels
        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        steps = (
            Step(
                f"{self.label}.solve",
                1,
                solve,
                task_memory_bytes=base + MERGE_BYTES_PER_EDGE * n_edges,
                libraries=("numba",),
            ),
            Step(
                f"{self.label}.relabel",
                n_blocks,
                relabel,
                task_memory_bytes=base + RENAME_BYTES_PER_VOXEL * n_voxels,
                libraries=("numba",),
            ),
        )
        return StagePlan(self.label, (output,), steps, outputs_bytes=bounds.n_voxels * 8 // 10)

    def _counted(self, site: Site) -> Layer:
        """Return the layer of the stage whose graph is taken: it knows the blocks."""
        for layer in site.layers.values():
            if layer.made_by == f"{self.graph}.relabel" and layer.block_shape is not None:
                return layer
        raise SpecError(
            f"stage {self.label!r} cuts the region graph of a stage {self.graph!r} before it, of kind 'agglomerate', "
            "but there is none; add it, or give its name as graph"
        )
