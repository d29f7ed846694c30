"""Growing somas from their seeds: against the definition, and for any blocks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, tile
from cloudseg.ops.soma_growth import SeedRule, extent_mask, grow, halo_of_reach, seed_mask

SIZE = (8.0, 8.0, 5.0)


def by_definition(seeds, extent, boundary, *, reach_nm, boundary_cost):
    """Relax every pair of face neighbours until nothing changes: cost first, then the smaller id."""
    steps = [round(s) for s in SIZE]
    best = {tuple(v): (0, int(seeds[tuple(v)])) for v in np.argwhere(seeds)}
    changed = True
    while changed:
        changed = False
        for v, (cost, name) in sorted(best.items()):
            for axis, side in itertools.product(range(3), (-1, 1)):
                to = tuple(c + side * (a == axis) for a, c in enumerate(v))
                if not all(0 <= c < n for c, n in zip(to, seeds.shape, strict=True)):
                    continue
                if not extent[to] or seeds[to]:
                    continue
                total = cost + steps[axis] * (255 + boundary_cost * int(boundary[to]))
                if total <= reach_nm * 255 and (total, name) < best.get(to, (np.inf, 0)):
                    best[to] = (total, name)
                    changed = True
    out = np.zeros(seeds.shape, np.uint64)
    for v, (_, name) in best.items():
        out[v] = name
    return out


def scene(seed, shape):
    rng = np.random.default_rng(seed)
    seeds = np.asfortranarray(
        np.where(rng.random(shape) < 0.05, rng.integers(1, 6, shape), 0).astype(np.uint64)
    )
    seeds[seeds == 5] = np.uint64(2**63 + 7)  # ids are not small numbers
    extent = np.asfortranarray(rng.random(shape) < 0.8)
    boundary = np.asfortranarray(rng.choice(np.array([0, 100, 255], np.uint8), shape))
    return seeds, extent, boundary


@given(seed=st.integers(0, 9999), reach_nm=st.sampled_from([0, 10, 24, 60]), cost=st.integers(0, 3))
def test_a_voxel_goes_to_the_seed_with_the_cheapest_path_and_of_equals_to_the_smaller_id(
    seed, reach_nm, cost
):
    seeds, extent, boundary = scene(seed, (6, 5, 4))
    got = grow(seeds, extent, boundary, voxel_size_nm=SIZE, reach_nm=reach_nm, boundary_cost=cost)
    expected = by_definition(seeds, extent, boundary, reach_nm=reach_nm, boundary_cost=cost)
    np.testing.assert_array_equal(got, expected)


@given(
    seed=st.integers(0, 9999),
    block=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
    reach_nm=st.sampled_from([0, 9, 17, 40]),
)
def test_blocks_with_a_halo_of_the_reach_equal_the_whole(seed, block, reach_nm):
    seeds, extent, boundary = scene(seed, (12, 11, 10))
    kept = {"voxel_size_nm": SIZE, "reach_nm": reach_nm, "boundary_cost": 1}
    whole = grow(seeds, extent, boundary, **kept)
    bounds = Box.of_shape(seeds.shape)
    out = np.zeros_like(whole)
    for core in tile(bounds, block):
        outer = core.grow(halo_of_reach(reach_nm, SIZE)).intersect(bounds)
        there = outer.slices_in(bounds)
        part = grow(np.asfortranarray(seeds[there]), extent[there], boundary[there], **kept)
        out[core.slices_in(bounds)] = part[core.slices_in(outer)]
    np.testing.assert_array_equal(out, whole)


def test_two_balls_that_touch_are_parted_at_their_neck_and_grow_to_their_rims():
    x, y, z = np.indices((60, 30, 30))
    first = (x - 18) ** 2 + (y - 15) ** 2 + (z - 15) ** 2
    second = (x - 40) ** 2 + (y - 15) ** 2 + (z - 15) ** 2
    extent = (first <= 144) | (second <= 144)
    seeds = np.where(first <= 16, 7, np.where(second <= 16, 3, 0)).astype(np.uint64)
    got = grow(seeds, extent, voxel_size_nm=(1, 1, 1), reach_nm=40)
    assert ((got > 0) == extent).all()
    sure = (first < second - 2) & extent
    assert (got[sure] == 7).mean() > 0.99
    sure = (second < first - 2) & extent
    assert (got[sure] == 3).mean() > 0.99


def test_what_is_seed_and_what_is_soma():
    heads = {
        "interior": np.array([[[200, 200, 100, 200]]], np.uint8),
        "boundary": np.array([[[0, 200, 90, 10]]], np.uint8),
        "distance": np.array([[[200, 200, 200, 50]]], np.uint8),
    }
    assert seed_mask(heads, SeedRule()).tolist() == [[[True, False, False, False]]]
    assert extent_mask(heads, SeedRule()).tolist() == [[[True, True, False, True]]]
    assert extent_mask(heads, SeedRule(rim=True, extent=180)).tolist() == [[[True, True, True, True]]]
    with pytest.raises(SpecError, match=r"seeds of somas need a head .* got boundary"):
        seed_mask({"boundary": heads["boundary"]}, SeedRule())
    with pytest.raises(
        SpecError, match=r"the extent of somas needs the heads interior, boundary, got interior"
    ):
        extent_mask({"interior": heads["interior"]}, SeedRule(rim=True))


def test_arrays_and_numbers_that_do_not_fit_are_refused():
    seeds, extent = np.zeros((2, 2, 2), np.uint64), np.ones((2, 2, 2), bool)
    with pytest.raises(SpecError, match=r"must be \(x, y, z\) of one shape"):
        grow(seeds, extent[:1], voxel_size_nm=SIZE, reach_nm=1)
    with pytest.raises(SpecError, match=r"seeds must be uint64, got int64"):
        grow(seeds.astype(np.int64), extent, voxel_size_nm=SIZE, reach_nm=1)
    with pytest.raises(SpecError, match=r"reach_nm must lie between 0 and 100000"):
        grow(seeds, extent, voxel_size_nm=SIZE, reach_nm=-1)
