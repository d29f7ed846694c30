"""Copy a source into a bucket as a Precomputed volume, block by block, and build its pyramid."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from cloudseg.errors import ConflictError, NotFoundError, SpecError, StorageError
from cloudseg.geometry import XYZ, Box, grid_shape, tile
from cloudseg.ops.downsample import coarse_box, downsample_mean, downsample_mode, fine_box, next_factor
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.objects import open_objects
from cloudseg.volumes.open import create_volume, open_volume, scales
from cloudseg.volumes.protocol import Array, DType, Encoding, Positive3, Volume, VolumeInfo
from cloudseg.volumes.sharding import sharding_for
from cloudseg.volumes.sources.base import Source

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the voxels done and the voxels in all."""

MARKER = "ingest.json"
"""Object beside the ``info`` that says where the voxels came from and how far the copy got."""

# Source and destination of one block, its transposed copy and the block read ahead are in memory together: about
# four times this.
BLOCK_BYTES = 64 << 20

_MARKER_EVERY_S = 2.0


class IngestOptions(FrozenModel):
    """How a source becomes a volume. All tuples are in X, Y, Z order.

    Attributes
    ----------
    voxel_size_nm
        Edge of a voxel; None takes the file's own.
    layer
        ``segmentation`` stores ids as uint64 and builds the pyramid by the most frequent id; ``image`` keeps the
        type of the source and builds it by means.
    dtype
        Convert to this type: integers only where every value fits, floats with rounding.
    chunk_shape
        Edge of a stored chunk.
    box
        Part of the source to take, in its voxels counted from 0; None takes all of it.
    offset
        Where the first voxel taken shall lie; None keeps its place in the source.
    n_mips
        Scales to build above the first; None goes on until one chunk holds the whole.
    encoding
        Codec; None takes ``compressed_segmentation`` for segmentations and ``raw`` for images.
    sharded
        Whether chunks are packed into shards.
    """

    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    layer: Literal["image", "segmentation"] = "image"
    dtype: DType | None = None
    chunk_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 64, 64)
    box: BoxField | None = None
    offset: tuple[int, int, int] | None = None
    n_mips: Annotated[int, Field(ge=0, le=30)] | None = None
    encoding: Encoding | None = None
    sharded: bool = False


@dataclass(frozen=True, slots=True)
class Ingested:
    """What an ingest did.

    Attributes
    ----------
    uri, infos
        The volume, and its scales from the finest.
    n_blocks_written
        Blocks copied by this call, over all scales; 0 if everything lay there already.
    n_blocks
        Blocks in all.
    notes
        What a user should know about how the source was understood.
    """

    uri: str
    infos: tuple[VolumeInfo, ...]
    n_blocks_written: int
    n_blocks: int
    notes: tuple[str, ...]


class _Marker(FrozenModel):
    """Content of the marker object: a second call goes on where the first stopped, if it asks for the same."""

    format: Literal["cloudseg-ingest/1"] = "cloudseg-ingest/1"
    source: str
    fingerprint: str
    axes_shape: Positive3
    options: IngestOptions
    block_shapes: tuple[Positive3, ...]
    done: tuple[int, ...]
    complete: bool = False


def plan_ingest(source: Source, options: IngestOptions) -> tuple[tuple[VolumeInfo, ...], tuple[str, ...]]:
    """Return the scales an ingest would make, and notes on conversions; reads no voxel.

    Raises
    ------
    SpecError
        If the voxel size is unknown, the type cannot be stored, or the box does not fit.
    """
    voxel_size_nm = options.voxel_size_nm or source.voxel_size_nm
    if voxel_size_nm is None:
        raise SpecError(
            f"{source.uri} does not say how large its voxels are: give their edges in nm, e.g. --voxel-size 8,8,8"
        )
    dtype, notes = _stored_dtype(source, options)
    if options.layer == "segmentation" and source.n_channels > 1:
        raise SpecError(
            f"{source.uri} has {source.n_channels} channels: a segmentation has one; choose another --dataset or --axes"
        )
    whole = Box.of_shape(source.shape)
    box = options.box or whole
    if box.is_empty or not whole.contains(box):
        raise SpecError(
            f"box {box} is not inside the source {source.uri}, which is {whole}; boxes count from 0"
        )
    start = options.offset if options.offset is not None else box.shift(source.offset).start
    encoding = options.encoding or ("compressed_segmentation" if options.layer == "segmentation" else "raw")
    info = VolumeInfo.load(
        {
            "bounds": Box.of_shape(box.shape, at=start),
            "voxel_size_nm": voxel_size_nm,
            "chunk_shape": options.chunk_shape,
            "dtype": dtype,
            "n_channels": source.n_channels,
            "layer": options.layer,
            "encoding": encoding,
        },
        where=f"ingest of {source.uri}",
    )
    infos = [_sharded(info, options)]
    while options.n_mips is None or len(infos) <= options.n_mips:
        last = infos[-1]
        if options.n_mips is None and all(n <= c for n, c in zip(last.shape, last.chunk_shape, strict=True)):
            break
        factor = next_factor(last.voxel_size_nm, last.shape)
        if factor == (1, 1, 1):
            break
        infos.append(_sharded(_coarser(last, factor), options))
    return tuple(infos), notes


def ingest(source: Source, uri: str, options: IngestOptions, *, progress: Progress | None = None) -> Ingested:
    """Copy ``source`` to a Precomputed volume at ``uri`` and build its pyramid.

    Memory depends on the block, not on the volume. A call that was stopped goes on where it stopped when it is made
    again; a finished one does nothing. Until then, chunks that are not there yet are errors for readers, never
    zeros.

    Parameters
    ----------
    source
        What to copy.
    uri
        Where to: ``file://``, ``gs://``, ``s3://``, ``memory://`` or a local path.
    options
        How.
    progress
        Called after every block.

    Raises
    ------
    SpecError
        If the source cannot be stored as asked: before anything is written.
    ConflictError
        If something else lies at ``uri``.
    CorruptDataError
        If the source cannot be decoded somewhere; what was copied before stays, and is not copied again.
    StorageError
        If the disk is too small, or the storage fails.
    """
    report = progress or _silent
    infos, notes = plan_ingest(source, options)
    blocks = tuple(_block_shape(source, infos, mip) for mip in range(len(infos)))
    asked = _Marker(
        source=source.uri,
        fingerprint=source.fingerprint,
        axes_shape=source.shape,
        options=options,
        block_shapes=blocks,
        done=(0,) * len(infos),
    )
    uri = Address.parse(uri).uri
    marker = _resume(asked, infos, uri=uri)
    n_blocks = sum(math.prod(grid_shape(i.bounds, b)) for i, b in zip(infos, blocks, strict=True))
    if marker.complete:
        return Ingested(uri, infos, 0, n_blocks, notes)
    if not any(marker.done):
        _check_values(source, infos[0], options, report)
        _check_space(uri, infos)
    _store(marker, uri)
    for mip, info in enumerate(infos):
        create_volume(uri, info, mip=mip)
    n_written = 0
    for mip, (info, block) in enumerate(zip(infos, blocks, strict=True)):
        volume = open_volume(uri, mip=mip)
        todo = tile(info.bounds, block)
        n_done, saved = marker.done[mip], time.monotonic()
        n_voxels = sum(box.n_voxels for box in islice(todo, n_done))  # what an earlier call copied
        if mip == 0:
            what, blocks_read = "copying", _read_source(source, volume, todo, options)
        else:
            what, blocks_read = f"scale {mip}", _read_finer(open_volume(uri, mip=mip - 1), volume, todo)
        report(what, n_voxels, volume.info.bounds.n_voxels)
        for box, data in blocks_read:
            volume.write(box, data)
            n_written, n_done, n_voxels = n_written + 1, n_done + 1, n_voxels + box.n_voxels
            report(what, n_voxels, volume.info.bounds.n_voxels)
            if time.monotonic() - saved > _MARKER_EVERY_S:
                marker = _advanced(marker, mip, n_done)
                _store(marker, uri)
                saved = time.monotonic()
        marker = _advanced(marker, mip, n_done)
        _store(marker, uri)
    _store(marker.model_copy(update={"complete": True}), uri)
    return Ingested(uri, infos, n_written, n_blocks, notes)


def _stored_dtype(source: Source, options: IngestOptions) -> tuple[str, tuple[str, ...]]:
    """Return the type to store, and what to tell the user about it."""
    given, layer, notes = source.dtype, options.layer, source.notes
    if layer == "segmentation":
        if given.kind not in "uib":
            raise SpecError(
                f"{source.uri} holds {given}, and a segmentation holds integer ids: ids never pass through floats; "
                "save the labels as integers, or ingest it with --layer image"
            )
        if options.dtype not in (None, "uint64", "uint32"):
            raise SpecError(f"a segmentation is stored as uint64 (or uint32), not as {options.dtype}")
        return options.dtype or "uint64", notes
    if options.dtype is not None:
        return options.dtype, notes if given == options.dtype else (
            *notes,
            f"{given} is stored as {options.dtype}",
        )
    if given.name in get_args(DType):
        return given.name, notes
    if given.kind == "b":
        return "uint8", (*notes, "true and false are stored as 1 and 0 in uint8")
    if given.kind == "i":
        return f"uint{given.itemsize * 8}", (
            *notes,
            f"{given} is stored as uint{given.itemsize * 8}: all values are 0 or more",
        )
    if given.name == "float16":
        return "float32", (*notes, "float16 is stored as float32, without loss")
    if given.kind == "f":
        raise SpecError(
            f"{source.uri} holds {given}, which Precomputed volumes cannot: add --dtype float32 to accept rounding "
            "to 7 digits, or scale the values to uint8 or uint16 yourself"
        )
    raise SpecError(
        f"{source.uri} holds {given}, not numbers that a volume can hold ({', '.join(get_args(DType))})"
    )


def _sharded(info: VolumeInfo, options: IngestOptions) -> VolumeInfo:
    return info.model_copy(update={"sharding": sharding_for(info)}) if options.sharded else info


def _coarser(info: VolumeInfo, factor: XYZ) -> VolumeInfo:
    x, y, z = (s * f for s, f in zip(info.voxel_size_nm, factor, strict=True))
    bounds = coarse_box(info.bounds, factor)
    return info.model_copy(update={"bounds": bounds, "voxel_size_nm": (x, y, z), "sharding": None})


def _block_shape(source: Source, infos: tuple[VolumeInfo, ...], mip: int) -> XYZ:
    """Return the block to copy at once: whole chunks, grown towards whole sections while memory allows."""
    info = infos[mip]
    grid = info.write_grid
    itemsize = info.numpy_dtype.itemsize * info.n_channels
    if mip == 0:
        itemsize = max(itemsize, source.dtype.itemsize * source.n_channels)
        wishes: list[XYZ] = [source.natural_shape, info.shape]
    else:  # a block of cells is read from up to 8 times as many voxels
        itemsize *= 8
        wishes = [info.shape]
    block = list(grid)
    for wish in wishes:
        for axis in range(3):
            n_wanted = -(-min(wish[axis], info.shape[axis]) // grid[axis])
            other = itemsize * block[0] * block[1] * block[2] // block[axis]
            n_fitting = BLOCK_BYTES // (other * grid[axis])
            block[axis] = max(block[axis], min(n_wanted, n_fitting) * grid[axis])
    return (block[0], block[1], block[2])


def _resume(asked: _Marker, infos: tuple[VolumeInfo, ...], *, uri: str) -> _Marker:
    """Return how far an earlier call got, or ``asked`` if there was none; refuse what is something else."""
    try:
        existing: list[VolumeInfo] = scales(uri)
    except NotFoundError:
        existing = []
    try:
        found = _Marker.load(open_objects(uri).get(MARKER), where=f"{uri}/{MARKER}")
    except NotFoundError:
        found = None
    if existing and (differences := list(_differences(existing, infos))):
        raise ConflictError(
            f"there is another volume at {uri}: {'; '.join(differences)}; remove it, or write somewhere else"
        )
    if found is None:
        if existing:
            raise ConflictError(
                f"there is a volume at {uri} that was not ingested from a file: remove it, or write somewhere else"
            )
        return asked
    before, now = (m.model_dump(mode="json", exclude={"done", "complete"}) for m in (found, asked))
    before["source"], now["source"] = (
        str(d["source"]).rsplit("/", 1)[-1] for d in (before, now)
    )  # files may move
    changed = sorted(key for key in now if now[key] != before[key])
    if changed:
        listing = "; ".join(
            f"{key} was {json.dumps(before[key])}, is {json.dumps(now[key])}" for key in changed
        )
        raise ConflictError(
            f"{uri} holds {'a' if found.complete else 'an unfinished'} copy of something else ({listing}); "
            "remove it, or write somewhere else"
        )
    return found


def _differences(existing: list[VolumeInfo], infos: tuple[VolumeInfo, ...]) -> Iterator[str]:
    """Name what differs; fewer scales than wanted are fine, a stopped ingest leaves them."""
    if len(existing) > len(infos):
        yield f"it has {len(existing)} scales, {len(infos)} are asked for"
    for mip, (old, new) in enumerate(zip(existing, infos, strict=False)):
        a, b = old.model_dump(mode="json"), new.model_dump(mode="json")
        for key in a:
            if a[key] != b[key]:
                yield f"{key} of scale {mip} is {a[key]} there, {b[key]} is asked for"
        if a != b:
            return  # coarser scales follow from the finest that differs


def _advanced(marker: _Marker, mip: int, n_done: int) -> _Marker:
    return marker.model_copy(update={"done": (*marker.done[:mip], n_done, *marker.done[mip + 1 :])})


def _store(marker: _Marker, uri: str) -> None:
    open_objects(uri).put(MARKER, marker.canonical_json().encode())


def _ahead(boxes: Iterable[Box], read: Callable[[Box], Array]) -> Iterator[tuple[Box, Array]]:
    """Yield each box with its data; the next block is read while the caller writes the last one."""
    with ThreadPoolExecutor(1, thread_name_prefix="ingest-read") as reader:
        waiting = None
        for box in boxes:
            following = (box, reader.submit(read, box))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _read_source(
    source: Source, volume: Volume, todo: Iterable[Box], options: IngestOptions
) -> Iterator[tuple[Box, Array]]:
    low = (options.box or Box.of_shape(source.shape)).start
    x, y, z = (a - b for a, b in zip(low, volume.info.bounds.start, strict=True))

    def read(box: Box) -> Array:
        return source.read(box.shift((x, y, z))).astype(volume.info.numpy_dtype, order="F", copy=False)

    return _ahead(todo, read)


def _read_finer(finer: Volume, volume: Volume, todo: Iterable[Box]) -> Iterator[tuple[Box, Array]]:
    x, y, z = (round(b / a) for a, b in zip(finer.info.voxel_size_nm, volume.info.voxel_size_nm, strict=True))
    reduce = downsample_mode if volume.info.layer == "segmentation" else downsample_mean

    def read(box: Box) -> Array:
        voxels = fine_box(box, (x, y, z)).intersect(finer.info.bounds)
        return reduce(finer.read(voxels), (x, y, z), start=voxels.start)

    return _ahead(todo, read)


def _check_values(source: Source, info: VolumeInfo, options: IngestOptions, report: Progress) -> None:
    """Read the source once where its type holds values that the stored one cannot: before anything is written."""
    given, stored = source.dtype, info.numpy_dtype
    if np.can_cast(given, stored, "safe"):
        return
    if given.kind == "f" and stored.kind == "u":
        raise SpecError(
            f"{source.uri} holds {given}: floats are not stored as {stored}; scale and convert them yourself"
        )
    if given.kind in "ui" and stored.kind == "f":
        raise SpecError(
            f"{source.uri} holds {given}: float32 cannot hold every such number; use an integer --dtype"
        )
    box = options.box or Box.of_shape(source.shape)
    limit = float(np.finfo(stored).max) if stored.kind == "f" else int(np.iinfo(stored).max)
    lowest = -limit if stored.kind == "f" else 0
    total, done = box.n_voxels, 0
    for part, data in _ahead(tile(box, _block_shape(source, (info,), 0)), source.read):
        finite = data[np.isfinite(data)] if given.kind == "f" else data
        if finite.size and (finite.min().item() < lowest or finite.max().item() > limit):
            raise SpecError(
                f"{source.uri} holds values from {finite.min()} to {finite.max()} at {part} (x,y,z), "
                f"and {stored} holds {lowest} to {limit}: shift, map or scale them first, or choose another --dtype"
            )
        done += part.n_voxels
        report("checking values", done, total)


def _check_space(uri: str, infos: tuple[VolumeInfo, ...]) -> None:
    """Refuse to start what cannot fit on a local disk; packed encodings are left to the disk itself."""
    address = Address.parse(uri)
    if address.scheme != "file" or infos[0].encoding != "raw":
        return
    needed = sum(info.bounds.n_voxels * info.n_channels * info.numpy_dtype.itemsize for info in infos)
    folder = next(p for p in (Path(address.path), *Path(address.path).parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"no space: {uri} needs about {needed / 2**30:.2f} GiB, "
            f"{free / 2**30:.2f} GiB are free on the disk of {folder}"
        )


def _silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""
