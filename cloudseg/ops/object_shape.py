"""Size and shape of objects from sums that add up over blocks: exact integers, so any tiling gives the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box
from cloudseg.ops.runs import Runs
from cloudseg.ops.statistics import SegmentTable, block_statistics, describe, merge_statistics

Ints = npt.NDArray[np.int64]

# Pairs of axes, in the order of the columns.
_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True, slots=True)
class ShapeTable:
    """What one block knows of the shape of its objects.

    Attributes
    ----------
    segments
        Counts, sums, boxes and faces; see :class:`cloudseg.ops.statistics.SegmentTable`.
    second
        ``(n, 6)`` int64: sums of xx, yy, zz, xy, xz, yz over the voxels, counted from ``origin``. A block of
        a thousand voxels along each axis stays below 2**50.
    origin
        The corner of the block.
    """

    segments: SegmentTable
    second: Ints
    origin: XYZ

    def take(self, rows: npt.NDArray[Any]) -> ShapeTable:
        """Return the chosen rows (indices or a mask), in that order."""
        return ShapeTable(self.segments.take(rows), self.second[rows], self.origin)


def block_shapes(labels: npt.NDArray[np.uint64], *, box: Box, core: Box) -> ShapeTable:
    """Measure the objects of ``core``; arguments as :func:`cloudseg.ops.statistics.block_statistics`."""
    segments = block_statistics(labels, box=box, core=core)
    # Only the core counts; what is seen across its lower faces has faces, but no voxels and no moments.
    runs = Runs.of(np.asfortranarray(labels[core.slices_in(box)]))
    sums = np.zeros((len(runs.ids), 6), np.int64)
    _second_moments(runs.rows, runs.begin, runs.place, *core.shape, sums)
    second = np.zeros((len(segments), 6), np.int64)
    second[np.searchsorted(segments.ids, runs.ids)] = sums
    return ShapeTable(segments, second, core.start)


def merged_shapes(
    tables: Sequence[ShapeTable], *, bounds: Box, voxel_size_nm: tuple[float, float, float]
) -> Mapping[str, npt.NDArray[Any]]:
    """Add the tables of blocks and return what users read, one entry per object, sorted by id.

    Parameters
    ----------
    tables
        Of all blocks of a tiling, in any order.
    bounds
        Of the volume.
    voxel_size_nm
        Edge of a voxel along x, y, z.

    Returns
    -------
    The columns of :func:`cloudseg.ops.statistics.describe`, and

    - ``extent_{x,y,z}_um``: edges of the bounding box;
    - ``length_um``, ``width_um``, ``thickness_um``: axes of the ellipsoid with the same second moments, longest first;
    - ``elongation``: length over thickness;
    - ``fill``: share of the bounding box that is object;
    - ``sphericity``: surface of the ball of the same volume over the surface (0 where no inner face is known).
    """
    total = merge_statistics([t.segments for t in tables])
    if (total.n_voxels < 1).any():
        lost = int(total.ids[total.n_voxels < 1][0])
        raise SpecError(
            f"object {lost} has faces but no voxel: the tables come from different segmentations or tilings; "
            "measure all blocks again"
        )
    columns = dict(describe(total, bounds=bounds, voxel_size_nm=voxel_size_nm))
    covariance = _covariance(tables, total, voxel_size_nm=voxel_size_nm)
    # A voxel is a small box, not a point.
    covariance[:, range(3), range(3)] += np.asarray(voxel_size_nm) ** 2 / 12
    axes = 2 * np.sqrt(5 * np.maximum(np.linalg.eigvalsh(covariance), 0)) * 1e-3
    for name, axis in (("length_um", 2), ("width_um", 1), ("thickness_um", 0)):
        columns[name] = axes[:, axis]
    columns["elongation"] = axes[:, 2] / axes[:, 0]
    size = (total.stop_vx - total.start_vx) * np.asarray(voxel_size_nm) * 1e-3
    for axis, letter in enumerate("xyz"):
        columns[f"extent_{letter}_um"] = size[:, axis]
    columns["fill"] = total.n_voxels / np.prod(total.stop_vx - total.start_vx, axis=1)
    volume, surface = columns["volume_um3"], columns["surface_um2"]
    ball = np.cbrt(36 * np.pi * volume**2)
    columns["sphericity"] = np.divide(ball, surface, out=np.zeros_like(ball), where=surface > 0)
    return columns


def _covariance(
    tables: Sequence[ShapeTable], total: SegmentTable, *, voxel_size_nm: tuple[float, float, float]
) -> npt.NDArray[np.float64]:
    """Return ``(n, 3, 3)`` covariances of the voxels' places in nm2; one rounding each."""
    # Sums of squares of global places leave 64 bits in large volumes, so they are Python's integers.
    sums = np.zeros((len(total), 6), object)
    for table in tables:
        rows = np.searchsorted(total.ids, table.segments.ids)
        n = table.segments.n_voxels.astype(object)
        first = table.segments.sum_vx.astype(object)
        for column, (a, b) in enumerate(_PAIRS):
            o_a, o_b = table.origin[a], table.origin[b]
            # (x + o_a)(y + o_b), where the first sums are of global places already.
            about = table.second[:, column].astype(object)
            about = about + o_a * (first[:, b] - o_b * n) + o_b * (first[:, a] - o_a * n) + o_a * o_b * n
            np.add.at(sums[:, column], rows, about)
    n = total.n_voxels.astype(object)
    covariance = np.zeros((len(total), 3, 3))
    for column, (a, b) in enumerate(_PAIRS):
        s_a, s_b = total.sum_vx[:, a].astype(object), total.sum_vx[:, b].astype(object)
        value = (n * sums[:, column] - s_a * s_b) / (n * n)
        covariance[:, a, b] = covariance[:, b, a] = (
            value.astype(np.float64) * voxel_size_nm[a] * voxel_size_nm[b]
        )
    return covariance


@numba.njit(cache=True)
def _second_moments(rows, begin, place, nx, ny, nz, sums):  # type: ignore[no-untyped-def]
    for z in range(nz):
        for y in range(ny):
            row = y + ny * z
            for k in range(rows[row], rows[row + 1]):
                p = place[k]
                if p < 0:
                    continue
                low, high = np.int64(begin[k] - row * nx), np.int64(begin[k + 1] - row * nx)
                n = high - low
                sum_x = n * (low + high - 1) // 2
                sum_xx = (high - 1) * high * (2 * high - 1) // 6 - (low - 1) * low * (2 * low - 1) // 6
                sums[p, 0] += sum_xx
                sums[p, 1] += n * y * y
                sums[p, 2] += n * z * z
                sums[p, 3] += sum_x * y
                sums[p, 4] += sum_x * z
                sums[p, 5] += n * y * z
