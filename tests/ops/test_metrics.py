"""Scores equal scikit-image's, add up over blocks, and refuse what they cannot count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import adapted_rand_error, variation_of_information

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, tile
from cloudseg.ops.contingency import Contingency, contingency
from cloudseg.ops.metrics import culprits


def random_labels(seed: int, n_labels: int, shape: tuple[int, int, int] = (13, 11, 9)) -> np.ndarray:
    """Blobs, not noise: neighbours along x often agree, so that runs of several lengths occur."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, n_labels, tuple(-(-s // 3) for s in shape))
    fine = np.kron(coarse, np.ones((3, 3, 3), int))[tuple(slice(0, s) for s in shape)]
    noise = rng.random(shape) < 0.2
    return np.where(noise, rng.integers(0, n_labels, shape), fine).astype(np.uint64)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    n_seg=st.integers(1, 30),
    n_truth=st.integers(2, 30),
    ignore=st.sets(st.integers(0, 3), max_size=2),
)
def test_scores_equal_scikit_image_with_ignored_labels(seed, n_seg, n_truth, ignore):
    seg, truth = random_labels(seed, n_seg), random_labels(seed + 1, n_truth)
    ignore = tuple(sorted(ignore))
    if np.isin(truth, ignore).all():
        return
    error, precision_of_truth, recall_of_seg = adapted_rand_error(
        truth.astype(int), seg.astype(int), ignore_labels=ignore
    )
    split, merge = variation_of_information(truth.astype(int), seg.astype(int), ignore_labels=ignore)
    ours = contingency(seg, truth).scores(ignore_truth=ignore)
    assert ours.adapted_rand_error == pytest.approx(error, abs=1e-9)
    # scikit-image divides its "precision" by the pairs of the truth, its "recall" by the segmentation's.
    assert ours.rand_recall == pytest.approx(precision_of_truth, abs=1e-9)
    assert ours.rand_precision == pytest.approx(recall_of_seg, abs=1e-9)
    assert ours.voi_split == pytest.approx(split, abs=1e-9)
    assert ours.voi_merge == pytest.approx(merge, abs=1e-9)
    assert ours.cremi_score == pytest.approx(np.sqrt((split + merge) * error), abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_scores_like_scikit_image_on_the_voxels_inside(seed):
    seg, truth = random_labels(seed, 12), random_labels(seed + 100, 9)
    mask = np.random.default_rng(seed).random(seg.shape) < 0.6
    expected = adapted_rand_error(truth[mask].astype(int), seg[mask].astype(int))[0]
    assert contingency(seg, truth, mask).scores().adapted_rand_error == pytest.approx(expected, abs=1e-9)
    split, merge = variation_of_information(
        truth[mask].astype(int), seg[mask].astype(int), ignore_labels=(0,)
    )
    ours = contingency(seg, truth, mask.astype(np.uint8)).scores()
    assert (ours.voi_split, ours.voi_merge) == pytest.approx((split, merge), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), block=st.tuples(*[st.integers(1, 14)] * 3))
def test_blocks_add_up_to_the_whole(seed, block):
    seg, truth = random_labels(seed, 8), random_labels(seed + 1, 8)
    bounds = Box.of_shape(seg.shape)
    parts = [contingency(seg[b.slices_in(bounds)], truth[b.slices_in(bounds)]) for b in tile(bounds, block)]
    assert Contingency.total(parts) == contingency(seg, truth)
    assert Contingency.total(parts).n_voxels == seg.size


def test_the_total_of_no_block_is_the_empty_table():
    assert Contingency.total([]) == Contingency.empty()
    assert Contingency.empty() + Contingency.empty() == Contingency.empty()


def test_a_table_counts_each_pair_once():
    table = contingency(np.array([1, 1, 2, 1]), np.array([7, 7, 7, 5]))
    assert table.truth_ids.tolist() == [5, 7, 7]
    assert table.seg_ids.tolist() == [1, 1, 2]
    assert table.counts.tolist() == [1, 2, 1]


def test_ids_above_two_to_the_53_stay_apart():
    big = 2**63
    table = contingency(np.array([big, big + 1], np.uint64), np.array([3, 3], np.int8))
    assert table.seg_ids.tolist() == [big, big + 1]
    assert table.scores().n_segments == 2


def test_a_renamed_segmentation_is_perfect():
    truth = random_labels(3, 10)
    scores = contingency(truth * np.uint64(17) + np.uint64(4), truth).scores()
    assert scores.adapted_rand_error == pytest.approx(0, abs=1e-12)
    assert scores.voi_sum == pytest.approx(0, abs=1e-12)
    assert (scores.rand_precision, scores.rand_recall) == (1, 1)


def test_one_segment_for_two_equal_objects_costs_one_bit_of_merge():
    truth = np.repeat([1, 2], 50)
    scores = contingency(np.ones(100, int), truth).scores()
    assert (scores.voi_split, scores.voi_merge) == pytest.approx((0, 1))
    assert scores.rand_recall == 1
    assert scores.rand_precision == pytest.approx(49 / 99)


def test_two_segments_in_one_object_cost_one_bit_of_split():
    scores = contingency(np.repeat([1, 2], 50), np.ones(100, int)).scores()
    assert (scores.voi_split, scores.voi_merge) == pytest.approx((1, 0))
    assert scores.rand_precision == 1


def snemi3d_by_definition(seg: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """The challenge's formula with unsegmented voxels renamed to segments of their own."""
    seg, truth = seg.ravel().astype(np.int64), truth.ravel()
    n_seg = seg.max() + 1
    seg = np.where(seg == 0, n_seg + np.arange(seg.size), seg)[truth != 0]
    truth = truth[truth != 0]
    joined = sum(
        c**2 for c in np.unique(np.stack([seg, truth.astype(int)]), axis=1, return_counts=True)[1].tolist()
    )
    precision = joined / sum(c**2 for c in np.unique(seg, return_counts=True)[1].tolist())
    recall = joined / sum(c**2 for c in np.unique(truth, return_counts=True)[1].tolist())
    return 1 - 2 * precision * recall / (precision + recall), precision, recall


@pytest.mark.parametrize("seed", range(4))
def test_the_snemi3d_form_takes_unsegmented_voxels_as_singletons(seed):
    seg, truth = random_labels(seed, 6), random_labels(seed + 50, 6)
    assert (seg == 0).any()
    ours = contingency(seg, truth).scores()
    expected = snemi3d_by_definition(seg, truth)
    assert (ours.snemi3d_error, ours.snemi3d_precision, ours.snemi3d_recall) == pytest.approx(
        expected, abs=1e-9
    )
    assert ours.segmented_fraction == pytest.approx(np.mean(seg[truth != 0] != 0))


def test_ignored_segments_leave_the_count():
    seg, truth = np.array([0, 0, 5, 5, 6]), np.array([1, 1, 1, 1, 0])
    scores = contingency(seg, truth).scores(ignore_seg=(0,))
    assert scores.n_voxels == 2
    assert scores.n_segments == 1
    assert scores.voi_sum == 0


def test_huge_counts_do_not_overflow():
    table = Contingency(
        np.array([1, 2], np.uint64), np.array([1, 1], np.uint64), np.array([5 * 10**9, 5 * 10**9], np.int64)
    )
    assert table.scores().adapted_rand_error == pytest.approx(1 / 3, abs=1e-9)


def test_singletons_on_both_sides_are_perfect():
    ids = np.arange(1, 9)
    scores = contingency(ids, ids).scores()
    assert scores.adapted_rand_error == 0
    assert (scores.rand_precision, scores.rand_recall) == (1, 1)


def test_culprits_are_the_objects_that_cost_most_and_their_bits_add_up():
    seg, truth = random_labels(1, 12), random_labels(2, 12)
    table = contingency(seg, truth).without(truth=(0,))
    everything = culprits(table.truth_ids, table.counts, limit=1000)
    assert sum(c.bits for c in everything) == pytest.approx(table.scores().voi_split)
    assert [c.bits for c in everything] == sorted((c.bits for c in everything), reverse=True)
    worst = culprits(table.seg_ids, table.counts, limit=1)[0]
    inside = (seg == worst.id) & (truth != 0)
    assert worst.n_voxels == inside.sum()
    assert worst.n_parts == np.unique(truth[inside]).size


def test_culprits_leave_out_the_innocent():
    assert culprits(np.array([1, 2], np.uint64), np.array([5, 5]), limit=5) == []


def test_different_shapes_are_refused():
    with pytest.raises(SpecError, match=r"one shape, got \(2, 2\) and \(2, 3\)"):
        contingency(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(SpecError, match=r"mask must have the shape of the labels \(2,\), got \(3,\)"):
        contingency(np.zeros(2, int), np.zeros(2, int), np.ones(3, bool))


def test_float_ids_are_refused():
    with pytest.raises(SpecError, match="truth must hold integer ids, got dtype float32"):
        contingency(np.zeros(2, int), np.zeros(2, np.float32))


def test_negative_ids_are_refused():
    with pytest.raises(SpecError, match="segmentation holds the negative id -4"):
        contingency(np.array([1, -4]), np.array([1, 1]))
    with pytest.raises(SpecError, match="ignored ids must be 0 or positive"):
        contingency(np.array([1]), np.array([1])).scores(ignore_truth=(-1,))


def test_nothing_to_score_is_said():
    with pytest.raises(SpecError, match="nothing to score: all 4 compared voxels carry an ignored label"):
        contingency(np.ones(4, int), np.zeros(4, int)).scores()
