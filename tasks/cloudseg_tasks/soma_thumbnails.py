"""The stage ``soma_thumbnails``: a small picture of every soma of a version, all in few objects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from cloudseg.errors import SpecError
from cloudseg.somas.store import read_catalog
from cloudseg.somas.thumbnails import publish_thumbnails, write_shards
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Site, Stage, StagePlan, Step
from cloudseg.tasking.task import Context, Task
from cloudseg.volumes import scales
from cloudseg.volumes.protocol import Volume

# The table, a shard of pictures, three planes of image and mask with the chunks that they lie in.
_TASK_BYTES = 900_000_000
_BYTES_EACH = 18_000
# Somas in a tissue that is full of them: balls of 5 um.
_MOST_SOMAS_PER_UM3 = 1 / 500


class SomaThumbnailsTask(Task):
    """Draw every ``n_parts``-th shard of somas.

    Attributes
    ----------
    catalogue_uri, version
        The somas.
    image_uri, masks_uri
        What is drawn, and the segmentation whose outlines are.
    """

    kind: Literal["soma_thumbnails/1"] = "soma_thumbnails/1"
    catalogue_uri: str
    version: PositiveInt
    image_uri: str
    masks_uri: str
    part: NonNegativeInt = 0
    n_parts: PositiveInt = 1

    def run(self, ctx: Context) -> None:
        """Read the table, draw, store."""
        objects = ctx.open_objects(self.catalogue_uri)
        catalog = read_catalog(objects, self.version)
        images, masks = _scales(ctx, self.image_uri), _scales(ctx, self.masks_uri)
        with ctx.step("compute"):
            drawn = write_shards(objects, catalog, images, masks, part=self.part, n_parts=self.n_parts)
        ctx.count(somas=drawn)


class SomaThumbnailPublishTask(Task):
    """Say that the thumbnails of a version are there."""

    kind: Literal["soma_thumbnail_publish/1"] = "soma_thumbnail_publish/1"
    catalogue_uri: str
    version: PositiveInt

    def run(self, ctx: Context) -> None:
        """Put the ``info``."""
        publish_thumbnails(ctx.open_objects(self.catalogue_uri), self.version)


class SomaThumbnailsStage(Stage):
    """A small picture of every soma: planes xy, xz and yz, the outline of the mask, a scale bar.

    Attributes
    ----------
    image
        Name of the layer that is drawn; coarser scales of it and of the masks are used where there are any.
    layer
        The segmentation of somas.
    catalogue
        Address of the catalogue; ``<root>/somas`` by default.
    version
        Which of its versions.
    somas_per_task
        How the pictures are shared out; the result does not depend on it.
    """

    kind: Literal["soma_thumbnails"] = "soma_thumbnails"
    image: str = "image"
    layer: str = "somas"
    catalogue: str = ""
    version: PositiveInt = 1
    somas_per_task: PositiveInt = 2_000

    def expand(self, site: Site) -> StagePlan:
        """Plan two steps: draw, publish."""
        image, masks = (site.layer(name, wanted_by=self.label) for name in (self.image, self.layer))
        if masks.info.layer != "segmentation" or image.info.layer == "segmentation":
            raise SpecError(
                f"stage {self.label!r} draws the outlines of a segmentation on an image; the layer {self.layer!r} at "
                f"{masks.uri} is of type {masks.info.layer!r}, and {self.image!r} at {image.uri} of type "
                f"{image.info.layer!r}"
            )
        catalogue_uri = (self.catalogue or f"{site.root.rstrip('/')}/somas").rstrip("/")
        voxel_um3 = math.prod(masks.info.voxel_size_nm) * 1e-9
        n_somas = math.ceil(masks.info.bounds.n_voxels * voxel_um3 * _MOST_SOMAS_PER_UM3)
        n_parts = math.ceil(n_somas / self.somas_per_task)

        def draw() -> Iterator[Task]:
            for part in range(n_parts):
                yield SomaThumbnailsTask(
                    catalogue_uri=catalogue_uri,
                    version=self.version,
                    image_uri=image.uri,
                    masks_uri=masks.uri,
                    part=part,
                    n_parts=n_parts,
                )

        def publish() -> Iterator[Task]:
            yield SomaThumbnailPublishTask(catalogue_uri=catalogue_uri, version=self.version)

        return StagePlan(
            name=self.label,
            layers=(),
            steps=(
                Step(f"{self.label}.draw", n_parts, draw, task_memory_bytes=base_bytes([]) + _TASK_BYTES),
                Step(f"{self.label}.publish", 1, publish, task_memory_bytes=base_bytes([])),
            ),
            outputs_bytes=n_somas * _BYTES_EACH,
            sources=(image.uri, masks.uri),
        )


def _scales(ctx: Context, uri: str) -> list[Volume]:
    return [ctx.open_volume(uri, mip=mip) for mip in range(len(scales(uri)))]
