"""Halve a volume: means for images, most frequent ids for labels, on a grid fixed in the volume.

Cell ``i`` of the coarse volume covers the voxels ``[i * factor, (i + 1) * factor)`` of the fine one, counted
from voxel 0 of the coordinate system, whatever block is at hand: blocks of whole cells give the same as
the whole volume at once. A cell that the border cuts uses the voxels it has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box

Array = npt.NDArray[Any]
Slices = tuple[slice, slice, slice]


def coarse_box(box: Box, factor: XYZ) -> Box:
    """Return the cells that ``box`` (in fine voxels) touches."""
    x0, y0, z0 = (a // f for a, f in zip(box.start, factor, strict=True))
    x1, y1, z1 = (-(-b // f) for b, f in zip(box.stop, factor, strict=True))
    return Box((x0, y0, z0), (x1, y1, z1))


def fine_box(box: Box, factor: XYZ) -> Box:
    """Return the fine voxels that the cells of ``box`` cover."""
    x0, y0, z0 = (a * f for a, f in zip(box.start, factor, strict=True))
    x1, y1, z1 = (b * f for b, f in zip(box.stop, factor, strict=True))
    return Box((x0, y0, z0), (x1, y1, z1))


def next_factor(voxel_size_nm: tuple[float, float, float], shape: XYZ) -> XYZ:
    """Return the factor of one pyramid step that brings voxels closest to cubes.

    An axis is halved unless its voxels are more than sqrt(2) times as long as the shortest (then leaving it
    brings the ratio nearer to 1), or it is one voxel thick.
    """
    finest = min((s for s, n in zip(voxel_size_nm, shape, strict=True) if n > 1), default=1.0)
    x, y, z = (
        2 if n > 1 and s < math.sqrt(2) * finest else 1 for s, n in zip(voxel_size_nm, shape, strict=True)
    )
    return (x, y, z)


def downsample_mean(image: Array, factor: XYZ, *, start: XYZ = (0, 0, 0)) -> Array:
    """Return the mean of each cell, in the image's own type.

    Parameters
    ----------
    image
        ``(x, y, z)`` or ``(c, x, y, z)``. Means of integers are exact and rounded half up; means of floats
        are taken in float64.
    factor
        Fine voxels in a cell along x, y, z.
    start
        Position of the first voxel in the volume.

    Raises
    ------
    SpecError
        If the shape or the factor does not fit.
    """
    _check(image, factor)
    if image.ndim == 4:
        return np.stack([downsample_mean(channel, factor, start=start) for channel in image])
    box = Box.of_shape(_shape(image), at=start)
    coarse = coarse_box(box, factor)
    n_voxels = _n_voxels(box, coarse, factor)
    if image.dtype.kind == "f":
        mean = np.zeros(coarse.shape, np.float64, order="F")
        for cells, voxels in _parts(box, coarse, factor):
            mean[cells] += image[voxels]
        return np.asfortranarray((mean / n_voxels).astype(image.dtype))
    # Quotients and remainders add up apart, so that sums of 64-bit values cannot overflow.
    small = image.dtype.itemsize < 8
    whole = np.zeros(coarse.shape, np.uint64, order="F")
    rest = np.zeros(coarse.shape, np.uint64, order="F")
    for cells, voxels in _parts(box, coarse, factor):
        if small:
            rest[cells] += image[voxels]
        else:
            whole[cells] += image[voxels] // n_voxels[cells]
            rest[cells] += image[voxels] % n_voxels[cells]
    return np.asfortranarray((whole + (rest + n_voxels // 2) // n_voxels).astype(image.dtype))


def downsample_mode(labels: Array, factor: XYZ, *, start: XYZ = (0, 0, 0)) -> Array:
    """Return the most frequent id of each cell; of equally frequent ones, the first met with x fastest.

    The rule looks at positions, not at ids: renaming the labels renames the result.
    0 is an id like any other.

    Parameters
    ----------
    labels
        ``(x, y, z)`` of an integer type.
    factor, start
        As for :func:`downsample_mean`.

    Raises
    ------
    SpecError
        If the shape, the type or the factor does not fit.
    """
    _check(labels, factor)
    if labels.ndim != 3 or labels.dtype.kind not in "ui":
        raise SpecError(f"labels must be (x, y, z) integers, got {labels.dtype} {labels.shape}")
    box = Box.of_shape(_shape(labels), at=start)
    coarse = coarse_box(box, factor)
    n_cell = math.prod(factor)
    ids = np.zeros((n_cell, *coarse.shape), labels.dtype)
    there = np.zeros((n_cell, *coarse.shape), bool)
    for i, (cells, voxels) in enumerate(_parts(box, coarse, factor)):
        ids[i][cells] = labels[voxels]
        there[i][cells] = True
    first = np.take_along_axis(ids, there.argmax(axis=0)[np.newaxis], axis=0)[0]
    mixed = ((ids != first) & there).any(axis=0)  # most cells are inside one object: only the others vote
    ids, there = ids[:, mixed], there[:, mixed]
    votes = np.zeros(ids.shape, np.int64)
    for i, j in itertools.product(range(n_cell), repeat=2):
        votes[i] += (ids[i] == ids[j]) & there[i] & there[j]
    first[mixed] = np.take_along_axis(ids, votes.argmax(axis=0)[np.newaxis], axis=0)[0]
    return np.asfortranarray(first)


def _parts(box: Box, coarse: Box, factor: XYZ) -> Iterator[tuple[Slices, Slices]]:
    """Yield, for each place in a cell (x fastest), the cells that have a voxel there and those voxels."""
    for dz, dy, dx in itertools.product(range(factor[2]), range(factor[1]), range(factor[0])):
        cells, voxels = [], []
        for axis, offset in enumerate((dx, dy, dz)):
            f, low, high = factor[axis], box.start[axis], box.stop[axis]
            first = -((offset - low) // f)  # smallest cell with first * f + offset >= low
            last = -((offset - high) // f)
            cells.append(slice(first - coarse.start[axis], last - coarse.start[axis]))
            begin = first * f + offset - low
            voxels.append(slice(begin, begin + (last - first - 1) * f + 1 if last > first else begin, f))
        yield (cells[0], cells[1], cells[2]), (voxels[0], voxels[1], voxels[2])


def _n_voxels(box: Box, coarse: Box, factor: XYZ) -> Array:
    """Return how many voxels of ``box`` each cell holds, uint64."""
    per_axis = []
    for low, high, first, last, f in zip(box.start, box.stop, coarse.start, coarse.stop, factor, strict=True):
        begin = np.arange(first, last) * f
        per_axis.append((np.minimum(begin + f, high) - np.maximum(begin, low)).astype(np.uint64))
    x, y, z = per_axis
    return np.asfortranarray(x[:, None, None] * y[None, :, None] * z[None, None, :])


def _shape(array: Array) -> XYZ:
    x, y, z = array.shape
    return (x, y, z)


def _check(array: Array, factor: XYZ) -> None:
    if array.ndim not in (3, 4):
        raise SpecError(f"a volume to downsample is (x, y, z) or (c, x, y, z), got shape {array.shape}")
    if array.dtype.kind not in "uif" or (array.dtype.kind == "i" and array.size and array.min() < 0):
        raise SpecError(f"a volume to downsample holds floats or integers from 0 up, got dtype {array.dtype}")
    if np.shape(factor) != (3,) or min(factor) < 1:
        raise SpecError(f"a downsampling factor is three numbers from 1 up (x, y, z), got {factor}")
