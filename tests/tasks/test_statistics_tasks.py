"""Queued statistics equal one call in memory, to the byte, for any tiling, order, repetition and partitioning."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.geometry import Box
from cloudseg.ops.statistics import block_statistics, describe
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume, read_info
from cloudseg.volumes.segment_properties import segment_properties_info
from cloudseg_tasks.registry import load_task
from cloudseg_tasks.statistics import StatisticsStage

SHAPE = (23, 17, 13)
VOXEL_NM = (4.0, 4.0, 40.0)
BOUNDS = Box.of_shape(SHAPE, at=(5, -3, 100))


@pytest.fixture
def labels():
    coarse = np.random.default_rng(3).integers(0, 30, (6, 5, 4)).astype(np.uint64)
    fine = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    # ids above 2^53 would not survive a float
    return np.asfortranarray(np.where(fine > 0, fine + np.uint64(2**60), 0).astype(np.uint64))


def site_of(labels, root, **changes):
    clear_memory()
    info = VolumeInfo(
        bounds=BOUNDS, voxel_size_nm=VOXEL_NM, chunk_shape=(8, 8, 8), dtype="uint64", layer="segmentation"
    )
    info = info.model_copy(update=changes)
    uri = f"{root}/segmentation"
    create_volume(uri, info).write(info.bounds, labels)
    layer = Layer("segmentation", uri, info)
    return Site(root, {"segmentation": layer}, open_volume, open_objects)


def run(stage, site, *, seed=0, repeat=1):
    counters = {}
    for step in stage.expand(site).steps:
        if step.prepare:
            step.prepare()
            step.prepare()
        tasks = list(step.tasks())
        assert len({t.id for t in tasks}) == step.n_tasks > 0
        tasks = tasks * repeat
        random.Random(seed).shuffle(tasks)
        for task in tasks:
            ctx = Context(open_volume=open_volume, open_objects=open_objects)
            load_task(task.canonical_json()).run(ctx)
            counters[step.name] = ctx.counters
    return counters


def finished(root):
    objects = open_objects(f"{root}/segmentation")
    names = [k for k in objects.list() if k.startswith(("statistics/", "segment_properties/"))]
    return {name: objects.get(name) for name in names}


def test_any_tiling_order_and_repetition_gives_the_same_bytes(labels):
    found = []
    for seed, block in enumerate([(64, 64, 64), (8, 8, 8), (7, 5, 13), (3, 17, 4)]):
        site = site_of(labels, "memory://root")
        run(StatisticsStage(block_shape=block), site, seed=seed, repeat=1 + seed % 2)
        found.append(finished("memory://root"))
    assert sorted(found[0]) == ["segment_properties/info", "statistics/part-0000-of-0001.parquet"]
    assert all(other == found[0] for other in found[1:])


def test_the_table_equals_one_call_in_memory(labels):
    run(StatisticsStage(block_shape=(7, 5, 6)), site_of(labels, "memory://root"))
    table = pq.read_table(io.BytesIO(finished("memory://root")["statistics/part-0000-of-0001.parquet"]))
    expected = describe(
        block_statistics(labels, box=BOUNDS, core=BOUNDS), bounds=BOUNDS, voxel_size_nm=VOXEL_NM
    )
    assert table.column_names == list(expected)
    assert table.num_rows == len(np.unique(labels[labels > 0]))
    for name, values in expected.items():
        np.testing.assert_array_equal(table[name].to_numpy(), values, err_msg=name)


def test_partitions_split_the_same_rows(labels):
    run(StatisticsStage(block_shape=(9, 9, 9)), site_of(labels, "memory://root"))
    whole = pq.read_table(io.BytesIO(finished("memory://root")["statistics/part-0000-of-0001.parquet"]))
    properties = finished("memory://root")["segment_properties/info"]
    run(StatisticsStage(block_shape=(9, 9, 9), voxels_per_partition=1000), site_of(labels, "memory://root"))
    found = finished("memory://root")
    parts = [pq.read_table(io.BytesIO(v)) for k, v in sorted(found.items()) if k.startswith("statistics/")]
    assert len(parts) == 6
    assert sum(len(p) > 0 for p in parts) > 3
    joined = np.concatenate([p["id"].to_numpy() for p in parts])
    np.testing.assert_array_equal(np.sort(joined), whole["id"].to_numpy())
    n_voxels = np.concatenate([p["n_voxels"].to_numpy() for p in parts])[np.argsort(joined)]
    np.testing.assert_array_equal(n_voxels, whole["n_voxels"].to_numpy())
    assert found["segment_properties/info"] == properties


def test_segment_properties_are_what_neuroglancer_reads(labels):
    run(StatisticsStage(), site_of(labels, "memory://root"))
    assert read_info("memory://root/segmentation")["segment_properties"] == "segment_properties"
    info = json.loads(finished("memory://root")["segment_properties/info"])
    assert info["@type"] == "neuroglancer_segment_properties"
    ids = info["inline"]["ids"]
    assert ids == [str(v) for v in np.unique(labels[labels > 0]).tolist()]
    by_id = {p["id"]: p for p in info["inline"]["properties"]}
    assert by_id["n_voxels"]["data_type"] == "uint32"
    assert by_id["n_voxels"]["values"] == np.unique(labels[labels > 0], return_counts=True)[1].tolist()
    assert by_id["volume_um3"]["data_type"] == "float32"
    assert by_id["tags"]["tags"] == ["inside", "on_border"]
    assert all(len(v) == 1 for v in by_id["tags"]["values"])
    assert all(len(p["values"]) == len(ids) for p in by_id.values())


def test_a_long_list_keeps_the_largest_and_counts_the_rest(labels):
    counters = run(StatisticsStage(max_properties=5), site_of(labels, "memory://root"))
    ids, n = np.unique(labels[labels > 0], return_counts=True)
    largest = sorted(sorted(zip(-n, ids, strict=True))[:5], key=lambda pair: pair[1])
    info = json.loads(finished("memory://root")["segment_properties/info"])
    assert info["inline"]["ids"] == [str(i) for _, i in largest]
    assert counters["statistics.publish"] == {"segments": 5, "segments_left_out": len(ids) - 5}


def test_the_properties_are_readable_before_they_are_computed(labels):
    site = site_of(labels, "memory://root")
    StatisticsStage().expand(site).steps[-1].prepare()
    info = json.loads(finished("memory://root")["segment_properties/info"])
    assert info["inline"] == {"ids": [], "properties": []}


def test_an_absent_partial_is_an_error_and_not_a_hole(labels):
    site = site_of(labels, "memory://root")
    measure, merge, _ = StatisticsStage(block_shape=(8, 8, 8)).expand(site).steps
    ctx = Context(open_volume=open_volume, open_objects=open_objects)
    for task in list(measure.tasks())[:-1]:
        task.run(ctx)
    with pytest.raises(NotFoundError, match=r"21_13_108\.parquet"):
        next(merge.tasks()).run(ctx)
    assert not finished("memory://root")


def test_partials_of_another_tiling_are_refused(labels):
    labels[6, 4, 4] = 77  # seen by the right part only across its border
    site = site_of(labels, "memory://root")
    whole = next(StatisticsStage(block_shape=(8, 32, 32)).expand(site).steps[0].tasks())
    ctx = Context(open_volume=open_volume, open_objects=open_objects)
    second = whole.model_copy(update={"core": Box((12, -3, 100), BOUNDS.stop)})
    second.run(ctx)
    objects = open_objects("memory://root/graph/statistics")
    objects.put("0000/5_-3_100.parquet", objects.get("0000/12_-3_100.parquet"))
    one = next(StatisticsStage(block_shape=(64, 64, 64)).expand(site).steps[1].tasks())
    with pytest.raises(SpecError, match="segment 77 in .* has faces but no voxel"):
        one.run(ctx)


def test_only_segmentations_are_measured(labels):
    site = site_of(labels, "memory://root")
    image = Layer("image", "memory://root/image", VolumeInfo(bounds=BOUNDS, voxel_size_nm=VOXEL_NM))
    site = Site(site.root, {**site.layers, "image": image}, open_volume, open_objects)
    with pytest.raises(SpecError, match="measures segments, but layer 'image'"):
        StatisticsStage(layer="image").expand(site)
    with pytest.raises(SpecError, match="needs a layer 'nothing'"):
        StatisticsStage(layer="nothing").expand(site)


def test_malformed_properties_are_refused():
    ids = np.array([3, 1], np.uint64)
    with pytest.raises(SpecError, match="each id once, got 2 ids of which 1 differ"):
        segment_properties_info(np.array([1, 1], np.uint64))
    with pytest.raises(SpecError, match="labels must have one value for each of the 2 segments, got 1"):
        segment_properties_info(ids, labels=["a"])
    with pytest.raises(SpecError, match="a tag must hold no space"):
        segment_properties_info(ids, tags={"on border": (np.ones(2, bool), "")})
    wide = segment_properties_info(ids, numbers={"n": (np.array([2**40, 5]), "")})
    assert wide["inline"]["properties"][0]["data_type"] == "float32"
    assert np.float32(wide["inline"]["properties"][0]["values"]).tolist() == [5, 2**40]
