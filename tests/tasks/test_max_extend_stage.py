"""MaxExtend as queued stages: in any order, twice, and for any block shape, with sections missing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.max_extend import LinkRule, links, section_overlaps
from cloudseg.ops.remap import remap
from cloudseg.ops.union_find import components
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg_tasks.max_extend import MaxExtendStage
from cloudseg_tasks.registry import load_task

BOUNDS = Box.of_shape((24, 20, 11), at=(5, -3, 100))


@pytest.fixture
def root():
    clear_memory()
    yield "memory://max-extend"
    clear_memory()


def segments():
    """Wandering discs, numbered anew in each section."""
    labels = np.zeros(BOUNDS.shape, np.uint64, order="F")
    x, y = np.mgrid[: BOUNDS.shape[0], : BOUNDS.shape[1]]
    rng = np.random.default_rng(5)
    centres = rng.uniform(3, 20, (9, 2))
    for z in range(BOUNDS.shape[2]):
        centres += rng.normal(0, 1.2, centres.shape)
        for k, (cx, cy) in enumerate(centres):
            labels[(x - cx) ** 2 + (y - cy) ** 2 < 12, z] = 1 + k + 2**40 * (z + 1)
    return labels


def put(labels, uri, **changes):
    info = VolumeInfo(
        bounds=BOUNDS, voxel_size_nm=(6, 6, 30), chunk_shape=(8, 8, 4), dtype="uint64", layer="segmentation"
    )
    create_volume(uri, info).write(BOUNDS, labels)
    return Layer("supervoxels", uri, info.model_copy(update=changes))


def run(stage, layer, root, *, seed=0, repeat=1):
    ctx = Context(open_volume=open_volume, open_objects=open_objects)
    plan = stage.expand(Site(root, {"supervoxels": layer}, open_volume, open_objects))
    for made in plan.layers:
        create_volume(made.uri, made.info)
    for step in plan.steps:
        tasks = list(step.tasks())
        assert len({t.id for t in tasks}) == step.n_tasks > 0
        tasks = tasks * repeat
        random.Random(seed).shuffle(tasks)
        for task in tasks:
            load_task(task.canonical_json()).run(ctx)
    return open_volume(plan.layers[0].uri).read(BOUNDS), ctx.counters


@pytest.mark.parametrize("missing", [(), (103, 104, 108)])
def test_objects_do_not_depend_on_the_blocks(root, missing):
    labels = segments()
    overlaps = section_overlaps(labels, core=BOUNDS, bounds=BOUNDS, missing=missing)
    expected = remap(labels, *components(*links(overlaps, LinkRule())))
    for z in missing:
        expected[:, :, z - 100] = 0
    assert 1 < len(np.unique(expected)) < 30
    layer = put(labels, f"{root}/supervoxels")
    for n, block in enumerate([(24, 20, 11), (8, 8, 4), (24, 5, 1), (7, 20, 3)]):
        stage = MaxExtendStage(missing_sections=missing, block_shape=block, chunk_shape=block)
        got, counters = run(stage, layer, f"{root}/{n}", seed=n, repeat=1 + n % 2)
        np.testing.assert_array_equal(got, expected)
        if n == 0:
            assert counters["sections_skipped"] == len(missing)


def test_what_does_not_fit_is_refused(root):
    layer = put(segments(), f"{root}/supervoxels")
    site = Site(root, {"supervoxels": layer}, open_volume, open_objects)
    with pytest.raises(SpecError, match="missing_sections has 99, but the sections of .* are 100 to 110"):
        MaxExtendStage(missing_sections=(99,)).expand(site)
    image = Layer("supervoxels", layer.uri, layer.info.model_copy(update={"layer": "image"}))
    with pytest.raises(SpecError, match="'max_extend' needs segments of single sections"):
        MaxExtendStage().expand(Site(root, {"supervoxels": image}, open_volume, open_objects))
