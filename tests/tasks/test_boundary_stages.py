"""Boundaries and what is made of them, as queued stages: in any order, twice, and for any block shape."""

from __future__ import annotations

import numpy as np
import pytest
from stage_runs import run_stages

from cloudseg.errors import ModelError, SpecError
from cloudseg.geometry import Box
from cloudseg.ops.basins import basins, join_shallow
from cloudseg.ops.boundaries import boundary_affinities
from cloudseg.ops.distance_watershed import DistanceRule, distance_watershed
from cloudseg.ops.remap import remap
from cloudseg.ops.watershed import supervoxels
from cloudseg.tasking.steps import Layer, Site
from cloudseg.testing.tiny_model import tiny_package
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg_tasks.agglomerate import AgglomerateStage
from cloudseg_tasks.boundaries import BoundariesStage
from cloudseg_tasks.boundary_affinities import BoundaryAffinitiesStage
from cloudseg_tasks.distance_watershed import DistanceWatershedStage
from cloudseg_tasks.hmin import HMinWatershedStage
from cloudseg_tasks.supervoxels import SupervoxelsStage

SHAPE = (23, 17, 13)
BLOCKS = [(23, 17, 13), (8, 8, 8), (5, 17, 4), (23, 1, 5)]
BOUNDARY_MODEL = {
    "output": "boundaries",
    "offsets": (),
    "arguments": {"n_out": 1, "widths": (4, 6), "pools": ((2, 2, 1),)},
    "patch_shape": (16, 16, 12),
    "context": (2, 2, 1),
    "blend": (2, 2, 2),
}


@pytest.fixture
def root():
    clear_memory()
    yield "memory://boundary-stages"
    clear_memory()


def put(data, uri, name="boundaries"):
    info = VolumeInfo(
        bounds=Box.of_shape(data.shape, at=(5, -3, 100)), voxel_size_nm=(8, 8, 16), chunk_shape=(1, 1, 1)
    )
    create_volume(uri, info).write(info.bounds, data)
    return Layer(name, uri, info)


def noise(seed=7):
    return np.asfortranarray(np.random.default_rng(seed).integers(0, 256, SHAPE).astype(np.uint8))


@pytest.mark.parametrize("block", BLOCKS)
def test_affinities_basins_and_joined_basins_equal_one_call_for_any_blocks(root, block):
    b = noise()
    layer = put(b, f"{root}/boundaries")
    common = {"block_shape": block, "chunk_shape": (1, 1, 1)}
    got = run_stages(
        [
            BoundaryAffinitiesStage(join="mean", **common),
            SupervoxelsStage(t_low=1, t_high=255, **common),
            HMinWatershedStage(h=0.2, **common),
        ],
        {"boundaries": layer},
        root,
        seed=block[0],
        repeat=block == BLOCKS[1],
    )
    bounds = layer.info.bounds
    affinities = boundary_affinities(b, core=bounds, bounds=bounds, join="mean")
    np.testing.assert_array_equal(got["affinities"], affinities)
    labels = supervoxels(affinities, core=bounds, bounds=bounds, t_low=1, t_high=255).labels
    np.testing.assert_array_equal(got["supervoxels"], labels)
    expected = remap(labels, *join_shallow(basins(labels, b, core=bounds, bounds=bounds), h=51.0))
    np.testing.assert_array_equal(got["segmentation"], expected)
    assert 1 < len(np.unique(expected)) < len(np.unique(labels))


def test_average_linkage_and_components_of_boundaries_are_the_same_for_any_blocks(root):
    b = noise(3)
    results = []
    for block in BLOCKS[:3]:
        clear_memory()
        layer = put(b, f"{root}/boundaries")
        common = {"block_shape": block, "chunk_shape": (1, 1, 1)}
        average = run_stages(
            [
                BoundaryAffinitiesStage(**common),
                SupervoxelsStage(**common),
                AgglomerateStage(threshold=0.3, **common),
            ],
            {"boundaries": layer},
            root,
        )
        clear_memory()
        layer = put(b, f"{root}/boundaries")
        components = run_stages(
            [
                BoundaryAffinitiesStage(threshold=0.5, **common),
                SupervoxelsStage(t_low=255, t_high=255, **common),
            ],
            {"boundaries": layer},
            root,
        )
        results.append((average["segmentation"], components["supervoxels"]))
    for other in results[1:]:
        np.testing.assert_array_equal(other[0], results[0][0])
        np.testing.assert_array_equal(other[1], results[0][1])
    assert set(np.unique(components["affinities"])) == {0, 255}
    assert not components["supervoxels"][b >= 128].any()


def test_stacked_sections_are_exact_for_whole_sections_and_a_halo_is_read(root):
    b = noise(5)
    layer = put(b, f"{root}/boundaries")
    bounds = layer.info.bounds
    rule = DistanceRule(threshold=102, min_size_vx=4, stacked=True, spacing=(1.0, 1.0, 2.0))
    got = run_stages(
        [DistanceWatershedStage(stacked=True, min_size_vx=4, block_shape=(23, 17, 5), chunk_shape=(1, 1, 1))],
        {"boundaries": layer},
        root,
    )
    np.testing.assert_array_equal(
        got["supervoxels"], distance_watershed(b, box=bounds, bounds=bounds, rule=rule)
    )
    clear_memory()
    layer = put(b, f"{root}/boundaries")
    stage = DistanceWatershedStage(
        output="segmentation", min_size_vx=4, halo=(23, 17, 13), block_shape=(8, 8, 8), chunk_shape=(1, 1, 1)
    )
    # With a halo as large as the volume every block sees all of it.
    got = run_stages([stage], {"boundaries": layer}, root)
    rule = DistanceRule(threshold=102, min_size_vx=4, spacing=(1.0, 1.0, 2.0))
    np.testing.assert_array_equal(
        got["segmentation"], distance_watershed(b, box=bounds, bounds=bounds, rule=rule)
    )


@pytest.mark.parametrize("views", [False, True])
def test_predicted_boundaries_do_not_depend_on_the_blocks(root, views):
    results = []
    a = tiny_package("memory://boundary-models/a", seed=1, **BOUNDARY_MODEL)
    b = tiny_package("memory://boundary-models/b", seed=2, **BOUNDARY_MODEL)
    alone = tiny_package("memory://boundary-models/alone", seed=1, **BOUNDARY_MODEL)
    for block in ((23, 17, 13), (9, 17, 5)):
        image = put(noise(), f"{root}/{block[0]}/image", "image")
        info = image.info.model_copy(update={"voxel_size_nm": (8.0, 8.0, 8.0)})
        image = Layer("image", image.uri, info)
        stage = BoundariesStage(
            models=(a, b), views=views, block_shape=block, chunk_shape=(1, 1, 1), precision="float32"
        )
        results.append(run_stages([stage], {"image": image}, f"{root}/{block[0]}")["boundaries"])
    np.testing.assert_array_equal(*results)
    stage = BoundariesStage(
        models=(alone,), views=views, block_shape=(23, 17, 13), chunk_shape=(1, 1, 1), precision="float32"
    )
    one = run_stages([stage], {"image": image}, f"{root}/alone")["boundaries"]
    assert (results[0] >= one).all()
    assert (results[0] > one).any()


def test_what_does_not_fit_is_refused_before_anything_is_planned(root):
    layer = put(noise(), f"{root}/boundaries")
    info = layer.info
    three = Layer("boundaries", layer.uri, info.model_copy(update={"n_channels": 3}))
    site = Site(root, {"boundaries": three, "image": layer}, open_volume, open_objects)
    for stage in (BoundaryAffinitiesStage(), DistanceWatershedStage()):
        with pytest.raises(SpecError, match=r"needs boundaries: an image layer of uint8 with 1 channel"):
            stage.expand(site)
    segments = info.model_copy(update={"layer": "segmentation", "dtype": "uint64"})
    labels = Layer("supervoxels", layer.uri, segments)
    with pytest.raises(SpecError, match=r"needs supervoxels: a segmentation of uint64"):
        HMinWatershedStage().expand(
            Site(root, {"supervoxels": layer, "boundaries": layer}, open_volume, open_objects)
        )
    with pytest.raises(SpecError, match=r"'hmin_watershed' needs boundaries: an image layer of uint8"):
        HMinWatershedStage().expand(
            Site(root, {"supervoxels": labels, "boundaries": three}, open_volume, open_objects)
        )
    moved = Layer("supervoxels", layer.uri, segments.model_copy(update={"bounds": Box.of_shape(SHAPE)}))
    with pytest.raises(SpecError, match=r"both must cover the same box"):
        HMinWatershedStage().expand(
            Site(root, {"supervoxels": moved, "boundaries": layer}, open_volume, open_objects)
        )
    affinities = tiny_package("memory://boundary-models/affinities")
    image = Layer("image", layer.uri, info.model_copy(update={"voxel_size_nm": (8.0, 8.0, 8.0)}))
    site = Site(root, {"image": image}, open_volume, open_objects)
    with pytest.raises(ModelError, match=r"model 'tiny' predicts affinities, not boundaries"):
        BoundariesStage(models=(affinities,)).expand(site)
    a = tiny_package("memory://boundary-models/a", **BOUNDARY_MODEL)
    c = tiny_package("memory://boundary-models/c", **BOUNDARY_MODEL | {"name": "c", "blend": (1, 2, 2)})
    with pytest.raises(ModelError, match=r"models 'tiny' and 'c' cannot be joined, as blend is \(2, 2, 2\)"):
        BoundariesStage(models=(a, c)).expand(site)
    with pytest.raises(
        SpecError, match=r"block_shape on x is 10, which is no multiple of the output's chunk"
    ):
        BoundariesStage(models=(a,), block_shape=(10, 64, 64)).expand(site)
