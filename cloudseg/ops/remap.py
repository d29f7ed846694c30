"""Renaming ids in arrays by a sorted table."""

from __future__ import annotations

from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError

Ids = npt.NDArray[np.uint64]


def remap(labels: Ids, old: Ids, new: Ids) -> Ids:
    """Return ``labels`` with each ``old[i]`` replaced by ``new[i]``; other ids stay.

    Parameters
    ----------
    labels
        uint64 of any shape; Fortran order is kept.
    old, new
        ``(n,)`` uint64; ``old`` sorted, without repeats.

    Notes
    -----
    A run of one id is looked up once: segmentations are mostly runs along x.
    """
    if labels.dtype != np.uint64 or old.dtype != np.uint64 or new.dtype != np.uint64:
        raise SpecError(f"ids must be uint64 throughout, got {labels.dtype}, {old.dtype}, {new.dtype}")
    if len(old) == 0:
        return labels.copy(order="K")
    order: Literal["F", "C"] = "F" if labels.flags.f_contiguous else "C"
    flat = labels.reshape(-1, order=order)
    out: npt.NDArray[np.uint64] = _remap(flat, old, new)
    return out.reshape(labels.shape, order=order)


@numba.njit(cache=True)
def _remap(flat, old, new):  # type: ignore[no-untyped-def]
    bits = 4
    while (1 << bits) < 2 * old.size:
        bits += 1
    mask = np.int64((1 << bits) - 1)
    shift = np.uint64(64 - bits)
    golden = np.uint64(0x9E3779B97F4A7C15)
    slots = np.full(1 << bits, -1, np.int64)
    for k in range(old.size):
        h = np.int64((old[k] * golden) >> shift)
        while slots[h] >= 0:
            h = (h + 1) & mask
        slots[h] = k
    out = np.empty_like(flat)
    last, last_new = np.uint64(0), np.uint64(0)
    if old[0] == 0:
        last_new = new[0]
    for i in range(flat.size):
        value = flat[i]
        if value != last:
            last, last_new = value, value
            h = np.int64((value * golden) >> shift)
            while slots[h] >= 0:
                if old[slots[h]] == value:
                    last_new = new[slots[h]]
                    break
                h = (h + 1) & mask
        out[i] = last_new
    return out


def compose(old: Ids, new: Ids, then_old: Ids, then_new: Ids) -> tuple[Ids, Ids]:
    """Return the table that renames first by ``old -> new``, then by ``then_old -> then_new``; rows that move only.

    Both tables are sorted by their old ids. Ids that only the second table names are in the result too.
    """
    final = lookup(new, then_old, then_new)
    only_second = ~np.isin(then_old, old)
    all_old = np.concatenate([old, then_old[only_second]])
    all_new = np.concatenate([final, then_new[only_second]])
    order = np.argsort(all_old, kind="stable")
    all_old, all_new = all_old[order], all_new[order]
    moved = all_old != all_new
    return all_old[moved], all_new[moved]


def lookup(ids: Ids, old: Ids, new: Ids) -> Ids:
    """Return the new name of each of ``ids`` (a flat array); an id that ``old`` lacks keeps its name."""
    if len(old) == 0:
        return ids.copy()
    at = np.minimum(np.searchsorted(old, ids), len(old) - 1)
    return np.where(old[at] == ids, new[at], ids)


def places(ids: Ids, table: Ids) -> npt.NDArray[np.int32]:
    """Return where each of ``ids`` stands in ``table``, which is sorted, without repeats, and has them all."""
    if len(ids) == len(table) and np.array_equal(ids, table):
        return np.arange(len(ids), dtype=np.int32)
    return np.searchsorted(table, ids).astype(np.int32)


def distinct(ids: Ids) -> Ids:
    """Return the different ids of a flat array, sorted. Sorting is several times faster here than numpy's hashing."""
    ordered = np.sort(ids)
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    different: Ids = ordered[first]
    return different
