"""What every volume refuses before it touches storage."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from cloudseg.errors import AlignmentError, BoxOutOfBoundsError, MissingChunkError, SpecError
from cloudseg.geometry import XYZ, Box, grid_box, grid_shape
from cloudseg.volumes.protocol import Array, VolumeInfo


def array_shape(box: Box, info: VolumeInfo) -> tuple[int, ...]:
    """Shape of the array that holds ``box``: ``(x, y, z)``, or ``(c, x, y, z)`` for several channels."""
    return box.shape if info.n_channels == 1 else (info.n_channels, *box.shape)


def new_array(box: Box, info: VolumeInfo, *, fill: int = 0) -> Array:
    """Return an array for ``box`` in which each channel is Fortran-ordered and lies in one piece."""
    planar = np.full((*box.shape, info.n_channels), fill, dtype=info.numpy_dtype, order="F")
    return from_planar(planar, info)


def from_planar(planar: Array, info: VolumeInfo) -> Array:
    """Return ``(x, y, z, c)`` as ``(x, y, z)`` or ``(c, x, y, z)``; a view."""
    return planar[..., 0] if info.n_channels == 1 else np.moveaxis(planar, -1, 0)


def to_planar(data: Array, info: VolumeInfo) -> Array:
    """Return ``(x, y, z)`` or ``(c, x, y, z)`` as ``(x, y, z, c)``; a view."""
    return data[..., np.newaxis] if info.n_channels == 1 else np.moveaxis(data, 0, -1)


def check_read(box: Box, *, fill: int | None, missing: str, info: VolumeInfo, uri: str) -> None:
    """Refuse a read that cannot be answered.

    Raises
    ------
    BoxOutOfBoundsError
        If the box reaches outside and there is no ``fill``.
    SpecError
        If the dtype cannot hold ``fill``, or ``missing`` is neither ``error`` nor ``zero``.
    """
    if missing not in ("error", "zero"):
        raise SpecError(f"missing must be 'error' or 'zero', got {missing!r}")
    if fill is None:
        if not info.bounds.contains(box):
            raise BoxOutOfBoundsError.of(box, info.bounds, uri=uri)
        return
    dtype = info.numpy_dtype
    if dtype.kind == "u" and not (fill == int(fill) and 0 <= fill <= np.iinfo(dtype).max):
        raise SpecError(
            f"fill={fill!r} is no value of {uri}, which holds {dtype}: 0 to {np.iinfo(dtype).max}"
        )


def check_write(box: Box, data: Array, *, info: VolumeInfo, uri: str) -> None:
    """Refuse a write that does not fit: nothing is cast, padded or merged.

    Raises
    ------
    BoxOutOfBoundsError, AlignmentError
        If the box reaches outside, or does not cover whole chunks (shards).
    SpecError
        If the box is empty, or the shape or dtype of the data differ from what the box and the volume need.
    """
    if not isinstance(data, np.ndarray):
        raise SpecError(f"a write to {uri} needs a numpy array, got {type(data).__name__}")
    if box.is_empty:
        raise SpecError(f"box {box} holds no voxel: there is nothing to write to {uri}")
    if not info.bounds.contains(box):
        raise BoxOutOfBoundsError.of(box, info.bounds, uri=uri)
    if not box.is_aligned(info.write_grid, bounds=info.bounds):
        raise AlignmentError.of(box, grid=info.write_grid, origin=info.bounds.start, uri=uri)
    wanted = array_shape(box, info)
    if data.shape != wanted:
        order = "(x, y, z)" if info.n_channels == 1 else "(c, x, y, z)"
        raise SpecError(f"data for box {box} of {uri} must have shape {wanted} {order}, got {data.shape}")
    if data.dtype != info.numpy_dtype:
        ids = (
            "; ids never pass through floats"
            if data.dtype.kind == "f" and info.numpy_dtype.kind == "u"
            else ""
        )
        raise SpecError(
            f"data for {uri} must have dtype {info.dtype}, got {data.dtype}; "
            f"convert it yourself where that is right: nothing is cast silently{ids}"
        )


def chunks_of(box: Box, info: VolumeInfo) -> Iterable[tuple[XYZ, Box]]:
    """Yield the grid index and the box of each stored chunk that ``box`` touches."""
    if box.is_empty:
        return
    aligned = box.align_out(info.chunk_shape, bounds=info.bounds)
    first = tuple(
        (a - b) // c for a, b, c in zip(aligned.start, info.bounds.start, info.chunk_shape, strict=True)
    )
    n_x, n_y, n_z = grid_shape(aligned, info.chunk_shape)
    for k in range(first[2], first[2] + n_z):
        for j in range(first[1], first[1] + n_y):
            for i in range(first[0], first[0] + n_x):
                yield (i, j, k), grid_box(info.bounds, info.chunk_shape, (i, j, k))


def chunk_name(chunk: Box) -> str:
    """The file name of an unsharded chunk, as the Precomputed specification gives it."""
    return "_".join(f"{low}-{high}" for low, high in zip(chunk.start, chunk.stop, strict=True))


def missing_chunk(box: Box, *, uri: str, detail: str) -> MissingChunkError:
    """The error for a chunk that was never written."""
    return MissingChunkError(
        f"a chunk of box {box} of {uri} was never written ({detail}); run the tasks that write it, "
        "or read with missing='zero' if an absent chunk means background there"
    )


def n_bytes(box: Box, info: VolumeInfo) -> int:
    """Uncompressed size of ``box``."""
    return math.prod(array_shape(box, info)) * info.numpy_dtype.itemsize
