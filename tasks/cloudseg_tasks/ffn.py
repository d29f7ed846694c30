"""Flood filling of a volume: subvolumes that overlap, each on its own; ``ffn_stitch`` makes them one."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.geometry import XYZ, Box, grid_box, grid_shape, tile
from cloudseg.models.arguments import FFNArguments
from cloudseg.models.package import ModelSpec, Natural3, load_spec
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.blocks import LabelsStage, block_name
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.steps import Layer, Site, StagePlan, Step
from cloudseg.tasking.task import BlockTask, Context, Task
from cloudseg.volumes.mask import TissueMask
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import Positive3, VolumeInfo
from cloudseg.volumes.tables import put_table

if TYPE_CHECKING:
    from cloudseg.ops.flood import Canvas

Table = dict[str, npt.NDArray[Any]]

_GREY = {"uint8": 1.0, "uint16": 255.0 / 65535.0, "float32": 255.0}

# Image, logits, ids, two ages; and while seeds are found, the distance in double precision, its noise and its maxima.
_FILL_BYTES_PER_VOXEL = 90

Probability = Annotated[float, Field(gt=0, lt=1)]


class FloodOptions(FrozenModel):
    """How objects grow in a subvolume. The defaults are those of the published segmentation of FIB-25.

    Attributes
    ----------
    model
        Address of the package of a flood-filling network; ``cloudseg import-model`` makes one of a checkpoint.
    mip
        Which scale of the image to read.
    mask, mask_mip
        Tissue mask (0 = no tissue) whose voxels are whole multiples of the image's. Nothing is looked at from outside
        of it, and what spills out is cut off.
    seeds, reverse
        Where objects start: places far from any edge, in 3D or section by section; bright places; a grid. ``reverse``
        takes them from the last to the first: the other half of a consensus.
    move, segment
        Probability from which on the field of view moves to a voxel, and from which on a voxel is of the object.
    min_size_vx
        Smaller objects are dropped.
    freeze
        Once more than this share of a field of view reaches ``move``, voxels that were voted out can only fall there;
        1 or more: never.
    wave
        Fields of view computed from one state of an object; 1 is the published algorithm.
    deltas
        How far the field of view moves; by default as the model was trained. Larger moves are faster, and split more.
    device
        ``auto`` takes a CUDA GPU if the worker has one.
    precision
        ``float32`` is the published segmentation; ``bfloat16`` is faster where the processor computes in it.
    checkpoint_s
        After so many seconds the state of the subvolume is stored; a task that is tried again goes on from there.
    """

    model: Annotated[str, Field(min_length=1)]
    mip: Annotated[int, Field(ge=0)] = 0
    mask: str | None = None
    mask_mip: Annotated[int, Field(ge=0)] = 0
    seeds: Literal["peaks", "peaks_2d", "bright", "grid"] = "peaks"
    reverse: bool = False
    move: Probability = 0.9
    segment: Probability = 0.6
    min_size_vx: PositiveInt = 1000
    freeze: NonNegativeFloat = 0.0
    wave: PositiveInt = 1
    deltas: Positive3 | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    checkpoint_s: PositiveFloat = 300.0


class FloodTask(BlockTask):
    """Grow the objects of one subvolume; write those of its block, and the whole for its neighbours.

    Attributes
    ----------
    image_uri, objects_uri, graph_uri
        Source; layer that gets ``core``; folder for the subvolume, its objects, and its state on the way.
    outer
        The subvolume: ``core`` and its halo.
    number
        Of the block; it makes ids unique.
    weights_sha256
        The model that the task was planned with; another one is refused.
    options
        See :class:`FloodOptions`.
    """

    kind: Literal["ffn/1"] = "ffn/1"
    image_uri: str
    objects_uri: str
    graph_uri: str
    outer: BoxField
    number: int
    weights_sha256: str
    options: FloodOptions

    def run(self, ctx: Context) -> None:
        """Read, take up an earlier state, grow, write."""
        from cloudseg.models.flood import load_flood_network
        from cloudseg.ops.flood import Canvas, FloodRule, normalised
        from cloudseg.ops.flood_stitch import as_runs

        options, objects = self.options, ctx.open_objects(self.graph_uri)
        image = ctx.open_volume(self.image_uri, mip=options.mip)
        with ctx.step("model"):
            key = ("ffn", self.weights_sha256, options.device, options.precision)
            network = ctx.warm(
                key,
                lambda: load_flood_network(
                    options.model,
                    device=options.device,
                    precision=options.precision,
                    sha256=self.weights_sha256,
                    objects=ctx.open_objects,
                ),
            )
        with ctx.step("read"):
            data = image.read(self.outer)
            closed = None
            if options.mask is not None:
                mask = TissueMask.open(
                    options.mask, mip=options.mask_mip, image=image.info, open_volume=ctx.open_volume
                )
                closed = ~mask.read(self.outer)
            given, names = self._given(ctx)
        grey, norm = _GREY[image.info.dtype], network.spec.normalisation
        canvas = Canvas(
            normalised(data, mean=norm.mean / grey, deviation=norm.deviation / grey),
            FloodRule(
                fov=network.fov,
                deltas=options.deltas or network.deltas,
                move=options.move,
                segment=options.segment,
                min_size_vx=options.min_size_vx,
                freeze=options.freeze if options.freeze < 1 else None,
                wave=options.wave,
            ),
            network,
            closed=closed,
            labels=given,
        )
        with ctx.step("seeds"):
            seeds = self._seeds(canvas.image, closed, given, spacing=image.info.voxel_size_nm)
        state = f"state/{self.id}.npz"
        with ctx.step("grow"):
            saved = _load_state(objects, state)
            if saved:
                canvas.restore(saved)
            while not canvas.run(seeds, pause=_every(options.checkpoint_s)):
                _save_state(objects, state, canvas.state())
        with ctx.step("write"):
            name = block_name(self.core.start)
            labels = self._joined(canvas, names, put=lambda t: put_table(objects, f"joins/{name}.parquet", t))
            if closed is not None:
                labels[closed] = 0
            labels[labels > 0] += np.uint64(self.number + 1 << 32)
            origins = np.array(canvas.origins, np.int64).reshape(-1, 5)
            put_table(
                objects,
                f"objects/{name}.parquet",
                {
                    "id": origins[:, 0].astype(np.uint64) + np.uint64(self.number + 1 << 32),
                    "seed_x": origins[:, 1] + self.outer.start[0],
                    "seed_y": origins[:, 2] + self.outer.start[1],
                    "seed_z": origins[:, 3] + self.outer.start[2],
                    "steps": origins[:, 4],
                },
            )
            objects.put(f"growth/{name}.png", _growth(canvas, data))
            put_table(objects, f"subvolumes/{name}.parquet", as_runs(labels))
            ctx.open_volume(self.objects_uri).write(
                self.core, np.asfortranarray(labels[self.core.slices_in(self.outer)])
            )
            objects.delete(state)
        counts = canvas.counts
        ctx.count(
            voxels=self.core.n_voxels,
            seeds=len(seeds),
            **{field: getattr(counts, field) for field in type(counts).__slots__},
        )

    def _given(self, ctx: Context) -> tuple[npt.NDArray[np.int32] | None, npt.NDArray[np.uint64]]:
        """Return segments that are there already, counted up from 1, and what they are called; here there are none."""
        del ctx
        return None, np.zeros(0, np.uint64)

    def _joined(
        self, canvas: Canvas, names: npt.NDArray[np.uint64], *, put: Callable[[Table], object]
    ) -> npt.NDArray[np.uint64]:
        """Return what has grown, joined with what was there."""
        del names, put
        return canvas.labels()

    def _seeds(
        self,
        image: npt.NDArray[np.float32],
        closed: npt.NDArray[np.bool_] | None,
        given: npt.NDArray[np.int32] | None,
        *,
        spacing: tuple[float, ...],
    ) -> npt.NDArray[np.int64]:
        from cloudseg.ops import flood_seeds

        kind = self.options.seeds
        if kind == "grid":
            seeds = flood_seeds.grid_seeds(self.outer.shape)
        elif kind == "peaks_2d":
            seeds = flood_seeds.peak_seeds_2d(image, closed=closed)
        elif kind == "bright":
            seeds = flood_seeds.bright_seeds(image, closed=closed)
        else:
            x, y, z = (s / min(spacing) for s in spacing)
            seeds = flood_seeds.peak_seeds(image, spacing=(x, y, z), closed=closed, labels=given)
        return seeds[::-1].copy() if self.options.reverse else seeds


class CascadeTask(FloodTask):
    """Grow only what another segmentation is not sure of.

    Attributes
    ----------
    given_uri
        The other segmentation, with the voxels of the image.
    kept_vx
        Its objects with at least so many voxels in the subvolume stay.
    join_share
        Share that a grown object must take of what it sees of one that stayed, to be joined with it.
    """

    kind: Literal["ffn_cascade/1"] = "ffn_cascade/1"  # type: ignore[assignment]
    given_uri: str
    kept_vx: int
    join_share: float

    def _given(self, ctx: Context) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        from cloudseg.ops.flood_cascade import keep_large

        return keep_large(ctx.open_volume(self.given_uri).read(self.outer), min_vx=self.kept_vx)

    def _joined(
        self, canvas: Canvas, names: npt.NDArray[np.uint64], *, put: Callable[[Table], object]
    ) -> npt.NDArray[np.uint64]:
        from cloudseg.ops.flood_cascade import decide_joins

        n_kept = len(names)
        joins = decide_joins(canvas.overlaps, canvas.seen, n_kept=n_kept, min_share=self.join_share)
        final = np.arange(canvas.n_labels + 1, dtype=np.uint64)
        for join in joins:
            if join.joined:
                final[join.grown] = join.kept
        put(
            {
                "id": np.array([j.grown for j in joins], np.uint64) + np.uint64(self.number + 1 << 32),
                "given_id": names[[j.kept - 1 for j in joins]],
                "shared_vx": np.array([j.shared_vx for j in joins], np.int64),
                "seen_vx": np.array([j.seen_vx for j in joins], np.int64),
                "joined": np.array([j.joined for j in joins], np.bool_),
            }
        )
        joined: npt.NDArray[np.uint64] = final[canvas.labels()]
        return joined


class FloodStage(LabelsStage, FloodOptions):
    """Flood filling of overlapping subvolumes, into the layer ``objects`` (or ``output``).

    The result depends on the subvolumes: an object that leaves one goes on in the next under another id, until
    ``ffn_stitch`` joins them. For each block there is a table of objects (seed, steps), and a picture of how they grew,
    under ``graph/<stage>/``.

    Attributes
    ----------
    block_shape, chunk_shape
        Voxels per task, whole chunks. Chunks of the output.
    output
        Name of the layer that is written.
    halo
        Voxels that a subvolume is larger than its block, on each side. Two neighbours overlap by twice as much; half a
        field of view of it at either end is not compared.
    """

    kind: Literal["ffn"] = "ffn"
    output: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")] = "objects"
    halo: Natural3 = (32, 32, 32)

    def expand(self, site: Site) -> StagePlan:
        """Plan one task per block."""
        image = site.layer("image", wanted_by=self.label)
        info = image.info if self.mip == 0 else site.open_volume(image.uri, mip=self.mip).info
        if info.n_channels != 1 or info.layer != "image" or info.dtype not in _GREY:
            raise SpecError(
                f"stage {self.label!r} needs an image of one channel, {', '.join(_GREY)}; {image.uri} is "
                f"a {info.layer} of {info.n_channels} channel(s), {info.dtype}"
            )
        spec = load_spec(self.model, objects=site.open_objects)
        arguments = _checked_arguments(spec, uri=self.model)
        spec.check_voxel_size(info.voxel_size_nm, uri=image.uri)
        bounds = info.bounds
        self._check_subvolumes(bounds, arguments.fov)
        if self.mask is not None:
            mask = TissueMask.open(self.mask, mip=self.mask_mip, image=info, open_volume=site.open_volume)
            if not any(mask.read(block).any() for block in tile(bounds, self.block_shape)):
                raise SpecError(
                    f"stage {self.label!r}: the mask {self.mask} is 0 in all of {bounds}: nothing would be segmented; "
                    "0 means no tissue, so the mask may be upside down"
                )
        root = site.root.rstrip("/")
        layer = Layer(
            self.output,
            f"{root}/{self.output}",
            self.labels_info(info),
            made_by=self.label,
            block_shape=self.block_shape,
        )
        options = FloodOptions(**{name: getattr(self, name) for name in FloodOptions.model_fields})

        def tasks() -> Iterator[Task]:
            for number, core in enumerate(tile(bounds, self.block_shape)):
                yield self._task(
                    site,
                    core=core,
                    outer=core.grow(self.halo).intersect(bounds),
                    number=number,
                    image_uri=image.uri,
                    objects_uri=layer.uri,
                    graph_uri=f"{root}/graph/{self.label}",
                    weights_sha256=spec.weights.sha256,
                    options=options,
                )

        n_voxels = grid_box(bounds, self.block_shape, (0, 0, 0)).grow(self.halo).intersect(bounds).n_voxels
        step = Step(
            self.label,
            math.prod(grid_shape(bounds, self.block_shape)),
            tasks,
            task_memory_bytes=base_bytes(["torch", "numba"]) + _FILL_BYTES_PER_VOXEL * n_voxels,
            libraries=("torch", "numba"),
        )
        return StagePlan(
            self.label,
            (layer,),
            (step,),
            outputs_bytes=2 * bounds.n_voxels * 8 // 10,
            sources=(image.uri, *([self.mask] if self.mask else []), *self._more_sources(site, info)),
            provenance={"weights_sha256": spec.weights.sha256, "halo": list(self.halo)},
        )

    def _task(self, site: Site, **fields: Any) -> FloodTask:
        """Return the task of a block."""
        del site
        return FloodTask(**fields)

    def _more_sources(self, site: Site, info: VolumeInfo) -> tuple[str, ...]:
        """Check and return what else is read."""
        del site, info
        return ()

    def _check_subvolumes(self, bounds: Box, fov: XYZ) -> None:
        for axis, name in enumerate("xyz"):
            starts = range(bounds.start[axis], bounds.stop[axis], self.block_shape[axis])
            for start in (starts[0], starts[-1]):
                low = max(bounds.start[axis], start - self.halo[axis])
                high = min(bounds.stop[axis], start + self.block_shape[axis] + self.halo[axis])
                if high - low < fov[axis]:
                    raise SpecError(
                        f"stage {self.label!r}: a subvolume (block and halo) has {high - low} voxels on {name}, fewer "
                        f"than the field of view of {fov[axis]}: no place in it could be looked at; take another "
                        "block_shape, or a larger halo"
                    )


class CascadeStage(FloodStage):
    """Flood filling only of what another segmentation is not sure of: the two methods as one.

    Large objects of the given segmentation stay. Smaller ones, and what it left empty, are grown anew, and joined with
    what stayed where they go on in it. ``graph/<stage>/joins/`` says which were joined, and how sure that was.

    Attributes
    ----------
    given
        Layer of the other segmentation: best one that merges little, at a high threshold.
    kept_um3
        Its objects of at least this volume within a subvolume stay.
    join_share
        Share that a grown object must take of what it sees of one that stayed, to be joined with it.
    """

    kind: Literal["ffn_cascade"] = "ffn_cascade"  # type: ignore[assignment]
    given: str = "segmentation"
    kept_um3: PositiveFloat = 0.01
    join_share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def _task(self, site: Site, **fields: Any) -> CascadeTask:
        given = site.layer(self.given, wanted_by=self.label)
        return CascadeTask(
            **fields,
            given_uri=given.uri,
            kept_vx=math.ceil(self.kept_um3 * 1e9 / math.prod(given.info.voxel_size_nm)),
            join_share=self.join_share,
        )

    def _more_sources(self, site: Site, info: VolumeInfo) -> tuple[str, ...]:
        given = site.layer(self.given, wanted_by=self.label)
        if given.info.layer != "segmentation":
            raise SpecError(
                f"stage {self.label!r} needs a segmentation as {self.given!r}; {given.uri} is a {given.info.layer} "
                f"layer of {given.info.dtype}"
            )
        if given.info.voxel_size_nm != info.voxel_size_nm or not given.info.bounds.contains(info.bounds):
            raise SpecError(
                f"stage {self.label!r}: {given.uri} has voxels of {given.info.voxel_size_nm} nm in "
                f"{given.info.bounds}, the image has {info.voxel_size_nm} nm in {info.bounds}: the segmentation must "
                "cover the image's voxels"
            )
        return (given.uri,)


def _checked_arguments(spec: ModelSpec, *, uri: str) -> FFNArguments:
    if not isinstance(spec.arguments, FFNArguments):
        raise SpecError(
            f"model {uri} predicts {spec.output}, and cannot grow objects: give a flood-filling network "
            "(architecture 'ffn'); cloudseg import-model makes one of a published checkpoint"
        )
    return spec.arguments


def _every(seconds: float) -> Any:
    """Return a function that says yes once so many seconds have passed."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def _save_state(objects: Objects, key: str, state: dict[str, npt.NDArray[Any]]) -> None:
    sink = io.BytesIO()
    np.savez_compressed(sink, **state)  # type: ignore[arg-type]
    objects.put(key, sink.getvalue())


def _load_state(objects: Objects, key: str) -> dict[str, npt.NDArray[Any]]:
    try:
        data = objects.get(key)
    except NotFoundError:
        return {}
    with np.load(io.BytesIO(data)) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _growth(canvas: Any, image: npt.NDArray[Any]) -> bytes:
    """Return a picture: the section with most objects, after a sixth, a third, ... of all steps."""
    from cloudseg.training.picture import encode_png, grey_picture, id_picture, side_by_side

    steps = np.zeros(canvas.n_labels + 1, np.int64)
    for label, *_, n in canvas.origins:
        steps[label] = n
    begun = np.cumsum(steps) - steps
    ids = np.maximum(canvas.segments, 0)
    # The most objects, and of equal sections the one where they fill most.
    z = max(range(ids.shape[2]), key=lambda k: (len(np.unique(ids[:, :, k])), np.count_nonzero(ids[:, :, k])))
    section = ids[:, :, z]
    when = begun[section] + canvas.age[:, :, z]
    grey = grey_picture(image[:, :, z], low=float(image[:, :, z].min()), high=float(image[:, :, z].max()))
    parts = (np.where(when <= steps.sum() * part / 6, section, 0) for part in range(1, 7))
    return encode_png(side_by_side([grey, *(id_picture(part, over=grey) for part in parts)]))
