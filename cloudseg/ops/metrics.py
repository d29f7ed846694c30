"""Scores of a segmentation against the truth, from the voxel counts of the pairs (segment, truth object).

Sources: adapted Rand error and its SNEMI3D form, Arganda-Carreras et al. 2015
(https://doi.org/10.3389/fnana.2015.00142); variation of information, Meila 2007
(https://doi.org/10.1016/j.jmva.2006.11.013); CREMI score, https://cremi.org/metrics.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """How a segmentation compares with the truth, over the voxels that count.

    Attributes
    ----------
    n_voxels, n_segments, n_truth_objects
        Voxels that count; distinct ids among them, 0 left out.
    segmented_fraction
        Share of those voxels that carry a segment (not 0), 0 to 1.
    adapted_rand_error
        One minus the F-score of pairs of different voxels; 0 is perfect. Equal to scikit-image's.
    rand_precision, rand_recall
        Of the voxel pairs joined by the segmentation, the share that the truth joins (falls with mergers);
        of the pairs joined by the truth, the share that the segmentation joins (falls with splits).
        scikit-image returns the same two numbers in the opposite order.
    voi_split, voi_merge, voi_sum
        Variation of information in bits: H(segmentation | truth) grows with splits,
        H(truth | segmentation) with mergers.
    cremi_score
        Geometric mean of ``voi_sum`` and ``adapted_rand_error``.
    snemi3d_error, snemi3d_precision, snemi3d_recall
        The SNEMI3D form: pairs of a voxel with itself count, and each voxel with segment id 0 is a segment of
        its own, so that leaving a border unsegmented costs little.
    """

    n_voxels: int
    n_segments: int
    n_truth_objects: int
    segmented_fraction: float
    adapted_rand_error: float
    rand_precision: float
    rand_recall: float
    voi_split: float
    voi_merge: float
    voi_sum: float
    cremi_score: float
    snemi3d_error: float
    snemi3d_precision: float
    snemi3d_recall: float

    def as_dict(self) -> dict[str, int | float]:
        """Return the scores under their names, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Culprit:
    """One object and what it costs.

    Attributes
    ----------
    id
        Truth id (of a split object) or segment id (of a merger).
    n_voxels
        Its size among the voxels that count.
    n_parts
        How many ids of the other side it overlaps.
    bits
        Its term of the variation of information.
    """

    id: int
    n_voxels: int
    n_parts: int
    bits: float


def score(seg_ids: Ids, truth_ids: Ids, counts: Counts) -> Scores:
    """Return all scores of a table of pairs.

    Parameters
    ----------
    seg_ids, truth_ids, counts
        ``(n,)``: each pair once, with its number of voxels (positive); n is at least 1.
    """
    assert counts.size, "an empty table has no score"
    _, seg_index, seg_sizes = _sizes(seg_ids, counts)
    _, truth_index, truth_sizes = _sizes(truth_ids, counts)
    n_voxels = int(counts.sum())
    n_unsegmented = int(counts[seg_ids == 0].sum())

    joined, by_seg, by_truth = (_pairs(sizes) for sizes in (counts, seg_sizes, truth_sizes))
    error, precision, recall = _f_error(joined, by_seg, by_truth)

    voi_split = float(_conditional_bits(counts, truth_sizes[truth_index]).sum() / n_voxels)
    voi_merge = float(_conditional_bits(counts, seg_sizes[seg_index]).sum() / n_voxels)

    # Self-pairs count here, and an unsegmented voxel is paired with itself only: one pair each.
    segmented = seg_ids != 0
    snemi_joined = _squares(counts[segmented]) + n_unsegmented
    snemi_by_seg = _squares(_sizes(seg_ids[segmented], counts[segmented])[2]) + n_unsegmented
    snemi_error, snemi_precision, snemi_recall = _f_error(snemi_joined, snemi_by_seg, _squares(truth_sizes))

    return Scores(
        n_voxels=n_voxels,
        n_segments=int(np.count_nonzero(np.unique(seg_ids))),
        n_truth_objects=int(np.count_nonzero(np.unique(truth_ids))),
        segmented_fraction=1.0 - n_unsegmented / n_voxels,
        adapted_rand_error=error,
        rand_precision=precision,
        rand_recall=recall,
        voi_split=voi_split,
        voi_merge=voi_merge,
        voi_sum=voi_split + voi_merge,
        cremi_score=float(np.sqrt((voi_split + voi_merge) * error)),
        snemi3d_error=snemi_error,
        snemi3d_precision=snemi_precision,
        snemi3d_recall=snemi_recall,
    )


def culprits(ids: Ids, counts: Counts, *, limit: int) -> list[Culprit]:
    """Return the objects that cost most bits, worst first.

    Parameters
    ----------
    ids, counts
        ``(n,)``: one entry a pair. Truth ids give the objects that are split most, segment ids the worst
        mergers.
    limit
        Largest number of objects to return; objects that cost nothing are left out.
    """
    names, index, sizes = _sizes(ids, counts)
    voxel_bits = np.bincount(index, weights=_conditional_bits(counts, sizes[index]), minlength=names.size)
    bits = voxel_bits / max(int(counts.sum()), 1)
    n_parts = np.bincount(index, minlength=names.size)
    order = np.lexsort((names, -bits))[:limit]
    return [
        Culprit(id=int(names[i]), n_voxels=int(sizes[i]), n_parts=int(n_parts[i]), bits=float(bits[i]))
        for i in order
        if bits[i] > 0
    ]


def _sizes(ids: Ids, counts: Counts) -> tuple[Ids, npt.NDArray[np.intp], Counts]:
    """Return the distinct ids, where each pair's id stands among them, and the voxels of each."""
    names, index = np.unique(ids, return_inverse=True)
    sizes = np.zeros(names.size, np.int64)
    np.add.at(sizes, index, counts)  # bincount would add in float64
    return names, index, sizes


def _pairs(sizes: Counts) -> float:
    """Twice the unordered pairs of different voxels; float64, as n**2 passes int64 at 3e9 voxels."""
    n = sizes.astype(np.float64)
    return float((n * (n - 1)).sum())


def _squares(sizes: Counts) -> float:
    n = sizes.astype(np.float64)
    return float((n * n).sum())


def _f_error(joined: float, by_seg: float, by_truth: float) -> tuple[float, float, float]:
    """Return (1 - F, precision, recall); a side that joins no pair has no wrong pair: 1."""
    precision = joined / by_seg if by_seg else 1.0
    recall = joined / by_truth if by_truth else 1.0
    both = by_seg + by_truth
    return (1.0 - 2.0 * joined / both if both else 0.0), precision, recall


def _conditional_bits(counts: Counts, whole: Counts) -> Floats:
    """Return voxels times bits that telling the part within its whole takes, for each pair."""
    part = counts.astype(np.float64)
    return part * np.log2(whole / part)
