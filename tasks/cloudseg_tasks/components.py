"""Connected components of a mask: label blocks, find what touches across their faces, name it alike everywhere.

Four steps, each exact for any tiling (see :mod:`cloudseg.ops.components`):

1. ``label``: the components inside each block;
2. ``faces``: pairs that touch across the lower faces, edges and corners of a block;
3. ``names``: the smallest id of all that hang together;
4. ``rename``: the layer ``segmentation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from cloudseg.errors import SpecError
from cloudseg.geometry import grid_box, grid_shape, tile
from cloudseg.ops.components import Connectivity
from cloudseg.specs import BoxField
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, LabelsStage, block_name, rename_block
from cloudseg.tasking.fragments import n_inner_faces, name_fragments
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3
from cloudseg.volumes.tables import put_table

# The mask, its runs, the labels; the chunks of labels that a face lies in; and the pairs of all faces.
_LABEL_BYTES_PER_VOXEL = 24
_FACE_BYTES_PER_VOXEL = 24
_NAMES_BYTES_PER_VOXEL = 20


class ComponentsTask(BlockTask):
    """Write the components inside one block."""

    kind: Literal["components/1"] = "components/1"
    mask_uri: str
    fragments_uri: str
    connectivity: Connectivity

    def run(self, ctx: Context) -> None:
        """Read the block, label, write."""
        from cloudseg.ops.components import label_components

        source = ctx.open_volume(self.mask_uri)
        with ctx.step("read"):
            mask = source.read(self.core)
        with ctx.step("compute"):
            labels = label_components(
                mask, core=self.core, bounds=source.info.bounds, connectivity=self.connectivity
            )
        with ctx.step("write"):
            ctx.open_volume(self.fragments_uri).write(self.core, labels)
        ctx.count(voxels=self.core.n_voxels)


class ComponentFacesTask(BlockTask):
    """List the pairs of components that touch across the lower faces of one block."""

    kind: Literal["component_faces/1"] = "component_faces/1"
    fragments_uri: str
    graph_uri: str
    connectivity: Connectivity

    def run(self, ctx: Context) -> None:
        """Read two planes at each lower face; store each pair once."""
        from cloudseg.ops.components import slab_of, touching_pairs

        volume = ctx.open_volume(self.fragments_uri)
        bounds = volume.info.bounds
        found = [np.zeros((2, 0), np.uint64)]
        for axis in range(3):
            if self.core.start[axis] == bounds.start[axis]:
                continue
            with ctx.step("read"):
                labels = volume.read(slab_of(self.core, axis, bounds=bounds))
            with ctx.step("compute"):
                pairs = touching_pairs(
                    labels, core=self.core, axis=axis, bounds=bounds, connectivity=self.connectivity
                )
            found.append(np.stack(pairs))
        a, b = np.unique(np.concatenate(found, axis=1), axis=1)
        put_table(
            ctx.open_objects(self.graph_uri), f"pairs/{block_name(self.core.start)}.parquet", {"a": a, "b": b}
        )
        ctx.count(pairs=len(a))


class ComponentNamesTask(Task):
    """Join the pairs of all blocks and store, for each block, which of its components are renamed."""

    kind: Literal["component_names/1"] = "component_names/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3

    def run(self, ctx: Context) -> None:
        """Find what hangs together; a component's id tells the block it lies in."""
        name_fragments(ctx, graph_uri=self.graph_uri, bounds=self.bounds, block_shape=self.block_shape)


class ComponentRenameTask(BlockTask):
    """Write the components of one block under their final names."""

    kind: Literal["component_rename/1"] = "component_rename/1"
    fragments_uri: str
    segmentation_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read fragments and names, rename, write."""
        rename_block(
            ctx,
            self.core,
            src_uri=self.fragments_uri,
            dst_uri=self.segmentation_uri,
            tables_uri=self.graph_uri,
            tables=[f"names/{block_name(self.core.start)}.parquet"],
        )


class ComponentsStage(LabelsStage):
    """Connected components of a mask, into the layer ``segmentation``.

    Exact for any tiling: an object is called one more than the smallest index of its voxels (x fastest).

    Attributes
    ----------
    layer, output
        The mask: everything but 0 is foreground. The layer that is written.
    connectivity
        6: voxels hang together through faces. 18: through edges too. 26: through corners too.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["components"] = "components"
    layer: str = "cleaned"
    output: str = "segmentation"
    connectivity: Connectivity = 26

    def expand(self, site: Site) -> StagePlan:
        """Plan the four steps."""
        source = site.layer(self.layer, wanted_by=self.label)
        if source.info.dtype == "float32" or source.info.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} needs a mask of whole numbers with 1 channel; {source.uri} has "
                f"{source.info.n_channels} channel(s) of {source.info.dtype}"
            )
        bounds, root = source.info.bounds, site.root.rstrip("/")
        graph_uri = f"{root}/graph/{self.label}"
        info = self.labels_info(source.info)
        fragments = Layer(f"{self.label}_fragments", f"{root}/{self.label}_fragments", info)
        output = Layer(self.output, f"{root}/{self.output}", info, f"{self.label}.rename", self.block_shape)

        def label() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield ComponentsTask(
                    core=core,
                    mask_uri=source.uri,
                    fragments_uri=fragments.uri,
                    connectivity=self.connectivity,
                )

        def faces() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield ComponentFacesTask(
                    core=core,
                    fragments_uri=fragments.uri,
                    graph_uri=graph_uri,
                    connectivity=self.connectivity,
                )

        def names() -> Iterator[Task]:
            yield ComponentNamesTask(graph_uri=graph_uri, bounds=bounds, block_shape=self.block_shape)

        def rename() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield ComponentRenameTask(
                    core=core,
                    fragments_uri=fragments.uri,
                    segmentation_uri=output.uri,
                    graph_uri=graph_uri,
                )

        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        block = grid_box(bounds, self.block_shape, (0, 0, 0))
        n_face = max(2 * block.n_voxels // n * c for n, c in zip(block.shape, self.chunk_shape, strict=True))

        def step(name: str, n_tasks: int, tasks: Callable[[], Iterator[Task]], memory_bytes: int) -> Step:
            return Step(
                f"{self.label}.{name}",
                n_tasks,
                tasks,
                task_memory_bytes=base_bytes(["numba"]) + memory_bytes,
                libraries=("numba",),
            )

        return StagePlan(
            self.label,
            (fragments, output),
            (
                step("label", n_blocks, label, _LABEL_BYTES_PER_VOXEL * block.n_voxels),
                step("faces", n_blocks, faces, _FACE_BYTES_PER_VOXEL * n_face),
                step("names", 1, names, _NAMES_BYTES_PER_VOXEL * n_inner_faces(bounds, self.block_shape)),
                step("rename", n_blocks, rename, RENAME_BYTES_PER_VOXEL * block.n_voxels),
            ),
            outputs_bytes=2 * bounds.n_voxels * 8 // 20,
            sources=(source.uri,),
        )
