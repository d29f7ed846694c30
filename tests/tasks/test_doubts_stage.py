"""Doubts: faults put into straight columns are found, nothing else is, and the blocks do not show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_runs import run_and_count

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, tile
from cloudseg.ops.doubts import DoubtRule, doubts
from cloudseg.tasking.steps import Layer, Site
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg_tasks.doubts import DoubtsStage

SHAPE = (48, 32, 24)
CELL = (16, 16, 8)
RULE = DoubtRule(cell=CELL, margin=4, end_px=30, conflict=0.8, hole_vx=50)


def columns():
    """Columns of 8 x 8 voxels from the lowest section to the highest."""
    x, y = np.mgrid[: SHAPE[0], : SHAPE[1]]
    flat = (1 + x // 8 * 4 + y // 8).astype(np.uint64)
    return np.asfortranarray(flat[:, :, None].repeat(SHAPE[2], 2))


def found(labels, *, at=(0, 0, 0), rule=RULE):
    bounds = Box.of_shape(SHAPE, at=at)
    mask = doubts(labels, core=bounds, bounds=bounds, rule=rule)
    return {tuple(c // n for c, n in zip(v, CELL, strict=True)) for v in np.argwhere(mask).tolist()}


def test_columns_are_beyond_doubt():
    assert found(columns()) == set()


def test_each_fault_is_found_where_it_is():
    broken = columns()
    broken[16:24, 8:16, 11:] = 99  # a column goes on under another name from section 11
    assert found(broken) == {(1, 0, 1)}
    tapering = columns()
    for z in range(11, SHAPE[2]):  # what lies beside takes over, two rows at a time
        tapering[max(24 - 2 * (z - 10), 16) : 24, 8:16, z] = tapering[24, 8, 0]
    assert found(tapering) == set()
    hole = columns()
    hole[34:40, 2:8, 1:3] = 0
    assert found(hole) == {(2, 0, 0)}
    shared = columns()
    shared[16:24, 8:16, 11:] = shared[24, 8, 0]  # a neighbour lies on it: a merge, or an end
    assert (1, 0, 1) in found(shared)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), block=st.tuples(*(st.sampled_from([1, 2, 3]) for _ in range(3))))
def test_the_blocks_do_not_show(seed, block):
    rng = np.random.default_rng(seed)
    labels = columns()
    for _ in range(3):
        x, y, z = (int(rng.integers(n - 8)) for n in SHAPE)
        labels[x : x + 7, y : y + 7, z : z + int(rng.integers(1, 9))] = rng.integers(0, 30)
    bounds = Box.of_shape(SHAPE, at=(5, -3, 7))
    whole = doubts(labels, core=bounds, bounds=bounds, rule=RULE)
    for core in tile(bounds, tuple(n * c for n, c in zip(block, CELL, strict=True))):
        box = RULE.box_of(core, bounds=bounds)
        part = doubts(labels[box.slices_in(bounds)], core=core, bounds=bounds, rule=RULE)
        np.testing.assert_array_equal(part, whole[core.slices_in(bounds)])


@pytest.fixture
def layers():
    clear_memory()
    labels = columns()
    labels[16:24, 8:16, 11:] = 99
    info = VolumeInfo(
        bounds=Box.of_shape(SHAPE, at=(5, -3, 7)),
        voxel_size_nm=(8, 8, 8),
        chunk_shape=(16, 16, 8),
        dtype="uint64",
        layer="segmentation",
    )
    create_volume("memory://doubts/fast", info).write(info.bounds, labels)
    yield {"segmentation": Layer("segmentation", "memory://doubts/fast", info)}
    clear_memory()


def test_the_stage_writes_a_mask_and_counts(layers):
    options = {"cell_vx": CELL, "margin_vx": 4, "end_um2": 0.0019, "chunk_shape": (16, 16, 8)}
    masks = []
    for block in ((16, 16, 8), (48, 32, 24)):
        root = f"memory://doubts/{block[0]}"
        stage = DoubtsStage(**options, block_shape=block)
        made, counters = run_and_count([stage], layers, root, repeat=block[0] == 16)
        n_runs = 2 if block[0] == 16 else 1
        assert counters["doubts", "doubtful"] == n_runs * 16 * 16 * 8
        assert counters["doubts", "voxels"] == n_runs * 48 * 32 * 24
        masks.append(open_volume(made["doubts"].uri).read(made["doubts"].info.bounds))
    np.testing.assert_array_equal(*masks)
    assert masks[0][16:32, :16, 8:16].all()


def test_what_does_not_fit_is_refused(layers):
    with pytest.raises(ValueError, match=r"block_shape\[y\]=24 is not a multiple of cell_vx\[y\]=16"):
        DoubtsStage(block_shape=(16, 24, 8), cell_vx=CELL, chunk_shape=(8, 8, 8))
    image = layers["segmentation"].info.model_copy(update={"dtype": "uint8", "layer": "image"})
    site = Site(
        "memory://doubts",
        {"segmentation": Layer("segmentation", "memory://i", image)},
        open_volume,
        open_objects,
    )
    with pytest.raises(SpecError, match="'doubts' needs a segmentation of uint64"):
        DoubtsStage().expand(site)
    bounds = Box.of_shape(SHAPE)
    core = Box((8, 0, 0), (48, 32, 24))
    labels = np.zeros(RULE.box_of(core, bounds=bounds).shape, np.uint64)
    with pytest.raises(SpecError, match="does not begin with a cell"):
        doubts(labels, core=core, bounds=bounds, rule=RULE)
    with pytest.raises(SpecError, match="labels must have shape"):
        doubts(np.zeros((2, 2, 2), np.uint64), core=bounds, bounds=bounds, rule=RULE)
