"""3C: objects followed through slabs of sections by colours; see :mod:`cloudseg.ops.tracking`.

Four steps:

1. ``track``: the tracks of one slab of whole sections, and how they go on in the first section of the next slab;
2. ``seams``: which tracks of two slabs are one, from that section;
3. ``names``: what seams hold together, called by its smallest id;
4. ``rename``: the layer ``segmentation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box, grid_shape, tile
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.blocks import RENAME_BYTES_PER_VOXEL, block_name, rename_block
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, Stage, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.protocol import Positive3, VolumeInfo
from cloudseg.volumes.tables import get_table, put_table

Share = Annotated[float, Field(ge=0, le=1)]
# Image, segments, tracks both ways and joined; per pixel of a section: pictures, probabilities, the network's features.
_TRACK_BYTES_PER_VOXEL = 60
_TRACK_BYTES_PER_PIXEL = 1200
_SEAM_BYTES_PER_PIXEL = 100
_NAMES_BYTES_PER_PIXEL = 4


class TrackOptions(FrozenModel):
    """How objects are followed.

    Attributes
    ----------
    redundancy
        Pictures beyond those that the number of labels needs: safer, and slower.
    cell
        Pixels that an object may move between sections, about.
    min_posterior
        Below it a pixel belongs to nothing.
    min_area_px
        Smaller pieces neither begin nor go on.
    collapse
        An object ends where its area falls below this share of the area before.
    explained
        A segment of which the tracks explain less than this share begins a new object.
    join
        How much of each other's pieces tracks of both directions must cover to be one.
    fill_px
        Pixels without an object go to the nearest one of their section, this far; 0: to none.
    seed
        Of the codes.
    """

    redundancy: NonNegativeInt = 2
    cell: PositiveInt = 16
    min_posterior: Share = 0.5
    min_area_px: PositiveInt = 20
    collapse: Share = 0.1
    explained: Share = 0.5
    join: Share = 0.5
    fill_px: NonNegativeInt = 10
    seed: NonNegativeInt = 0


class VoteOptions(FrozenModel):
    """What whole segments of sections have to say. Project-defined; 0 leaves it to the pixels.

    Attributes
    ----------
    vote
        A segment goes as a whole to the track with at least this share of its explained pixels; one that is too little
        explained begins anew as a whole.
    branch
        Objects are whole segments: those that are each other's largest overlap, unless the tracks of both directions
        deny it, and those on which the tracks of both directions agree that share this part of the smaller one.
    """

    vote: Share = 0.0
    branch: Share = 0.0


class ColourTrackTask(BlockTask):
    """Follow the objects of one slab."""

    kind: Literal["colour_track/1"] = "colour_track/1"
    image_uri: str
    segments_uri: str
    tracks_uri: str
    graph_uri: str
    model: str
    options: TrackOptions
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    missing: tuple[int, ...] = ()
    votes: VoteOptions = VoteOptions()

    def run(self, ctx: Context) -> None:
        """Read the slab and the section after it, track both ways, write the slab and that section."""
        from cloudseg.models.predict import use_one_thread
        from cloudseg.models.tracker import load_tracker, order_of
        from cloudseg.ops.track_links import borne_out
        from cloudseg.ops.tracking import TrackRule, filled, joined, track

        image, options = ctx.open_volume(self.image_uri), self.options
        bounds = image.info.bounds
        use_one_thread()  # oneDNN rounds differently for another number of threads
        with ctx.step("model"):
            tracker = load_tracker(
                self.model, device=self.device, precision=self.precision, objects=ctx.open_objects
            )
        arguments = tracker.spec.arguments
        present = sections_of(self.core, bounds=bounds, missing=self.missing)
        low, high = self.core.start[2], max(self.core.stop[2], present[-1] + 1 if present else 0)
        with ctx.step("read"):
            seen = _grown(self.core, low - arguments.around, high + arguments.around).intersect(bounds)
            grey = image.read(seen)
            segments = ctx.open_volume(self.segments_uri).read(_grown(self.core, low, high))

        def predict(z: int, following: int, colours: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
            # Sections outside of the volume are those at its border.
            order = [
                min(max(s + low, bounds.start[2]), bounds.stop[2] - 1) - seen.start[2]
                for s in order_of(z, following, around=arguments.around)
            ]
            return tracker.predict(grey[:, :, order], colours)

        rule = TrackRule(
            n_colours=arguments.n_colours,
            vote=self.votes.vote,
            **{name: getattr(options, name) for name in TrackOptions.model_fields if name != "fill_px"},
        )
        with ctx.step("compute"):
            sections = [z - low for z in present]
            up = track(segments, sections=sections, predict=predict, rule=rule)
            down = track(segments, sections=sections[::-1], predict=predict, rule=rule)
            if self.votes.branch > 0:
                empty = set(range(segments.shape[2])) - set(sections)
                tracks = borne_out(segments, up=up, down=down, branch=self.votes.branch, missing=empty)
            else:
                tracks = joined(up, down, rule=rule)
            tracks = filled(tracks, reach=options.fill_px)
        with ctx.step("write"):
            own = np.asfortranarray(tracks[:, :, : self.core.shape[2]])
            ctx.open_volume(self.tracks_uri).write(self.core, own)
            objects, name = ctx.open_objects(self.graph_uri), block_name(self.core.start)
            ahead = tracks[:, :, -1] if high > self.core.stop[2] else np.zeros(self.core.shape[:2], np.uint64)
            put_table(objects, f"ahead/{name}.parquet", {"id": ahead.reshape(-1, order="F")})
            ids = np.unique(own)
            put_table(objects, f"ids/{name}.parquet", {"id": ids[ids > 0]})
        in_core = [z for z in present if z < self.core.stop[2]]
        ctx.count(
            voxels=self.core.n_voxels,
            network_calls=tracker.n_calls,
            sections_skipped=self.core.shape[2] - len(in_core),
        )


class TrackSeamsTask(BlockTask):
    """Find which tracks of a slab go on in the slab above."""

    kind: Literal["track_seams/1"] = "track_seams/1"
    tracks_uri: str
    graph_uri: str
    least: Share
    missing: tuple[int, ...] = ()

    def run(self, ctx: Context) -> None:
        """Compare the section that both slabs have followed; store the pairs."""
        from cloudseg.ops.tracking import seam_pairs

        volume, objects = ctx.open_volume(self.tracks_uri), ctx.open_objects(self.graph_uri)
        bounds, name = volume.info.bounds, block_name(self.core.start)
        z = sections_of(self.core, bounds=bounds, missing=self.missing)
        a = b = np.zeros(0, np.uint64)
        if z and z[-1] >= self.core.stop[2]:
            above = volume.read(_grown(self.core, z[-1], z[-1] + 1))[:, :, 0]
            below = get_table(objects, f"ahead/{name}.parquet")["id"].reshape(above.shape, order="F")
            a, b = seam_pairs(below, above, least=self.least)
        put_table(objects, f"pairs/{name}.parquet", {"a": a, "b": b})
        ctx.count(pairs=len(a))


class TrackNamesTask(Task):
    """Join the seams of all slabs and store, for each slab, which of its tracks are renamed."""

    kind: Literal["track_names/1"] = "track_names/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3

    def run(self, ctx: Context) -> None:
        """Find what seams hold together."""
        from cloudseg.ops.union_find import components

        objects = ctx.open_objects(self.graph_uri)
        slabs = [block_name(core.start) for core in tile(self.bounds, self.block_shape)]
        pairs = [get_table(objects, f"pairs/{name}.parquet") for name in slabs]
        old, new = components(
            np.concatenate([p["a"] for p in pairs]), np.concatenate([p["b"] for p in pairs])
        )
        for name in slabs:
            here = np.isin(old, get_table(objects, f"ids/{name}.parquet")["id"])
            put_table(objects, f"names/{name}.parquet", {"old": old[here], "new": new[here]})
        ctx.count(renamed=len(old))


class TrackRenameTask(BlockTask):
    """Write the objects of one slab."""

    kind: Literal["track_rename/1"] = "track_rename/1"
    tracks_uri: str
    segmentation_uri: str
    graph_uri: str

    def run(self, ctx: Context) -> None:
        """Read tracks and names, rename, write."""
        rename_block(
            ctx,
            self.core,
            src_uri=self.tracks_uri,
            dst_uri=self.segmentation_uri,
            tables_uri=self.graph_uri,
            tables=[f"names/{block_name(self.core.start)}.parquet"],
        )


class ColourTrackStage(TrackOptions, Stage):
    """Follow objects from section to section by colours (3C), into the layer ``segmentation``.

    Objects begin with segments of single sections, usually from ``distance_watershed`` with ``stacked``. A task follows
    them through a slab of whole sections; slabs are joined where they share a section. Not exact for any tiling: a
    track depends on where it began.

    Attributes
    ----------
    image, layer
        The image, uint8. The segments: uint64, each id in one section.
    model
        Folder or address of a tracking network; ``cloudseg train`` with a ``[tracker]`` table makes it.
    vote, branch
        See :class:`VoteOptions`; 0: pixels alone decide, as in the publication.
    seam
        Tracks of two slabs are one if they are each other's largest overlap in the section that both followed, and
        share at least so much of their union.
    missing_sections
        Sections (z in voxels) that are passed over and left empty. The receipts count them.
    sections_per_block
        Sections per task, whole chunks.
    chunk_shape
        Chunks of the outputs.
    device, precision
        Where the network runs, and in what it computes.
    """

    kind: Literal["colour_track"] = "colour_track"
    image: str = "image"
    layer: str = "supervoxels"
    model: str
    vote: Share = 0.5
    branch: Share = 0.8
    seam: Share = 0.3
    missing_sections: tuple[int, ...] = ()
    sections_per_block: PositiveInt = 64
    chunk_shape: Positive3 = (64, 64, 64)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="after")
    def _blocks_are_whole_chunks(self) -> ColourTrackStage:
        if self.sections_per_block % self.chunk_shape[2]:
            raise ValueError(
                f"sections_per_block={self.sections_per_block} is not a multiple of "
                f"chunk_shape[2]={self.chunk_shape[2]}"
            )
        return self

    def expand(self, site: Site) -> StagePlan:
        """Plan the four steps."""
        from cloudseg.models.tracker import load_tracker_spec

        image = site.layer(self.image, wanted_by=self.label)
        source = site.layer(self.layer, wanted_by=self.label)
        self._check(image.info, source)
        spec = load_tracker_spec(self.model, objects=site.open_objects)
        spec.check_voxel_size(image.info.voxel_size_nm, uri=image.uri)
        bounds, root = source.info.bounds, site.root.rstrip("/")
        missing = tuple(sorted(set(self.missing_sections)))
        x, y = (-(-n // c) * c for n, c in zip(bounds.shape[:2], self.chunk_shape[:2], strict=True))
        block: XYZ = (x, y, self.sections_per_block)
        graph_uri = f"{root}/graph/{self.label}"
        info = VolumeInfo(
            bounds=bounds,
            voxel_size_nm=source.info.voxel_size_nm,
            chunk_shape=self.chunk_shape,
            dtype="uint64",
            layer="segmentation",
        )
        tracks = Layer(f"{self.label}_tracks", f"{root}/{self.label}_tracks", info)
        output = Layer("segmentation", f"{root}/segmentation", info, f"{self.label}.rename", block)
        options = TrackOptions(**{name: getattr(self, name) for name in TrackOptions.model_fields})

        def track() -> Iterator[Task]:
            for core in tile(bounds, block):
                yield ColourTrackTask(
                    core=core,
                    image_uri=image.uri,
                    segments_uri=source.uri,
                    tracks_uri=tracks.uri,
                    graph_uri=graph_uri,
                    model=self.model,
                    options=options,
                    device=self.device,
                    precision=self.precision,
                    missing=missing,
                    votes=VoteOptions(vote=self.vote, branch=self.branch),
                )

        def seams() -> Iterator[Task]:
            for core in tile(bounds, block):
                yield TrackSeamsTask(
                    core=core, tracks_uri=tracks.uri, graph_uri=graph_uri, least=self.seam, missing=missing
                )

        def names() -> Iterator[Task]:
            yield TrackNamesTask(graph_uri=graph_uri, bounds=bounds, block_shape=block)

        def rename() -> Iterator[Task]:
            for core in tile(bounds, block):
                yield TrackRenameTask(
                    core=core, tracks_uri=tracks.uri, segmentation_uri=output.uri, graph_uri=graph_uri
                )

        n_slabs = math.prod(grid_shape(bounds, block))
        n_pixels = bounds.shape[0] * bounds.shape[1]
        n_voxels = n_pixels * min(self.sections_per_block, bounds.shape[2])

        def step(name: str, n_tasks: int, tasks: Callable[[], Iterator[Task]], memory_bytes: int) -> Step:
            return Step(
                f"{self.label}.{name}",
                n_tasks,
                tasks,
                task_memory_bytes=base_bytes(["numba", "torch"]) + memory_bytes,
                libraries=("numba", "torch") if name == "track" else ("numba",),
            )

        track_bytes = _TRACK_BYTES_PER_VOXEL * n_voxels + _TRACK_BYTES_PER_PIXEL * n_pixels
        return StagePlan(
            self.label,
            (tracks, output),
            (
                step("track", n_slabs, track, track_bytes),
                step("seams", n_slabs, seams, _SEAM_BYTES_PER_PIXEL * n_pixels),
                step("names", 1, names, _NAMES_BYTES_PER_PIXEL * n_pixels * n_slabs),
                step("rename", n_slabs, rename, RENAME_BYTES_PER_VOXEL * n_voxels),
            ),
            outputs_bytes=2 * bounds.n_voxels * 8 // 10,
            sources=(image.uri, source.uri),
            provenance={"model": self.model, "weights": spec.weights.sha256},
        )

    def _check(self, image: VolumeInfo, source: Layer) -> None:
        if image.dtype != "uint8" or image.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} needs an image of uint8 with 1 channel, got {image.n_channels} of {image.dtype}"
            )
        info = source.info
        if info.layer != "segmentation" or info.dtype != "uint64" or info.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} needs segments of single sections: a segmentation of uint64; {source.uri} is a "
                f"{info.layer} layer of {info.dtype} with {info.n_channels} channel(s)"
            )
        if info.bounds != image.bounds:
            raise SpecError(
                f"stage {self.label!r}: the image covers {image.bounds}, the segments {info.bounds}; both must cover "
                "the same box"
            )
        for z in self.missing_sections:
            if not info.bounds.start[2] <= z < info.bounds.stop[2]:
                raise SpecError(
                    f"missing_sections has {z}, but the sections of {source.uri} are {info.bounds.start[2]} to "
                    f"{info.bounds.stop[2] - 1}"
                )


def sections_of(core: Box, *, bounds: Box, missing: Collection[int]) -> list[int]:
    """Return the sections of a slab that are not missing, and the next one above it, if there is one."""
    own = [z for z in range(core.start[2], core.stop[2]) if z not in missing]
    ahead = next((z for z in range(core.stop[2], bounds.stop[2]) if z not in missing), None)
    return own if ahead is None or not own else [*own, ahead]


def _grown(core: Box, low: int, high: int) -> Box:
    return Box((core.start[0], core.start[1], low), (core.stop[0], core.stop[1], high))
