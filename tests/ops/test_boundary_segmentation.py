"""From boundaries to instances: against definitions, scikit-image, and any way of cutting the volume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import local_minima, reconstruction
from skimage.segmentation import watershed

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, tile
from cloudseg.ops.basins import Basins, basins, join_shallow
from cloudseg.ops.boundaries import boundary_affinities
from cloudseg.ops.distance_watershed import DistanceRule, distance_watershed, flood
from cloudseg.ops.remap import remap
from cloudseg.ops.watershed import supervoxels

edges = st.integers(1, 7)


def smooth_field(shape, seed, sigma=2.0):
    """Return a uint8 field whose every value fills 2 x 2 x 2 voxels, so that no minimum is a single voxel."""
    coarse = [-(-n // 2) for n in shape]
    field = ndimage.gaussian_filter(np.random.default_rng(seed).random(coarse), sigma)
    field = (field - field.min()) / (field.max() - field.min())
    fine = (field * 254).astype(np.uint8).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    return np.asfortranarray(fine[: shape[0], : shape[1], : shape[2]])


def cells(shape=(60, 56, 40), n=18, seed=0, width=2.0):
    """Return the boundaries between random convex cells, and the cells."""
    rng = np.random.default_rng(seed)
    points = rng.random((n, 3)) * shape
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    d = np.sort(np.linalg.norm(grid[..., None, :] - points, axis=-1), axis=-1)
    labels = np.linalg.norm(grid[..., None, :] - points, axis=-1).argmin(-1) + 1
    boundary = np.clip(255 * np.exp(-((d[..., 1] - d[..., 0]) ** 2) / (2 * width**2)), 0, 255)
    return np.asfortranarray(boundary.astype(np.uint8)), np.asfortranarray(labels.astype(np.uint64))


def one_partition(a, b):
    """Whether two labellings say the same of every pair of voxels."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def agreement(a, b):
    """Return the share of voxels in the best match of each region of ``b``."""
    pairs, counts = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True)
    best = {}
    for region, n in zip(pairs[1], counts, strict=True):
        best[region] = max(best.get(region, 0), n)
    return sum(best.values()) / a.size


def affinities_of(boundaries, **options):
    box = Box.of_shape(boundaries.shape)
    return boundary_affinities(boundaries, core=box, bounds=box, **options)


def basin_labels(boundaries, join="max"):
    box = Box.of_shape(boundaries.shape)
    affinities = affinities_of(boundaries, join=join)
    return supervoxels(affinities, core=box, bounds=box, t_low=1, t_high=255).labels


def hmin(boundaries, h, join="max"):
    """Return the h-minima watershed of a whole volume."""
    box = Box.of_shape(boundaries.shape)
    labels = basin_labels(boundaries, join)
    return remap(labels, *join_shallow(basins(labels, boundaries, core=box, bounds=box), h=h))


def deep_minima(boundaries, h):
    """Label the minima that are at least ``h`` deep, by definition: those of the h-minima transform."""
    f = boundaries.astype(float)
    filled = reconstruction(
        f + (h - 0.5), f, method="erosion", footprint=ndimage.generate_binary_structure(3, 1)
    )
    return ndimage.label(local_minima(filled, connectivity=1))


@settings(max_examples=40)
@given(
    shape=st.tuples(edges, edges, edges), seed=st.integers(0, 99), mode=st.sampled_from(["max", "mean", 99])
)
def test_a_link_is_as_weak_as_the_boundary_between_its_voxels(shape, seed, mode):
    b = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    options = {"threshold": mode} if mode == 99 else {"join": mode}
    got = affinities_of(b, **options)
    for axis in range(3):
        for at in np.ndindex(*shape):
            if at[axis] == 0:
                assert got[(axis, *at)] == 0
                continue
            lower = list(at)
            lower[axis] -= 1
            p, q = int(b[at]), int(b[tuple(lower)])
            if mode == 99:
                expected = 255 if max(p, q) < 99 else 0
            else:
                expected = 255 - (max(p, q) if mode == "max" else -(-(p + q) // 2))
            assert got[(axis, *at)] == expected


@settings(max_examples=40)
@given(
    shape=st.tuples(edges, edges, edges),
    block=st.tuples(edges, edges, edges),
    seed=st.integers(0, 99),
)
def test_affinities_and_basins_do_not_depend_on_the_blocks(shape, block, seed):
    b = np.asfortranarray(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))
    bounds = Box.of_shape(shape, at=(3, -2, 5))
    whole = boundary_affinities(b, core=bounds, bounds=bounds)
    flat = boundary_affinities(b, core=bounds, bounds=bounds, planar=True)
    np.testing.assert_array_equal(flat[:2], whole[:2])
    assert not flat[2].any()
    labels = supervoxels(whole, core=bounds, bounds=bounds, t_low=1, t_high=255).labels
    one = basins(labels, b, core=bounds, bounds=bounds)
    parts = []
    for core in tile(bounds, block):
        cut = core.with_lower_neighbours(bounds=bounds).slices_in(bounds)
        part = boundary_affinities(b[cut], core=core, bounds=bounds)
        np.testing.assert_array_equal(part, whole[(slice(None), *core.slices_in(bounds))])
        parts.append(basins(labels[cut], b[cut], core=core, bounds=bounds))
    joined = Basins.joined(parts)
    for name in ("ids", "minimum", "u", "v", "saddle"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(one, name), err_msg=name)


def test_basins_know_their_lowest_voxel_and_lowest_pass():
    b = np.array([3, 3, 9, 5, 5, 7, 6, 6], np.uint8).reshape(8, 1, 1, order="F")
    labels = np.array([1, 1, 1, 4, 4, 4, 7, 7], np.uint64).reshape(8, 1, 1, order="F")
    box = Box.of_shape(b.shape)
    graph = basins(labels, b, core=box, bounds=box)
    assert graph.ids.tolist() == [1, 4, 7]
    assert graph.minimum.tolist() == [3, 5, 6]
    assert list(zip(graph.u.tolist(), graph.v.tolist(), graph.saddle.tolist(), strict=True)) == [
        (1, 4, 9),
        (4, 7, 7),
    ]
    # 6 lies 1 below its pass: joined by more than 1. 5 lies 4 below: joined by more than 4.
    assert [len(join_shallow(graph, h=h)[0]) for h in (1, 1.5, 4, 4.5)] == [0, 1, 1, 2]
    assert join_shallow(graph, h=4.5)[1].tolist() == [1, 1]


@pytest.mark.parametrize("h", [1, 8, 20, 60])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("join", ["max", "mean"])
def test_as_many_regions_stay_as_there_are_deep_minima_and_each_holds_one(join, h, seed):
    b = smooth_field((40, 36, 28), seed)
    got = hmin(b, h, join)
    minima, n = deep_minima(b, h)
    regions = np.unique(got)
    assert 0 not in regions
    assert len(regions) == n > 1
    assert {len(np.unique(got[minima == i])) for i in range(1, n + 1)} == {1}


@pytest.mark.parametrize(("join", "least"), [("max", 0.95), ("mean", 0.998)])
def test_the_regions_are_those_of_a_flood_from_the_deep_minima(join, least):
    boundaries, labels = cells()
    got = hmin(boundaries, 40, join)
    markers, n = deep_minima(boundaries, 40)
    flooded = watershed(boundaries, markers, connectivity=1)
    assert len(np.unique(got)) == n == len(np.unique(labels))
    # What a ridge of several voxels is given to is open; with the mean of both sides each takes its half.
    assert agreement(got, flooded) > least
    assert agreement(got, labels) > least - 0.005


@pytest.mark.parametrize("seed", range(3))
def test_thresholded_supervoxels_are_connected_components(seed):
    b = smooth_field((20, 18, 16), seed, sigma=1.0)
    got_affinities = affinities_of(b, threshold=80)
    box = Box.of_shape(b.shape)
    got = supervoxels(got_affinities, core=box, bounds=box, t_low=255, t_high=255).labels
    expected, n = ndimage.label(b < 80)
    single = np.bincount(expected.ravel()) == 1
    expected[single[expected]] = 0
    assert n > 1
    assert one_partition(got, expected)
    np.testing.assert_array_equal(got == 0, expected == 0)


def test_a_plateau_is_shared_fairly_between_its_seeds():
    seeds = np.zeros((41, 41, 1), np.uint64)
    seeds[0, 0], seeds[40, 40] = 1, 2
    got = flood(np.zeros((41, 41, 1), np.float32), seeds)
    sizes = np.bincount(got.ravel().astype(int))
    assert sizes[0] == 0
    assert min(sizes[1:]) > 780  # of 1681; last come, first served gives 1 and 1680


@pytest.mark.parametrize("shape", [(24, 20, 16), (30, 28, 1)])
def test_on_distinct_heights_the_flood_is_scikit_images(shape):
    rng = np.random.default_rng(3)
    heights = rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
    seeds = np.zeros(shape, np.uint64)
    for i in range(1, 9):
        seeds[tuple(rng.integers(0, n) for n in shape)] = i
    expected = watershed(heights, seeds.astype(np.int32), connectivity=1)
    np.testing.assert_array_equal(flood(heights, seeds), expected)


@pytest.mark.parametrize("stacked", [False, True])
def test_cells_are_found_again(stacked):
    boundaries, labels = cells()
    box = Box.of_shape(boundaries.shape)
    got = distance_watershed(boundaries, box=box, bounds=box, rule=DistanceRule(stacked=stacked))
    assert got.all()
    if not stacked:
        assert len(np.unique(got)) <= 2 * len(np.unique(labels))
    purity = 0
    for i in np.unique(got):
        purity += np.bincount(labels[got == i].astype(int)).max()
    assert purity / labels.size > 0.95
    if stacked:
        for k in range(1, box.shape[2]):
            assert not set(np.unique(got[..., k])) & set(np.unique(got[..., k - 1]))


def blockwise(boundaries, rule, block, halo):
    bounds = Box.of_shape(boundaries.shape)
    out = np.zeros(boundaries.shape, np.uint64)
    for core in tile(bounds, block):
        outer = core.grow(halo).intersect(bounds)
        got = distance_watershed(boundaries[outer.slices_in(bounds)], box=outer, bounds=bounds, rule=rule)
        out[core.slices_in(bounds)] = got[core.slices_in(outer)]
    return out


def test_sections_alone_are_exact_for_blocks_of_whole_sections():
    boundaries, _ = cells()
    rule = DistanceRule(stacked=True)
    whole = blockwise(boundaries, rule, boundaries.shape, (0, 0, 0))
    x, y, _ = boundaries.shape
    np.testing.assert_array_equal(blockwise(boundaries, rule, (x, y, 7), (8, 8, 0)), whole)


def test_a_halo_makes_neighbouring_blocks_agree_nearly_and_not_exactly():
    boundaries, _ = cells()
    rule = DistanceRule()
    whole = blockwise(boundaries, rule, boundaries.shape, (0, 0, 0))
    agree = [np.mean(blockwise(boundaries, rule, (30, 28, 20), (halo,) * 3) == whole) for halo in (0, 10, 20)]
    assert agree[0] < agree[1] < agree[2]
    assert agree[2] > 0.95


def test_small_regions_are_given_away_and_empty_maps_are_one_region():
    box = Box.of_shape((12, 10, 4), at=(1, 2, 3))
    for value in (0, 255):
        got = distance_watershed(
            np.full(box.shape, value, np.uint8), box=box, bounds=box, rule=DistanceRule()
        )
        assert len(np.unique(got)) == 1
        assert got.all()
    boundaries, _ = cells((30, 30, 20), n=12)
    box = Box.of_shape(boundaries.shape)
    every = distance_watershed(boundaries, box=box, bounds=box, rule=DistanceRule(min_size_vx=0, sigma=0))
    large = distance_watershed(boundaries, box=box, bounds=box, rule=DistanceRule(min_size_vx=400, sigma=0))
    sizes = np.unique(every, return_counts=True)[1]
    assert (sizes < 400).any()
    assert np.unique(large, return_counts=True)[1].min() >= 400


def test_wrong_arrays_are_refused():
    box = Box.of_shape((4, 4, 4))
    with pytest.raises(SpecError, match=r"boundaries must be uint8 of shape \(4, 4, 4\) .*got float64"):
        boundary_affinities(np.zeros((4, 4, 4)), core=box, bounds=box)
    with pytest.raises(SpecError, match=r"labels must have the shape \(4, 4, 4\) .* got \(4, 4, 3\)"):
        basins(np.zeros((4, 4, 3), np.uint64), np.zeros((4, 4, 4), np.uint8), core=box, bounds=box)
    with pytest.raises(SpecError, match=r"boundaries must be uint8 of shape \(4, 4, 4\), got uint8 of shape"):
        distance_watershed(np.zeros((4, 4, 3), np.uint8), box=box, bounds=box, rule=DistanceRule())
