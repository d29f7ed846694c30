"""The stage ``soma_catalogue``: what it would do, worked out without touching anything."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

from pydantic import AwareDatetime, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cloudseg.errors import SpecError
from cloudseg.geometry import grid_shape, tile
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, Stage, StagePlan, Step
from cloudseg.tasking.task import Task
from cloudseg.volumes.protocol import Positive3
from cloudseg_tasks.soma_catalogue.measure import Map, SomaMergeTask, SomaPartialsTask
from cloudseg_tasks.soma_catalogue.places import MOST_VOXELS, SomaPlacesTask
from cloudseg_tasks.soma_catalogue.publish import CatalogueFields, SomaCatalogueTask

# Labels, their runs (few: most of a brain is no soma), neurons and two maps of the same block.
_MEASURE_BYTES_PER_VOXEL = 40
# The greatest box that is looked at for its deepest voxel: ids, mask, distances and what finds them.
_PLACES_BYTES_PER_VOXEL = 40
_MERGE_BYTES_PER_SOMA = 2_000
_PUBLISH_BYTES_PER_SOMA = 2_500
# Somas in a tissue that is full of them: balls of 5 um.
_MOST_SOMAS_PER_UM3 = 1 / 500


class SomaCatalogueStage(Stage):
    """The table of all somas of a segmentation, published as a version of a catalogue.

    Attributes
    ----------
    layer
        The somas.
    version
        Number of the version. A version never changes: a new one has the next number.
    dataset
        Name under which servers and clients know it; by default the last part of the address that the
        catalogue lies in.
    interior, boundary
        Names of layers of probabilities over the same voxels, if there are any.
    interior_channel, boundary_channel
        Which of their channels.
    missing
        What a chunk of these maps that was never written means; ``zero`` where they were computed with a mask.
    segments, segments_mip
        Name of a layer of neurons, and which scale of it is about as fine as the somas.
    atlas
        Name of a layer of regions; their names and sides are its segment properties.
    meshes
        Whether the somas have meshes (a stage ``meshes`` before this one), from which surface and sphericity come.
    catalogue
        Address of the catalogue; ``<root>/somas`` by default. Name that of an earlier run to add a version to it.
    ids
        Label of the stage ``soma_ids`` before this one, if there is one: its tombstones come into the table.
    previous
        The version whose ids that stage kept.
    stitched
        Label of the stage ``soma_stitch`` before this one, if there is one: it says how many pieces were joined.
    opinions_until
        Reference rows up to this time are taken in; None: none.
    neighbourhood_um
        Radius within which neighbours are counted for the local density.
    block_shape
        Voxels that one task reads; the result does not depend on it, but for the column ``n_blocks``.
    voxels_per_partition, voxels_per_portion
        How the somas are shared out over the tasks that add them up, and over those that find deepest voxels.
    """

    kind: Literal["soma_catalogue"] = "soma_catalogue"
    layer: str = "somas"
    version: PositiveInt = 1
    dataset: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    interior: str = ""
    interior_channel: NonNegativeInt = 0
    boundary: str = ""
    boundary_channel: NonNegativeInt = 0
    missing: Literal["error", "zero"] = "error"
    segments: str = ""
    segments_mip: NonNegativeInt = 0
    atlas: str = ""
    meshes: bool = False
    catalogue: str = ""
    ids: str = ""
    previous: PositiveInt | None = None
    stitched: str = ""
    opinions_until: AwareDatetime | None = None
    neighbourhood_um: PositiveFloat = 25.0
    block_shape: Positive3 = (256, 256, 256)
    voxels_per_partition: PositiveInt = 1 << 38
    voxels_per_portion: PositiveInt = 1 << 31

    @model_validator(mode="after")
    def _ids_have_a_version(self) -> Self:
        if bool(self.ids) != (self.previous is not None):
            raise ValueError(
                "ids and previous belong together: the label of the stage soma_ids, and its version"
            )
        if self.previous is not None and self.previous >= self.version:
            raise ValueError(f"previous must be below version {self.version}, got {self.previous}")
        return self

    def expand(self, site: Site) -> StagePlan:
        """Plan four steps: measure blocks, add them up, find deepest voxels, publish."""
        somas = self._layer(site, self.layer, what="somas", ids=True)
        bounds, root = somas.info.bounds, site.root.rstrip("/")
        graph_uri = f"{root}/graph/{self.label}"
        catalogue_uri = (self.catalogue or f"{root}/somas").rstrip("/")
        maps = {
            name: Map(uri=self._map(site, getattr(self, name), somas, name).uri, channel=channel)
            for name, channel in (("interior", self.interior_channel), ("boundary", self.boundary_channel))
            if getattr(self, name)
        }
        segments = self._layer(site, self.segments, what="neurons", ids=True) if self.segments else None
        atlas = self._layer(site, self.atlas, what="regions", ids=True) if self.atlas else None
        if segments is not None and not self.segments_mip:
            self._refuse_fine(segments, somas)
        n_partitions = max(1, math.ceil(bounds.n_voxels / self.voxels_per_partition))
        n_portions = max(1, math.ceil(bounds.n_voxels / n_partitions / self.voxels_per_portion))
        made_from: dict[str, Any] = {
            "segmentation": somas.uri,
            "neighbourhood_um": self.neighbourhood_um,
            "segments": segments.uri if segments else None,
            "atlas": atlas.uri if atlas else None,
            "previous": self.previous,
            "opinions_until": self.opinions_until.isoformat() if self.opinions_until else None,
            **{name: each.model_dump() for name, each in maps.items()},
        }

        def measure() -> Iterator[Task]:
            for core in tile(bounds, self.block_shape):
                yield SomaPartialsTask(
                    core=core,
                    src_uri=somas.uri,
                    dst_uri=graph_uri,
                    n_partitions=n_partitions,
                    missing=self.missing,
                    segments_uri=segments.uri if segments else "",
                    segments_mip=self.segments_mip,
                    **maps,
                )

        def merge() -> Iterator[Task]:
            for part in range(n_partitions):
                yield SomaMergeTask(
                    src_uri=graph_uri,
                    bounds=bounds,
                    block_shape=self.block_shape,
                    partition=part,
                    with_segments=segments is not None,
                )

        def places() -> Iterator[Task]:
            for part in range(n_partitions):
                for portion in range(n_portions):
                    yield SomaPlacesTask(
                        src_uri=somas.uri,
                        graph_uri=graph_uri,
                        partition=part,
                        portion=portion,
                        n_portions=n_portions,
                        atlas_uri=atlas.uri if atlas else "",
                        with_meshes=self.meshes,
                    )

        def publish() -> Iterator[Task]:
            yield SomaCatalogueTask(
                graph_uri=graph_uri,
                catalogue_uri=catalogue_uri,
                version=self.version,
                fields=CatalogueFields(
                    dataset=self.dataset or _last_name(catalogue_uri.removesuffix("/somas")),
                    made_from=made_from,
                ),
                bounds=bounds,
                voxel_size_nm=somas.info.voxel_size_nm,
                n_partitions=n_partitions,
                n_portions=n_portions,
                neighbourhood_um=self.neighbourhood_um,
                atlas_uri=atlas.uri if atlas else "",
                names_uri=f"{root}/graph/{self.ids}" if self.ids else "",
                stitched_uri=f"{root}/graph/{self.stitched}" if self.stitched else "",
                previous=self.previous,
                opinions_until=self.opinions_until,
                has_interior="interior" in maps,
                has_boundary="boundary" in maps,
                has_segments=segments is not None,
            )

        voxel_um3 = math.prod(somas.info.voxel_size_nm) * 1e-9
        n_somas = math.ceil(bounds.n_voxels * voxel_um3 * _MOST_SOMAS_PER_UM3)
        core_voxels = math.prod(min(b, s) for b, s in zip(self.block_shape, bounds.shape, strict=True))
        base = base_bytes(["numba"])

        def step(name: str, n_tasks: int, tasks: Callable[[], Iterator[Task]], memory_bytes: int) -> Step:
            return Step(
                f"{self.label}.{name}",
                n_tasks,
                tasks,
                task_memory_bytes=base + memory_bytes,
                libraries=("numba",),
            )

        return StagePlan(
            name=self.label,
            layers=(),
            steps=(
                step(
                    "measure",
                    math.prod(grid_shape(bounds, self.block_shape)),
                    measure,
                    core_voxels * _MEASURE_BYTES_PER_VOXEL,
                ),
                step("merge", n_partitions, merge, n_somas // n_partitions * _MERGE_BYTES_PER_SOMA),
                step(
                    "places",
                    n_partitions * n_portions,
                    places,
                    min(MOST_VOXELS, bounds.n_voxels) * _PLACES_BYTES_PER_VOXEL,
                ),
                step("publish", 1, publish, n_somas * _PUBLISH_BYTES_PER_SOMA),
            ),
            outputs_bytes=n_somas * 200,
        )

    def _layer(self, site: Site, name: str, *, what: str, ids: bool) -> Layer:
        layer = site.layer(name, wanted_by=self.label)
        info = layer.info
        if info.n_channels != 1 or info.dtype == "float32" or (ids and info.layer != "segmentation"):
            raise SpecError(
                f"stage {self.label!r} needs {what}: a segmentation; the layer {name!r} at {layer.uri} is "
                f"{info.n_channels} channel(s) of {info.dtype}, a layer of type {info.layer!r}"
            )
        return layer

    def _map(self, site: Site, name: str, somas: Layer, which: str) -> Layer:
        layer, channel = site.layer(name, wanted_by=self.label), getattr(self, f"{which}_channel")
        info = layer.info
        if info.dtype != "uint8" or channel >= info.n_channels or not info.bounds.contains(somas.info.bounds):
            raise SpecError(
                f"stage {self.label!r}: {which} must be uint8 with a channel {channel} over the voxels of the somas, "
                f"{somas.info.bounds}; the layer {name!r} at {layer.uri} has {info.n_channels} channel(s) of "
                f"{info.dtype} over {info.bounds}"
            )
        return layer

    def _refuse_fine(self, segments: Layer, somas: Layer) -> None:
        finer = math.prod(somas.info.voxel_size_nm) / math.prod(segments.info.voxel_size_nm)
        if finer > 64:
            raise SpecError(
                f"stage {self.label!r}: {finer:.0f} voxels of the neurons at {segments.uri} lie in one of the somas, "
                "and all of them would be read; set segments_mip to the scale whose voxels are about "
                f"{somas.info.voxel_size_nm} nm"
            )


def _last_name(uri: str) -> str:
    """Return the last part of an address as a name of a dataset."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", uri.rpartition("/")[2]).strip(".-_")[:64]
    return name or "somas"
