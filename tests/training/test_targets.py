"""Targets, each against a literal reading of its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from skimage.segmentation import find_boundaries

from cloudseg.errors import SpecError
from cloudseg.training.labels import BACKGROUND, MEMBRANE, UNKNOWN, renumber
from cloudseg.training.shape import local_shape
from cloudseg.training.targets import (
    AffinityTarget,
    BoundaryTarget,
    ClosedBoundaryTarget,
    DistanceTarget,
    InteriorTarget,
    SeedTarget,
    ShapeTarget,
    make_targets,
)

NM = (8.0, 8.0, 8.0)
ids_arrays = arrays.arrays(
    np.int32,
    st.tuples(st.integers(3, 5), st.integers(3, 5), st.integers(3, 5)),
    elements=st.sampled_from([UNKNOWN, MEMBRANE, BACKGROUND, 2, 3, 4]),
)


def inner(shape):
    return itertools.product(*(range(n) for n in shape))


@settings(max_examples=40)
@given(ids=ids_arrays, thick=st.booleans())
def test_affinities_are_links_within_objects(ids, thick):
    offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (-2, 0, 1))
    links, known = AffinityTarget(offsets=offsets, thick=thick).make(ids, voxel_size_nm=NM)
    boundary, _ = BoundaryTarget(mode="thick").make(ids, voxel_size_nm=NM)
    for c, offset in enumerate(offsets):
        for v in inner(ids.shape):
            w = tuple(a + b for a, b in zip(v, offset, strict=True))
            if not all(0 <= a < n for a, n in zip(w, ids.shape, strict=True)):
                assert not known[(c, *v)]
                continue
            assert known[(c, *v)] == (ids[v] != UNKNOWN and ids[w] != UNKNOWN)
            if known[(c, *v)]:
                linked = ids[v] == ids[w] and ids[v] != MEMBRANE
                if thick and c < 3:
                    linked = linked and not boundary[(0, *v)] and not boundary[(0, *w)]
                assert links[(c, *v)] == linked


@settings(max_examples=40)
@given(ids=ids_arrays, planar=st.booleans())
def test_boundaries_mark_both_sides_or_the_upper_one(ids, planar):
    thick, known = BoundaryTarget(mode="thick", planar=planar).make(ids, voxel_size_nm=NM)
    thin, _ = BoundaryTarget(mode="thin", planar=planar).make(ids, voxel_size_nm=NM)
    np.testing.assert_array_equal(known[0], ids != UNKNOWN)
    for v in inner(ids.shape):
        touches, above = ids[v] == MEMBRANE, ids[v] == MEMBRANE
        for axis, step in itertools.product(range(2 if planar else 3), (-1, 1)):
            w = list(v)
            w[axis] += step
            if not 0 <= w[axis] < ids.shape[axis]:
                continue
            differ = ids[v] > 0 and ids[tuple(w)] > 0 and ids[v] != ids[tuple(w)]
            touches |= differ
            above |= differ and step == -1
        assert thick[(0, *v)] == touches
        assert thin[(0, *v)] == above


def test_thick_boundaries_are_those_of_scikit_image():
    labels = np.random.default_rng(0).integers(1, 5, (9, 8, 7)).repeat(2, axis=0)
    ours, _ = BoundaryTarget().make(renumber(labels, zero="unknown"), voxel_size_nm=NM)
    np.testing.assert_array_equal(ours[0], find_boundaries(labels, mode="thick", connectivity=1))


def test_the_rounded_boundary_is_that_of_plantseg():
    """pytorch-3dunet finds boundaries with connectivity 2 before it blurs them."""
    x, y, z = np.meshgrid(*(np.arange(20),) * 3, indexing="ij")
    labels = 1 + (x > 9) + 2 * (x + y > 22) + 4 * (x + y - z > 8)
    target, _ = BoundaryTarget(smooth_vx=1.0).make(renumber(labels, zero="unknown"), voxel_size_nm=NM)
    found = find_boundaries(labels, connectivity=2).astype(np.float64)
    np.testing.assert_array_equal(target[0], ndimage.gaussian_filter(found, 1.0) > 0.5)


def test_an_oblique_wall_has_no_holes_however_it_is_rounded():
    x, y, z = np.meshgrid(*(np.arange(24),) * 3, indexing="ij")
    for labels in (1 + (x + y > 23), 1 + (x + y + z > 35), 1 + (x > 11)):
        for smooth_vx in (0.0, 1.0):
            target, _ = BoundaryTarget(smooth_vx=smooth_vx).make(
                renumber(labels, zero="unknown"), voxel_size_nm=NM
            )
            sides, n = ndimage.label(target[0] == 0)
            assert n == 2, smooth_vx
            assert {frozenset(labels[sides == i]) for i in (1, 2)} == {frozenset({1}), frozenset({2})}


def test_closed_boundaries_are_those_of_the_published_script():
    """Windows of 1 x 3 and 3 x 1 in every x-plane and every y-plane, as DeepEM3D's enhancement slides them."""
    labels = np.random.default_rng(1).integers(0, 4, (7, 6, 5)).astype(np.int32)
    ids = renumber(labels, zero="membrane")
    target, known = ClosedBoundaryTarget().make(ids, voxel_size_nm=NM)
    expected = labels == 0
    nx, ny, nz = labels.shape
    for x, y, z in inner(labels.shape):
        windows = []
        if 0 < y < ny - 1:
            windows.append(labels[x, y - 1 : y + 2, z])
        if 0 < x < nx - 1:
            windows.append(labels[x - 1 : x + 2, y, z])
        if 0 < z < nz - 1:
            windows.append(labels[x, y, z - 1 : z + 2])
        for window in windows:
            expected[x, y, z] |= len(set(window[window != 0].tolist())) > 1
    middle = (0, *(slice(1, -1),) * 3)
    np.testing.assert_array_equal(target[middle].astype(bool), expected[middle[1:]])
    assert known.all()


def test_closing_shuts_the_hole_between_two_sections():
    ids = np.full((5, 5, 4), 2, np.int32)
    ids[:, :, 2:] = 3
    drawn, _ = BoundaryTarget(planar=True).make(ids, voxel_size_nm=NM)
    closed, _ = ClosedBoundaryTarget().make(ids, voxel_size_nm=NM)
    assert not drawn.any(), "nothing was drawn within the sections"
    assert closed[0, :, :, 1:3].all()
    assert not closed[0, :, :, [0, 3]].any()
    ids[:, :, 2:] = 2
    ids[2, 2, 1] = MEMBRANE
    wide, _ = ClosedBoundaryTarget(widen_vx=1).make(ids, voxel_size_nm=NM)
    assert wide.sum() == 5, "a cross within its section"


def described_by_hand(ids, v, *, sigma_vx):
    """The ten numbers of one voxel, from the definition: weighted sums over the voxels of its object."""
    reach = int(3.0 * sigma_vx + 0.5)
    places = [
        w
        for w in inner(ids.shape)
        if ids[w] == ids[v] and all(abs(a - b) <= reach for a, b in zip(w, v, strict=True))
    ]
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_vx) ** 2)
    kernel /= kernel.sum()
    weight = np.array([np.prod([kernel[a - b + reach] for a, b in zip(w, v, strict=True)]) for w in places])
    offset = (np.array(places) - np.array(v)) / sigma_vx
    mass = weight.sum()
    mean = (weight[:, None] * offset).sum(axis=0) / mass
    spread = (weight[:, None] * offset).T @ offset / mass - np.outer(mean, mean)
    variance = np.maximum(np.diag(spread), 1e-3)
    tilt = [spread[i, j] / np.sqrt(variance[i] * variance[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    return np.clip([*(mean * 0.5 + 0.5), *np.diag(spread), *(np.array(tilt) * 0.5 + 0.5), mass], 0, 1)


def test_shape_descriptors_follow_their_definition():
    rng = np.random.default_rng(2)
    ids = ndimage.zoom(rng.integers(2, 5, (3, 3, 3)), 4, order=0).astype(np.int32)
    ids[0] = MEMBRANE
    found = local_shape(ids, sigma_nm=16.0, voxel_size_nm=NM)
    assert found.shape == (10, *ids.shape)
    assert not found[:, 0].any()
    for v in [(1, 0, 0), (5, 5, 5), (11, 11, 11), (4, 7, 8), (6, 3, 10)]:
        np.testing.assert_allclose(
            found[(slice(None), *v)], described_by_hand(ids, v, sigma_vx=2.0), atol=2e-4
        )


def test_coarse_descriptors_are_close_to_fine_ones_and_keep_to_objects():
    ids = np.full((24, 24, 24), 2, np.int32)
    ids[12:] = 3
    ids[:, :2] = UNKNOWN
    fine = local_shape(ids, sigma_nm=40.0, voxel_size_nm=NM)
    coarse = local_shape(ids, sigma_nm=40.0, voxel_size_nm=NM, coarse=2)
    assert not coarse[:, ids < 0].any()
    assert np.abs(fine - coarse)[:, ids > 0].mean() < 0.05


def test_distance_grows_from_the_surface_in_nanometres():
    ids = np.full((41, 3, 3), 2, np.int32)
    ids[20:] = 3
    values, known = DistanceTarget(scale_nm=50.0).make(ids, voxel_size_nm=(10.0, 10.0, 40.0))
    surface_at = [19, 20]
    expected = [np.tanh(min(abs(x - s) for s in surface_at) * 10.0 / 50.0) for x in range(41)]
    np.testing.assert_allclose(values[0, :, 1, 1], expected, atol=1e-6)
    assert known.all()
    alone, _ = DistanceTarget().make(np.full((4, 4, 4), 2, np.int32), voxel_size_nm=NM)
    assert alone.min() == 1.0, "no surface in sight"


@settings(max_examples=20)
@given(ids=ids_arrays)
def test_heads_of_cell_bodies_are_where_their_words_say(ids):
    size = (10.0, 10.0, 40.0)
    surface = BoundaryTarget().make(ids, voxel_size_nm=size)[0][0].astype(bool)
    interior, known = InteriorTarget().make(ids, voxel_size_nm=size)
    depth, _ = DistanceTarget(scale_nm=25.0, inside=True).make(ids, voxel_size_nm=size)
    seed, _ = SeedTarget(depth_nm=20.0).make(ids, voxel_size_nm=size)
    np.testing.assert_array_equal(known[0], ids != UNKNOWN)
    for place in inner(ids.shape):
        gaps = [np.linalg.norm((np.array(place) - at) * size) for at in np.argwhere(surface)] or [np.inf]
        inside = ids[place] >= 2
        assert interior[0][place] == inside
        assert depth[0][place] == pytest.approx(np.tanh(min(gaps) / 25.0) * inside, abs=1e-6)
        assert seed[0][place] == (inside and min(gaps) >= 20.0 - 1e-9)


def test_targets_are_stacked_in_order():
    ids = np.random.default_rng(0).integers(-1, 4, (6, 6, 6)).astype(np.int32)
    boundary, links = BoundaryTarget(), AffinityTarget(offsets=((-1, 0, 0),))
    values, known = make_targets([boundary, links], ids, voxel_size_nm=NM)
    assert values.dtype == np.uint8
    assert values.shape == known.shape == (2, 6, 6, 6)
    np.testing.assert_array_equal(values[:1], boundary.make(ids, voxel_size_nm=NM)[0])
    mixed, _ = make_targets([links, ShapeTarget()], ids, voxel_size_nm=NM)
    assert mixed.dtype == np.float32
    assert mixed.shape[0] == 11
    assert 0 <= mixed.min() <= mixed.max() <= 1


@pytest.mark.parametrize("zero", ["unknown", "membrane", "background"])
def test_ids_of_any_size_fit(zero):
    big = np.iinfo(np.uint64).max
    labels = np.array([0, big, big - 1, 7, big], np.uint64).reshape(5, 1, 1)
    ids = renumber(labels, zero=zero)
    assert ids.dtype == np.int32
    assert ids[:, 0, 0].tolist()[1:] == [ids[1, 0, 0], ids[2, 0, 0], ids[3, 0, 0], ids[1, 0, 0]]
    assert len(set(ids[1:4, 0, 0].tolist())) == 3
    assert ids[1:].min() >= 2
    assert ids[0, 0, 0] == {"unknown": UNKNOWN, "membrane": MEMBRANE, "background": BACKGROUND}[zero]


def test_ids_that_have_wrapped_round_are_refused():
    labels = np.array([3, 2**31 + 5], np.uint64).astype(np.int32).reshape(2, 1, 1)
    with pytest.raises(
        SpecError, match=r"got -2147483643 \(int32\): an id too large for its type comes back"
    ):
        renumber(labels, zero="unknown")
