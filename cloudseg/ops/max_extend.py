"""MaxExtend: segments of single sections, linked where each is the best continuation of the other.

Project-defined: of the method of that name no text and no code is public. A segment's best continuation in the next
section is the one that shares most pixels with it. Two segments that are each other's best are linked if they overlap
enough; a segment that is the best of another, but not the other way round, is a branch, and is linked if it overlaps
enough of the smaller one. Objects are what links hold together.

Every link is decided by two sections alone, from counts that add up over blocks, and ties go to the smaller id: the
result is the same for every tiling.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.contingency import contingency

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LinkRule:
    """When two segments of neighbouring sections are one object.

    Attributes
    ----------
    min_iou, min_overlap
        Mutually best segments are linked if their intersection is at least this share of their union, or this share
        of the smaller one.
    branch_overlap
        A one-sided best is linked if the intersection is at least this share of the smaller; above 1: never. With
        0.3 slivers along membranes, which lie wholly on their neighbours, bridge cells.
    """

    min_iou: float = 0.2
    min_overlap: float = 0.5
    branch_overlap: float = 2.0


@dataclass(frozen=True, slots=True)
class SectionOverlaps:
    """Pixels that segments have, and share with segments of the section before; of disjoint blocks they add up.

    Attributes
    ----------
    z, id, n
        ``(k,)``: section, segment, its pixels.
    upper_z, a, b, shared
        ``(m,)``: the upper section of a pair, the segment below, the segment in it, the pixels that they share.
    """

    z: Counts
    id: Ids
    n: Counts
    upper_z: Counts
    a: Ids
    b: Ids
    shared: Counts

    @classmethod
    def total(cls, parts: list[Self]) -> Self:
        """Add up blocks."""
        (z, ids), n = _added([(p.z, p.id) for p in parts], [p.n for p in parts])
        (upper_z, a, b), shared = _added([(p.upper_z, p.a, p.b) for p in parts], [p.shared for p in parts])
        as_int, as_id = np.int64, np.uint64
        return cls(
            z.astype(as_int),
            ids.astype(as_id),
            n,
            upper_z.astype(as_int),
            a.astype(as_id),
            b.astype(as_id),
            shared,
        )


def section_before(z: int, *, bounds: Box, missing: Collection[int]) -> int | None:
    """Return the nearest section below ``z`` that is not missing; None at the border of the volume."""
    below = z - 1
    while below >= bounds.start[2] and below in missing:
        below -= 1
    return below if below >= bounds.start[2] else None


def box_of(core: Box, *, bounds: Box, missing: Collection[int]) -> Box:
    """Return the box whose labels a block needs: its sections, and the one that its lowest is linked with."""
    below = section_before(core.start[2], bounds=bounds, missing=missing)
    low = core.start[2] if below is None else below
    return Box((core.start[0], core.start[1], low), core.stop)


def section_overlaps(labels: Ids, *, core: Box, bounds: Box, missing: Collection[int]) -> SectionOverlaps:
    """Count the pixels of segments in one block, and what they share across its sections.

    Parameters
    ----------
    labels
        ``(x, y, z)`` uint64 over :func:`box_of` ``(core, bounds=bounds, missing=missing)``; 0 is background.
    core, bounds
        The block, and the volume it belongs to.
    missing
        Sections that are passed over: those below and above them are neighbours.
    """
    box = box_of(core, bounds=bounds, missing=missing)
    if labels.shape != box.shape:
        raise SpecError(f"labels must have shape {box.shape}, got {labels.shape}")
    low = box.start[2]
    found = []
    for z in range(core.start[2], core.stop[2]):
        if z in missing:
            continue
        upper = labels[:, :, z - low]
        below = section_before(z, bounds=bounds, missing=missing)
        lower = np.zeros_like(upper) if below is None else labels[:, :, below - low]
        pairs = contingency(upper, lower)
        for ids, at in ((pairs.seg_ids, z), (pairs.truth_ids, below)):
            # A section below the core is counted, too: its segments' sizes decide about links into the core.
            if at is not None and (at == z or at < core.start[2]):
                (own,), n = _added([(ids,)], [pairs.counts])
                known = own != 0
                found.append(_sizes(at, own[known], n[known]))
        both = (pairs.seg_ids != 0) & (pairs.truth_ids != 0)
        none = np.zeros(0, np.int64)
        found.append(
            SectionOverlaps(
                none,
                none.astype(np.uint64),
                none,
                np.full(both.sum(), z, np.int64),
                pairs.truth_ids[both],
                pairs.seg_ids[both],
                pairs.counts[both],
            )
        )
    return SectionOverlaps.total(found or [_sizes(low, np.zeros(0, np.uint64), np.zeros(0, np.int64))])


def links(overlaps: SectionOverlaps, rule: LinkRule) -> tuple[Ids, Ids]:
    """Return the pairs of segments that are one object.

    Parameters
    ----------
    overlaps
        Of whole sections.
    rule
        How much overlap it takes.

    Raises
    ------
    SpecError
        If a segment lies in more than one section.
    """
    ids, first, times = np.unique(overlaps.id, return_index=True, return_counts=True)
    if (times > 1).any():
        twice = int(ids[times > 1][0])
        sections = sorted(overlaps.z[overlaps.id == twice].tolist())[:2]
        raise SpecError(
            f"segment {twice} lies in section {sections[0]} and in section {sections[1]}: only segments of single "
            "sections can be linked; make them with distance_watershed and stacked = true"
        )
    size = overlaps.n[first]
    n_a, n_b = size[np.searchsorted(ids, overlaps.a)], size[np.searchsorted(ids, overlaps.b)]
    shared, smaller = overlaps.shared, np.minimum(n_a, n_b)
    best_of_a = is_best(overlaps.a, overlaps.b, shared)
    best_of_b = is_best(overlaps.b, overlaps.a, shared)
    enough = (shared >= rule.min_iou * (n_a + n_b - shared)) | (shared >= rule.min_overlap * smaller)
    linked = best_of_a & best_of_b & enough
    linked |= (best_of_a ^ best_of_b) & (shared >= rule.branch_overlap * smaller)
    return overlaps.a[linked], overlaps.b[linked]


def is_best(of: Ids, other: Ids, shared: Counts) -> npt.NDArray[np.bool_]:
    """Return, for each pair, whether no other pair of ``of`` shares more (or as much, with a smaller id)."""
    order = np.lexsort((other, -shared, of))
    first = np.ones(len(of), np.bool_)
    first[1:] = of[order][1:] != of[order][:-1]
    best = np.zeros(len(of), np.bool_)
    best[order] = first
    return best


def _sizes(z: int, ids: Ids, n: Counts) -> SectionOverlaps:
    none = np.zeros(0, np.int64)
    no_id = none.astype(np.uint64)
    return SectionOverlaps(np.full(len(ids), z, np.int64), ids, n, none, no_id, no_id, none)


def _added(
    keys: list[tuple[npt.NDArray[np.generic], ...]], counts: list[Counts]
) -> tuple[list[npt.NDArray[np.generic]], Counts]:
    """Add up counts of equal keys; return the different keys, sorted, and their sums."""
    columns = [np.concatenate(column) for column in zip(*keys, strict=True)]
    n = np.concatenate(counts)
    if not len(n):
        return columns, n
    order = np.lexsort(columns[::-1])
    columns = [c[order] for c in columns]
    first = np.ones(len(n), np.bool_)
    first[1:] = np.any([c[1:] != c[:-1] for c in columns], axis=0)
    return [c[first] for c in columns], np.add.reduceat(n[order], np.flatnonzero(first))
