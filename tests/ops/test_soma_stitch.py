"""Stitching by overlaps, and the patches of the published scheme."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.soma_patches import objects_of, seed_boxes, window_boxes, without_specks
from cloudseg.ops.soma_stitch import Overlaps, StitchRule, joins, overlaps, stitched


@given(seed=st.integers(0, 9999), kind=st.sampled_from(["published", "mutual"]))
def test_overlaps_and_both_rules_follow_their_definition(seed, kind):
    rng = np.random.default_rng(seed)
    names = np.array([0, 3, 2**63 + 1, 8, 9], np.uint64)
    lower = names[rng.choice(5, (5, 4, 3), p=[0.3, 0.3, 0.2, 0.1, 0.1])]
    upper = names[rng.choice(5, (5, 4, 3), p=[0.2, 0.4, 0.2, 0.1, 0.1])] + np.uint64(0)
    edges = overlaps(lower, upper)
    found = {}
    for a in set(lower.ravel().tolist()) - {0}:
        for b in set(upper.ravel().tolist()) - {0}:
            n = int(((lower == a) & (upper == b)).sum())
            if n:
                found[a, b] = (n, int((lower == a).sum()), int((upper == b).sum()))
    rows = zip(edges.a, edges.b, edges.n_ab, edges.n_a, edges.n_b, strict=True)
    assert {(int(a), int(b)): (n, p, q) for a, b, n, p, q in rows} == found
    rule = StitchRule(kind=kind, large_um3=14, least_um3=2, share_one=0.4, share_both=0.25)
    got = joins(edges, rule, voxel_um3=2.0)
    for k, (a, b) in enumerate(zip(edges.a.tolist(), edges.b.tolist(), strict=True)):
        n, p, q = found[a, b]
        if kind == "published":
            expected = n > 7 or (n > 1 and (n > 0.4 * p or n > 0.4 * q or (n > 0.25 * p and n > 0.25 * q)))
        else:
            best_b = min((f for f in found if f[0] == a), key=lambda f: (-found[f][0], f[1]))[1]
            best_a = min((f for f in found if f[1] == b), key=lambda f: (-found[f][0], f[0]))[0]
            expected = (best_a, best_b) == (a, b) and n > 1 and n > 0.4 * min(p, q)
        assert got[k] == expected


def test_half_a_soma_survives_until_all_is_joined_and_small_ones_go_afterwards():
    ids, n = np.array([5, 6, 7, 8, 6], np.uint64), np.array([6, 2, 3, 20, 3])
    pairs = (np.array([6], np.uint64), np.array([5], np.uint64))
    old, new = stitched(pairs, ids, n, min_size_um3=10, voxel_um3=1.0)
    assert dict(zip(old.tolist(), new.tolist(), strict=True)) == {6: 5, 7: 0}
    old, new = stitched(pairs, ids, n, min_size_um3=12, voxel_um3=1.0)
    assert dict(zip(old.tolist(), new.tolist(), strict=True)) == {5: 0, 6: 0, 7: 0}
    # An object that lies in the halo of a block only still joins two others.
    pairs = (np.array([5, 9], np.uint64), np.array([9, 7], np.uint64))
    old, new = stitched(pairs, ids, n, min_size_um3=0, voxel_um3=1.0)
    assert dict(zip(old.tolist(), new.tolist(), strict=True)) == {7: 5, 9: 5}


def test_no_overlap_joins_nothing():
    none = overlaps(np.zeros((2, 2, 2), np.uint64), np.ones((2, 2, 2), np.uint64))
    assert len(none) == len(Overlaps.joined([])) == 0
    assert not len(joins(none, StitchRule(), voxel_um3=1.0))
    with pytest.raises(SpecError, match=r"two labels of one slab must have one shape"):
        overlaps(np.zeros((2, 2, 2), np.uint64), np.zeros((2, 2, 1), np.uint64))


def test_a_block_of_the_published_size_has_730_windows_at_its_faces():
    outer = Box.of_shape((1836, 1836, 186), at=(7, 0, -3))
    boxes = window_boxes(outer, patch=(384, 384, 128), stride=(121, 121, 29), pad=(121, 121, 58))
    assert len(boxes) == 730
    assert boxes[0].start == (7 - 121, -121, -3 - 58)
    covered = boxes[0]
    for box in boxes:
        covered = covered.union(box)
    assert covered == outer.grow((121, 121, 58))


def test_a_seed_has_seven_patches_round_it():
    boxes = seed_boxes((50, 60, 70), patch=(8, 8, 4), shift=(3, 3, 2))
    assert len(set(boxes)) == 7
    assert boxes[0] == Box((46, 56, 68), (54, 64, 72))
    assert {b.start for b in boxes[5:]} == {(46, 56, 66), (46, 56, 70)}


def test_holes_and_specks_of_single_sections_go_and_small_objects_after_them():
    mask = np.zeros((12, 10, 3), bool)
    mask[1:8, 1:8, :2] = True
    mask[3:5, 3, 0] = False  # a hole of two voxels in one section
    mask[2:6, 2:6, 1] = False  # a large one in the next
    mask[10, 8, :] = True  # a speck
    clean = without_specks(mask, max_hole_vx=3, min_piece_vx=2)
    assert clean[1:8, 1:8, 0].all()
    assert not clean[2:6, 2:6, 1].any()
    assert not clean[10].any()
    assert not clean[:, :, 2].any()
    apart = np.zeros((9, 3, 3), bool)
    apart[:2], apart[3:4], apart[5:] = True, True, True
    assert np.unique(objects_of(apart, min_size_vx=10)).tolist() == [0, 1, 2]
    assert objects_of(apart, min_size_vx=10)[8, 0, 0] == 2
    assert not objects_of(apart, min_size_vx=10)[3].any()
