"""Somas measured block by block are the same numbers as measured at once, and those are plain numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, tile
from cloudseg.ops.contingency import contingency
from cloudseg.ops.soma_match import match
from cloudseg.ops.soma_places import ball_fractions, deepest_voxel, nearest_distances, neighbour_counts
from cloudseg.ops.soma_table import add_somas, describe_somas, measure_somas, renamed_somas

sizes = st.integers(1, 9)
shapes = st.tuples(sizes, sizes, sizes)
# Far away, squares of coordinates no longer fit 64 bits.
origins = st.tuples(*(st.sampled_from([-20, 0, 3, 2_000_000_000]),) * 3)


def made(shape, origin, seed, *, n_labels=5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_labels, shape).astype(np.uint64) * np.uint64(2**60 + 7)
    maps = {name: rng.integers(0, 256, shape).astype(np.uint8) for name in ("interior", "boundary")}
    return labels, maps, Box.of_shape(shape, at=origin)


def block(labels, maps, bounds, core):
    box = core.grow((1, 1, 1)).intersect(bounds)
    cut = {name: values[core.slices_in(bounds)] for name, values in maps.items()}
    return measure_somas(labels[box.slices_in(bounds)], box=box, core=core, **cut)


def assert_same(a, b, *, but=()):
    for name in a.__dataclass_fields__:
        if name not in but:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, cut=shapes, origin=origins, seed=st.integers(0, 999))
def test_any_tiling_in_any_order_adds_up_to_the_one_shot_table(shape, cut, origin, seed):
    labels, maps, bounds = made(shape, origin, seed)
    parts = [block(labels, maps, bounds, core) for core in tile(bounds, cut)]
    np.random.default_rng(seed).shuffle(parts)
    total = add_somas(parts)
    assert_same(total, measure_somas(labels, box=bounds, core=bounds, **maps), but=("n_blocks",))
    assert total.n_blocks.sum() == sum(len(part) for part in parts)
    half = len(parts) // 2
    assert_same(add_somas([add_somas(parts[:half]), add_somas(parts[half:])]), total)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, origin=origins, seed=st.integers(0, 999))
def test_every_number_is_that_of_plain_numpy(shape, origin, seed):
    labels, maps, bounds = made(shape, origin, seed)
    table = measure_somas(labels, box=bounds, core=bounds, **maps)
    size = (16.0, 8.0, 40.0)
    found = describe_somas(table, bounds=bounds, voxel_size_nm=size)
    np.testing.assert_array_equal(table.ids, np.setdiff1d(labels, [0]))
    for row, label in enumerate(table.ids):
        mask = labels == label
        at = np.argwhere(mask)
        assert table.n_voxels[row] == len(at)
        assert table.sum_interior[row] == maps["interior"][mask].sum()
        # A neighbour outside the volume is taken for the voxel itself.
        padded = np.pad(labels, 1, mode="edge")
        surface = np.zeros(mask.shape, bool)
        for axis in range(3):
            for step in (-1, 1):
                surface |= mask & (np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] != label)
        assert table.n_surface[row] == surface.sum()
        assert table.sum_boundary[row] == maps["boundary"][surface].sum()
        exact = [sum(int(v) for v in at[:, axis]) + len(at) * origin[axis] for axis in range(3)]
        assert table.sum_vx[row].tolist() == exact
        np.testing.assert_allclose(
            found["centroid_nm"][row], (at.mean(axis=0) + np.asarray(origin) + 0.5) * size
        )
        covariance = np.cov(at.T * np.asarray(size)[:, None], bias=True) + np.diag(np.square(size) / 12)
        values = np.linalg.eigvalsh(covariance)
        np.testing.assert_allclose(found["axes_um"][row], 1e-3 * np.sqrt(5 * values[::-1]), rtol=1e-6)
        np.testing.assert_allclose(
            covariance @ found["axis_dir"][row],
            values[2] * found["axis_dir"][row],
            rtol=1e-5,
            atol=1e-5 * values[2],
        )
        assert np.linalg.norm(found["axis_dir"][row]) == pytest.approx(1)
        np.testing.assert_array_equal(found["start_nm"][row], (at.min(axis=0) + origin) * size)
        np.testing.assert_array_equal(found["stop_nm"][row], (at.max(axis=0) + 1 + origin) * size)
        touched = [
            side
            for axis in range(3)
            for side, is_there in (
                (2 * axis, at[:, axis].min() == 0),
                (2 * axis + 1, at[:, axis].max() == shape[axis] - 1),
            )
            if is_there
        ]
        assert found["edge_faces"][row] == sum(1 << side for side in touched)


@settings(max_examples=30, deadline=None)
@given(shape=shapes, origin=origins, seed=st.integers(0, 999))
def test_joined_somas_add_up_as_if_they_had_one_label(shape, origin, seed):
    labels, _, bounds = made(shape, origin, seed)
    old = np.unique(labels[labels > 0])[1:]
    new = np.full(len(old), 9, np.uint64)
    joined = np.where(np.isin(labels, old), np.uint64(9), labels)
    table = measure_somas(labels, box=bounds, core=bounds)
    # Voxels between two joined somas are no surface any more: that column is of the pieces.
    assert_same(
        renamed_somas(table, old, new),
        measure_somas(joined, box=bounds, core=bounds),
        but=("n_blocks", "n_surface", "sum_boundary"),
    )


def test_a_ball_has_the_volume_radius_and_axes_of_a_ball_and_an_ellipsoid_those_of_one():
    size = np.array([64.0, 64.0, 40.0])
    at = np.stack(np.meshgrid(*(np.arange(n) for n in (80, 60, 90)), indexing="ij"), axis=-1)
    nm = (at + 0.5) * size - np.array([2560.0, 1920.0, 1800.0])
    labels = np.zeros(at.shape[:3], np.uint64)
    labels[np.linalg.norm(nm, axis=-1) < 1500] = 3
    bounds = Box.of_shape(labels.shape, at=(10**9, 5, 7))
    found = describe_somas(
        measure_somas(labels, box=bounds, core=bounds), bounds=bounds, voxel_size_nm=tuple(size)
    )
    np.testing.assert_allclose(found["radius_um"], [1.5], rtol=2e-3)
    np.testing.assert_allclose(found["axes_um"], [[1.5, 1.5, 1.5]], rtol=5e-3)
    assert found["edge_faces"].tolist() == [0]
    labels[:] = np.linalg.norm(nm / [2000, 1000, 1500], axis=-1) < 1
    found = describe_somas(
        measure_somas(labels, box=bounds, core=bounds), bounds=bounds, voxel_size_nm=tuple(size)
    )
    np.testing.assert_allclose(found["axes_um"], [[2.0, 1.5, 1.0]], rtol=5e-3)
    np.testing.assert_allclose(found["axis_dir"], [[1, 0, 0]], atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=st.integers(0, 999))
def test_no_voxel_lies_deeper_than_the_deepest(shape, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.9
    mask[0, 0, 0] = True
    size = np.array([4.0, 4.0, 40.0])
    (x, y, z), depth_nm = deepest_voxel(mask, voxel_size_nm=tuple(size))
    assert mask[x, y, z]
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    depths = {
        tuple(at.tolist()): np.linalg.norm((outside - at) * size, axis=1).min() for at in np.argwhere(mask)
    }
    assert depth_nm == pytest.approx(max(depths.values()))
    assert depths[x, y, z] == pytest.approx(depth_nm)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 30), seed=st.integers(0, 999), radius=st.floats(0.5, 8))
def test_distances_and_counts_are_those_of_all_pairs(n, seed, radius):
    points = np.random.default_rng(seed).integers(0, 6, (n, 3)).astype(np.float64)
    pairs = np.linalg.norm(points[:, None] - points[None], axis=-1)
    pairs[np.arange(n), np.arange(n)] = np.inf
    expected = pairs.min(axis=1) if n > 1 else np.full(n, np.inf)
    np.testing.assert_allclose(nearest_distances(points), expected)
    counts = neighbour_counts(points, radius_nm=radius)
    assert ((pairs < radius - 1e-9).sum(axis=1) <= counts).all()
    assert (counts <= (pairs < radius + 1e-9).sum(axis=1)).all()


def test_bad_arguments_are_named():
    box = Box.of_shape((2, 2, 2))
    labels = np.ones((2, 2, 2), np.uint64)
    with pytest.raises(SpecError, match="must cover the box 0,0,0:2,2,2"):
        measure_somas(labels[:1], box=box, core=box)
    with pytest.raises(SpecError, match="got dtype int64: ids never pass through floats"):
        measure_somas(labels.astype(np.int64), box=box, core=box)
    with pytest.raises(SpecError, match="the boundary map must be uint8 and cover the core"):
        measure_somas(labels, box=box, core=box, boundary=np.zeros((2, 2, 2), np.float32))
    with pytest.raises(SpecError, match="has no voxel, so none is the deepest"):
        deepest_voxel(labels * 0, voxel_size_nm=(4, 4, 4))
    with pytest.raises(SpecError, match="must be above 0 nm, got 0"):
        neighbour_counts(np.zeros((2, 3)), radius_nm=0)
    nothing = measure_somas(labels * 0, box=box, core=box)
    assert len(add_somas([])) == len(add_somas([nothing, nothing])) == 0
    assert len(describe_somas(nothing, bounds=box, voxel_size_nm=(4, 4, 4))["axes_um"]) == 0


def test_a_ball_in_the_middle_a_face_or_a_corner_of_a_box_lies_in_it_wholly_half_or_an_eighth():
    points = np.array([[50.0, 50, 50], [0, 50, 50], [0, 0, 50], [100, 100, 100], [50, 50, 95]])
    found = ball_fractions(points, radius_nm=10, lower_nm=(0, 0, 0), upper_nm=(100, 100, 100))
    # A cap of height h is h^2 (3 r - h) pi / 3 of 4 pi r^3 / 3.
    np.testing.assert_allclose(found, [1, 0.5, 0.25, 0.125, 1 - 25 * 25 / 4000], atol=0.01)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.25, 0.6]))
def test_somas_are_matched_by_the_largest_overlap_that_is_free(shape, seed, share):
    rng = np.random.default_rng(seed)
    new, old = (rng.integers(0, 4, shape).repeat(2, axis=0).astype(np.uint64) for _ in range(2))
    new = np.where(rng.random(new.shape) < 0.6, old, new)
    found = match(contingency(new, old, mask=(new > 0) | (old > 0)), min_share=share)
    pairs, covers = {}, {}
    n = {
        (a, b): int(((new == a) & (old == b)).sum())
        for a in np.setdiff1d(new, [0]).tolist()
        for b in np.setdiff1d(old, [0]).tolist()
    }
    for a, b in sorted(n, key=lambda ab: (-n[ab], ab[1], ab[0])):
        if not n[a, b]:
            continue
        if n[a, b] > share * min((new == a).sum(), (old == b).sum()):
            if a not in pairs and b not in pairs.values():
                pairs[a] = b
        if n[a, b] > share * (old == b).sum():
            covers.setdefault(b, a)
    covers = {b: a for b, a in covers.items() if b not in pairs.values()}
    assert dict(zip(found.new.tolist(), found.old.tolist(), strict=True)) == pairs
    assert dict(zip(found.covered.tolist(), found.by.tolist(), strict=True)) == covers
