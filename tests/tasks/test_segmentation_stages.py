"""The queued form of the segmentation gives what one call in memory gives, in any order and for any block shape."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.agglomerate import Rule
from cloudseg.ops.segment import segment
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg_tasks.agglomerate import AgglomerateStage, MergeRule, Octree
from cloudseg_tasks.registry import load_task
from cloudseg_tasks.supervoxels import SupervoxelsStage

SHAPE = (23, 17, 13)
VOXEL_NM = (8.0, 8.0, 8.0)


def affinity_layer(affinities, uri):
    info = VolumeInfo(
        bounds=Box.of_shape(affinities.shape[1:], at=(5, -3, 100)),
        voxel_size_nm=VOXEL_NM,
        chunk_shape=(1, 1, 1),
        n_channels=3,
    )
    create_volume(uri, info).write(info.bounds, affinities)
    return Layer("affinities", uri, info)


def run_stage(stage, site, *, seed, repeat):
    """Create layers and run every task from its own JSON, shuffled within a step; return the layers."""
    plan = stage.expand(site)
    for layer in plan.layers:
        create_volume(layer.uri, layer.info)
    ctx = Context(open_volume=open_volume, open_objects=open_objects)
    for step in plan.steps:
        tasks = list(step.tasks()) * (2 if repeat else 1)
        assert len({t.id for t in tasks}) == step.n_tasks > 0
        random.Random(seed).shuffle(tasks)
        for task in tasks:
            load_task(task.canonical_json()).run(ctx)
    return {layer.name: layer for layer in plan.layers}


@pytest.fixture
def root():
    clear_memory()
    yield "memory://root"
    clear_memory()


@pytest.fixture(scope="module")
def affinities():
    return np.asfortranarray(np.random.default_rng(7).integers(0, 256, (3, *SHAPE)).astype(np.uint8))


@pytest.mark.parametrize(
    ("block", "fanout", "hierarchy", "repeat"),
    [
        ((23, 17, 13), 2, "octree", False),
        ((8, 8, 8), 2, "octree", True),
        ((5, 17, 4), 3, "octree", False),
        ((7, 6, 13), 2, "global", True),
        ((23, 1, 5), 4, "octree", False),
    ],
)
def test_stages_equal_one_call_for_any_blocks(root, affinities, block, fanout, hierarchy, repeat):
    source = affinity_layer(affinities, f"{root}/affinities")
    layers = {"affinities": source}
    voxel_um3 = 8**3 * 1e-9
    common = {"block_shape": block, "chunk_shape": (1, 1, 1)}
    site = Site(root, layers, open_volume, open_objects)
    layers |= run_stage(SupervoxelsStage(t_low=3, t_high=254, **common), site, seed=1, repeat=repeat)
    stage = AgglomerateStage(
        threshold=0.55,
        guard_affinity=0.7,
        guard_min_um3=20 * voxel_um3,
        guard_sum_um3=60 * voxel_um3,
        min_size_um3=12 * voxel_um3,
        hierarchy=hierarchy,
        fanout=fanout,
        emphasis=5,
        **common,
    )
    layers |= run_stage(stage, site, seed=2, repeat=repeat)
    rule = Rule(0.55 * 255, 0.7 * 255, 20, 60, 12)
    whole = segment(affinities, t_low=3, t_high=254, rule=rule, emphasis=5)
    for name, expected in (("supervoxels", whole.supervoxels), ("segmentation", whole.segments)):
        np.testing.assert_array_equal(
            open_volume(layers[name].uri).read(source.info.bounds), expected, err_msg=name
        )
    assert 1 < len(np.unique(whole.segments)) < len(np.unique(whole.supervoxels)) < affinities[0].size


def test_masked_voxels_are_background_and_link_nothing(root, affinities):
    source = affinity_layer(affinities, f"{root}/affinities")
    tissue = np.ones(SHAPE, np.uint8, order="F")
    tissue[:, 8, :] = 0
    mask = VolumeInfo(bounds=source.info.bounds, voxel_size_nm=VOXEL_NM, chunk_shape=(1, 1, 1))
    create_volume(f"{root}/mask", mask).write(mask.bounds, tissue)
    site = Site(root, {"affinities": source}, open_volume, open_objects)
    stage = SupervoxelsStage(mask=f"{root}/mask", block_shape=(6, 5, 13), chunk_shape=(1, 1, 1))
    layers = run_stage(stage, site, seed=3, repeat=False)
    labels = open_volume(layers["supervoxels"].uri).read(source.info.bounds)
    whole = segment(affinities, t_low=1, t_high=255, rule=Rule(255.0), mask=tissue)
    np.testing.assert_array_equal(labels, whole.supervoxels)
    assert not labels[:, 8, :].any()
    assert not set(np.unique(labels[:, :8])) & set(np.unique(labels[:, 9:])) - {0}


def test_every_node_of_the_octree_has_one_parent_and_covers_the_grid():
    tree = Octree(grid=(5, 3, 1), fanout=2)
    assert tree.n_levels == 4
    for level in range(1, tree.n_levels):
        children = [c for node in tree.indices(level) for c in tree.children(level, node)]
        assert sorted(children) == sorted(tree.indices(level - 1))
    assert tree.blocks(3, (0, 0, 0)) == Box.of_shape((5, 3, 1))


def test_wrong_inputs_are_refused_before_anything_is_planned(root, affinities):
    source = affinity_layer(affinities, f"{root}/affinities")
    site = Site(root, {"affinities": source, "image": source}, open_volume, open_objects)
    with pytest.raises(SpecError, match=r"needs a layer 'supervoxels', but the stages before it only make"):
        AgglomerateStage().expand(site)
    one = Layer("affinities", source.uri, source.info.model_copy(update={"n_channels": 1}))
    with pytest.raises(SpecError, match=r"needs affinities: an image layer of uint8 with 3 channels"):
        SupervoxelsStage().expand(Site(root, {"affinities": one}, open_volume, open_objects))
    with pytest.raises(ValueError, match=r"t_low=9 is above t_high=8"):
        SupervoxelsStage(t_low=9, t_high=8)
    with pytest.raises(ValueError, match=r"block_shape\[x\]=100 is not a multiple of chunk_shape\[x\]=64"):
        SupervoxelsStage(block_shape=(100, 64, 64))
    with pytest.raises(ValueError, match=r"threshold"):
        MergeRule(threshold=300)
