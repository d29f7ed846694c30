"""Tracks of objects from section to section (3C), in both directions, with new objects and endings.

See :mod:`cloudseg.ops.colours` for the codes. A network is asked, for each picture, which colour each pixel of the next
section has; here it is any function on arrays. What the publication leaves open is project-defined, above all how
objects begin (a segment of the section that the tracks leave unexplained), end (too little of them is left), and how
the two directions are joined.

Not exact for any tiling: a track depends on where it began.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cloudseg.errors import SpecError
from cloudseg.ops.colours import decode, n_digits, paint, random_codes
from cloudseg.ops.remap import remap
from cloudseg.ops.union_find import components

_LEAST_MIDDLE_PX = 8
Ids = npt.NDArray[np.uint64]
Predict = Callable[[int, int, npt.NDArray[np.int8]], npt.NDArray[np.float32]]
"""From section z, to section z, and ``(k, x, y)`` colours (-1: none), to ``(k, l + 1, x, y)`` log-probabilities."""


@dataclass(frozen=True, slots=True)
class TrackRule:
    """How objects are followed.

    Attributes
    ----------
    n_colours, redundancy
        Colours of a picture; pictures beyond those that the number of labels needs.
    cell
        How far an object may move between sections; see :func:`cloudseg.ops.colours.decode`.
    min_posterior
        Below it a pixel belongs to nothing.
    min_area_px
        Smaller pieces neither begin nor go on.
    collapse
        An object ends where its area falls below this share of the area before.
    explained
        A segment of which the tracks explain less than this share begins a new object.
    vote
        A segment that is explained goes as a whole to the track with at least this share of its explained pixels, one
        that is not begins anew as a whole; asked are pixels away from its border. 0: pixels decide alone.
        Project-defined.
    join
        Two tracks of one direction that never lie in one section are joined if a track of the other direction covers
        at least this share of a section's piece of both, and they cover as much of its pieces.
    seed
        Of the codes.
    """

    n_colours: int = 4
    redundancy: int = 2
    cell: int = 16
    min_posterior: float = 0.5
    min_area_px: int = 20
    collapse: float = 0.1
    explained: float = 0.5
    vote: float = 0.0
    join: float = 0.5
    seed: int = 0


def track(segments: Ids, *, sections: Sequence[int], predict: Predict, rule: TrackRule) -> Ids:
    """Follow objects through ``sections``, in their order.

    Parameters
    ----------
    segments
        ``(x, y, z)`` uint64: segments of single sections, each id in one section; 0 is boundary.
    sections
        Which sections (places along z), in the order of the track; others are left empty.
    predict
        The network.
    rule
        See :class:`TrackRule`.

    Returns
    -------
    ``(x, y, z)`` uint64 in Fortran order: an object is called like the segment that it began with.
    """
    tracks = np.zeros(segments.shape, np.uint64, order="F")
    if not sections:
        return tracks
    now = _kept(inner(segments[:, :, sections[0]]), least=rule.min_area_px)
    tracks[:, :, sections[0]] = now
    for z, following in itertools.pairwise(sections):
        now = _step(now, segments[:, :, following], z=z, following=following, predict=predict, rule=rule)
        tracks[:, :, following] = now
    return tracks


def both_ways(segments: Ids, *, sections: Sequence[int], predict: Predict, rule: TrackRule) -> Ids:
    """Follow objects upwards and downwards, and join tracks of the first that one of the second connects."""
    up = track(segments, sections=sections, predict=predict, rule=rule)
    down = track(segments, sections=sections[::-1], predict=predict, rule=rule)
    return joined(up, down, rule=rule)


def joined(up: Ids, down: Ids, *, rule: TrackRule) -> Ids:
    """Return ``up`` with those tracks under one name that a track of ``down`` connects; see :class:`TrackRule`."""
    a_parts, b_parts = [], []
    spans: dict[int, set[int]] = {}
    for z in range(up.shape[2]):
        a, b = up[:, :, z].ravel(), down[:, :, z].ravel()
        ids_a, n_a = np.unique(a[a > 0], return_counts=True)
        for name in ids_a.tolist():
            spans.setdefault(name, set()).add(z)
        both = (a > 0) & (b > 0)
        if not both.any():
            continue
        ids_b, n_b = np.unique(b[b > 0], return_counts=True)
        pairs, n = np.unique(np.stack([a[both], b[both]]), axis=1, return_counts=True)
        enough = n >= rule.join * n_a[np.searchsorted(ids_a, pairs[0])]
        enough &= n >= rule.join * n_b[np.searchsorted(ids_b, pairs[1])]
        a_parts.append(pairs[0][enough])
        b_parts.append(pairs[1][enough])
    if not a_parts:
        return up.copy(order="F")
    links = np.unique(np.stack([np.concatenate(b_parts), np.concatenate(a_parts)]), axis=1)
    old, new = [], []
    for place in np.split(links[1], np.flatnonzero(np.diff(links[0])) + 1):
        # Along z: a track joins the one before it if they share no section.
        order = sorted(place.tolist(), key=lambda name: (min(spans[name]), name))
        for first, second in itertools.pairwise(order):
            if not spans[first] & spans[second]:
                old.append(second)
                new.append(first)
    names = components(np.array(old, np.uint64), np.array(new, np.uint64))
    return remap(up, *names)


def filled(tracks: Ids, *, reach: int) -> Ids:
    """Return tracks with each empty pixel given to the nearest one of its section, at most ``reach`` pixels away."""
    out = tracks.copy(order="F")
    for z in range(tracks.shape[2]):
        section = tracks[:, :, z]
        if not section.any() or section.all():
            continue
        distance, (x, y) = ndimage.distance_transform_edt(section == 0, return_indices=True)
        out[:, :, z] = np.where(distance <= reach, section[x, y], 0)
    return out


def inner(section: Ids) -> Ids:
    """Return a section without the pixels at the borders between its segments."""
    edge = np.zeros(section.shape, np.bool_)
    for axis in range(2):
        low, high = [slice(None)] * 2, [slice(None)] * 2
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        differ = section[tuple(low)] != section[tuple(high)]
        edge[tuple(low)] |= differ
        edge[tuple(high)] |= differ
    return np.where(edge, np.uint64(0), section)


def _step(now: Ids, segments: Ids, *, z: int, following: int, predict: Predict, rule: TrackRule) -> Ids:
    """Return the tracks of the next section."""
    names, index = np.unique(now, return_inverse=True)
    places: npt.NDArray[np.int32] = index.reshape(now.shape).astype(np.int32)
    if names[0] == 0:
        names = names[1:]
    else:
        places += 1
    after = np.zeros(now.shape, np.uint64)
    if len(names):
        k = n_digits(len(names), n_colours=rule.n_colours, redundancy=rule.redundancy)
        codes = random_codes(len(names), n_colours=rule.n_colours, n_digits=k, seed=(rule.seed, z, following))
        log_p = predict(z, following, paint(places, codes))
        if log_p.shape != (k, rule.n_colours + 1, *now.shape):
            raise SpecError(
                f"the network must return {(k, rule.n_colours + 1, *now.shape)} log-probabilities, got {log_p.shape}"
            )
        found = decode(log_p, codes, places, cell=rule.cell, min_posterior=rule.min_posterior)
        if rule.vote > 0:
            found = voted(found, segments, vote=rule.vote, explained=rule.explained)
        area = np.bincount(places.ravel(), minlength=len(names) + 1)
        left = np.bincount(found.ravel(), minlength=len(names) + 1)
        goes_on = (left >= rule.min_area_px) & (left >= rule.collapse * area)
        goes_on[0] = False
        rows = np.concatenate([np.zeros(1, np.uint64), names])
        after = np.where(goes_on[found], rows[found], np.uint64(0))
    return _with_new(after, segments, rule=rule)


def voted(
    found: npt.NDArray[np.int32], segments: Ids, *, vote: float, explained: float
) -> npt.NDArray[np.int32]:
    """Return tracks of a section with whole segments for those on which their pixels agree.

    Parameters
    ----------
    found
        ``(x, y)``: the track of each pixel, from 1; 0 is none.
    segments
        ``(x, y)`` segments of the section; 0 is boundary, where nothing changes.
    vote, explained
        See :class:`TrackRule`.
    """
    ids, place = np.unique(segments, return_inverse=True)
    place = place.reshape(segments.shape)
    middle = _middle(segments)
    enough = np.bincount(place[middle], minlength=len(ids)) >= _LEAST_MIDDLE_PX
    asked = middle | ~enough[place]
    n_tracks = int(found.max()) + 1
    pairs, n = np.unique(place[asked].astype(np.int64) * n_tracks + found[asked], return_counts=True)
    segment, name = pairs // n_tracks, pairs % n_tracks
    size = np.bincount(segment, n, minlength=len(ids))
    labelled = np.bincount(segment[name > 0], n[name > 0], minlength=len(ids))
    # The smallest name wins where two have as many pixels.
    order = np.lexsort((name, -n, segment))
    order = order[name[order] > 0]
    winners, first = np.unique(segment[order], return_index=True)
    best, of_best = np.zeros(len(ids), np.int32), np.zeros(len(ids))
    best[winners], of_best[winners] = name[order][first], n[order][first]
    is_explained = labelled >= np.where(enough, explained, explained / 2) * size
    whole = is_explained & (of_best >= vote * labelled) & (ids > 0)
    none = ~is_explained & (ids > 0)
    return np.where(whole[place], best[place], np.where(none[place], 0, found)).astype(np.int32)


def _middle(segments: Ids) -> npt.NDArray[np.bool_]:
    """Return the pixels that are more than two pixels away from any other segment."""
    lowest = ndimage.minimum_filter(segments, 5, mode="nearest")
    highest = ndimage.maximum_filter(segments, 5, mode="nearest")
    return np.asarray(lowest == highest)


def _with_new(after: Ids, segments: Ids, *, rule: TrackRule) -> Ids:
    """Begin an object with each segment that is mostly unexplained."""
    ids, place = np.unique(segments, return_inverse=True)
    place = place.reshape(segments.shape)
    size = np.bincount(place.ravel())
    explained = np.bincount(place[after > 0].ravel(), minlength=len(ids))
    free = np.where(after == 0, inner(segments), 0)
    n_free = np.bincount(place[free > 0].ravel(), minlength=len(ids))
    begins = (ids > 0) & (explained < rule.explained * size) & (n_free >= rule.min_area_px)
    return np.where((free > 0) & begins[place], free, after).astype(np.uint64)


def _kept(section: Ids, *, least: int) -> Ids:
    """Return a section without segments of fewer than ``least`` pixels."""
    ids, place, n = np.unique(section, return_inverse=True, return_counts=True)
    ids = np.where(n >= least, ids, np.uint64(0))
    return ids[place.reshape(section.shape)]


def seam_pairs(below: Ids, above: Ids, *, least: float) -> tuple[Ids, Ids]:
    """Return which tracks of two slabs are one, from the section that both have followed.

    Parameters
    ----------
    below, above
        ``(x, y)``: the section as the lower and as the upper slab have it.
    least
        Tracks that are each other's largest overlap are one if their intersection is at least this share of their
        union.
    """
    both = (below > 0) & (above > 0)
    pairs, n = np.unique(np.stack([below[both], above[both]]), axis=1, return_counts=True)
    a, b = pairs
    union = _sizes_of(below, a) + _sizes_of(above, b) - n
    best_a, best_b = np.zeros(len(n), np.bool_), np.zeros(len(n), np.bool_)
    for best, of, other in ((best_a, a, b), (best_b, b, a)):
        order = np.lexsort((other, -n, of))
        best[order] = np.diff(of[order], prepend=np.uint64(0)) != 0
    one = best_a & best_b & (n >= least * union)
    return a[one], b[one]


def _sizes_of(section: Ids, names: Ids) -> npt.NDArray[np.int64]:
    ids, n = np.unique(section, return_counts=True)
    return n[np.searchsorted(ids, names)]
