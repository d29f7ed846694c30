"""FLoRIN's stages: in any order, twice, and for any block shape."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import ndimage
from stage_runs import run_stages

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.components import label_components
from cloudseg.ops.morphology import MorphologyRule, clean_mask
from cloudseg.ops.object_shape import block_shapes, merged_shapes
from cloudseg.ops.threshold import NeighbourhoodRule, neighbourhood_threshold
from cloudseg.tasking.steps import Layer, Site
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume, read_info
from cloudseg_tasks.classify import ClassifyStage
from cloudseg_tasks.components import ComponentsStage
from cloudseg_tasks.morphology import MorphologyStage
from cloudseg_tasks.threshold import ThresholdStage

SHAPE = (23, 17, 13)
SIZE_NM = (8.0, 8.0, 16.0)
BOUNDS = Box.of_shape(SHAPE, at=(5, -3, 100))
BLOCKS = [(23, 17, 13), (8, 8, 8), (5, 17, 4), (23, 1, 5)]
CLASSES = [{"name": "large", "volume_um3": [1e-4, 1.0]}, {"name": "long", "elongation": [2.0, 100.0]}]


@pytest.fixture
def root():
    clear_memory()
    yield "memory://threshold-stages"
    clear_memory()


def image_of(seed=3):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.0)
    return np.asfortranarray(np.clip(128 + 160 * noise, 0, 255).astype(np.uint8))


def put(data, uri, name="image"):
    info = VolumeInfo(bounds=BOUNDS, voxel_size_nm=SIZE_NM, chunk_shape=(8, 8, 8))
    create_volume(uri, info).write(info.bounds, data)
    return Layer(name, uri, info)


def stages_of(block, *, connectivity=26):
    common = {"block_shape": block, "chunk_shape": block}
    return [
        ThresholdStage(neighbourhood_nm=(56, 56, 80), contrast=0.02, **common),
        MorphologyStage(max_hole_um3=3e-6, max_speck_um3=4e-6, opening_nm=8, **common),
        ComponentsStage(connectivity=connectivity, **common),
        ClassifyStage(classes=CLASSES, overlap="first", **common),
    ]


@pytest.mark.parametrize(("block", "connectivity"), list(zip(BLOCKS, [26, 26, 6, 18], strict=True)))
def test_all_stages_equal_one_call_for_any_blocks(root, block, connectivity):
    image = image_of()
    got = run_stages(
        stages_of(block, connectivity=connectivity),
        {"image": put(image, f"{root}/image")},
        root,
        seed=block[0],
        repeat=block == BLOCKS[1],
    )
    whole = {"core": BOUNDS, "bounds": BOUNDS}
    mask = neighbourhood_threshold(image, rule=NeighbourhoodRule((4, 4, 3), 200, "dark"), **whole)
    np.testing.assert_array_equal(got["foreground"], mask)
    rule = MorphologyRule(8.0, 0.0, 2, 3, voxel_size_nm=SIZE_NM)
    cleaned = clean_mask(mask, rule=rule, **whole)
    np.testing.assert_array_equal(got["cleaned"], cleaned)
    assert 0 < cleaned.sum() < mask.sum()
    labels = label_components(cleaned, connectivity=connectivity, **whole)
    np.testing.assert_array_equal(got["segmentation"], labels)
    expected = merged_shapes(
        [block_shapes(labels, box=BOUNDS, core=BOUNDS)], bounds=BOUNDS, voxel_size_nm=SIZE_NM
    )
    part = open_objects(f"{root}/segmentation").get("objects/part-0000-of-0001.parquet")
    table = pq.read_table(io.BytesIO(part))
    for name, values in expected.items():
        np.testing.assert_array_equal(table[name].to_numpy(), values, err_msg=name)
    is_large = expected["volume_um3"] >= 1e-4
    names = np.where(is_large, "large", np.where(expected["elongation"] >= 2, "long", "rest"))
    assert table["class"].to_pylist() == names.tolist()
    number = {"large": 1, "long": 2, "rest": 3}
    assert set(names) == set(number)
    for object_id, name in zip(expected["id"], names, strict=True):
        assert set(got["classes"][labels == object_id]) == {number[name]}
    assert not got["classes"][labels == 0].any()
    properties = json.loads(open_objects(f"{root}/segmentation").get("segment_properties/info"))
    tags = next(p for p in properties["inline"]["properties"] if p["id"] == "tags")
    assert [tags["tags"][row[0]] for row in tags["values"]] == names.tolist()
    assert read_info(f"{root}/segmentation")["segment_properties"] == "segment_properties"


def test_partitions_hold_the_same_objects(root):
    common = {"block_shape": (8, 8, 8), "chunk_shape": (8, 8, 8)}
    stages = stages_of((8, 8, 8))
    stages[-1] = ClassifyStage(classes=CLASSES, overlap="first", voxels_per_partition=1000, **common)
    got = run_stages(stages, {"image": put(image_of(), f"{root}/image")}, root)
    objects = open_objects(f"{root}/segmentation")
    parts = [pq.read_table(io.BytesIO(objects.get(k))) for k in objects.list() if k.startswith("objects/")]
    assert len(parts) == 6
    ids = np.concatenate([p["id"].to_numpy() for p in parts])
    labels = got["segmentation"]
    np.testing.assert_array_equal(np.sort(ids), np.unique(labels[labels > 0]))
    assert ((got["classes"] > 0) == (labels > 0)).all()


def test_bright_structures_and_single_sections(root):
    image = image_of()
    stage = ThresholdStage(
        neighbourhood_nm=(80, 40, 0),
        contrast=0.05,
        polarity="bright",
        block_shape=(8, 8, 8),
        chunk_shape=(8, 8, 8),
    )
    got = run_stages([stage], {"image": put(image, f"{root}/image")}, root)
    rule = NeighbourhoodRule((5, 3, 0), 500, "bright")
    expected = neighbourhood_threshold(image, core=BOUNDS, bounds=BOUNDS, rule=rule)
    np.testing.assert_array_equal(got["foreground"], expected)


def test_what_does_not_fit_is_refused_before_anything_is_planned(root):
    image = put(image_of(), f"{root}/image")
    three = Layer("image", image.uri, image.info.model_copy(update={"n_channels": 3}))

    def site(layer, name="image"):
        return Site(root, {name: layer}, open_volume, open_objects)

    with pytest.raises(SpecError, match="needs an image of uint8 or uint16 with 1 channel"):
        ThresholdStage(neighbourhood_nm=(40, 40, 40)).expand(site(three))
    with pytest.raises(SpecError, match=r"101 voxels wide on x, but the volume .* only 23"):
        ThresholdStage(neighbourhood_nm=(800, 40, 40)).expand(site(image))
    with pytest.raises(SpecError, match=r"contrast must lie between 0 and 1 for dark structures, got 1.5"):
        ThresholdStage(neighbourhood_nm=(40, 40, 40), contrast=1.5).expand(site(image))
    with pytest.raises(SpecError, match="'morphology' needs a mask of whole numbers"):
        MorphologyStage().expand(site(three, "foreground"))
    with pytest.raises(SpecError, match=r"each block would have to read \(976, 976, 976\) voxels"):
        MorphologyStage(max_hole_um3=1e-3).expand(site(image, "foreground"))
    with pytest.raises(SpecError, match="'components' needs a mask of whole numbers"):
        ComponentsStage().expand(site(three, "cleaned"))
    with pytest.raises(SpecError, match="put a stage 'components' before it"):
        ClassifyStage(classes=CLASSES).expand(site(image, "segmentation"))
    labels = image.info.model_copy(update={"dtype": "uint64", "layer": "segmentation"})
    segmentation = Layer("segmentation", image.uri, labels)
    with pytest.raises(SpecError, match=r"classes 'large' and 'long' overlap.*overlap = \"first\""):
        ClassifyStage(classes=CLASSES).expand(site(segmentation, "segmentation"))
    with pytest.raises(SpecError, match="rest = 'large' is the name of a class"):
        ClassifyStage(classes=CLASSES[:1], rest="large").expand(site(segmentation, "segmentation"))
