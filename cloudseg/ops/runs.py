"""A labelled block as runs of one label along x: ten times fewer runs than voxels, in a typical segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Places = npt.NDArray[Any]  # int32, or int64 in blocks of 2**31 voxels and more


@dataclass(frozen=True, slots=True)
class Runs:
    """Labels of a block, run by run, in the order of voxels (x fastest).

    Attributes
    ----------
    shape
        Voxels along x, y, z.
    rows
        ``(ny * nz + 1,)``: the first run of each row of voxels along x; a run ends with its row at the latest.
    begin
        ``(n + 1,)``: the first voxel of each run, and the number of voxels.
    place
        ``(n,)``: where the run's label stands in ``ids``; -1: background. Runs side by side may have the same.
    ids
        ``(m,)`` uint64, sorted, without 0: the labels of the block.
    """

    shape: XYZ
    rows: Places
    begin: Places
    place: Places
    ids: Ids

    @classmethod
    def of(cls, labels: Ids) -> Runs:
        """Return the runs of ``labels``, ``(x, y, z)`` uint64; 0 is background."""
        nx, ny, nz = labels.shape
        flat = labels.reshape(-1, order="F")
        dtype = place_type(flat.size)
        rows = np.empty(ny * nz + 1, dtype)
        begin = np.empty(_count(flat, nx) + 1, dtype)
        values = np.empty(len(begin) - 1, np.uint64)
        _find(flat, nx, rows, begin, values)
        found, place = _numbered(values, np.empty(len(values), dtype))
        order = np.argsort(found)
        # The last entry stands for background, place -1.
        sorted_place = np.full(len(found) + 1, -1, dtype)
        sorted_place[order] = np.arange(len(found))
        return cls((nx, ny, nz), rows, begin, sorted_place[place], found[order])

    def labels(self, names: Ids | None = None) -> Ids:
        """Return ``(x, y, z)`` uint64 in Fortran order: ``names`` (default: the ids) by place, background 0."""
        palette = np.append(self.ids if names is None else names, np.uint64(0))
        flat = np.empty(int(self.begin[-1]), np.uint64)
        _fill(self.begin, self.place, palette, flat)
        return flat.reshape(self.shape, order="F")

    def sizes(self, low: XYZ = (0, 0, 0)) -> Counts:
        """Return the number of voxels of each of ``ids`` at and above ``low``, a corner in the block."""
        n = np.zeros(len(self.ids), np.int64)
        _measure(self.rows, self.begin, self.place, *self.shape, *low, n)
        return n


def place_type(n_voxels: int) -> type[np.int32] | type[np.int64]:
    """Return the integer type in which voxels of such a block, and their runs, are counted."""
    return np.int64 if n_voxels >= 2**31 else np.int32


@numba.njit(cache=True)
def _count(flat, nx):  # type: ignore[no-untyped-def]
    n = 0
    for low in range(0, flat.size, nx):
        n += 1
        for i in range(low + 1, low + nx):
            n += flat[i] != flat[i - 1]
    return n


@numba.njit(cache=True)
def _find(flat, nx, rows, begin, values):  # type: ignore[no-untyped-def]
    k = 0
    for low in range(0, flat.size, nx):
        rows[low // nx] = k
        for i in range(low, low + nx):
            if i == low or flat[i] != flat[i - 1]:
                begin[k], values[k] = i, flat[i]
                k += 1
    rows[-1], begin[k] = k, flat.size


@numba.njit(cache=True)
def _numbered(values, place):  # type: ignore[no-untyped-def]
    """Number the different values except 0 as they come; 0 gets -1. Return the values by number, and ``place``."""
    found = np.empty(1024, np.uint64)
    bits = 11
    slots = np.full(1 << bits, -1, place.dtype)
    n = 0
    for k in range(values.size):
        value = values[k]
        if value == 0:
            place[k] = -1
            continue
        h = np.int64((value * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))
        while slots[h] >= 0 and found[slots[h]] != value:
            h = (h + 1) & (slots.size - 1)
        if slots[h] < 0:
            if n == found.size:
                found = np.append(found, found)
                bits += 1
                slots = np.full(1 << bits, -1, place.dtype)
                for j in range(n):
                    h = np.int64((found[j] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))
                    while slots[h] >= 0:
                        h = (h + 1) & (slots.size - 1)
                    slots[h] = j
                h = np.int64((value * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))
                while slots[h] >= 0:
                    h = (h + 1) & (slots.size - 1)
            slots[h], found[n] = n, value
            n += 1
        place[k] = slots[h]
    return found[:n].copy(), place


@numba.njit(cache=True)
def _fill(begin, place, palette, flat):  # type: ignore[no-untyped-def]
    for k in range(place.size):
        flat[begin[k] : begin[k + 1]] = palette[place[k]]


@numba.njit(cache=True)
def _measure(rows, begin, place, nx, ny, nz, x, y, z, n):  # type: ignore[no-untyped-def]
    for j in range(z, nz):
        for i in range(y, ny):
            row = i + ny * j
            low = row * nx + x
            for k in range(rows[row], rows[row + 1]):
                if place[k] >= 0 and begin[k + 1] > low:
                    n[place[k]] += begin[k + 1] - max(begin[k], low)
