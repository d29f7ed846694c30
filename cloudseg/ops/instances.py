"""How well cell bodies (or nuclei) were found: each object counts once, however large it is.

Average precision is that of COCO as MitoEM uses it: objects found, best score first, over 101 levels of recall. The
share ``TP / (TP + FP + FN)``, which nuclei are often judged by, is the ``matched share``. Distances, volumes and
touching pairs are project-defined, and say what a biologist asks: is each body found, once, and of its true size?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.ops.contingency import Contingency

Ids = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""Overlaps (intersection over union) at which average precision is taken, as in COCO."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """Objects of both sides, and the pairs of them that share voxels.

    Attributes
    ----------
    seg_ids, seg_sizes
        ``(m,)``: found objects and their voxels, by id.
    truth_ids, truth_sizes
        ``(n,)``: true objects and their voxels, by id.
    seg, truth, shared, iou
        ``(k,)``: places of a pair's two objects in the lists above, voxels they share, intersection over union.
    """

    seg_ids: Ids
    seg_sizes: Ints
    truth_ids: Ids
    truth_sizes: Ints
    seg: Ints
    truth: Ints
    shared: Ints
    iou: Floats

    @classmethod
    def of(cls, table: Contingency, *, min_size_vx: int = 0) -> Overlaps:
        """Return the objects of a table of voxel counts; id 0 is background on both sides.

        Parameters
        ----------
        table
            Every voxel, background included.
        min_size_vx
            Smaller true objects are left out, and with them the found ones whose larger half lies in one.
        """
        if min_size_vx:
            table = _without_small(table, min_size_vx)
        seg_ids, seg_sizes = _sizes(table.seg_ids, table.counts)
        truth_ids, truth_sizes = _sizes(table.truth_ids, table.counts)
        both = (table.seg_ids != 0) & (table.truth_ids != 0)
        seg = np.searchsorted(seg_ids, table.seg_ids[both])
        truth = np.searchsorted(truth_ids, table.truth_ids[both])
        shared = table.counts[both]
        iou = shared / (seg_sizes[seg] + truth_sizes[truth] - shared)
        return cls(seg_ids, seg_sizes, truth_ids, truth_sizes, seg, truth, shared, iou)


@dataclass(frozen=True, slots=True)
class Found:
    """How many objects were found.

    Attributes
    ----------
    n_true, n_found, n_matched
        True objects, found objects, and pairs that match one to one.
    precision, recall, f1
        Shares of the found and of the true objects that match, and their harmonic mean; 1 where there is nothing.
    """

    n_true: int
    n_found: int
    n_matched: int
    precision: float
    recall: float
    f1: float

    @classmethod
    def of(cls, *, n_true: int, n_found: int, n_matched: int) -> Found:
        """Return the shares."""
        both = n_true + n_found
        return cls(
            n_true,
            n_found,
            n_matched,
            n_matched / n_found if n_found else 1.0,
            n_matched / n_true if n_true else 1.0,
            2 * n_matched / both if both else 1.0,
        )

    @property
    def matched_share(self) -> float:
        """``TP / (TP + FP + FN)``."""
        either = self.n_true + self.n_found - self.n_matched
        return self.n_matched / either if either else 1.0


@dataclass(frozen=True, slots=True)
class Masks:
    """How well foreground meets foreground.

    Attributes
    ----------
    dice, jaccard
        Of the two masks: voxels with an object.
    published_dice, published_jaccard
        With ids in place of masks, as the published code of the field's first whole-brain soma pipeline computes them:
        sums of ids and of products of ids. They change when objects are renumbered and may pass 1: for comparison only.
    """

    dice: float
    jaccard: float
    published_dice: float
    published_jaccard: float

    def as_dict(self) -> dict[str, float]:
        """Return the scores under their names."""
        return asdict(self)


def average_precision(overlaps: Overlaps, *, threshold: float, scores: Floats | None = None) -> float:
    """Return COCO's average precision at one overlap.

    Parameters
    ----------
    overlaps
        Objects of both sides.
    threshold
        Least intersection over union of a match, at least 0.5: then no object has two matches but for ties.
    scores
        ``(m,)``: how sure each found object is, in the order of ``overlaps.seg_ids``; None takes its size, as MitoEM.

    Returns
    -------
    The mean, over the recalls 0, 0.01, ... 1, of the best precision at that recall or a greater one; 1 where there is
    neither a true nor a found object.
    """
    n_true, n_found = len(overlaps.truth_ids), len(overlaps.seg_ids)
    if not n_true:
        return 1.0 if not n_found else 0.0
    if scores is None:
        scores = overlaps.seg_sizes.astype(np.float64)
    # Equal scores: the smaller id first.
    order = np.argsort(-scores, kind="stable")
    truth_of = matches(overlaps, threshold=threshold, order=order)
    hit = truth_of[order] >= 0
    true_positives = np.cumsum(hit)
    precision = true_positives / np.arange(1, n_found + 1)
    recall = true_positives / n_true
    best = np.maximum.accumulate(precision[::-1])[::-1]
    # Recalls are fractions: compared with a little room, so that 0.07 is reached by 7 of 100.
    at = np.searchsorted(recall, np.arange(101) / 100 - 1e-12, side="left")
    return float(np.concatenate([best, [0.0]])[np.minimum(at, n_found)].mean())


def matches(overlaps: Overlaps, *, threshold: float, order: Ints | None = None) -> Ints:
    """Return ``(m,)``: which true object each found one matches, or -1.

    Parameters
    ----------
    overlaps
        Objects of both sides.
    threshold
        Least intersection over union, at least 0.5.
    order
        Who chooses first; it matters only where two found objects each cover exactly half of a true one.

    Raises
    ------
    SpecError
        If the threshold is below 0.5, where matches are no longer unique.
    """
    if not 0.5 <= threshold <= 1:
        raise SpecError(f"an overlap must be from 0.5 to 1 for matches to be unique, got {threshold}")
    place = np.arange(len(overlaps.seg_ids))
    if order is not None:
        place[order] = np.arange(len(order))
    good = np.flatnonzero(overlaps.iou >= threshold)
    good = good[np.lexsort((overlaps.truth[good], -overlaps.iou[good], place[overlaps.seg[good]]))]
    truth_of = np.full(len(overlaps.seg_ids), -1, np.int64)
    taken = np.zeros(len(overlaps.truth_ids), bool)
    for pair in good:
        s, t = overlaps.seg[pair], overlaps.truth[pair]
        if truth_of[s] < 0 and not taken[t]:
            truth_of[s], taken[t] = t, True
    return truth_of


def found_by_overlap(overlaps: Overlaps, *, threshold: float) -> Found:
    """Count the objects that match by intersection over union."""
    n_matched = int(np.count_nonzero(matches(overlaps, threshold=threshold) >= 0))
    return Found.of(n_true=len(overlaps.truth_ids), n_found=len(overlaps.seg_ids), n_matched=n_matched)


def found_by_distance(seg_nm: Floats, truth_nm: Floats, *, distance_nm: float) -> Found:
    """Count the objects whose centres match, at most ``distance_nm`` apart, in the largest possible number of pairs.

    Parameters
    ----------
    seg_nm, truth_nm
        ``(m, 3)`` and ``(n, 3)``: centres.
    distance_nm
        Greatest distance of a match.
    """
    n_matched = 0
    if len(seg_nm) and len(truth_nm):
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching
        from scipy.spatial import cKDTree

        near = cKDTree(seg_nm).query_ball_point(truth_nm, distance_nm)
        rows = np.repeat(np.arange(len(near)), [len(n) for n in near])
        columns = np.concatenate([np.asarray(n, np.int64) for n in near])
        graph = csr_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(len(truth_nm), len(seg_nm)))
        n_matched = int(np.count_nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0))
    return Found.of(n_true=len(truth_nm), n_found=len(seg_nm), n_matched=n_matched)


def mask_scores(table: Contingency) -> Masks:
    """Compare the foregrounds of a table of voxel counts, background included."""
    seg, truth, n = table.seg_ids.astype(float), table.truth_ids.astype(float), table.counts.astype(float)
    in_seg, in_truth = seg > 0, truth > 0
    both, either = n[in_seg & in_truth].sum(), n[in_seg | in_truth].sum()
    total = n[in_seg].sum() + n[in_truth].sum()
    products, sums = float((n * seg * truth).sum()), float((n * seg).sum() + (n * truth).sum())
    return Masks(
        dice=float(2 * both / total) if total else 1.0,
        jaccard=float(both / either) if either else 1.0,
        published_dice=2 * products / sums if sums else 1.0,
        published_jaccard=products / (sums - products) if sums != products else 1.0,
    )


def split_pairs(overlaps: Overlaps, contacts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Count the pairs of touching true objects, and those that were told apart.

    A pair is told apart if each of the two has a found object that holds more than half of it, and these differ.

    Parameters
    ----------
    overlaps
        Objects of both sides.
    contacts
        Ids of true objects that share a face of a voxel.

    Returns
    -------
    How many were told apart, and of how many (pairs with an object that was left out do not count).
    """
    holder = np.full(len(overlaps.truth_ids), -1, np.int64)
    most = overlaps.shared * 2 > overlaps.truth_sizes[overlaps.truth]
    holder[overlaps.truth[most]] = overlaps.seg[most]
    place = {name: i for i, name in enumerate(overlaps.truth_ids.tolist())}
    pairs = [(place[a], place[b]) for a, b in contacts if a in place and b in place]
    apart = sum(1 for a, b in pairs if holder[a] >= 0 and holder[b] >= 0 and holder[a] != holder[b])
    return apart, len(pairs)


def volume_errors(overlaps: Overlaps, *, threshold: float = 0.5) -> Floats:
    """Return the relative errors of the volumes of matched objects: positive where too large was found."""
    truth_of = matches(overlaps, threshold=threshold)
    found = np.flatnonzero(truth_of >= 0)
    true = overlaps.truth_sizes[truth_of[found]].astype(np.float64)
    errors: Floats = overlaps.seg_sizes[found] / true - 1.0
    return errors


def best_overlaps(overlaps: Overlaps) -> Floats:
    """Return ``(n,)``: the greatest intersection over union of each true object; 0 where nothing was found."""
    best = np.zeros(len(overlaps.truth_ids))
    np.maximum.at(best, overlaps.truth, overlaps.iou)
    return best


def contacts_of(labels: npt.NDArray[np.uint64]) -> Ids:
    """Return ``(k, 2)``: pairs of ids, the smaller first, that share a face of a voxel; 0 touches nothing."""
    pairs = []
    for axis in range(labels.ndim):
        here, there = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        differ = (here != there) & (here != 0) & (there != 0)
        a, b = here[differ], there[differ]
        pairs.append(np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def _sizes(ids: Ids, counts: Ints) -> tuple[Ids, Ints]:
    names, index = np.unique(ids, return_inverse=True)
    sizes = np.zeros(names.size, np.int64)
    np.add.at(sizes, index, counts)
    return names[names != 0], sizes[names != 0]


def _without_small(table: Contingency, min_size_vx: int) -> Contingency:
    ids, sizes = _sizes(table.truth_ids, table.counts)
    small = ids[sizes < min_size_vx]
    seg_ids, seg_sizes = _sizes(table.seg_ids, table.counts)
    inside = np.isin(table.truth_ids, small) & (table.seg_ids != 0)
    in_small = np.zeros(len(seg_ids), np.int64)
    np.add.at(in_small, np.searchsorted(seg_ids, table.seg_ids[inside]), table.counts[inside])
    gone = seg_ids[2 * in_small > seg_sizes]
    return table.without(truth=small.tolist(), seg=gone.tolist())
