"""The stage ``soma_annotations``: what Neuroglancer shows of a catalogue, points, ellipsoids and properties to search.

Three steps: ``plan`` (what needs all somas at once), ``write`` (every task some shards, from the table), ``publish``
(the documents that make viewers find them). The bytes do not depend on the number of tasks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from cloudseg.somas.annotations import (
    LIMIT,
    SHARD_BYTES,
    AnnotationPlan,
    plan_annotations,
    publish_annotations,
    write_part,
)
from cloudseg.somas.catalogue import Catalogue
from cloudseg.somas.duck import DuckEngine
from cloudseg.somas.properties import properties_of_segments, segment_properties
from cloudseg.somas.requests import Selection
from cloudseg.somas.store import read_catalog
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Site, Stage, StagePlan, Step
from cloudseg.tasking.task import Context, Task
from cloudseg.volumes import update_info

PROPERTIES = "soma_properties"
"""Folder inside the segmentation of somas, and what its ``info`` names: ``statistics`` has another."""

_PLAN_KEY = "plan.json"
# Measured on 143,000 somas, with something to spare.
_PLAN_BYTES_PER_SOMA = 700
_WRITE_BYTES_PER_SOMA = 900
_PUBLISH_BYTES_PER_SOMA = 1_500
_TABLE_BYTES = 250_000_000
_BYTES_PER_SOMA_STORED = 500
# Somas in a tissue that is full of them: balls of 5 um.
_MOST_SOMAS_PER_UM3 = 1 / 500


class SomaAnnotationPlanTask(Task):
    """Work out levels of the spatial index and shards.

    Attributes
    ----------
    catalogue_uri, version
        The somas.
    dst_uri
        Folder of the plan.
    limit
        Most annotations in a cell of the spatial index.
    shard_bytes
        How large a shard may be.
    """

    kind: Literal["soma_annotation_plan/1"] = "soma_annotation_plan/1"
    catalogue_uri: str
    version: PositiveInt
    dst_uri: str
    limit: PositiveInt = LIMIT
    shard_bytes: PositiveInt = SHARD_BYTES

    def run(self, ctx: Context) -> None:
        """Read the table, store the plan."""
        objects = ctx.open_objects(self.catalogue_uri)
        with ctx.step("compute"):
            catalog = read_catalog(objects, self.version)
            plan = plan_annotations(objects, catalog, limit=self.limit, shard_bytes=self.shard_bytes)
        ctx.open_objects(self.dst_uri).put(_PLAN_KEY, plan.canonical_json().encode())
        ctx.count(somas=plan.n_somas)


class SomaAnnotationsTask(Task):
    """Write every ``n_parts``-th shard."""

    kind: Literal["soma_annotations/1"] = "soma_annotations/1"
    catalogue_uri: str
    plan_uri: str
    part: NonNegativeInt = 0
    n_parts: PositiveInt = 1

    def run(self, ctx: Context) -> None:
        """Read the table, build shards, store them."""
        objects = ctx.open_objects(self.catalogue_uri)
        plan = _read_plan(ctx, self.plan_uri)
        catalog = read_catalog(objects, plan.version)
        with ctx.step("write"):
            written = write_part(objects, catalog, plan, part=self.part, n_parts=self.n_parts)
        ctx.count(shards=written)


class SomaAnnotationPublishTask(Task):
    """Write properties to search by, and last the documents by which viewers find everything.

    Attributes
    ----------
    catalogue_uri, plan_uri
        See :class:`SomaAnnotationsTask`.
    somas_uri
        The segmentation of somas, which gets the properties too; empty: none.
    max_properties
        How many somas, and how many neurons, the largest ones, a viewer gets to list.
    """

    kind: Literal["soma_annotation_publish/1"] = "soma_annotation_publish/1"
    catalogue_uri: str
    plan_uri: str
    somas_uri: str = ""
    max_properties: PositiveInt = 500_000

    def run(self, ctx: Context) -> None:
        """Ask the catalogue, write, publish."""
        objects = ctx.open_objects(self.catalogue_uri)
        plan = _read_plan(ctx, self.plan_uri)
        engine = DuckEngine(objects, read_catalog(objects, plan.version))
        try:
            catalogue = Catalogue(engine)
            with ctx.step("compute"):
                somas = segment_properties(catalogue, Selection(), largest=self.max_properties)
                segments = properties_of_segments(catalogue, largest=self.max_properties)
        finally:
            engine.close()
        with ctx.step("write"):
            for name, document in (("somas", somas), ("segments", segments)):
                data = json.dumps(document, separators=(",", ":")).encode()
                objects.put(f"v{plan.version}/properties/{name}/info", data)
                if name == "somas" and self.somas_uri:
                    ctx.open_objects(self.somas_uri).put(f"{PROPERTIES}/info", data)
                    update_info(self.somas_uri, segment_properties=PROPERTIES)
            publish_annotations(objects, plan)
        ctx.count(
            somas=len(somas["inline"]["ids"]),
            segments=len(segments["inline"]["ids"]),
        )


class SomaAnnotationsStage(Stage):
    """Points, ellipsoids and searchable properties of a version of the catalogue, for Neuroglancer.

    Attributes
    ----------
    layer
        The segmentation of somas; it gets the properties, and its size says how many somas there may be.
    catalogue
        Address of the catalogue; ``<root>/somas`` by default.
    version
        Which of its versions.
    limit
        Most annotations in a cell of the spatial index: how many a viewer loads at a time.
    max_properties
        How many somas, the largest first, a viewer gets to list.
    somas_per_task
        How the shards are shared out; the result does not depend on it.
    """

    kind: Literal["soma_annotations"] = "soma_annotations"
    layer: str = "somas"
    catalogue: str = ""
    version: PositiveInt = 1
    limit: PositiveInt = Field(LIMIT, le=100_000)
    max_properties: PositiveInt = 500_000
    somas_per_task: PositiveInt = 250_000

    def expand(self, site: Site) -> StagePlan:
        """Plan three steps: plan, write, publish."""
        layer = site.layer(self.layer, wanted_by=self.label)
        root = site.root.rstrip("/")
        catalogue_uri = (self.catalogue or f"{root}/somas").rstrip("/")
        plan_uri = f"{root}/graph/{self.label}"
        voxel_um3 = math.prod(layer.info.voxel_size_nm) * 1e-9
        n_somas = math.ceil(layer.info.bounds.n_voxels * voxel_um3 * _MOST_SOMAS_PER_UM3)
        n_parts = math.ceil(n_somas / self.somas_per_task)

        def plan() -> Iterator[Task]:
            yield SomaAnnotationPlanTask(
                catalogue_uri=catalogue_uri, version=self.version, dst_uri=plan_uri, limit=self.limit
            )

        def write() -> Iterator[Task]:
            for part in range(n_parts):
                yield SomaAnnotationsTask(
                    catalogue_uri=catalogue_uri, plan_uri=plan_uri, part=part, n_parts=n_parts
                )

        def publish() -> Iterator[Task]:
            yield SomaAnnotationPublishTask(
                catalogue_uri=catalogue_uri,
                plan_uri=plan_uri,
                somas_uri=layer.uri,
                max_properties=self.max_properties,
            )

        base = base_bytes([]) + _TABLE_BYTES
        listed = min(n_somas, self.max_properties)
        return StagePlan(
            name=self.label,
            layers=(),
            steps=(
                Step(f"{self.label}.plan", 1, plan, task_memory_bytes=base + n_somas * _PLAN_BYTES_PER_SOMA),
                Step(
                    f"{self.label}.write",
                    n_parts,
                    write,
                    # A soma is in five indices of either set, and so in ten shards at most.
                    task_memory_bytes=base + min(n_somas, 10 * self.somas_per_task) * _WRITE_BYTES_PER_SOMA,
                ),
                Step(
                    f"{self.label}.publish",
                    1,
                    publish,
                    task_memory_bytes=base + listed * _PUBLISH_BYTES_PER_SOMA,
                ),
            ),
            outputs_bytes=n_somas * _BYTES_PER_SOMA_STORED,
        )


def _read_plan(ctx: Context, uri: str) -> AnnotationPlan:
    return AnnotationPlan.load(ctx.open_objects(uri).get(_PLAN_KEY), where=f"{uri}/{_PLAN_KEY}")
