"""The patch lattice and the blending of patches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.blend import SlabBlender, to_uint8
from cloudseg.ops.lattice import PatchLattice, mirror

small = st.integers(1, 23)
shapes = st.tuples(small, small, small)
rims = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2))
starts = st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(-9, 9))


@st.composite
def lattices(draw: st.DrawFn) -> PatchLattice:
    bounds = Box.of_shape(draw(shapes), at=draw(starts))
    context, blend = draw(rims), draw(rims)
    extra = draw(st.tuples(*[st.integers(1, 9)] * 3))
    patch = tuple(2 * (c + b) + e for c, b, e in zip(context, blend, extra, strict=True))
    return PatchLattice(bounds, patch, context, blend)


def all_patches(lattice: PatchLattice) -> list[tuple[int, int, int]]:
    nx, ny, nz = lattice.count
    return [(i, j, k) for k in range(nz) for j in range(ny) for i in range(nx)]


@given(lattices())
@settings(max_examples=100, deadline=None)
def test_the_weights_of_all_patches_add_up_to_one_at_every_voxel(lattice):
    total = np.zeros(lattice.bounds.shape, np.float64)
    for index in all_patches(lattice):
        support = lattice.support_box(index)
        x, y, z = (lattice.weights(axis, index[axis]) for axis in range(3))
        assert support.shape == (len(x), len(y), len(z))
        assert min(x.min(), y.min(), z.min()) > 0
        total[support.slices_in(lattice.bounds)] += np.einsum("i,j,k->ijk", x, y, z)
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


@given(lattices(), st.data())
@settings(max_examples=100, deadline=None)
def test_touching_names_exactly_the_patches_that_have_a_say_in_a_box(lattice, data):
    corner = [data.draw(st.integers(0, s - 1)) for s in lattice.bounds.shape]
    size = [data.draw(st.integers(1, s - c)) for s, c in zip(lattice.bounds.shape, corner, strict=True)]
    box = Box.of_shape(tuple(size), at=tuple(corner)).shift(lattice.bounds.start)
    expected = [i for i in all_patches(lattice) if not lattice.support_box(i).intersect(box).is_empty]
    assert list(lattice.order(box)) == expected
    assert expected


@given(shapes, rims, rims)
@settings(max_examples=100, deadline=None)
def test_a_fitted_lattice_covers_the_volume_with_no_more_patches_and_no_larger_ones(shape, context, blend):
    patch = tuple(-(-(2 * (c + b) + 5) // 4) * 4 for c, b in zip(context, blend, strict=True))
    bounds = Box.of_shape(shape, at=(5, 0, -3))
    full = PatchLattice(bounds, patch, context, blend)
    fitted = PatchLattice.fit(bounds, patch_shape=patch, context=context, blend=blend, multiple=(4, 4, 4))
    assert all(a <= b and a % 4 == 0 for a, b in zip(fitted.patch_shape, patch, strict=True))
    assert fitted.count == full.count
    last = fitted.support_box(tuple(n - 1 for n in fitted.count))
    assert last.stop == bounds.stop


def test_a_volume_that_needs_few_patches_gets_smaller_ones():
    bounds = Box.of_shape((192, 100, 1000))
    fitted = PatchLattice.fit(
        bounds, patch_shape=(160, 160, 160), context=(12, 12, 12), blend=(8, 8, 8), multiple=(8, 8, 8)
    )
    assert fitted.patch_shape == (128, 128, 160)
    assert fitted.count == (2, 1, 8)


@given(st.integers(-30, 30), st.integers(1, 40), st.integers(1, 12))
def test_mirror_equals_numpy_reflect_padding(start, length, size):
    before, after = max(0, -start), max(0, start + length - size)
    padded = np.pad(np.arange(size), (before, after), mode="reflect")
    expected = padded[start + before : start + before + length]
    np.testing.assert_array_equal(mirror(start + 7, start + length + 7, low=7, high=size + 7) - 7, expected)


@given(lattices(), st.data())
@settings(max_examples=60, deadline=None)
def test_any_block_blends_to_the_same_bits_as_the_whole(lattice, data):
    seed = data.draw(st.integers(0, 9))
    predictions = {
        index: np.random.default_rng([seed, *index]).random((2, *lattice.patch_shape), np.float32)
        for index in all_patches(lattice)
    }

    def blended(core: Box, z_cuts: bool) -> np.ndarray:
        blender = SlabBlender(lattice, core, n_channels=2)
        slabs = []
        for k in lattice.touching(core)[2]:
            for index in (i for i in lattice.order(core) if i[2] == k):
                blender.add(index, predictions[index])
            if z_cuts:
                slabs.append(blender.take(blender.finished_below(k)))
        if not z_cuts:
            slabs.append(blender.take(core.stop[2]))
        assert slabs[0][0].start == core.start
        assert slabs[-1][0].stop == core.stop
        return np.concatenate([sums for _, sums in slabs], axis=3)

    whole = blended(lattice.bounds, z_cuts=False)
    corner = [data.draw(st.integers(0, s - 1)) for s in lattice.bounds.shape]
    size = [data.draw(st.integers(1, s - c)) for s, c in zip(lattice.bounds.shape, corner, strict=True)]
    core = Box.of_shape(tuple(size), at=tuple(corner)).shift(lattice.bounds.start)
    part = whole[(slice(None), *core.slices_in(lattice.bounds))]
    np.testing.assert_array_equal(blended(core, z_cuts=True), part)


def test_probabilities_become_the_nearest_of_256_levels():
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    values = np.concatenate([levels, levels - np.float32(0.0019), levels + np.float32(0.0019), [1.0000002]])
    got = to_uint8(values[None, :, None, None].astype(np.float32))
    expected = np.concatenate([np.arange(256)] * 3 + [[255]])
    np.testing.assert_array_equal(got[0, :, 0, 0], expected)
    assert got.flags.f_contiguous


def test_rims_that_use_up_a_patch_are_refused():
    with pytest.raises(SpecError, match=r"a patch of 16 voxels on y is used up by its rims .* at least 17"):
        PatchLattice(Box.of_shape((9, 9, 9)), (32, 16, 32), (4, 4, 4), (4, 4, 4))
    with pytest.raises(SpecError, match="must not be negative"):
        PatchLattice(Box.of_shape((9, 9, 9)), (32, 16, 32), (-4, 4, 4), (4, 4, 4))
