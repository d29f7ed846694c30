"""Blockwise statistics equal one-shot statistics, and both equal plain numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, tile
from cloudseg.ops.statistics import block_statistics, describe, merge_statistics, partition_of

sizes = st.integers(1, 9)
shapes = st.tuples(sizes, sizes, sizes)
origins = st.tuples(*(st.integers(-20, 1000),) * 3)


def blocks_of(labels: np.ndarray, bounds: Box, block_shape: tuple[int, int, int]):
    for core in tile(bounds, block_shape):
        box = Box(tuple(c - 1 for c in core.start), core.stop).intersect(bounds)
        yield block_statistics(labels[box.slices_in(bounds)], box=box, core=core)


def assert_same(a, b):
    for name in a.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, block=shapes, origin=origins, seed=st.integers(0, 999), n_labels=st.integers(1, 12))
def test_blockwise_equals_one_shot_for_any_tiling_and_order(shape, block, origin, seed, n_labels):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_labels, shape).astype(np.uint64) * np.uint64(2**60 + 7)
    bounds = Box.of_shape(shape, at=origin)
    parts = list(blocks_of(labels, bounds, block))
    rng.shuffle(parts)
    assert_same(merge_statistics(parts), block_statistics(labels, box=bounds, core=bounds))


@settings(max_examples=30, deadline=None)
@given(shape=shapes, origin=origins, seed=st.integers(0, 999))
def test_every_number_equals_plain_numpy(shape, origin, seed):
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint32)
    bounds = Box.of_shape(shape, at=origin)
    table = block_statistics(labels, box=bounds, core=bounds)
    np.testing.assert_array_equal(table.ids, np.setdiff1d(labels, [0]))
    for row, label in enumerate(table.ids):
        where = np.argwhere(labels == label) + np.asarray(origin)
        assert table.n_voxels[row] == len(where)
        np.testing.assert_array_equal(table.sum_vx[row], where.sum(axis=0))
        np.testing.assert_array_equal(table.start_vx[row], where.min(axis=0))
        np.testing.assert_array_equal(table.stop_vx[row], where.max(axis=0) + 1)
        mask = labels == label
        faces = [np.count_nonzero(np.diff(mask.astype(np.int8), axis=axis)) for axis in range(3)]
        np.testing.assert_array_equal(table.n_faces[row], faces)


def test_the_table_grows_past_its_first_capacity():
    labels = np.arange(1, 40 * 40 * 10 + 1, dtype=np.uint64).reshape((40, 40, 10), order="F")
    bounds = Box.of_shape(labels.shape)
    table = block_statistics(labels, box=bounds, core=bounds)
    np.testing.assert_array_equal(table.ids, np.arange(1, labels.size + 1, dtype=np.uint64))
    assert (table.n_voxels == 1).all()


def test_physical_columns_have_voxel_centres_and_the_border_flag():
    labels = np.zeros((6, 6, 6), np.uint64)
    labels[2:4, 2:4, 2:4] = 5
    labels[0, 4, 4] = 9
    bounds = Box.of_shape((6, 6, 6), at=(10, 20, 30))
    columns = describe(
        block_statistics(labels, box=bounds, core=bounds), bounds=bounds, voxel_size_nm=(4.0, 4.0, 40.0)
    )
    assert columns["id"].tolist() == [5, 9]
    assert columns["n_voxels"].tolist() == [8, 1]
    assert columns["on_border"].tolist() == [False, True]
    np.testing.assert_allclose(columns["volume_um3"], [8 * 640e-9, 640e-9])
    # 8 faces of 4 x 40 nm towards x, as many towards y, and 8 of 4 x 4 nm towards z
    np.testing.assert_allclose(columns["surface_um2"][0], (8 * 160 * 2 + 8 * 16) * 1e-6)
    centroid = [columns[f"centroid_{a}_nm"][0] for a in "xyz"]
    np.testing.assert_allclose(centroid, [13 * 4, 23 * 4, 33 * 40])
    assert [columns[f"start_{a}_vx"][0] for a in "xyz"] == [12, 22, 32]
    assert [columns[f"stop_{a}_nm"][0] for a in "xyz"] == [14 * 4, 24 * 4, 34 * 40]


def test_no_tables_give_an_empty_table():
    assert len(merge_statistics([])) == 0
    empty = block_statistics(
        np.zeros((2, 2, 2), np.uint8), box=Box.of_shape((2, 2, 2)), core=Box.of_shape((2, 2, 2))
    )
    assert len(merge_statistics([empty, empty])) == 0


def test_partitions_are_even_for_dense_and_for_strided_ids():
    for ids in (np.arange(1, 8001), np.arange(1, 8001) * 4096):
        counts = np.bincount(partition_of(ids.astype(np.uint64), n_partitions=8), minlength=8)
        assert counts.min() > 800
        assert counts.max() < 1200


def test_bad_arguments_are_named():
    box = Box.of_shape((2, 2, 2))
    with pytest.raises(SpecError, match="do not cover the box 0,0,0:2,2,2"):
        block_statistics(np.zeros((2, 2, 3), np.uint8), box=box, core=box)
    with pytest.raises(SpecError, match="unsigned integers, got dtype float32"):
        block_statistics(np.zeros((2, 2, 2), np.float32), box=box, core=box)
    with pytest.raises(SpecError, match="must be the upper part"):
        block_statistics(np.zeros((2, 2, 2), np.uint8), box=box, core=Box((0, 0, 0), (1, 2, 2)))
