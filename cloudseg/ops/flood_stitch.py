"""Objects of subvolumes that overlap, made one: each other's largest overlap, joined over the whole volume.

Flood filling depends on the subvolume: an object may end, or go wrong, near a side. The rule is project-defined (the
published one is not): two objects are one if each is the other's largest partner where both were looked for, and they
share enough. What does not fit is counted, not hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import XYZ, Box

Ids = npt.NDArray[np.uint64]

VERDICTS = ("matched", "split", "conflicting", "alone")
"""What became of an object at a seam: joined with its partner; its partner belongs to another; each other's largest
overlap, but too small; nothing but background on the other side."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """How often each pair of ids occurs where two subvolumes overlap; 0 is background.

    Attributes
    ----------
    a, b, n
        ``(m,)``: id in the lower subvolume, id in the upper one, voxels.
    """

    a: Ids
    b: Ids
    n: npt.NDArray[np.int64]

    @classmethod
    def of(cls, lower: npt.NDArray[Any], upper: npt.NDArray[Any]) -> Overlap:
        """Count the pairs of two label arrays of the same voxels."""
        ids_a, a = np.unique(lower, return_inverse=True)
        ids_b, b = np.unique(upper, return_inverse=True)
        pair, n = np.unique(a.ravel() * len(ids_b) + b.ravel(), return_counts=True)
        return cls(
            ids_a[pair // len(ids_b)].astype(np.uint64),
            ids_b[pair % len(ids_b)].astype(np.uint64),
            n.astype(np.int64),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Seam:
    """What became of an overlap.

    Attributes
    ----------
    a, b
        ``(m,)``: the pairs that are joined.
    objects
        How many objects of either side had each of the :data:`VERDICTS`.
    agreeing_vx, n_vx
        Voxels where both sides say the same (joined, or background on both), of all.
    """

    a: Ids
    b: Ids
    objects: dict[str, int]
    agreeing_vx: int
    n_vx: int


def common_box(lower: Box, upper: Box, *, margin: XYZ, bounds: Box) -> Box:
    """Return where two subvolumes can be compared: their overlap, less a margin at sides that are not the volume's.

    Within half a field of view of its side a subvolume has no centre of a field of view.
    """
    inner = []
    for box in (lower, upper):
        start = tuple(
            s if s == first else s + m for s, m, first in zip(box.start, margin, bounds.start, strict=True)
        )
        stop = tuple(
            s if s == last else s - m for s, m, last in zip(box.stop, margin, bounds.stop, strict=True)
        )
        inner.append((start, stop))
    start = tuple(max(a, b) for a, b in zip(inner[0][0], inner[1][0], strict=True))
    stop = tuple(max(s, min(a, b)) for s, a, b in zip(start, inner[0][1], inner[1][1], strict=True))
    return Box(start, stop)  # type: ignore[arg-type]


def decide(overlap: Overlap, *, min_vx: int, min_share: float) -> Seam:
    """Join objects that are each other's largest overlap and share enough.

    Parameters
    ----------
    overlap
        Of two subvolumes.
    min_vx
        Voxels that two objects must share.
    min_share
        Share that this must be of the smaller one of them, within the overlap.
    """
    sizes_a, sizes_b = _sizes(overlap.a, overlap.n), _sizes(overlap.b, overlap.n)
    real = (overlap.a > 0) & (overlap.b > 0)
    a, b, n = overlap.a[real], overlap.b[real], overlap.n[real]
    best_a, best_b = _best(a, b, n), _best(b, a, n)
    verdict_a, verdict_b = dict.fromkeys(sizes_a, "alone"), dict.fromkeys(sizes_b, "alone")
    joined, agreeing = [], int(overlap.n[(overlap.a == 0) & (overlap.b == 0)].sum())
    shared = dict(zip(zip(a.tolist(), b.tolist(), strict=True), n.tolist(), strict=True))
    for x, y in best_a.items():
        if best_b[y] != x:
            verdict_a[x] = "split"
            continue
        enough = shared[x, y] >= max(min_vx, min_share * min(sizes_a[x], sizes_b[y]))
        verdict_a[x] = verdict_b[y] = "matched" if enough else "conflicting"
        if enough:
            joined.append((x, y))
            agreeing += shared[x, y]
    for y, x in best_b.items():
        if best_a[x] != y:
            verdict_b[y] = "split"
    told = [*verdict_a.values(), *verdict_b.values()]
    pairs = np.array(joined, np.uint64).reshape(-1, 2)
    return Seam(
        pairs[:, 0], pairs[:, 1], {v: told.count(v) for v in VERDICTS}, agreeing, int(overlap.n.sum())
    )


def split_consensus(overlap: Overlap, *, min_vx: int) -> tuple[Ids, Ids, Ids]:
    """Return names for the pairs of two segmentations of one volume, so that a cut in either is kept.

    Parameters
    ----------
    overlap
        All pairs of the volume.
    min_vx
        Smaller pieces become background.

    Returns
    -------
    a, b, name
        ``(m,)``: a pair, and its id. The largest piece of ``a`` (of equal ones the one with the smallest ``b``, which
        may be 0) keeps its id, the others get new ones after the last of ``a``, in the order of ``(b, a)``.
    """
    order = np.lexsort((overlap.a, overlap.b))
    a, b, n = overlap.a[order], overlap.b[order], overlap.n[order]
    names = np.zeros(len(a), np.uint64)
    largest: dict[int, int] = {}
    for k, (x, voxels) in enumerate(zip(a.tolist(), n.tolist(), strict=True)):
        if x and (x not in largest or voxels > n[largest[x]]):
            largest[x] = k
    new = int(a.max(initial=0))
    for k, (x, voxels) in enumerate(zip(a.tolist(), n.tolist(), strict=True)):
        if x == 0 or voxels < min_vx:
            continue
        if largest[x] == k:
            names[k] = x
        else:
            new += 1
            names[k] = new
    return a, b, names


def seam_totals(seams: Sequence[Seam]) -> dict[str, int]:
    """Add up what became of all overlaps."""
    totals = {name: sum(s.objects[name] for s in seams) for name in VERDICTS}
    return totals | {
        "agreeing_vx": sum(s.agreeing_vx for s in seams),
        "overlap_vx": sum(s.n_vx for s in seams),
    }


def as_runs(labels: Ids) -> dict[str, npt.NDArray[Any]]:
    """Return labels as runs, x fastest: where each begins, and its id."""
    flat = labels.reshape(-1, order="F")
    begin = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    return {"begin": begin.astype(np.int64), "id": flat[begin]}


def from_runs(begin: npt.NDArray[np.int64], ids: Ids, *, shape: XYZ) -> Ids:
    """Return the labels of :func:`as_runs`, in Fortran order."""
    lengths = np.diff(np.append(begin, shape[0] * shape[1] * shape[2]))
    return np.repeat(ids, lengths).reshape(shape, order="F")


def _sizes(ids: Ids, n: npt.NDArray[np.int64]) -> dict[int, int]:
    found, place = np.unique(ids, return_inverse=True)
    sizes = np.bincount(place, weights=n, minlength=len(found)).astype(np.int64)
    return {int(i): int(s) for i, s in zip(found, sizes, strict=True) if i}


def _best(ids: Ids, partners: Ids, n: npt.NDArray[np.int64]) -> dict[int, int]:
    """Return the partner of each id that it shares most with; of equal ones the smallest."""
    order = np.lexsort((partners, -n, ids))
    found, first = np.unique(ids[order], return_index=True)
    return dict(zip(found.tolist(), partners[order][first].tolist(), strict=True))
