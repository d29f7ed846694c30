"""Agglomeration: region graphs of blocks, an octree of decisions, final names.

Steps, each exact for any tiling (see :mod:`cloudseg.ops.agglomerate`):

1. ``graph``: the share of the region graph that each block owns;
2. ``level0`` ... ``levelN``: nodes of the octree merge what they can decide and pass the rest up; the root decides
   everything and gives small segments away;
3. ``resolve...``: from the root down, what each node's ids are finally called;
4. ``relabel``: the layer ``segmentation``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box, grid_box, grid_shape, tile
from cloudseg.specs import FrozenModel
from cloudseg.tasking import memory
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, LabelsStage, block_name, rename_block
from cloudseg.tasking.near import Grid, Near, near
from cloudseg.tasking.region_graphs import StoredGraphs, graph_columns
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.tables import get_table, put_table

Fraction = Annotated[float, Field(ge=0, le=1)]
Emphasis = Annotated[int, Field(ge=0, le=1000)]
Index = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]
_FACES = ("x-", "x+", "y-", "y+", "z-", "z+")
# Labels, affinities, faces and edges of a block, measured on fib25.
_GRAPH_BYTES_PER_VOXEL = 24


class MergeRule(FrozenModel):
    """When two segments become one; affinities on the uint8 scale, sizes in voxels."""

    threshold: Annotated[float, Field(ge=0, le=255)]
    guard_affinity: Annotated[float, Field(ge=0, le=255)] = 0.0
    guard_min_vx: NonNegativeInt = 0
    guard_sum_vx: NonNegativeInt = 0
    min_size_vx: NonNegativeInt = 0


class Octree(FrozenModel):
    """The tree of nodes over a grid of blocks.

    Attributes
    ----------
    grid
        Blocks along each axis.
    leaf
        Blocks along each axis that one leaf node takes.
    fanout
        Nodes along each axis that one parent takes.
    """

    grid: Positive3
    leaf: Positive3 = (1, 1, 1)
    fanout: Annotated[int, Field(ge=2)] = 2

    @property
    def n_levels(self) -> int:
        """Levels, leaves and root included."""
        level = 0
        while math.prod(self.nodes(level)) > 1:
            level += 1
        return level + 1

    def span(self, level: int) -> XYZ:
        """Return how many blocks a node of ``level`` takes along each axis."""
        x, y, z = (n * self.fanout**level for n in self.leaf)
        return (x, y, z)

    def nodes(self, level: int) -> XYZ:
        """Return how many nodes ``level`` has along each axis."""
        return grid_shape(Box.of_shape(self.grid), self.span(level))

    def blocks(self, level: int, index: XYZ) -> Box:
        """Return the blocks under a node, as a box of block indices."""
        return grid_box(Box.of_shape(self.grid), self.span(level), index)

    def children(self, level: int, index: XYZ) -> list[XYZ]:
        """Return the nodes of ``level - 1`` under a node."""
        low = tuple(i * self.fanout for i in index)
        limit = self.nodes(level - 1)
        axes = [range(a, min(a + self.fanout, n)) for a, n in zip(low, limit, strict=True)]
        return [(i, j, k) for i, j, k in itertools.product(*axes)]

    def numbered(self, level: int) -> Grid:
        """Return the nodes of a level as a grid that numbers them, x fastest."""
        return Grid(Box.of_shape(self.nodes(level)), (1, 1, 1))

    def children_of(self, level: int, number: int) -> Iterable[int]:
        """Return the numbers of a node's children; of the block that a leaf takes, if it takes one."""
        if level == 0:
            return (number,)
        index, below = self.numbered(level).index(number), self.numbered(level - 1)
        return map(below.number, self.children(level, index))

    def parent_of(self, level: int, number: int) -> Iterable[int]:
        """Return the number of a node's parent."""
        x, y, z = (i // self.fanout for i in self.numbered(level).index(number))
        return (self.numbered(level + 1).number((x, y, z)),)

    def indices(self, level: int) -> Iterator[XYZ]:
        """Yield the nodes of a level, x fastest."""
        grid = self.numbered(level)
        return map(grid.index, range(math.prod(self.nodes(level))))


class RegionGraphTask(BlockTask):
    """Store the share of the region graph that one block owns, its sizes, and the ids on its faces."""

    kind: Literal["region_graph/1"] = "region_graph/1"
    supervoxels_uri: str
    affinities_uri: str
    graph_uri: str
    block: Index
    missing: Literal["error", "zero"] = "error"
    emphasis: Emphasis = 0

    def run(self, ctx: Context) -> None:
        """Read the block (labels one voxel further down), count, store."""
        from cloudseg.ops.region_graph import face_ids, region_graph

        source = ctx.open_volume(self.supervoxels_uri)
        bounds = source.info.bounds
        outer = self.core.with_lower_neighbours(bounds=bounds)
        with ctx.step("read"):
            labels = source.read(outer)
            affinities = ctx.open_volume(self.affinities_uri).read(self.core, missing=self.missing)
        with ctx.step("compute"):
            graph, sizes = region_graph(
                labels, affinities, core=self.core, bounds=bounds, emphasis=self.emphasis
            )
            faces = face_ids(labels, core=self.core, bounds=bounds)
        with ctx.step("write"):
            objects, name = ctx.open_objects(self.graph_uri), block_name(self.block)
            put_table(objects, f"blocks/{name}/edges.parquet", graph_columns(graph))
            put_table(objects, f"blocks/{name}/sizes.parquet", {"id": sizes.ids, "n": sizes.n})
            put_table(objects, f"blocks/{name}/faces.parquet", _face_columns(faces))
        ctx.count(voxels=self.core.n_voxels, edges=graph.n_edges, supervoxels=len(sizes.ids))


class AgglomerateTask(Task):
    """Decide one node of the octree: merge, give small segments away, pass up what others must decide."""

    kind: Literal["agglomerate/1"] = "agglomerate/1"
    graph_uri: str
    tree: Octree
    level: NonNegativeInt
    node: Index
    rule: MergeRule

    def run(self, ctx: Context) -> None:
        """Add up what the children pass, agglomerate, store decisions and the rest."""
        from cloudseg.ops.agglomerate import Rule, agglomerate
        from cloudseg.ops.region_graph import Sizes

        objects = ctx.open_objects(self.graph_uri)
        sizes, face_parts, children = [], [], list(self._children())
        with ctx.step("read"):
            for place, box in children:
                faces = get_table(objects, f"{place}/faces.parquet")
                face_parts.append(self._outer_faces(faces, box))
                table = get_table(objects, f"{place}/sizes.parquet")
                sizes.append(Sizes(table["id"], table["n"]))
        edges = StoredGraphs(objects, [f"{place}/edges.parquet" for place, _ in children])
        small = StoredGraphs(
            objects, [f"{place}/small.parquet" for place, _ in children] if self.level > 0 else []
        )
        with ctx.step("compute"):
            faces = {c: np.concatenate([f[c] for f in face_parts]) for c in ("face", "id")}
            merged = agglomerate(
                edges,
                frozen=np.unique(faces["id"]),
                sizes=Sizes.added(sizes),
                rule=Rule(**self.rule.model_dump()),
                small=small,
            )
        with ctx.step("write"):
            place = f"level{self.level}/{block_name(self.node)}"
            put_table(objects, f"{place}/merged.parquet", {"old": merged.old, "new": merged.new})
            if self.level + 1 < self.tree.n_levels:
                pairs = np.unique(np.stack([faces["face"].astype(np.uint64), faces["id"]]), axis=1)
                put_table(
                    objects, f"{place}/faces.parquet", {"face": pairs[0].astype(np.int8), "id": pairs[1]}
                )
                put_table(objects, f"{place}/edges.parquet", graph_columns(merged.residual))
                put_table(objects, f"{place}/small.parquet", graph_columns(merged.small))
                put_table(objects, f"{place}/sizes.parquet", {"id": merged.sizes.ids, "n": merged.sizes.n})
        ctx.count(edges=edges.n_edges, merged=len(merged.old), passed_up=merged.residual.n_edges)

    def _children(self) -> Iterator[tuple[str, Box]]:
        """Yield where each child's tables lie, and the blocks it covers."""
        if self.level == 0:
            for block in tile(self.tree.blocks(0, self.node), (1, 1, 1)):
                yield f"blocks/{block_name(block.start)}", block
        else:
            for child in self.tree.children(self.level, self.node):
                yield f"level{self.level - 1}/{block_name(child)}", self.tree.blocks(self.level - 1, child)

    def _outer_faces(self, faces: dict[str, npt.NDArray[Any]], child: Box) -> dict[str, npt.NDArray[Any]]:
        """Keep the rows of a child's faces that are faces of this node too."""
        own = self.tree.blocks(self.level, self.node)
        outer = [
            code
            for code, name in enumerate(_FACES)
            if (child.start if name[1] == "-" else child.stop)["xyz".index(name[0])]
            == (own.start if name[1] == "-" else own.stop)["xyz".index(name[0])]
        ]
        keep = np.isin(faces["face"], outer)
        return {column: values[keep] for column, values in faces.items()}


class ResolveTask(Task):
    """Store what the ids of one node are finally called, given its parent's answer."""

    kind: Literal["resolve/1"] = "resolve/1"
    graph_uri: str
    tree: Octree
    level: NonNegativeInt
    node: Index

    def run(self, ctx: Context) -> None:
        """Compose the node's own merges with the names the parent knows for what it was passed."""
        from cloudseg.ops.remap import compose

        objects = ctx.open_objects(self.graph_uri)
        place = f"level{self.level}/{block_name(self.node)}"
        merged = get_table(objects, f"{place}/merged.parquet")
        x, y, z = (i // self.tree.fanout for i in self.node)
        above = get_table(objects, _answer_key(self.tree, self.level + 1, (x, y, z)))
        # What was passed up has a size up there; other names the parent knows are its other children's.
        passed = get_table(objects, f"{place}/sizes.parquet", columns=["id"])["id"]
        known = np.isin(above["old"], passed)
        old, new = compose(merged["old"], merged["new"], above["old"][known], above["new"][known])
        put_table(objects, f"{place}/resolved.parquet", {"old": old, "new": new})
        ctx.count(names=len(old))


class RelabelTask(BlockTask):
    """Write the segments of one block."""

    kind: Literal["relabel/1"] = "relabel/1"
    supervoxels_uri: str
    segmentation_uri: str
    graph_uri: str
    tree: Octree
    block: Index

    def run(self, ctx: Context) -> None:
        """Read supervoxels and names, rename, write."""
        x, y, z = (i // n for i, n in zip(self.block, self.tree.leaf, strict=True))
        rename_block(
            ctx,
            self.core,
            src_uri=self.supervoxels_uri,
            dst_uri=self.segmentation_uri,
            tables_uri=self.graph_uri,
            tables=[_answer_key(self.tree, 0, (x, y, z))],
        )


class AgglomerateStage(LabelsStage):
    """Mean-affinity agglomeration of supervoxels into the layer ``segmentation``.

    Attributes
    ----------
    supervoxels, affinities
        Names of the input layers.
    output
        Name of the output layer; another one where later stages make ``segmentation``.
    threshold
        Lowest mean affinity, 0..1, that joins two segments.
    emphasis
        How much more strong faces count in that mean: a face with affinity 1 weighs ``1 + emphasis`` times as much as
        one with affinity 0; 0 is the plain mean. See :func:`cloudseg.ops.region_graph.region_graph`.
    guard_affinity, guard_min_um3, guard_sum_um3
        Below this affinity two segments are not joined when the smaller has more than ``guard_min_um3`` and both
        more than ``guard_sum_um3``. ``guard_affinity`` = 0: no guard.
    min_size_um3
        Smaller segments are given to the neighbour they are best connected to.
    hierarchy
        ``octree``: nodes decide what they can and pass the rest up. ``global``: one task decides everything; the
        result is the same.
    fanout
        Nodes per parent along each axis.
    missing
        What an affinity chunk that was never written means; ``zero`` where a tissue mask left blocks out.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["agglomerate"] = "agglomerate"
    supervoxels: str = "supervoxels"
    affinities: str = "affinities"
    output: str = "segmentation"
    threshold: Fraction = 0.5
    guard_affinity: Fraction = 0.0
    guard_min_um3: NonNegativeFloat = 0.0
    guard_sum_um3: NonNegativeFloat = 0.0
    min_size_um3: NonNegativeFloat = 0.0
    hierarchy: Literal["octree", "global"] = "octree"
    fanout: Annotated[int, Field(ge=2)] = 2
    missing: Literal["error", "zero"] = "error"
    emphasis: Emphasis = 0

    def expand(self, site: Site) -> StagePlan:
        """Plan graph, levels, resolution and relabelling."""
        source = site.layer(self.supervoxels, wanted_by=self.label)
        affinities = site.layer(self.affinities, wanted_by=self.label)
        self._check(source, affinities)
        bounds, root = source.info.bounds, site.root.rstrip("/")
        grid = grid_shape(bounds, self.block_shape)
        tree = Octree(grid=grid, leaf=grid if self.hierarchy == "global" else (1, 1, 1), fanout=self.fanout)
        graph_uri = f"{root}/graph/{self.label}"
        info = self.labels_info(source.info)
        output = Layer(self.output, f"{root}/{self.output}", info, f"{self.label}.relabel", self.block_shape)
        rule = self._rule(info.voxel_size_nm)
        blocks = Grid(bounds, self.block_shape)

        def graph(number: int) -> Task:
            return RegionGraphTask(
                core=blocks.box(number),
                block=blocks.index(number),
                supervoxels_uri=source.uri,
                affinities_uri=affinities.uri,
                graph_uri=graph_uri,
                missing=self.missing,
                emphasis=self.emphasis,
            )

        def decide(level: int, number: int) -> Task:
            node = tree.numbered(level).index(number)
            return AgglomerateTask(graph_uri=graph_uri, tree=tree, level=level, node=node, rule=rule)

        def resolve(level: int, number: int) -> Task:
            node = tree.numbered(level).index(number)
            return ResolveTask(graph_uri=graph_uri, tree=tree, level=level, node=node)

        def relabel(number: int) -> Task:
            return RelabelTask(
                core=blocks.box(number),
                block=blocks.index(number),
                supervoxels_uri=source.uri,
                segmentation_uri=output.uri,
                graph_uri=graph_uri,
                tree=tree,
            )

        n_blocks, n_levels = math.prod(grid), tree.n_levels
        n_voxels = grid_box(bounds, self.block_shape, (0, 0, 0)).n_voxels
        base = memory.base_bytes(["numba"])
        node_vx = [
            math.prod(
                min(s, b * n) for s, b, n in zip(bounds.shape, self.block_shape, tree.span(k), strict=True)
            )
            for k in range(n_levels)
        ]
        n_edges = [memory.n_graph_edges(own, child) for child, own in itertools.pairwise([0, *node_vx])]
        above = None
        if source.made_by:
            above = near(
                source.made_by,
                blocks=blocks,
                before=source.blocks,
                reads=lambda core: core.with_lower_neighbours(bounds=bounds),
                task=graph,
            )
        # Each step: its name, tasks, memory, how a task is made from its number, and which tasks before it needs.
        made: list[tuple[str, int, int, Callable[[int], Task], Near | None]] = [
            ("graph", n_blocks, base + _GRAPH_BYTES_PER_VOXEL * n_voxels, graph, above)
        ]
        for n in range(n_levels):
            task = partial(decide, n)
            needs = partial(tree.children_of, n) if self.hierarchy == "octree" else None
            rule_near = Near(f"{self.label}.{made[-1][0]}", needs, task) if needs else None
            merge_bytes = base + memory.MERGE_BYTES_PER_EDGE * n_edges[n]
            made.append((f"level{n}", math.prod(tree.nodes(n)), merge_bytes, task, rule_near))
        for n in reversed(range(n_levels - 1)):
            task = partial(resolve, n)
            rule_near = Near(f"{self.label}.{made[-1][0]}", partial(tree.parent_of, n), task)
            names_bytes = base + memory.RESOLVE_BYTES_PER_EDGE * n_edges[n + 1]
            made.append((f"resolve{n}", math.prod(tree.nodes(n)), names_bytes, task, rule_near))
        leaf = Near(f"{self.label}.{made[-1][0]}", lambda number: (number,), relabel)
        rule_near = leaf if self.hierarchy == "octree" else None
        made.append(("relabel", n_blocks, base + RENAME_BYTES_PER_VOXEL * n_voxels, relabel, rule_near))
        steps = [
            Step(
                f"{self.label}.{name}",
                n_tasks,
                partial(map, task, range(n_tasks)),
                task_memory_bytes=n_bytes,
                libraries=("numba",),
                near=rule_near,
            )
            for name, n_tasks, n_bytes, task, rule_near in made
        ]
        sources = (source.uri, affinities.uri)
        return StagePlan(self.label, (output,), tuple(steps), bounds.n_voxels * 8 // 10, sources)

    def _check(self, source: Layer, affinities: Layer) -> None:
        if source.info.layer != "segmentation" or source.info.dtype != "uint64":
            raise SpecError(
                f"stage {self.label!r} needs supervoxels: a segmentation of uint64; {source.uri} is a "
                f"{source.info.layer} layer of {source.info.dtype}"
            )
        if affinities.info.dtype != "uint8" or affinities.info.n_channels != 3:
            raise SpecError(
                f"stage {self.label!r} needs affinities of uint8 with 3 channels; {affinities.uri} is "
                f"{affinities.info.dtype} with {affinities.info.n_channels} channel(s)"
            )
        if source.info.bounds != affinities.info.bounds:
            raise SpecError(
                f"stage {self.label!r}: supervoxels cover {source.info.bounds}, affinities {affinities.info.bounds}; "
                "both must cover the same box"
            )
        if self.guard_affinity > 0 and self.guard_min_um3 < self.min_size_um3:
            raise SpecError(
                f"stage {self.label!r}: guard_min_um3={self.guard_min_um3} is below min_size_um3={self.min_size_um3}; "
                "the guard would keep apart what the clean-up then joins: raise guard_min_um3"
            )

    def _rule(self, voxel_size_nm: tuple[float, float, float]) -> MergeRule:
        voxel_um3 = math.prod(voxel_size_nm) * 1e-9

        def voxels(um3: float) -> int:
            return math.ceil(um3 / voxel_um3 - 1e-9)

        return MergeRule(
            threshold=self.threshold * 255,
            guard_affinity=self.guard_affinity * 255,
            guard_min_vx=voxels(self.guard_min_um3),
            guard_sum_vx=voxels(self.guard_sum_um3),
            min_size_vx=voxels(self.min_size_um3),
        )


def _answer_key(tree: Octree, level: int, node: XYZ) -> str:
    """Where the final names of a node's ids lie: the root's merges are final."""
    table = "merged" if level + 1 == tree.n_levels else "resolved"
    return f"level{level}/{block_name(node)}/{table}.parquet"


def _face_columns(faces: dict[str, npt.NDArray[np.uint64]]) -> dict[str, npt.NDArray[Any]]:
    codes = [np.full(len(faces[name]), code, np.int8) for code, name in enumerate(_FACES)]
    return {"face": np.concatenate(codes), "id": np.concatenate([faces[name] for name in _FACES])}
