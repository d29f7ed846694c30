"""Pyramids are exact, equal for every block, and bring voxels towards cubes."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, tile
from cloudseg.ops.downsample import coarse_box, downsample_mean, downsample_mode, fine_box, next_factor

factors = st.tuples(*[st.integers(1, 3)] * 3)
shapes = st.tuples(*[st.integers(1, 7)] * 3)
starts = st.tuples(*[st.integers(-5, 5)] * 3)


def cells(array, factor, start):
    """Every cell with its voxels in x-fastest order, the slow way."""
    box = Box.of_shape(array.shape, at=start)
    coarse = coarse_box(box, factor)
    for cell in tile(coarse, (1, 1, 1)):
        voxels = fine_box(cell, factor).intersect(box)
        yield cell.slices_in(coarse), array[voxels.slices_in(box)].ravel(order="F").tolist()


@settings(deadline=None, max_examples=60)
@given(
    shape=shapes,
    factor=factors,
    start=starts,
    seed=st.integers(0, 99),
    dtype=st.sampled_from(["u1", "u2", "u4", "u8"]),
)
def test_integer_means_are_exact_and_rounded_half_up(shape, factor, start, seed, dtype):
    top = np.iinfo(dtype).max
    image = np.random.default_rng(seed).integers(0, top, shape, dtype=dtype, endpoint=True)
    image[image < top // 3] = top  # near the top, sums overflow where they can
    result = downsample_mean(image, factor, start=start)
    assert result.dtype == image.dtype
    assert result.flags.f_contiguous
    for where, voxels in cells(image, factor, start):
        expected = int(Fraction(sum(voxels), len(voxels)) + Fraction(1, 2))
        assert result[where].item() == expected


def test_float_means_stay_float32_and_channels_stay_apart():
    image = np.arange(2 * 4 * 4 * 4, dtype=np.float32).reshape(2, 4, 4, 4)
    result = downsample_mean(image, (2, 2, 2))
    assert result.dtype == np.float32
    assert result.shape == (2, 2, 2, 2)
    assert result[1, 0, 0, 0] == image[1, :2, :2, :2].mean()


@settings(deadline=None, max_examples=60)
@given(shape=shapes, factor=factors, start=starts, seed=st.integers(0, 99), n=st.integers(1, 6))
def test_the_mode_is_the_most_frequent_id_and_ties_go_to_the_first_voxel(shape, factor, start, seed, n):
    labels = np.random.default_rng(seed).integers(0, n, shape, dtype=np.uint64) * np.uint64(2**61)
    result = downsample_mode(labels, factor, start=start)
    for where, voxels in cells(labels, factor, start):
        expected = max(voxels, key=lambda v: (voxels.count(v), -voxels.index(v)))
        assert result[where].item() == expected


@settings(deadline=None, max_examples=30)
@given(
    shape=shapes,
    factor=factors,
    start=starts,
    block=st.tuples(*[st.integers(1, 4)] * 3),
    seed=st.integers(0, 99),
)
def test_blocks_of_whole_cells_equal_the_whole_volume(shape, factor, start, block, seed):
    labels = np.random.default_rng(seed).integers(0, 5, shape, dtype=np.uint32)
    box = Box.of_shape(shape, at=start)
    coarse = coarse_box(box, factor)
    for function in (downsample_mean, downsample_mode):
        whole = function(labels, factor, start=start)
        assert whole.shape == coarse.shape
        for cell_box in tile(coarse, block):
            voxels = fine_box(cell_box, factor).intersect(box)
            part = function(labels[voxels.slices_in(box)], factor, start=voxels.start)
            np.testing.assert_array_equal(part, whole[cell_box.slices_in(coarse)])


def test_renaming_labels_renames_their_mode():
    labels = np.random.default_rng(0).integers(0, 4, (9, 9, 9), dtype=np.uint64)
    names = np.array([70, 3, 900, 1], np.uint64)
    np.testing.assert_array_equal(
        downsample_mode(names[labels], (2, 2, 2)), names[downsample_mode(labels, (2, 2, 2))]
    )


def test_thick_sections_are_halved_last():
    size, shape, steps = (4.0, 4.0, 40.0), (4096, 4096, 100), []
    for _ in range(5):
        factor = next_factor(size, shape)
        steps.append(factor)
        size = tuple(s * f for s, f in zip(size, factor, strict=True))
    assert steps == [(2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]


def test_isotropic_voxels_are_halved_everywhere_and_single_sections_never():
    assert next_factor((8, 8, 8), (100, 100, 100)) == (2, 2, 2)
    assert next_factor((8, 8, 8), (100, 100, 1)) == (2, 2, 1)
    assert next_factor((8, 8, 1), (100, 100, 1)) == (2, 2, 1)
    assert next_factor((8, 8, 8), (1, 1, 1)) == (1, 1, 1)


@pytest.mark.parametrize("ratio", [1, 1.2, 1.5, 2, 3, 10, 12.5])
def test_repeated_steps_never_leave_voxels_longer_than_root_two(ratio):
    size, shape = (4.0, 4.0, 4.0 * ratio), (2**16, 2**16, 2**16)
    for _ in range(8):
        size = tuple(s * f for s, f in zip(size, next_factor(size, shape), strict=True))
    assert max(size) / min(size) <= 2**0.5 + 1e-9


def test_bad_input_is_refused():
    with pytest.raises(SpecError, match=r"\(x, y, z\) or \(c, x, y, z\), got shape \(2, 2\)"):
        downsample_mean(np.zeros((2, 2), np.uint8), (2, 2, 2))
    with pytest.raises(SpecError, match="integers from 0 up, got dtype int16"):
        downsample_mean(np.full((2, 2, 2), -1, np.int16), (2, 2, 2))
    with pytest.raises(SpecError, match="labels must be"):
        downsample_mode(np.zeros((2, 2, 2), np.float32), (2, 2, 2))
    for factor in itertools.chain([(0, 1, 1)], [(2, 2)]):
        with pytest.raises(SpecError, match="downsampling factor is three numbers"):
            downsample_mean(np.zeros((2, 2, 2), np.uint8), factor)
