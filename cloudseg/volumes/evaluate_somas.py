"""Compare found cell bodies with the true ones, block by block; see :mod:`cloudseg.ops.instances`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.instances import (
    THRESHOLDS,
    Floats,
    Overlaps,
    average_precision,
    best_overlaps,
    contacts_of,
    found_by_distance,
    found_by_overlap,
    mask_scores,
    split_pairs,
    volume_errors,
)
from cloudseg.ops.statistics import SegmentTable, block_statistics, merge_statistics
from cloudseg.volumes.evaluate import Evaluation, Labels, evaluate
from cloudseg.volumes.protocol import Array

Definitions = Literal["corrected", "published"]
_PUBLISHED_MIN_VX = 2000
_MERGE_AT = 64


@dataclass(frozen=True, slots=True)
class SomaRules:
    """What counts as found.

    Attributes
    ----------
    distance_nm
        Greatest distance of two centres that match.
    min_volume_um3
        Smaller true bodies are left out, and with them what was found inside of them.
    definitions
        ``corrected``, or ``published``: Dice and Jaccard of ids instead of masks, and true bodies below 2000 voxels
        left out, as in the published code.
    scores
        How sure each found id is, for average precision; None: its size.
    seconds
        What the segmentation took, for the time per gigavoxel.
    """

    distance_nm: float = 1000.0
    min_volume_um3: float = 0.0
    definitions: Definitions = "corrected"
    scores: Mapping[int, float] | None = None
    seconds: float | None = None


@dataclass
class _Looked:
    """What is gathered block by block, besides the table of voxel counts."""

    truth: Labels
    seg_tables: list[SegmentTable] = field(default_factory=list)
    truth_tables: list[SegmentTable] = field(default_factory=list)
    contacts: set[tuple[int, int]] = field(default_factory=set)

    def look(
        self, block: Box, seg: Array, truth: Array, mask: npt.NDArray[np.bool_] | None, common: Box
    ) -> None:
        for tables, labels in ((self.seg_tables, seg), (self.truth_tables, truth)):
            ids = labels.astype(np.uint64)
            if mask is not None:
                ids = np.where(mask, ids, np.uint64(0))
            tables.append(block_statistics(ids, box=block, core=block))
            if len(tables) >= _MERGE_AT:
                tables[:] = [merge_statistics(tables)]
        self._touch(truth)
        for axis in range(3):
            if block.start[axis] > common.start[axis]:
                low, high = list(block.start), list(block.stop)
                low[axis], high[axis] = block.start[axis] - 1, block.start[axis] + 1
                self._touch(self.truth.read(Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))))

    def _touch(self, labels: Array) -> None:
        self.contacts.update((int(a), int(b)) for a, b in contacts_of(labels.astype(np.uint64)))


def evaluate_somas(
    seg: Labels,
    truth: Labels,
    *,
    rules: SomaRules | None = None,
    box: Box | None = None,
    mask: Labels | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[dict[str, Any], Evaluation]:
    """Return every figure of found cell bodies, ready for JSON, and what was compared.

    Parameters
    ----------
    seg, truth, box, mask, progress
        As for :func:`~cloudseg.volumes.evaluate.evaluate`; id 0 is no body on both sides.
    rules
        What counts as found.

    Raises
    ------
    SpecError
        If the two do not fit together, or scores are missing.
    """
    rules = rules or SomaRules()
    looked = _Looked(truth)
    compared = evaluate(seg, truth, box=box, mask=mask, progress=progress, look=looked.look)
    size = compared.voxel_size_nm
    if size is None:
        raise SpecError(
            f"distances and volumes need to know how large a voxel is: neither {seg.uri} nor {truth.uri} says; ingest "
            "one of them with --voxel-size"
        )
    voxel_um3 = size[0] * size[1] * size[2] * 1e-9
    published = rules.definitions == "published"
    least = _PUBLISHED_MIN_VX if published else int(np.ceil(rules.min_volume_um3 / voxel_um3))
    overlaps = Overlaps.of(compared.table, min_size_vx=least)
    scores = _scores(overlaps, rules)
    precisions = [average_precision(overlaps, threshold=t, scores=scores) for t in THRESHOLDS]
    at_half = found_by_overlap(overlaps, threshold=0.5)
    centres = (
        _centres(tables, kept, size)
        for tables, kept in (
            (looked.seg_tables, overlaps.seg_ids),
            (looked.truth_tables, overlaps.truth_ids),
        )
    )
    near = found_by_distance(*centres, distance_nm=rules.distance_nm)
    masks = mask_scores(compared.table)
    errors = volume_errors(overlaps)
    best = best_overlaps(overlaps)
    apart, n_touching = split_pairs(overlaps, sorted(looked.contacts))
    volume = compared.table
    whole = volume.scores(ignore_truth=(0,)) if (volume.truth_ids != 0).any() else None
    figures: dict[str, Any] = {
        "n_true": at_half.n_true,
        "n_found": at_half.n_found,
        "ap": float(np.mean(precisions)),
        "ap50": precisions[0],
        "ap75": precisions[THRESHOLDS.index(0.75)],
        "ap_by_overlap": {f"{t:.2f}": p for t, p in zip(THRESHOLDS, precisions, strict=True)},
        "matched_share_50": at_half.matched_share,
        "precision_50": at_half.precision,
        "recall_50": at_half.recall,
        "f1_50": at_half.f1,
        "distance_nm": rules.distance_nm,
        "precision": near.precision,
        "recall": near.recall,
        "f1": near.f1,
        "mean_iou": float(best.mean()) if len(best) else None,
        "mean_iou_of_matched": float(best[best >= 0.5].mean()) if (best >= 0.5).any() else None,
        "dice": masks.published_dice if published else masks.dice,
        "jaccard": masks.published_jaccard if published else masks.jaccard,
        "adapted_rand_error": whole.adapted_rand_error if whole else None,
        "voi_split": whole.voi_split if whole else None,
        "voi_merge": whole.voi_merge if whole else None,
        "n_touching_pairs": n_touching,
        "touching_pairs_split": apart / n_touching if n_touching else None,
        "median_volume_error": float(np.median(np.abs(errors))) if len(errors) else None,
        "median_volume_bias": float(np.median(errors)) if len(errors) else None,
        "seconds_per_gigavoxel": None
        if rules.seconds is None
        else rules.seconds / (compared.box.n_voxels / 1e9),
        "definitions": rules.definitions,
        "min_size_vx": least,
    }
    return figures, compared


def _scores(overlaps: Overlaps, rules: SomaRules) -> Floats | None:
    if rules.scores is None:
        return None
    missing = [int(i) for i in overlaps.seg_ids if int(i) not in rules.scores]
    if missing:
        raise SpecError(
            f"the table of scores has no score of {len(missing)} of {len(overlaps.seg_ids)} found ids (first: "
            f"{missing[0]}); give the table that belongs to this segmentation, or none"
        )
    return np.array([rules.scores[int(i)] for i in overlaps.seg_ids], np.float64)


def _centres(
    tables: list[SegmentTable], kept: npt.NDArray[np.uint64], size_nm: tuple[float, float, float]
) -> Floats:
    table = merge_statistics(tables)
    table = table.take(np.isin(table.ids, kept))
    centres: Floats = (table.sum_vx / table.n_voxels[:, None] + 0.5) * np.array(size_nm)
    return centres
