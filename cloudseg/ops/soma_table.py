"""Somas as integers that add up: what each block saw of a soma, the sum of all blocks, and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.runs import Runs

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PRODUCTS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Which coordinates the six columns of :attr:`SomaTable.products_vx` multiply."""

_NEVER_START = np.iinfo(np.int64).max
_NEVER_STOP = np.iinfo(np.int64).min
# Voxels times the squared edge of the bounding box: below it, moments about the centroid fit 63 bits.
_MOST_MOMENT = 2.0**62


@dataclass(frozen=True, slots=True)
class SomaTable:
    """Additive measures of ``n`` somas, sorted by id. Coordinates are voxel indices in x, y, z.

    Attributes
    ----------
    ids
        ``(n,)`` uint64, ascending, without 0 (background).
    n_voxels
        ``(n,)`` int64.
    sum_vx
        ``(n, 3)`` int64, sums of the voxels' coordinates.
    products_vx
        ``(n, 6)`` int64, sums of xx, yy, zz, xy, xz, yz **modulo 2^64**: in a volume of petavoxels the sums
        themselves do not fit. The moments about the centroid do, and come out exactly: see :func:`describe_somas`.
    start_vx, stop_vx
        ``(n, 3)`` int64, the half-open bounding box.
    sum_interior
        ``(n,)`` int64, sum of the interior map (0..255) over the voxels; 0 where there is no such map.
    n_surface
        ``(n,)`` int64, voxels with a face towards another label or background. The border of the volume is no
        such face: what lies behind it is unknown.
    sum_boundary
        ``(n,)`` int64, sum of the boundary map (0..255) over those; 0 where there is no such map.
    n_blocks
        ``(n,)`` int64, in how many of the added tables it has voxels: the one column that a tiling shows in.
    """

    ids: npt.NDArray[np.uint64]
    n_voxels: Ints
    sum_vx: Ints
    products_vx: Ints
    start_vx: Ints
    stop_vx: Ints
    sum_interior: Ints
    n_surface: Ints
    sum_boundary: Ints
    n_blocks: Ints

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_columns(cls, ids: npt.NDArray[np.uint64], columns: Ints) -> SomaTable:
        """Return the table of ``(n, 20)`` columns, in the order of the attributes."""
        c = columns
        return cls(
            ids,
            c[:, 0],
            c[:, 1:4],
            c[:, 4:10],
            c[:, 10:13],
            c[:, 13:16],
            c[:, 16],
            c[:, 17],
            c[:, 18],
            c[:, 19],
        )

    @property
    def columns(self) -> Ints:
        """All but the ids, ``(n, 20)``: what :meth:`of_columns` takes."""
        return np.column_stack([getattr(self, name) for name in self.__slots__[1:]])

    def take(self, rows: npt.NDArray[Any]) -> SomaTable:
        """Return the chosen rows (indices or a mask), in that order."""
        return SomaTable(*(getattr(self, name)[rows] for name in self.__slots__))


def measure_somas(
    labels: npt.NDArray[Any],
    *,
    box: Box,
    core: Box,
    interior: npt.NDArray[np.uint8] | None = None,
    boundary: npt.NDArray[np.uint8] | None = None,
) -> SomaTable:
    """Measure what ``core`` holds of each soma.

    Parameters
    ----------
    labels
        ``(x, y, z)``, any unsigned integer type; 0 is background. Not changed.
    box
        What ``labels`` covers: ``core``, and one voxel more at each side that is not the border of the volume.
    core
        The voxels to measure; the cores of a tiling share none.
    interior, boundary
        Probabilities 0..255 of each voxel of ``core``, if there are such maps.

    Returns
    -------
    The table of this block. :func:`add_somas` of the tables of any tiling equals the table of the whole volume,
    ``n_blocks`` apart.

    Raises
    ------
    SpecError
        If an array does not cover its box or is of another type.
    """
    if labels.shape != box.shape or not box.contains(core):
        raise SpecError(f"labels of shape {labels.shape} must cover the box {box}, and it the core {core}")
    if labels.dtype.kind != "u":
        raise SpecError(
            f"labels must be unsigned integers, got dtype {labels.dtype}: ids never pass through floats"
        )
    maps = []
    for name, values in (("interior", interior), ("boundary", boundary)):
        if values is not None and (values.shape != core.shape or values.dtype != np.uint8):
            raise SpecError(
                f"the {name} map must be uint8 and cover the core {core} of shape {core.shape}, got {values.dtype} "
                f"of shape {values.shape}"
            )
        maps.append(np.empty((0, 0, 0), np.uint8, order="F") if values is None else np.asfortranarray(values))
    labels = np.asfortranarray(labels, dtype=np.uint64)
    runs = Runs.of(labels)
    table = np.zeros((len(runs.ids), 20), np.int64)
    table[:, 10:13], table[:, 13:16] = _NEVER_START, _NEVER_STOP
    low = np.asarray(core.start, np.int64) - np.asarray(box.start, np.int64)
    high = low + np.asarray(core.shape, np.int64)
    _accumulate(labels, runs.rows, runs.begin, runs.place, low, high, maps[0], maps[1], table)
    found = table[:, 0] > 0
    table = table[found]
    _shift(table, np.asarray(box.start, np.int64))
    table[:, 19] = 1
    return SomaTable.of_columns(runs.ids[found], table)


def add_somas(tables: Sequence[SomaTable]) -> SomaTable:
    """Add tables; the order does not matter.

    Parameters
    ----------
    tables
        Any number of tables, empty ones included.
    """
    if not tables:
        return SomaTable.of_columns(np.empty(0, np.uint64), np.empty((0, 20), np.int64))
    ids = np.concatenate([t.ids for t in tables])
    if not len(ids):
        return tables[0]
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    columns = np.concatenate([t.columns for t in tables])[order]
    first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    summed = np.add.reduceat(columns, first, axis=0)  # int64 wraps round: sums modulo 2^64
    summed[:, 10:13] = np.minimum.reduceat(columns[:, 10:13], first, axis=0)
    summed[:, 13:16] = np.maximum.reduceat(columns[:, 13:16], first, axis=0)
    return SomaTable.of_columns(ids[first], summed)


def renamed_somas(table: SomaTable, old: npt.NDArray[np.uint64], new: npt.NDArray[np.uint64]) -> SomaTable:
    """Return the table after joining somas: each ``old[i]`` becomes ``new[i]``, and equal ids add up.

    Parameters
    ----------
    table
        Of the pieces.
    old, new
        ``(m,)`` uint64; ``old`` sorted, without repeats. Ids that are not listed stay.
    """
    if not len(old) or not len(table):
        return table
    place = np.minimum(np.searchsorted(old, table.ids), len(old) - 1)
    ids = np.where(old[place] == table.ids, new[place], table.ids)
    return add_somas([SomaTable.of_columns(ids, table.columns)])


def describe_somas(
    table: SomaTable, *, bounds: Box, voxel_size_nm: tuple[float, float, float]
) -> Mapping[str, npt.NDArray[Any]]:
    """Turn the summed table of a volume into places, sizes and shapes.

    Parameters
    ----------
    table
        Summed over all blocks; each row has voxels.
    bounds
        Of the volume, in voxels.
    voxel_size_nm
        Edge of a voxel along x, y, z.

    Returns
    -------
    ``centroid_nm`` (n, 3; a voxel's centre lies at index + 0.5), ``start_nm``, ``stop_nm`` (n, 3), ``volume_um3``,
    ``radius_um`` of the ball of that volume, ``axes_um`` (n, 3), the half axes, longest first, of the ellipsoid
    with the same second moments, ``axis_dir`` (n, 3), the unit vector of the longest with its largest component
    positive, ``edge_faces`` (uint8, bits -x, +x, -y, +y, -z, +z: faces of the volume that the soma reaches),
    ``interior`` and ``boundary`` (0..1, means over voxels and over surface voxels).

    Notes
    -----
    A voxel counts as a box, not as a point, so a soma of one voxel has axes, too. Moments are taken about the voxel
    nearest to the centroid, in integers, before anything is divided. Axes are NaN where they do not fit 63 bits:
    such an object (a million times the volume of a soma) is none.
    """
    size = np.asarray(voxel_size_nm, np.float64)
    n = np.maximum(table.n_voxels, 1).astype(np.float64)
    mean = table.sum_vx / n[:, None]
    covariance = _covariances(table, mean) * np.multiply.outer(size, size)
    edges = (table.stop_vx - table.start_vx).max(axis=1, initial=0).astype(np.float64)
    too_large = n * edges**2 > _MOST_MOMENT
    covariance[too_large] = np.eye(3)
    values, vectors = np.linalg.eigh(covariance)
    # A solid ellipsoid with half-axes a has the variances a^2 / 5.
    axes_um = np.sqrt(5 * np.maximum(values[:, ::-1], 0)) * 1e-3
    direction = vectors[:, :, 2]
    strongest = np.take_along_axis(direction, np.abs(direction).argmax(axis=1)[:, None], axis=1)
    direction = direction * np.where(strongest < 0, -1.0, 1.0)
    axes_um[too_large], direction[too_large] = np.nan, np.nan
    volume_um3 = table.n_voxels * (float(np.prod(size)) * 1e-9)
    faces = np.zeros(len(table), np.uint8)
    for axis in range(3):
        faces |= (table.start_vx[:, axis] <= bounds.start[axis]).astype(np.uint8) << (2 * axis)
        faces |= (table.stop_vx[:, axis] >= bounds.stop[axis]).astype(np.uint8) << (2 * axis + 1)
    return {
        "centroid_nm": (mean + 0.5) * size,
        "start_nm": table.start_vx * size,
        "stop_nm": table.stop_vx * size,
        "volume_um3": volume_um3,
        "radius_um": np.cbrt(volume_um3 * 3 / (4 * np.pi)),
        "axes_um": axes_um,
        "axis_dir": direction,
        "edge_faces": faces,
        "interior": table.sum_interior / (255 * n),
        "boundary": table.sum_boundary / (255.0 * np.maximum(table.n_surface, 1)),
    }


def _covariances(table: SomaTable, mean: Floats) -> Floats:
    """Return ``(n, 3, 3)`` in squared voxels, from moments about an integer point near the centroid."""
    centre = np.floor(mean + 0.5).astype(np.int64)
    rest = mean - centre
    found = np.empty((len(table), 3, 3))
    for column, (a, b) in enumerate(PRODUCTS):
        # All of it modulo 2^64, where int64 wraps round; the outcome is small again, hence exact.
        about = (
            table.products_vx[:, column]
            - centre[:, b] * table.sum_vx[:, a]
            - centre[:, a] * table.sum_vx[:, b]
            + table.n_voxels * centre[:, a] * centre[:, b]
        )
        value = about / np.maximum(table.n_voxels, 1) - rest[:, a] * rest[:, b]
        found[:, a, b] = found[:, b, a] = value + (1 / 12 if a == b else 0.0)
    return found


def _shift(table: Ints, by: Ints) -> None:
    """Move a table of block coordinates to those of the volume, in place."""
    n, sums, products = table[:, 0], table[:, 1:4].copy(), table[:, 4:10]
    for column, (a, b) in enumerate(PRODUCTS):
        products[:, column] += by[a] * sums[:, b] + by[b] * sums[:, a] + n * (by[a] * by[b])
    table[:, 1:4] += n[:, None] * by
    table[:, 10:13] += by
    table[:, 13:16] += by


@numba.njit(cache=True)
def _accumulate(labels, rows, begin, place, low, high, interior, boundary, table):  # type: ignore[no-untyped-def]
    nx, ny, nz = labels.shape
    has_interior, has_boundary = interior.size > 0, boundary.size > 0
    for k in range(low[2], high[2]):
        for j in range(low[1], high[1]):
            row = k * ny + j
            for run in range(rows[row], rows[row + 1]):
                slot = place[run]
                if slot < 0:
                    continue
                first = max(begin[run] - row * nx, low[0])
                last = min(begin[run + 1] - row * nx, high[0])
                n = last - first
                if n <= 0:
                    continue
                line = table[slot]
                sum_x = (first + last - 1) * n // 2
                # Sum of squares up to m - 1 is (m - 1) m (2 m - 1) / 6.
                below_last = (last - 1) * last * (2 * last - 1) // 6
                below_first = (first - 1) * first * (2 * first - 1) // 6
                line[0] += n
                line[1] += sum_x
                line[2] += n * j
                line[3] += n * k
                line[4] += below_last - below_first
                line[5] += n * j * j
                line[6] += n * k * k
                line[7] += sum_x * j
                line[8] += sum_x * k
                line[9] += n * j * k
                line[10] = min(line[10], first)
                line[11] = min(line[11], j)
                line[12] = min(line[12], k)
                line[13] = max(line[13], last)
                line[14] = max(line[14], j + 1)
                line[15] = max(line[15], k + 1)
                label = labels[first, j, k]
                for i in range(first, last):
                    if has_interior:
                        line[16] += interior[i - low[0], j - low[1], k - low[2]]
                    if (
                        (i > 0 and labels[i - 1, j, k] != label)
                        or (i + 1 < nx and labels[i + 1, j, k] != label)
                        or (j > 0 and labels[i, j - 1, k] != label)
                        or (j + 1 < ny and labels[i, j + 1, k] != label)
                        or (k > 0 and labels[i, j, k - 1] != label)
                        or (k + 1 < nz and labels[i, j, k + 1] != label)
                    ):
                        line[17] += 1
                        if has_boundary:
                            line[18] += boundary[i - low[0], j - low[1], k - low[2]]
