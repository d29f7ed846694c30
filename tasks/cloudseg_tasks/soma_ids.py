"""Somas of a new segmentation get the ids of those of an older version of the catalogue that they overlap.

Three steps:

1. ``overlaps``: voxels that new and old somas share in a block;
2. ``decide``: who keeps which id, who gets a new one, who is gone;
3. ``rename``: a layer of the new somas under their final ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from pydantic import AwareDatetime, Field, PositiveInt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, grid_box, grid_shape, tile
from cloudseg.ops.contingency import Contingency, contingency
from cloudseg.ops.soma_match import fresh_ids, match
from cloudseg.somas.opinions import in_effect, read_opinions
from cloudseg.somas.renewal import Verdicts
from cloudseg.somas.store import iter_batches, read_catalog
from cloudseg.specs import BoxField
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, LabelsStage, block_name, rename_block
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3, Volume
from cloudseg.volumes.tables import get_table, put_table

Ids = npt.NDArray[np.uint64]
PlaceNm = tuple[float, float, float]
Share = Annotated[float, Field(ge=0, lt=1)]

# Two blocks of labels, the runs that differ in one of them, and what sorts those.
_OVERLAP_BYTES_PER_VOXEL = 60
_DECIDE_BYTES_PER_VOXEL = 0.002


class SomaIdOverlapsTask(BlockTask):
    """Count the voxels that each pair of a new and an old soma shares in one block, and those that it does not."""

    kind: Literal["soma_id_overlaps/1"] = "soma_id_overlaps/1"
    new_uri: str
    old_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read both, count, store."""
        with ctx.step("read"):
            new = ctx.open_volume(self.new_uri).read(self.core)
            old = ctx.open_volume(self.old_uri).read(self.core, fill=0)
        with ctx.step("compute"):
            pairs = contingency(new, old, mask=(new != 0) | (old != 0))
        with ctx.step("write"):
            columns = {"new": pairs.seg_ids, "old": pairs.truth_ids, "n_voxels": pairs.counts}
            put_table(ctx.open_objects(self.graph_uri), _pairs_key(self.core), columns)
        ctx.count(voxels=self.core.n_voxels, pairs=len(pairs.counts))


class SomaIdsTask(Task):
    """Decide over the whole volume which id each new soma gets, and what becomes of the ids that are gone.

    Attributes
    ----------
    new_uri
        The new somas.
    graph_uri
        Folder of the tables.
    catalogue_uri, previous
        The catalogue, and the version whose ids are kept.
    min_share
        See :func:`cloudseg.ops.soma_match.match`.
    opinions_until
        Somas that were merged by hand until then become one; None: none.
    """

    kind: Literal["soma_ids/1"] = "soma_ids/1"
    new_uri: str
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    catalogue_uri: str
    previous: PositiveInt
    min_share: Share
    opinions_until: AwareDatetime | None = None

    def run(self, ctx: Context) -> None:
        """Add up the blocks, match, store the names and the tombstones."""
        objects, catalogue = ctx.open_objects(self.graph_uri), ctx.open_objects(self.catalogue_uri)
        with ctx.step("read"):
            pairs = Contingency.total(
                Contingency(table["new"], table["old"], table["n_voxels"])
                for table in (get_table(objects, _pairs_key(b)) for b in tile(self.bounds, self.block_shape))
            )
            known, places_nm, targets = self._previous(ctx)
            verdicts = Verdicts()
            if self.opinions_until is not None:
                rows = [row for row in read_opinions(catalogue) if row.time <= self.opinions_until]
                verdicts = Verdicts.of(in_effect(rows).values())
                targets |= verdicts.targets
                places_nm = verdicts.manual_places_nm | places_nm
        with ctx.step("compute"):
            found = match(pairs, min_share=self.min_share)
            labels = np.unique(pairs.seg_ids[pairs.seg_ids > 0])
            called = dict(zip(found.new.tolist(), found.old.tolist(), strict=True))
            called |= self._by_hand(ctx.open_volume(self.new_uri), places_nm, called)
            free = np.array([label for label in labels.tolist() if label not in called], np.uint64)
            # Ids of old masks, and of somas that were added by hand, count as used even if no row has them.
            every = [known, pairs.truth_ids[pairs.truth_ids > 0], np.array(list(places_nm), np.uint64)]
            used = np.unique(np.concatenate(every))
            called |= dict(zip(free.tolist(), fresh_ids(free, used=used).tolist(), strict=True))
            final = {label: _followed(soma, targets) for label, soma in called.items()}
            successor = {
                old: final[by] for old, by in zip(found.covered.tolist(), found.by.tolist(), strict=True)
            }
            successor |= {soma: _followed(soma, targets) for soma in targets}
            gone = np.setdiff1d(known, np.array(list(final.values()), np.uint64))
            superseded_by = np.array([successor.get(soma, 0) for soma in gone.tolist()], np.uint64)
        with ctx.step("write"):
            moved = sorted(label for label, soma in final.items() if label != soma)
            names = {"old": np.array(moved, np.uint64), "new": np.array([final[m] for m in moved], np.uint64)}
            put_table(objects, "names.parquet", names)
            put_table(objects, "tombstones.parquet", {"id": gone, "superseded_by": superseded_by})
        ctx.count(kept=len(found.new), fresh=len(free), gone=len(gone))

    def _previous(self, ctx: Context) -> tuple[Ids, dict[int, PlaceNm], dict[int, int]]:
        """Return the ids of the version before, where those without a mask lie, and into which the merged went."""
        catalogue = ctx.open_objects(self.catalogue_uri)
        ids, places, targets = [np.empty(0, np.uint64)], dict[int, PlaceNm](), dict[int, int]()
        columns = ["soma_id", "n_voxels", "x_nm", "y_nm", "z_nm", "status", "superseded_by"]
        for batch in iter_batches(catalogue, read_catalog(catalogue, self.previous), columns=columns):
            ids.append(batch.column("soma_id").to_numpy())
            rows = batch.filter(pc.or_(pc.equal(batch["n_voxels"], 0), pc.is_valid(batch["superseded_by"])))
            for row in rows.to_pylist():
                if row["superseded_by"] is not None:
                    targets[row["soma_id"]] = row["superseded_by"]
                elif row["status"] == "manual":
                    places[row["soma_id"]] = (row["x_nm"], row["y_nm"], row["z_nm"])
        return np.sort(np.concatenate(ids)), places, targets

    def _by_hand(
        self, volume: Volume, places_nm: dict[int, PlaceNm], called: dict[int, int]
    ) -> dict[int, int]:
        """Return new somas without a name in which a soma lies that was added by hand."""
        found: dict[int, int] = {}
        for soma, place in sorted(places_nm.items()):
            x, y, z = (math.floor(v / s) for v, s in zip(place, volume.info.voxel_size_nm, strict=True))
            label = int(volume.read(Box.of_shape((1, 1, 1), at=(x, y, z)), fill=0)[0, 0, 0])
            if label and label not in called:
                found.setdefault(label, soma)
        return found


class SomaIdRenameTask(BlockTask):
    """Write the new somas of one block under their final ids."""

    kind: Literal["soma_id_rename/1"] = "soma_id_rename/1"
    src_uri: str
    dst_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read somas and names, rename, write."""
        rename_block(
            ctx,
            self.core,
            src_uri=self.src_uri,
            dst_uri=self.dst_uri,
            tables_uri=self.graph_uri,
            tables=["names.parquet"],
        )


class SomaIdsStage(LabelsStage):
    """Write a layer of somas under ids that stay from version to version of the catalogue.

    A soma that overlaps one of the version before keeps its id; the others get ids that nobody had. Ids that are gone
    become tombstones of the next version (``ids`` of the stage ``soma_catalogue``), which name their successors.

    Attributes
    ----------
    layer
        The new somas.
    output
        Name of the layer that is written.
    previous
        The version whose ids are kept.
    catalogue
        Address of the catalogue; ``<root>/somas`` by default.
    min_share
        Two somas are the same only if they share more than this part of the smaller one.
    opinions_until
        Somas that were merged by hand (reference rows) until then become one; None: none.
    block_shape, chunk_shape
        Voxels per task, whole chunks; the result does not depend on it. Chunks of the output.
    """

    kind: Literal["soma_ids"] = "soma_ids"
    layer: str = "somas"
    output: Annotated[str, Field(min_length=1)] = "somas_named"
    previous: PositiveInt
    catalogue: str = ""
    min_share: Share = 0.25
    opinions_until: AwareDatetime | None = None

    def expand(self, site: Site) -> StagePlan:
        """Plan the three steps; the description of the version before is read."""
        source = site.layer(self.layer, wanted_by=self.label)
        if source.info.layer != "segmentation" or source.info.dtype != "uint64":
            raise SpecError(
                f"stage {self.label!r} needs somas: a segmentation of uint64; {source.uri} is a {source.info.layer} "
                f"layer of {source.info.dtype}"
            )
        if self.output == self.layer:
            raise SpecError(
                f"stage {self.label!r}: output and layer are both {self.layer!r}; name another output"
            )
        root, bounds = site.root.rstrip("/"), source.info.bounds
        catalogue_uri = self.catalogue or f"{root}/somas"
        catalog = read_catalog(site.open_objects(catalogue_uri), self.previous)
        old_uri = str(catalog.made_from.get("segmentation") or "")
        if not old_uri or tuple(catalog.voxel_size_nm) != tuple(source.info.voxel_size_nm):
            raise SpecError(
                f"stage {self.label!r}: version {self.previous} of {catalogue_uri} was made from "
                f"{old_uri or 'a segmentation that it does not name'} with voxels of {catalog.voxel_size_nm} nm; the "
                f"new somas have voxels of {source.info.voxel_size_nm} nm, and overlaps are counted voxel by voxel"
            )
        graph_uri = f"{root}/graph/{self.label}"
        output = Layer(
            self.output,
            f"{root}/{self.output}",
            self.labels_info(source.info),
            made_by=f"{self.label}.rename",
            block_shape=self.block_shape,
        )

        def overlaps() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield SomaIdOverlapsTask(core=core, new_uri=source.uri, old_uri=old_uri, graph_uri=graph_uri)

        def decide() -> Iterator[Task]:
            yield SomaIdsTask(
                new_uri=source.uri,
                graph_uri=graph_uri,
                bounds=bounds,
                block_shape=self.block_shape,
                catalogue_uri=catalogue_uri,
                previous=self.previous,
                min_share=self.min_share,
                opinions_until=self.opinions_until,
            )

        def rename() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield SomaIdRenameTask(core=core, src_uri=source.uri, dst_uri=output.uri, graph_uri=graph_uri)

        n_blocks = math.prod(grid_shape(bounds, self.block_shape))
        n_voxels = grid_box(bounds, self.block_shape, (0, 0, 0)).n_voxels
        base = base_bytes(["numba"])

        def step(name: str, n_tasks: int, tasks: Callable[[], Iterator[Task]], memory_bytes: float) -> Step:
            return Step(
                f"{self.label}.{name}",
                n_tasks,
                tasks,
                task_memory_bytes=base + int(memory_bytes),
                libraries=("numba",),
            )

        return StagePlan(
            self.label,
            (output,),
            (
                step("overlaps", n_blocks, overlaps, _OVERLAP_BYTES_PER_VOXEL * n_voxels),
                step("decide", 1, decide, _DECIDE_BYTES_PER_VOXEL * bounds.n_voxels),
                step("rename", n_blocks, rename, RENAME_BYTES_PER_VOXEL * n_voxels),
            ),
            outputs_bytes=bounds.n_voxels // 100,
            sources=(source.uri, old_uri),
        )


def _pairs_key(core: Box) -> str:
    return f"overlaps/{block_name(core.start)}.parquet"


def _followed(soma: int, targets: dict[int, int]) -> int:
    """Return where a chain of mergers ends; at the smallest id of a circle."""
    seen = [soma]
    while seen[-1] in targets:
        after = targets[seen[-1]]
        if after in seen:
            return min(seen[seen.index(after) :])
        seen.append(after)
    return seen[-1]
