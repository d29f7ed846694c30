"""Segments of single sections, linked where tracks of both directions bear it out.

Project-defined. A track that once took a wrong segment keeps it, and passes it on; a link of two segments is decided
anew at each section. So tracks vote here, and links decide: two segments that are each other's largest overlap are one
object unless the tracks of both directions deny it; a segment that is the largest overlap of another, but not the other
way round, is a branch if the tracks of both directions run through both, and it lies on the other for the most part.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import Box
from cloudseg.ops.contingency import contingency
from cloudseg.ops.max_extend import is_best, section_overlaps
from cloudseg.ops.remap import remap
from cloudseg.ops.union_find import components

Ids = npt.NDArray[np.uint64]


def borne_out(segments: Ids, *, up: Ids, down: Ids, branch: float, missing: Collection[int] = ()) -> Ids:
    """Return objects made of whole segments.

    Parameters
    ----------
    segments
        ``(x, y, z)`` uint64: segments of single sections; 0 is boundary.
    up, down
        Tracks of both directions over the same voxels; see :func:`cloudseg.ops.tracking.track`.
    branch
        Share of the smaller segment that a branch must have in common with the other.
    missing
        Sections (places along z) that are passed over, and left empty.

    Returns
    -------
    ``(x, y, z)`` uint64 in Fortran order: an object is called like its smallest segment.
    """
    box = Box.of_shape(segments.shape)
    seen = segments.copy(order="F")
    seen[:, :, sorted(missing)] = 0
    overlaps = section_overlaps(seen, core=box, bounds=box, missing=missing)
    ids, first = np.unique(overlaps.id, return_index=True)
    size = overlaps.n[first]
    a, b, shared = overlaps.a, overlaps.b, overlaps.shared
    at_a, at_b = np.searchsorted(ids, a), np.searchsorted(ids, b)
    agree = []
    for tracks in (up, down):
        name = _track_of(ids, seen, tracks)
        agree.append((name[at_a] == name[at_b]) & (name[at_a] > 0))
    best_of_a, best_of_b = is_best(a, b, shared), is_best(b, a, shared)
    on_the_other = shared >= branch * np.minimum(size[at_a], size[at_b])
    one = best_of_a & best_of_b & (agree[0] | agree[1])
    one |= (best_of_a ^ best_of_b) & agree[0] & agree[1] & on_the_other
    return remap(seen, *components(a[one], b[one]))


def _track_of(ids: Ids, segments: Ids, tracks: Ids) -> Ids:
    """Return the track that has most pixels of each segment, the smaller name where two have as many; 0: none has."""
    pairs = contingency(segments, np.asfortranarray(tracks))
    known = pairs.seg_ids > 0
    segment, name, n = pairs.seg_ids[known], pairs.truth_ids[known], pairs.counts[known]
    best = is_best(segment, name, n)
    out = np.zeros(len(ids), np.uint64)
    out[np.searchsorted(ids, segment[best])] = name[best]
    return out
