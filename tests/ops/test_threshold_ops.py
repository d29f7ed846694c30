"""Thresholds, cleaning, components and shapes: against naive definitions, and block by block."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from blockwise import blocks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.classes import ObjectClass, check_classes, classify
from cloudseg.ops.components import label_components, slab_of, touching_pairs
from cloudseg.ops.morphology import MorphologyRule, clean_mask
from cloudseg.ops.morphology import halo_of as clean_halo_of
from cloudseg.ops.object_shape import block_shapes, merged_shapes
from cloudseg.ops.remap import remap
from cloudseg.ops.threshold import NeighbourhoodRule, halo_of, neighbourhood_threshold
from cloudseg.ops.union_find import components

SHAPE = (13, 11, 9)
cuts = st.tuples(*(st.sets(st.integers(1, n - 1), max_size=3) for n in SHAPE))
origins = st.sampled_from([(0, 0, 0), (5, -3, 100)])


def blob_noise(seed, share=0.5):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 0.6)
    return np.asfortranarray(noise > np.quantile(noise, 1 - share))


def boxes(cut, at=(0, 0, 0)):
    return [box.shift(at) for box in blocks_of(SHAPE, cut).values()]


def naive_threshold(image, rule):
    """Read the definition aloud, voxel by voxel."""
    out = np.zeros(image.shape, np.uint8)
    for at in itertools.product(*map(range, image.shape)):
        box = tuple(slice(max(0, i - r), i + r + 1) for i, r in zip(at, rule.radius, strict=True))
        total = int(image[box].sum(dtype=np.int64))
        here = int(image[at]) * image[box].size * 10_000
        if rule.polarity == "dark":
            out[at] = here <= total * (10_000 - rule.contrast)
        else:
            out[at] = here >= total * (10_000 + rule.contrast)
    return out


@settings(max_examples=12)
@given(
    seed=st.integers(0, 99),
    cut=cuts,
    at=origins,
    radius=st.sampled_from([(2, 2, 2), (3, 1, 0), (0, 4, 1), (6, 5, 4), (1, 0, 0)]),
    contrast=st.sampled_from([0, 1, 777, 3000, 10_000]),
    polarity=st.sampled_from(["dark", "bright"]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
def test_blocks_threshold_as_the_definition_says(seed, cut, at, radius, contrast, polarity, dtype):
    high = np.iinfo(dtype).max
    image = np.random.default_rng(seed).choice([0, 3, high // 2, high - 1, high], SHAPE).astype(dtype)
    rule, bounds = NeighbourhoodRule(radius, contrast, polarity), Box.of_shape(SHAPE, at=at)
    got = np.full(SHAPE, 9, np.uint8)
    for core in boxes(cut, at):
        outer = halo_of(core, bounds=bounds, rule=rule)
        part = np.asfortranarray(image[outer.slices_in(bounds)])
        got[core.slices_in(bounds)] = neighbourhood_threshold(part, core=core, bounds=bounds, rule=rule)
    np.testing.assert_array_equal(got, naive_threshold(image, rule))


@settings(max_examples=12)
@given(
    seed=st.integers(0, 99),
    cut=st.tuples(*(st.sets(st.integers(1, n - 1), max_size=1) for n in SHAPE)),
    opening=st.sampled_from([0.0, 1.0, 2.5]),
    closing=st.sampled_from([0.0, 1.5]),
    n=st.sampled_from([(0, 0), (2, 0), (0, 3), (4, 2)]),
    planar=st.booleans(),
)
def test_a_mask_is_cleaned_alike_in_blocks_and_at_once(seed, cut, opening, closing, n, planar):
    mask, bounds = blob_noise(seed), Box.of_shape(SHAPE)
    rule = MorphologyRule(opening, closing, *n, voxel_size_nm=(1.0, 1.0, 2.0), planar=planar)
    got = np.full(SHAPE, 9, np.uint8)
    for core in boxes(cut):
        part = mask[clean_halo_of(core, bounds=bounds, rule=rule).slices_in(bounds)]
        got[core.slices_in(bounds)] = clean_mask(part, core=core, bounds=bounds, rule=rule)
    np.testing.assert_array_equal(got, clean_mask(mask, core=bounds, bounds=bounds, rule=rule))


def test_holes_and_specks_are_counted_in_voxels_and_balls_in_nm():
    mask = np.ones((9, 9, 3), bool)
    mask[2, 2:4, 1] = False
    mask[6, 5:8, 1] = False
    box = Box.of_shape(mask.shape)
    filled = clean_mask(mask, core=box, bounds=box, rule=MorphologyRule(hole_vx=2))
    assert filled[2, 2:4, 1].all()
    assert not filled[6, 5:8, 1].any()
    left = clean_mask(~mask, core=box, bounds=box, rule=MorphologyRule(speck_vx=2))
    assert left.sum() == 3
    cross = np.zeros((9, 9, 3), bool)
    cross[3:6, 4, 1] = cross[4, 3:6, 1] = True
    planar = MorphologyRule(opening_nm=4.0, voxel_size_nm=(4, 4, 40), planar=True)
    np.testing.assert_array_equal(clean_mask(cross, core=box, bounds=box, rule=planar), cross)
    deep = MorphologyRule(opening_nm=40.0, voxel_size_nm=(40, 40, 40))
    assert not clean_mask(cross, core=box, bounds=box, rule=deep).any()


@settings(max_examples=25)
@given(
    seed=st.integers(0, 99),
    cut=cuts,
    at=origins,
    share=st.sampled_from([0.0, 0.15, 0.4, 1.0]),
    connectivity=st.sampled_from([6, 18, 26]),
)
def test_components_of_blocks_join_to_those_of_the_volume(seed, cut, at, share, connectivity):
    mask, bounds = blob_noise(seed, share), Box.of_shape(SHAPE, at=at)
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    numbers, n = ndimage.label(mask, structure)
    index = np.arange(1, mask.size + 1, dtype=np.uint64).reshape(SHAPE, order="F")
    smallest = ndimage.minimum(index, numbers, np.arange(1, n + 1)).astype(np.uint64)
    expected = np.concatenate([[0], smallest]).astype(np.uint64)[numbers]
    fragments = np.zeros(SHAPE, np.uint64, order="F")
    for core in boxes(cut, at):
        fragments[core.slices_in(bounds)] = label_components(
            mask[core.slices_in(bounds)], core=core, bounds=bounds, connectivity=connectivity
        )
    pairs = [np.zeros((2, 0), np.uint64)]
    for core in boxes(cut, at):
        for axis in range(3):
            if core.start[axis] > bounds.start[axis]:
                slab = fragments[slab_of(core, axis, bounds=bounds).slices_in(bounds)]
                found = touching_pairs(slab, core=core, axis=axis, bounds=bounds, connectivity=connectivity)
                pairs.append(np.stack(found))
    joined = components(*np.concatenate(pairs, axis=1))
    np.testing.assert_array_equal(remap(fragments, *joined), expected)


@settings(max_examples=8)
@given(seed=st.integers(0, 99), cut=cuts, at=st.sampled_from([(0, 0, 0), (3_000_000, -7, 5_000_000)]))
def test_shapes_add_up_and_are_those_of_the_voxels(seed, cut, at):
    bounds, size = Box.of_shape(SHAPE, at=at), (4.0, 8.0, 40.0)
    labels = np.random.default_rng(seed).integers(0, 4, SHAPE).astype(np.uint64)
    labels[labels > 0] += np.uint64(2**60)
    parts = []
    for core in boxes(cut, at):
        box = core.with_lower_neighbours(bounds=bounds)
        parts.append(block_shapes(np.asfortranarray(labels[box.slices_in(bounds)]), box=box, core=core))
    whole = merged_shapes(
        [block_shapes(np.asfortranarray(labels), box=bounds, core=bounds)], bounds=bounds, voxel_size_nm=size
    )
    added = merged_shapes(parts, bounds=bounds, voxel_size_nm=size)
    for name, values in whole.items():
        np.testing.assert_array_equal(added[name], values, err_msg=name)
    for row, label in enumerate(whole["id"]):
        places = np.argwhere(labels == label) * np.array(size)
        covariance = np.cov(places.T, bias=True) + np.diag(np.array(size) ** 2 / 12)
        axes = 2 * np.sqrt(5 * np.linalg.eigvalsh(covariance)) / 1000
        got = [whole[name][row] for name in ("thickness_um", "width_um", "length_um")]
        np.testing.assert_allclose(got, axes, rtol=1e-9)


def test_a_box_measures_as_a_box():
    labels = np.zeros((30, 20, 10), np.uint64, order="F")
    labels[5:25, 5:15, 2:7] = 7
    box = Box.of_shape(labels.shape)
    table = merged_shapes([block_shapes(labels, box=box, core=box)], bounds=box, voxel_size_nm=(10, 10, 10))
    assert [table[f"extent_{a}_um"][0] for a in "xyz"] == pytest.approx([0.2, 0.1, 0.05])
    assert table["fill"][0] == 1.0
    # The ellipsoid with the moments of a box is sqrt(5 / 3) times as long.
    assert table["length_um"][0] == pytest.approx(0.2 * np.sqrt(5 / 3))
    assert table["elongation"][0] == pytest.approx(4.0)
    assert table["sphericity"][0] == pytest.approx(np.cbrt(36 * np.pi * 1e-6) / 0.07)


def test_classes_need_an_order_where_they_overlap():
    soma = ObjectClass("soma", {"volume_um3": (100, 1e9)})
    vessel = ObjectClass("vessel", {"volume_um3": (50, 1e9), "elongation": (5, 1e9)})
    small = ObjectClass("small", {"volume_um3": (0, 20)})
    check_classes([soma, small], first_wins=False)
    with pytest.raises(SpecError, match="classes 'soma' and 'vessel' overlap"):
        check_classes([small, soma, vessel], first_wins=False)
    with pytest.raises(SpecError, match="two classes are called 'soma'"):
        check_classes([soma, soma], first_wins=True)
    with pytest.raises(SpecError, match=r"class 'a': fill must rise from low to high, got \[2, 1\]"):
        check_classes([ObjectClass("a", {"fill": (2, 1)})], first_wins=True)
    table = {
        "volume_um3": np.array([150.0, 60.0, 30.0, 150.0, 20.0]),
        "elongation": np.array([9.0, 9.0, 9, 1, 1]),
    }
    assert classify(table, [vessel, soma, small], first_wins=True).tolist() == [1, 1, 0, 2, 3]
    assert classify(table, [soma, vessel, small], first_wins=True).tolist() == [1, 2, 0, 1, 3]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (NeighbourhoodRule((0, 0, 0), 100), "must reach at least one voxel"),
        (NeighbourhoodRule((7, 0, 0), 100), "15 voxels wide on x, but the volume .* only 13"),
        (NeighbourhoodRule((1, 1, 1), 10_001), "between 0 and 1 for dark structures, got 1.0001"),
        (NeighbourhoodRule((1, 1, 1), -1, "bright"), "between 0 and 10 for bright structures"),
    ],
)
def test_a_neighbourhood_that_makes_no_sense_is_refused(rule, message):
    box = Box.of_shape(SHAPE)
    with pytest.raises(SpecError, match=message):
        neighbourhood_threshold(np.zeros(SHAPE, np.uint8), core=box, bounds=box, rule=rule)


def test_arrays_that_do_not_fit_are_refused():
    box = Box.of_shape(SHAPE)
    with pytest.raises(SpecError, match="the image must be uint8 or uint16 of shape"):
        neighbourhood_threshold(
            np.zeros(SHAPE, np.float32), core=box, bounds=box, rule=NeighbourhoodRule((1, 1, 1), 1)
        )
    with pytest.raises(SpecError, match="the mask must have shape"):
        clean_mask(np.zeros((3, 3, 3)), core=box, bounds=box, rule=MorphologyRule())
    with pytest.raises(SpecError, match="the mask must have shape"):
        label_components(np.zeros((3, 3, 3)), core=box, bounds=box, connectivity=6)
    with pytest.raises(SpecError, match="connectivity must be 6 .* got 8"):
        label_components(np.zeros(SHAPE), core=box, bounds=box, connectivity=8)
    core = Box((5, 0, 0), SHAPE)
    with pytest.raises(SpecError, match=r"labels must have shape \(2, 11, 9\)"):
        touching_pairs(np.zeros((1, 1, 1), np.uint64), core=core, axis=0, bounds=box, connectivity=6)
