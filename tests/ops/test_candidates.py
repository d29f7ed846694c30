"""Candidates for somas: each map and its maxima against the definition, and for any blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, tile
from cloudseg.ops.candidates import (
    Candidates,
    blob_response,
    depth_nm,
    near_candidates,
    peaks,
    quiet_mask,
    suppressed,
    tissue_cells,
)

SIZE = (4.0, 4.0, 6.5)
windows = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2))


@given(seed=st.integers(0, 9999), window=windows, block=st.tuples(*[st.integers(1, 9)] * 3))
def test_peaks_are_the_greatest_of_their_window_and_the_first_of_equals_for_any_blocks(seed, window, block):
    shape = (9, 8, 7)
    score = np.random.default_rng(seed).integers(0, 4, shape).astype(np.float32)
    expected = set()
    for v in np.ndindex(*shape):
        low = [max(0, c - w) for c, w in zip(v, window, strict=True)]
        cut = tuple(slice(a, c + w + 1) for a, c, w in zip(low, v, window, strict=True))
        here = np.argwhere(score[cut] == score[cut].max()) + low
        first = min(map(tuple, here), key=lambda at: at[::-1])
        if score[v] >= 2 and first == v:
            expected.add(v)
    bounds = Box.of_shape(shape, at=(5, -2, 3))
    got = []
    for core in tile(bounds, block):
        outer = core.grow(window).intersect(bounds)
        got += peaks(score[outer.slices_in(bounds)], core=core, outer=outer, least=2, window=window).tolist()
    assert len(got) == len({tuple(v) for v in got})
    assert {tuple(np.subtract(v, bounds.start).tolist()) for v in got} == expected


@given(seed=st.integers(0, 9999), ids=st.booleans(), limit_nm=st.sampled_from([5.0, 13.0, 100.0]))
def test_depth_is_the_distance_to_the_nearest_voxel_outside(seed, ids, limit_nm):
    shape = (7, 6, 5)
    values = np.random.default_rng(seed).choice(3, shape, p=[0.03, 0.95, 0.02]).astype(np.uint64)
    if not ids:
        values = values == 1
    outside = values == 0
    if ids:  # a voxel beside another segment is the surface of its own
        for axis in range(3):
            low, high = [slice(None)] * 3, [slice(None)] * 3
            low[axis], high[axis] = slice(None, -1), slice(1, None)
            differ = values[tuple(low)] != values[tuple(high)]
            outside[tuple(low)] |= differ
            outside[tuple(high)] |= differ
    got = depth_nm(values, limit_nm=limit_nm, voxel_size_nm=SIZE)
    places = np.argwhere(outside) * SIZE
    for v in np.ndindex(*shape):
        far = np.sqrt(((places - np.array(v) * SIZE) ** 2).sum(1)).min() if len(places) else np.inf
        assert got[v] == np.float32(min(far, limit_nm))


@given(seed=st.integers(0, 9999), distance_nm=st.sampled_from([0.0, 6.0, 20.0]))
def test_no_two_chosen_candidates_are_near_and_each_dropped_one_has_a_better_neighbour(seed, distance_nm):
    rng = np.random.default_rng(seed)
    n = 25
    at = np.unique(rng.integers(0, 8, (n, 3)), axis=0)
    given_ = Candidates(at, rng.integers(0, 4, len(at)) / 4, np.ones(len(at)), np.zeros(len(at), np.uint64))
    kept = suppressed(given_, distance_nm=distance_nm, voxel_size_nm=SIZE)
    order = rng.permutation(len(at))
    again = suppressed(given_.take(order), distance_nm=distance_nm, voxel_size_nm=SIZE)
    np.testing.assert_array_equal(kept.at, again.at)
    # The definition: best first, ties by place, x fastest; one stays if none that stayed is near.
    ranked = sorted(zip(-given_.score, map(tuple, at[:, ::-1].tolist()), strict=True))
    stayed = []
    for _, zyx in ranked:
        place = np.array(zyx[::-1]) * SIZE
        if distance_nm == 0 or all(np.linalg.norm(place - p) > distance_nm for p in stayed):
            stayed.append(place)
    np.testing.assert_array_equal(kept.at * SIZE, np.array(stayed))


def test_a_ball_answers_in_its_middle_with_its_radius():
    x, y, z = np.indices((48, 48, 32))
    grey = np.full(x.shape, 90, np.uint8)
    radius = 40.0
    inside = ((x - 20) * 4) ** 2 + ((y - 25) * 4) ** 2 + ((z - 15) * 6.5) ** 2 <= radius**2
    grey[inside] = 150
    for bright, picture in ((True, grey), (False, 255 - grey)):
        response, found = blob_response(
            picture, radii_nm=(20.0, 28.0, 40.0, 56.0, 80.0), voxel_size_nm=SIZE, bright=bright
        )
        at = np.unravel_index(response.argmax(), response.shape)
        assert np.abs(np.subtract(at, (20, 25, 15))).max() <= 1
        assert found[at] == radius


def test_quiet_is_what_has_little_texture_and_the_right_grey():
    rng = np.random.default_rng(0)
    grey = rng.normal(128, 30, (32, 32, 32)).clip(0, 255).astype(np.uint8)
    grey[:16, :16] = 128
    grey[16:, 16:] = 10
    quiet = quiet_mask(grey, grey_range=(100, 160), max_deviation=10, sigma_nm=4, voxel_size_nm=(4, 4, 4))
    assert quiet[4:12, 4:12].all()
    assert not quiet[20:, 20:].any()
    assert not quiet[20:28, 4:12].any()


def test_cells_without_texture_or_without_image_are_no_tissue():
    rng = np.random.default_rng(0)
    grey = np.full((12, 8, 8), 200, np.uint8)
    grey[:4] = rng.integers(60, 190, (4, 8, 8))
    grey[4:8] = 0
    grey[4, 0, 0] = 255
    cells = tissue_cells(grey, cell=(4, 4, 4), min_deviation=10, grey_range=(20, 240))
    assert cells.shape == (3, 2, 2)
    assert cells[0].all()
    assert not cells[1:].any()
    assert tissue_cells(grey[:10], cell=(4, 4, 4), min_deviation=0, grey_range=(0, 255))[2].all()


@given(seed=st.integers(0, 9999))
def test_what_is_near_a_candidate_does_not_depend_on_the_box(seed):
    rng = np.random.default_rng(seed)
    at = rng.integers(-4, 14, (5, 3))
    candidates = Candidates(at, np.ones(5), rng.uniform(0, 12, 5), np.zeros(5, np.uint64))
    box = Box.of_shape((10, 9, 8))
    whole = near_candidates(box, candidates, margin_nm=3, voxel_size_nm=SIZE)
    for v in np.ndindex(*box.shape):
        far = (((np.array(v) - at) * SIZE) ** 2).sum(1)
        assert whole[v] == (far <= (candidates.radius_nm + 3) ** 2).any()
    part = Box((2, 3, 1), (7, 5, 8))
    np.testing.assert_array_equal(
        near_candidates(part, candidates, margin_nm=3, voxel_size_nm=SIZE), whole[part.slices_in(box)]
    )


def test_scores_of_another_shape_are_refused():
    with pytest.raises(SpecError, match=r"the scores must have the shape \(2, 2, 2\)"):
        peaks(np.zeros((2, 2, 1), np.float32), core=Box.of_shape((2, 2, 2)), outer=Box.of_shape((2, 2, 2)),
              least=0, window=(1, 1, 1))  # fmt: skip
