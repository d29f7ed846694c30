"""Scores of found objects, each against a literal reading of its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cloudseg.errors import SpecError
from cloudseg.ops.contingency import contingency
from cloudseg.ops.instances import (
    THRESHOLDS,
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

labels = arrays.arrays(np.uint64, (5, 4, 3), elements=st.sampled_from([0, 0, 1, 2, 3, 7]))
pairs_of_labels = st.tuples(labels, labels)


def spoiled(truth, where, by):
    """A segmentation that is mostly right."""
    seg = truth * np.uint64(3)
    seg.reshape(-1)[where] = by
    return seg


near = st.builds(
    spoiled, labels, st.lists(st.integers(0, 59), max_size=12), st.sampled_from([0, 3, 21, 40]).map(np.uint64)
)


def iou_of(seg, truth):
    names = [n for n in np.unique(seg) if n], [n for n in np.unique(truth) if n]
    return names, {
        (s, t): ((seg == s) & (truth == t)).sum() / ((seg == s) | (truth == t)).sum()
        for s, t in itertools.product(*names)
    }


def naive_average_precision(seg, truth, threshold):
    (found, true), iou = iou_of(seg, truth)
    if not true:
        return float(not found)
    taken, hits = set(), []
    for s in sorted(found, key=lambda s: (-(seg == s).sum(), s)):
        choice = [t for t in true if t not in taken and iou[s, t] >= threshold]
        hits.append(bool(choice))
        if choice:
            taken.add(max(choice, key=lambda t: iou[s, t]))
    best = []
    for level in range(101):
        reached = [
            sum(hits[: i + 1]) / (i + 1)
            for i in range(len(hits))
            if 100 * sum(hits[: i + 1]) >= level * len(true)
        ]
        best.append(max(reached, default=0.0))
    return np.mean(best)


@settings(max_examples=60)
@given(truth=labels, data=st.data())
def test_scores_follow_their_definitions(truth, data):
    seg = data.draw(st.one_of(labels, near))
    overlaps = Overlaps.of(contingency(seg, truth))
    (found, true), iou = iou_of(seg, truth)
    assert overlaps.seg_ids.tolist() == found
    assert overlaps.truth_ids.tolist() == true
    for threshold in (0.5, 0.75, 0.95):
        assert average_precision(overlaps, threshold=threshold) == pytest.approx(
            naive_average_precision(seg, truth, threshold)
        )
        good = [pair for pair, value in iou.items() if value > threshold]
        if threshold not in iou.values():
            assert found_by_overlap(overlaps, threshold=threshold).n_matched == len(good)
    best = [max((iou[s, t] for s in found), default=0.0) for t in true]
    np.testing.assert_allclose(best_overlaps(overlaps), best)
    errors = [(seg == s).sum() / (truth == t).sum() - 1 for (s, t), value in iou.items() if value > 0.5]
    if 0.5 not in iou.values():
        np.testing.assert_allclose(np.sort(volume_errors(overlaps)), np.sort(errors))
    a, b = seg > 0, truth > 0
    scores = mask_scores(contingency(seg, truth))
    if a.any() or b.any():
        assert scores.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert scores.jaccard == pytest.approx((a & b).sum() / (a | b).sum())
        assert scores.published_dice == pytest.approx(
            2 * (seg.astype(float) * truth).sum() / (seg.sum() + truth.sum())
        )
    contacts = set()
    for place in itertools.product(*(range(n) for n in truth.shape)):
        for axis in range(3):
            there = tuple(p + (i == axis) for i, p in enumerate(place))
            if there[axis] < truth.shape[axis]:
                x, y = int(truth[place]), int(truth[there])
                if x != y and x and y:
                    contacts.add((min(x, y), max(x, y)))
    assert {tuple(pair) for pair in contacts_of(truth).tolist()} == contacts
    holder = {
        t: [s for s in found if 2 * ((seg == s) & (truth == t)).sum() > (truth == t).sum()] for t in true
    }
    apart = sum(1 for x, y in contacts if holder[x] and holder[y] and holder[x] != holder[y])
    assert split_pairs(overlaps, sorted(contacts)) == (apart, len(contacts))


@settings(max_examples=40)
@given(
    a=arrays.arrays(
        np.float64, st.tuples(st.integers(0, 5), st.just(3)), elements=st.integers(0, 4).map(float)
    ),
    b=arrays.arrays(
        np.float64, st.tuples(st.integers(0, 5), st.just(3)), elements=st.integers(0, 4).map(float)
    ),
)
def test_as_many_centres_match_as_can(a, b):
    close = (
        np.linalg.norm(a[:, None] - b[None], axis=-1) <= 1.5
        if len(a) and len(b)
        else np.zeros((len(a), len(b)))
    )
    few, many = (close, range(len(b))) if len(a) <= len(b) else (close.T, range(len(a)))
    best = max(
        sum(few[i, j] for i, j in enumerate(chosen)) for chosen in itertools.permutations(many, len(few))
    )
    found = found_by_distance(a, b, distance_nm=1.5)
    assert found.n_matched == best
    assert (found.n_found, found.n_true) == (len(a), len(b))
    assert found.f1 == (2 * best / (len(a) + len(b)) if len(a) + len(b) else 1.0)


def test_small_true_objects_are_left_out_with_what_was_found_in_them():
    truth = np.zeros((20, 1, 1), np.uint64)
    truth[:10], truth[12:14] = 1, 2
    seg = np.zeros_like(truth)
    seg[:9], seg[12:15], seg[17:] = 5, 6, 7
    overlaps = Overlaps.of(contingency(seg, truth), min_size_vx=3)
    assert overlaps.truth_ids.tolist() == [1]
    assert overlaps.seg_ids.tolist() == [5, 7]
    assert found_by_overlap(overlaps, threshold=0.5).matched_share == 0.5


def test_perfect_is_one_and_below_one_half_is_refused():
    truth = np.arange(27, dtype=np.uint64).reshape(3, 3, 3)
    overlaps = Overlaps.of(contingency(truth + np.uint64(1), truth + np.uint64(1)))
    assert all(average_precision(overlaps, threshold=t) == 1.0 for t in THRESHOLDS)
    with pytest.raises(SpecError, match="from 0.5 to 1 for matches to be unique, got 0.4"):
        average_precision(overlaps, threshold=0.4)
