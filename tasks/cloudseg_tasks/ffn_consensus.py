"""Consensus of two segmentations of one volume: a cut in either is kept.

For runs that should agree, such as flood filling with seeds from the first to the last and from the last to the first:
what both hold together stays together, what one of them joined wrongly is cut by the other. Three steps, each exact for
any tiling: ``count`` pairs of ids, ``decide`` over the volume, ``write``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from cloudseg.errors import SpecError
from cloudseg.geometry import grid_box, grid_shape, tile
from cloudseg.specs import BoxField
from cloudseg.tasking.blocks import LabelsStage, block_name
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.tables import get_table, put_table

# Both labels, their places among the ids of the block, and sorted pairs.
_BYTES_PER_VOXEL = 80
_DECIDE_BYTES_PER_VOXEL = 1


class ConsensusCountTask(BlockTask):
    """Count how often each pair of ids occurs in one block."""

    kind: Literal["consensus_count/1"] = "consensus_count/1"
    a_uri: str
    b_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read both, count, store."""
        from cloudseg.ops.flood_stitch import Overlap

        with ctx.step("read"):
            a, b = (ctx.open_volume(uri).read(self.core) for uri in (self.a_uri, self.b_uri))
        with ctx.step("compute"):
            pairs = Overlap.of(a, b)
        put_table(
            ctx.open_objects(self.graph_uri),
            f"pairs/{block_name(self.core.start)}.parquet",
            {"a": pairs.a, "b": pairs.b, "n": pairs.n},
        )
        ctx.count(voxels=self.core.n_voxels, pairs=len(pairs.n))


class ConsensusDecideTask(Task):
    """Name the pairs of the whole volume."""

    kind: Literal["consensus_decide/1"] = "consensus_decide/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    min_size_vx: int

    def run(self, ctx: Context) -> None:
        """Add up the blocks, name, store."""
        from cloudseg.ops.flood_stitch import Overlap, split_consensus

        objects = ctx.open_objects(self.graph_uri)
        with ctx.step("read"):
            tables = [
                get_table(objects, f"pairs/{block_name(core.start)}.parquet")
                for core in tile(self.bounds, self.block_shape)
            ]
        with ctx.step("compute"):
            both = np.stack([np.concatenate([t[name] for t in tables]) for name in "ab"])
            pairs, place = np.unique(both, axis=1, return_inverse=True)
            n = np.zeros(pairs.shape[1], np.int64)
            np.add.at(n, place.ravel(), np.concatenate([t["n"] for t in tables]))
            a, b, names = split_consensus(Overlap(pairs[0], pairs[1], n), min_vx=self.min_size_vx)
        put_table(objects, "names.parquet", {"a": a, "b": b, "name": names})
        ctx.count(pairs=len(names), segments=int(np.count_nonzero(names)))


class ConsensusWriteTask(BlockTask):
    """Write the consensus of one block."""

    kind: Literal["consensus_write/1"] = "consensus_write/1"
    a_uri: str
    b_uri: str
    output_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read both and the names of pairs, write."""
        with ctx.step("read"):
            a, b = (ctx.open_volume(uri).read(self.core) for uri in (self.a_uri, self.b_uri))
            table = get_table(ctx.open_objects(self.graph_uri), "names.parquet")
        with ctx.step("compute"):
            ids_a, ids_b = np.unique(table["a"]), np.unique(table["b"])

            def code(x: npt.NDArray[np.uint64], y: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
                found: npt.NDArray[np.int64] = np.searchsorted(ids_a, x) * len(ids_b) + np.searchsorted(
                    ids_b, y
                )
                return found

            known = code(table["a"], table["b"])
            order = np.argsort(known)
            at = order[np.searchsorted(known, code(a.ravel(order="F"), b.ravel(order="F")), sorter=order)]
            labels = table["name"][at].reshape(self.core.shape, order="F")
        with ctx.step("write"):
            ctx.open_volume(self.output_uri).write(self.core, labels)
        ctx.count(voxels=self.core.n_voxels)


class ConsensusStage(LabelsStage):
    """The split consensus of two segmentations, into the layer ``segmentation`` (or ``output``).

    A segment of ``a`` keeps its id where it shares most with a segment of ``b``; its other pieces get new ids.

    Attributes
    ----------
    a, b
        Names of the layers.
    output
        Name of the layer that is written.
    min_size_vx
        Pieces with fewer voxels become background.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["consensus"] = "consensus"
    a: str
    b: str
    output: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")] = "segmentation"
    min_size_vx: PositiveInt = 1000

    def expand(self, site: Site) -> StagePlan:
        """Plan the three steps."""
        a, b = (site.layer(name, wanted_by=self.label) for name in (self.a, self.b))
        for layer in (a, b):
            if layer.info.layer != "segmentation" or layer.info.dtype != "uint64":
                raise SpecError(
                    f"stage {self.label!r} needs two segmentations of uint64; {layer.uri} is a {layer.info.layer} "
                    f"layer of {layer.info.dtype}"
                )
        bounds = a.info.bounds
        if b.info.bounds != bounds or b.info.voxel_size_nm != a.info.voxel_size_nm:
            raise SpecError(
                f"stage {self.label!r}: {a.uri} covers {bounds}, {b.uri} {b.info.bounds}, or their voxels differ; a "
                "consensus is of two segmentations of the same voxels"
            )
        root = site.root.rstrip("/")
        graph_uri = f"{root}/graph/{self.label}"
        output = Layer(
            self.output,
            f"{root}/{self.output}",
            self.labels_info(a.info),
            made_by=f"{self.label}.write",
            block_shape=self.block_shape,
        )

        def count() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield ConsensusCountTask(core=core, a_uri=a.uri, b_uri=b.uri, graph_uri=graph_uri)

        def decide() -> Iterator[Task]:
            yield ConsensusDecideTask(
                graph_uri=graph_uri, bounds=bounds, block_shape=self.block_shape, min_size_vx=self.min_size_vx
            )

        def write() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield ConsensusWriteTask(
                    core=core, a_uri=a.uri, b_uri=b.uri, output_uri=output.uri, graph_uri=graph_uri
                )

        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        block_bytes = (
            base_bytes([]) + _BYTES_PER_VOXEL * grid_box(bounds, self.block_shape, (0, 0, 0)).n_voxels
        )
        decide_bytes = base_bytes([]) + _DECIDE_BYTES_PER_VOXEL * bounds.n_voxels
        return StagePlan(
            self.label,
            (output,),
            (
                Step(f"{self.label}.count", n_blocks, count, task_memory_bytes=block_bytes),
                Step(f"{self.label}.decide", 1, decide, task_memory_bytes=decide_bytes),
                Step(f"{self.label}.write", n_blocks, write, task_memory_bytes=block_bytes),
            ),
            outputs_bytes=bounds.n_voxels * 8 // 10,
        )
