"""How many voxels each pair (segment, truth object) shares: a sparse table that adds up over blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.ops.metrics import Scores, score

Ids = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Contingency:
    """Voxel counts of the pairs that occur; the tables of disjoint blocks add up with ``+``.

    Attributes
    ----------
    seg_ids, truth_ids
        ``(n,)`` uint64, one entry a pair, sorted by truth id, then by segment id; no pair occurs twice.
    counts
        ``(n,)`` int64 voxels, all positive.
    """

    seg_ids: Ids
    truth_ids: Ids
    counts: Counts

    @classmethod
    def empty(cls) -> Self:
        """Return the table of no voxel: the zero of ``+``."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))

    @classmethod
    def total(cls, parts: Iterable[Contingency]) -> Self:
        """Add many tables; each row is sorted about log2(number of parts) times, not once for every part."""
        stack: list[tuple[int, Contingency]] = []  # (how many parts it holds, table): a binary counter
        for part in parts:
            stack.append((1, part))
            while len(stack) > 1 and stack[-2][0] <= stack[-1][0]:
                (n_b, b), (n_a, a) = stack.pop(), stack.pop()
                stack.append((n_a + n_b, a + b))
        table: Contingency = cls.empty()
        for _, part in reversed(stack):
            table = table + part
        return cls(table.seg_ids, table.truth_ids, table.counts)

    def __add__(self, other: Contingency) -> Contingency:
        if not isinstance(other, Contingency):
            return NotImplemented
        return _reduced(
            np.concatenate([self.seg_ids, other.seg_ids]),
            np.concatenate([self.truth_ids, other.truth_ids]),
            np.concatenate([self.counts, other.counts]),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Contingency):
            return NotImplemented
        return (
            np.array_equal(self.seg_ids, other.seg_ids)
            and np.array_equal(self.truth_ids, other.truth_ids)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, and arrays have no hash

    @property
    def n_voxels(self) -> int:
        """Voxels counted, ignored labels included."""
        return int(self.counts.sum())

    def without(self, *, truth: Sequence[int] = (), seg: Sequence[int] = ()) -> Contingency:
        """Return the table without the voxels whose truth id, or segment id, is listed."""
        keep = ~(np.isin(self.truth_ids, _ids(truth)) | np.isin(self.seg_ids, _ids(seg)))
        return Contingency(self.seg_ids[keep], self.truth_ids[keep], self.counts[keep])

    def scores(self, *, ignore_truth: Sequence[int] = (0,), ignore_seg: Sequence[int] = ()) -> Scores:
        """Return every volumetric score of the voxels that are not ignored.

        Parameters
        ----------
        ignore_truth
            Truth ids whose voxels do not count; 0, the unlabelled, unless told otherwise.
        ignore_seg
            Segment ids whose voxels do not count; none unless told otherwise: by default 0 is a
            segment like any other, so that leaving voxels out costs recall.

        Raises
        ------
        SpecError
            If no voxel is left to score.
        """
        kept = self.without(truth=ignore_truth, seg=ignore_seg)
        if not kept.counts.size:
            raise SpecError(
                f"there is nothing to score: all {self.n_voxels} compared voxels carry an ignored label "
                f"(truth ids {list(ignore_truth)}, segment ids {list(ignore_seg)}); "
                "check that truth and mask cover the box"
            )
        return score(kept.seg_ids, kept.truth_ids, kept.counts)


def contingency(
    seg: npt.NDArray[Any], truth: npt.NDArray[Any], mask: npt.NDArray[Any] | None = None
) -> Contingency:
    """Count the voxels of each pair (segment, truth object) of one block.

    Parameters
    ----------
    seg, truth
        Ids of one shape, any number of axes, any integer type without negative values.
    mask
        The same shape; voxels where it is 0 (False) are left out.

    Raises
    ------
    SpecError
        If shapes differ, or ids are not integers, or negative.
    """
    if seg.shape != truth.shape:
        raise SpecError(f"segmentation and truth must have one shape, got {seg.shape} and {truth.shape}")
    if mask is not None and mask.shape != seg.shape:
        raise SpecError(f"the mask must have the shape of the labels {seg.shape}, got {mask.shape}")
    seg_ids, truth_ids = _flat_ids(seg, name="segmentation"), _flat_ids(truth, name="truth")
    if mask is not None:
        inside = mask.ravel(order="F") != 0
        seg_ids, truth_ids = seg_ids[inside], truth_ids[inside]
    if not seg_ids.size:
        return Contingency.empty()
    # Neighbours along x mostly share both ids: sorting runs instead of voxels is about ten times faster.
    new_run = np.flatnonzero((seg_ids[1:] != seg_ids[:-1]) | (truth_ids[1:] != truth_ids[:-1])) + 1
    starts = np.concatenate([[0], new_run])
    lengths = np.diff(np.concatenate([starts, [seg_ids.size]])).astype(np.int64)
    return _reduced(seg_ids[starts].astype(np.uint64), truth_ids[starts].astype(np.uint64), lengths)


def _reduced(seg_ids: Ids, truth_ids: Ids, counts: Counts) -> Contingency:
    """Sort the pairs and add up the counts of equal ones."""
    if not counts.size:
        return Contingency.empty()
    order = np.lexsort((seg_ids, truth_ids))
    seg_ids, truth_ids, counts = seg_ids[order], truth_ids[order], counts[order]
    new_pair = np.flatnonzero((seg_ids[1:] != seg_ids[:-1]) | (truth_ids[1:] != truth_ids[:-1])) + 1
    starts = np.concatenate([[0], new_pair])
    return Contingency(seg_ids[starts], truth_ids[starts], np.add.reduceat(counts, starts))


def _flat_ids(labels: npt.NDArray[Any], *, name: str) -> npt.NDArray[Any]:
    if labels.dtype.kind not in "uib":
        raise SpecError(
            f"the {name} must hold integer ids, got dtype {labels.dtype}: ids never pass through floats"
        )
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise SpecError(
            f"the {name} holds the negative id {labels.min()}; ids are 0 (background) or positive: "
            "map negative ones to 0 or to ids of their own"
        )
    return labels.ravel(order="F")


def _ids(values: Sequence[int]) -> Ids:
    if any(value < 0 for value in values):
        raise SpecError(f"ignored ids must be 0 or positive, got {list(values)}")
    return np.array(list(values), dtype=np.uint64)
