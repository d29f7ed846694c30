"""Locate somas: candidates of each block, then one choice over the whole volume.

Two steps, each exact for any tiling (see :mod:`cloudseg.ops.candidates`):

1. ``peaks``: maxima of a map of scores in each block;
2. ``choose``: the table of candidates, the best one of each neighbourhood.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box, grid_box
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.blocks import TissueBlocks, block_name
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, Stage, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.candidates import KEY, get_candidates, put_candidates
from cloudseg.volumes.mask import TissueMask
from cloudseg.volumes.protocol import Positive3, VolumeInfo

Method = Literal["network", "blobs", "quiet", "inscribed"]

# Values as floats, twice smoothed, depths with nearest places, masks; of a block and its halo.
_BYTES_PER_VOXEL = 60
_BYTES_PER_CANDIDATE = 400


class SomaLocateOptions(FrozenModel):
    """How somas are located; lengths in nm.

    Attributes
    ----------
    method
        ``network``: maxima of a head, smoothed. ``blobs``: round things brighter or darker than what is round them, in
        the image. ``quiet``: the deepest places of what is of middling grey and little texture, in the image.
        ``inscribed``: the largest balls inside the segments of an existing segmentation.
    channel
        ``network``: which channel of the layer.
    mip
        Which scale of the image or segmentation to read.
    min_score
        Candidates below it are dropped. ``network``: 0 to 1. ``blobs``: grey levels of contrast. ``quiet`` and
        ``inscribed``: radius over ``max_radius_nm``.
    min_radius_nm, max_radius_nm
        Radii of somas. ``blobs`` tries five between them; deeper places count as ``max_radius_nm``.
    sigma_nm
        Deviation of the Gaussian that smooths probabilities (``network``) or measures grey and texture (``quiet``).
    distance_nm
        Of two candidates nearer than this the better one stays.
    bright
        ``blobs``: whether somas are brighter than what is round them.
    grey_range, max_deviation
        ``quiet``: least and greatest local mean, and the greatest local deviation, in grey levels.
    cell, min_deviation
        Cells of so many voxels, in which the grey levels of an image must deviate so much for the cell to be tissue;
        a block without tissue is passed over. 0: all is tissue.
    mask, mask_mip
        Tissue mask (0 = none) whose voxels are whole multiples of the map's, and its scale. Blocks without tissue get
        no task.
    missing
        What a chunk that was never written means.
    """

    method: Method = "network"
    channel: NonNegativeInt = 0
    mip: NonNegativeInt = 0
    min_score: NonNegativeFloat = 0.5
    min_radius_nm: PositiveFloat = 1500.0
    max_radius_nm: PositiveFloat = 6000.0
    sigma_nm: NonNegativeFloat = 500.0
    distance_nm: NonNegativeFloat = 3000.0
    bright: bool = True
    grey_range: tuple[float, float] = (0.0, 255.0)
    max_deviation: PositiveFloat = 16.0
    cell: Positive3 = (16, 16, 16)
    min_deviation: NonNegativeFloat = 0.0
    mask: str | None = None
    mask_mip: NonNegativeInt = 0
    missing: Literal["error", "zero"] = "error"

    @model_validator(mode="after")
    def _radii_rise(self) -> Self:
        if self.min_radius_nm > self.max_radius_nm:
            raise ValueError(
                f"min_radius_nm={self.min_radius_nm:g} is above max_radius_nm={self.max_radius_nm:g}"
            )
        return self

    @property
    def radii_nm(self) -> tuple[float, ...]:
        """Radii of blobs that are tried."""
        return tuple(np.geomspace(self.min_radius_nm, self.max_radius_nm, 5).tolist())

    def window(self, voxel_size_nm: tuple[float, float, float]) -> XYZ:
        """Return how far a maximum must be the greatest, in voxels to each side: half of ``distance_nm``."""
        x, y, z = (max(1, int(self.distance_nm / 2 // size)) for size in voxel_size_nm)
        return (x, y, z)

    def halo(self, voxel_size_nm: tuple[float, float, float]) -> XYZ:
        """Return how many voxels round a block its candidates depend on, besides the window of the maxima."""
        from cloudseg.ops.candidates import halo_of_blobs, halo_of_blur, halo_of_depth

        if self.method == "blobs":
            return halo_of_blobs(self.radii_nm, voxel_size_nm)
        deep = halo_of_depth(self.max_radius_nm, voxel_size_nm)
        if self.method == "inscribed":
            return deep
        blur = halo_of_blur(self.sigma_nm, voxel_size_nm)
        if self.method == "network":
            x, y, z = (max(a, b) for a, b in zip(deep, blur, strict=True))
        else:
            x, y, z = (a + b for a, b in zip(deep, blur, strict=True))
        return (x, y, z)


class SomaPeaksTask(BlockTask):
    """Store the candidates of one block."""

    kind: Literal["soma_peaks/1"] = "soma_peaks/1"
    source_uri: str
    graph_uri: str
    options: SomaLocateOptions

    def run(self, ctx: Context) -> None:
        """Look for tissue, read the block and its halo, make the map of scores, store its maxima."""
        from cloudseg.ops.candidates import Candidates, peaks

        options = self.options
        source = ctx.open_volume(self.source_uri, mip=options.mip)
        info, bounds = source.info, source.info.bounds
        found = Candidates.none()
        with ctx.step("tissue"):
            tissue = self._tissue(ctx, info)
        if tissue is None or tissue.any():
            window = options.window(info.voxel_size_nm)
            middle = self.core.grow(window).intersect(bounds)
            outer = middle.grow(options.halo(info.voxel_size_nm)).intersect(bounds)
            with ctx.step("read"):
                values = source.read(outer, missing=options.missing)
            with ctx.step("compute"):
                if info.n_channels > 1:
                    values = values[options.channel]
                score, radius = (
                    a[middle.slices_in(outer)] for a in score_map(values, options, info.voxel_size_nm)
                )
                at = peaks(score, core=self.core, outer=middle, least=options.min_score, window=window)
                here = tuple((at - np.array(middle.start)).T)
                segment = np.zeros(len(at), np.uint64)
                if options.method == "inscribed":
                    segment = values[middle.slices_in(outer)][here].astype(np.uint64)
                found = Candidates(
                    at, score[here].astype(np.float64), radius[here].astype(np.float64), segment
                )
                found = found.take(found.radius_nm >= options.min_radius_nm)
                if tissue is not None:
                    inside = tuple((found.at - np.array(self.core.start)).T)
                    found = found.take(tissue[inside])
            ctx.count(looked_at_voxels=self.core.n_voxels)
        with ctx.step("write"):
            put_candidates(
                ctx.open_objects(self.graph_uri),
                f"blocks/{block_name(self.core.start)}.parquet",
                found,
                voxel_size_nm=info.voxel_size_nm,
            )
        ctx.count(voxels=self.core.n_voxels, candidates=len(found))

    def _tissue(self, ctx: Context, info: VolumeInfo) -> npt.NDArray[np.bool_] | None:
        """Return where the block holds tissue; None: nobody asks."""
        from cloudseg.ops.candidates import tissue_cells

        options, tissue = self.options, None
        if options.mask is not None:
            mask = TissueMask.open(
                options.mask, mip=options.mask_mip, image=info, open_volume=ctx.open_volume
            )
            tissue = mask.read(self.core)
        if options.min_deviation > 0 and options.method in ("blobs", "quiet"):
            # Whole cells of the volume's grid, so that no block sees another one's cell differently.
            whole = self.core.align_out(options.cell, bounds=info.bounds)
            grey = ctx.open_volume(self.source_uri, mip=options.mip).read(whole, missing=options.missing)
            cells = tissue_cells(
                grey,
                cell=options.cell,
                min_deviation=options.min_deviation,
                grey_range=(0.0, float(np.inf)),
            )
            for axis, edge in enumerate(options.cell):
                cells = np.repeat(cells, edge, axis=axis)
            seen = cells[self.core.slices_in(whole)]
            tissue = seen if tissue is None else tissue & seen
        return tissue


class SomaChooseTask(Task):
    """Choose among the candidates of all blocks and store the table ``candidates.parquet``."""

    kind: Literal["soma_choose/1"] = "soma_choose/1"
    graph_uri: str
    bounds: BoxField
    block_shape: Positive3
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    distance_nm: NonNegativeFloat
    mask: str | None = None
    mask_mip: NonNegativeInt = 0
    source_uri: str = ""
    mip: NonNegativeInt = 0

    def run(self, ctx: Context) -> None:
        """Read the candidates of the blocks that had a task, keep the best, store them."""
        from cloudseg.ops.candidates import Candidates, suppressed

        objects = ctx.open_objects(self.graph_uri)
        mask = None
        if self.mask is not None:
            info = ctx.open_volume(self.source_uri, mip=self.mip).info
            mask = TissueMask.open(self.mask, mip=self.mask_mip, image=info, open_volume=ctx.open_volume)
        with ctx.step("read"):
            parts = [
                get_candidates(objects, f"blocks/{block_name(core.start)}.parquet")
                for core in TissueBlocks(self.bounds, self.block_shape, mask)
            ]
        every = Candidates.joined(parts)
        with ctx.step("compute"):
            chosen = suppressed(every, distance_nm=self.distance_nm, voxel_size_nm=self.voxel_size_nm)
        with ctx.step("write"):
            put_candidates(objects, KEY, chosen, voxel_size_nm=self.voxel_size_nm)
        ctx.count(candidates=len(chosen), suppressed=len(every) - len(chosen))


class SomaLocateStage(Stage, SomaLocateOptions):
    """Find where somas may be: the table ``graph/<stage>/candidates.parquet``, best first.

    Exact for any tiling. Its columns are ``x_vx``, ``y_vx``, ``z_vx`` (in voxels of what was read), ``x_nm``, ``y_nm``,
    ``z_nm``, ``radius_nm``, ``score``, and ``segment_id`` (``inscribed``; else 0).

    Attributes
    ----------
    layer
        What to read; by default ``soma_heads`` (``network``), ``segmentation`` (``inscribed``) or the image.
    block_shape
        Voxels per task; the result does not depend on it.
    """

    kind: Literal["soma_locate"] = "soma_locate"
    layer: str = ""
    block_shape: Positive3 = (128, 128, 128)

    def expand(self, site: Site) -> StagePlan:
        """Plan the two steps."""
        usual = {"network": "soma_heads", "inscribed": "segmentation"}.get(self.method, "image")
        source = site.layer(self.layer or usual, wanted_by=self.label)
        info = source.info if self.mip == 0 else site.open_volume(source.uri, mip=self.mip).info
        self._check(info, source)
        mask = None
        if self.mask is not None:
            mask = TissueMask.open(self.mask, mip=self.mask_mip, image=info, open_volume=site.open_volume)
        bounds, size = info.bounds, info.voxel_size_nm
        graph_uri = f"{site.root.rstrip('/')}/graph/{self.label}"
        options = SomaLocateOptions(**{name: getattr(self, name) for name in SomaLocateOptions.model_fields})
        blocks = TissueBlocks(bounds, self.block_shape, mask)

        def find(core: Box) -> Task:
            return SomaPeaksTask(core=core, source_uri=source.uri, graph_uri=graph_uri, options=options)

        def choose() -> Iterator[Task]:
            yield SomaChooseTask(
                graph_uri=graph_uri,
                bounds=bounds,
                block_shape=self.block_shape,
                voxel_size_nm=size,
                distance_nm=self.distance_nm,
                mask=self.mask,
                mask_mip=self.mask_mip,
                source_uri=source.uri if mask is not None else "",
                mip=self.mip if mask is not None else 0,
            )

        n_tasks, n_voxels = blocks.measure()
        outer = grid_box(bounds, self.block_shape, (0, 0, 0)).grow(self.window(size)).grow(self.halo(size))
        # As many as there are balls of half the distance side by side.
        room_nm3 = max(self.distance_nm, min(size)) ** 3
        n_candidates = math.ceil(n_voxels * math.prod(size) / room_nm3)
        return StagePlan(
            self.label,
            (),
            (
                Step(
                    f"{self.label}.peaks",
                    n_tasks,
                    lambda: map(find, blocks),
                    task_memory_bytes=base_bytes(["numba"])
                    + _BYTES_PER_VOXEL * outer.intersect(bounds).n_voxels,
                    libraries=("numba",),
                ),
                Step(
                    f"{self.label}.choose",
                    1,
                    choose,
                    task_memory_bytes=base_bytes(["numba"]) + _BYTES_PER_CANDIDATE * n_candidates,
                    libraries=("numba",),
                ),
            ),
            sources=(source.uri, *([self.mask] if self.mask else [])),
        )

    def _check(self, info: VolumeInfo, source: Layer) -> None:
        segments = self.method == "inscribed"
        if (info.layer == "segmentation") != segments or (segments and info.n_channels != 1):
            wanted = "a segmentation of one channel" if segments else "an image"
            raise SpecError(
                f"stage {self.label!r}: method {self.method!r} needs {wanted}; {source.uri} is a {info.layer} of "
                f"{info.n_channels} channel(s); set layer to another one"
            )
        if self.method == "network" and (info.dtype != "uint8" or self.channel >= info.n_channels):
            raise SpecError(
                f"stage {self.label!r} needs probabilities of uint8 with a channel {self.channel}; {source.uri} has "
                f"{info.n_channels} channel(s) of {info.dtype}"
            )
        if self.method in ("blobs", "quiet") and info.n_channels != 1:
            raise SpecError(
                f"stage {self.label!r} needs an image of one channel; {source.uri} has {info.n_channels}"
            )


def score_map(
    values: npt.NDArray[Any], options: SomaLocateOptions, voxel_size_nm: tuple[float, float, float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return scores and radii, ``(x, y, z)`` float32, of a block and what lies round it."""
    from cloudseg.ops.candidates import blob_response, blurred, depth_nm, quiet_mask

    limit, size = options.max_radius_nm, voxel_size_nm
    if options.method == "blobs":
        return blob_response(values, radii_nm=options.radii_nm, voxel_size_nm=size, bright=options.bright)
    if options.method == "inscribed":
        depth = depth_nm(values, limit_nm=limit, voxel_size_nm=size)
        return depth / np.float32(limit), depth
    if options.method == "quiet":
        quiet = quiet_mask(
            values,
            grey_range=options.grey_range,
            max_deviation=options.max_deviation,
            sigma_nm=options.sigma_nm,
            voxel_size_nm=size,
        )
        depth = depth_nm(quiet, limit_nm=limit, voxel_size_nm=size)
        return depth / np.float32(limit), depth
    score = blurred(values, sigma_nm=options.sigma_nm, voxel_size_nm=size) / np.float32(255)
    # A network's middles are smaller than the somas: no candidate is dropped for that.
    depth = depth_nm(values >= 128, limit_nm=limit, voxel_size_nm=size)
    return score, np.maximum(depth, np.float32(options.min_radius_nm))
