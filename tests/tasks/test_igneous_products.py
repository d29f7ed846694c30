"""Meshes, skeletons and coarser scales: right, readable by others, and the same bytes however the tasks ran."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cloudseg.errors import ConflictError, NotFoundError, SpecError, UnknownTaskError
from cloudseg.geometry import Box
from cloudseg.ops.downsample import downsample_mean, downsample_mode
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.volumes import (
    VolumeInfo,
    clear_memory,
    create_volume,
    open_objects,
    open_volume,
    read_info,
    scales,
    sharding_for,
)
from cloudseg_tasks.igneous import (
    DownsampleStage,
    IgneousTask,
    MeshesStage,
    SkeletonsStage,
    pyramid,
    run_foreign,
)
from cloudseg_tasks.registry import load_task

SHAPE = (56, 48, 40)
OFFSET = (9, 17, 25)  # odd on purpose: coarse voxels then hang over the border
BOUNDS = Box.of_shape(SHAPE, at=OFFSET)
ERROR_NM = 8.0
STAGES = (
    DownsampleStage(n_mips=2, block_shape=(16, 16, 16)),
    MeshesStage(
        block_shape=(29, 25, 21),
        voxels_per_shard=40_000,
        lod_chunk_vx=(12, 12, 12),
        simplification_error_nm=ERROR_NM,
    ),
    SkeletonsStage(
        block_shape=(29, 25, 21), voxels_per_shard=40_000, dust_vx=30, min_cable_nm=30, tick_nm=30
    ),
)


@functools.cache
def phantom_labels():
    labels = neurite_phantom(SHAPE, seed=4, calibre_vx=8).labels
    # ids above 2^53 would not survive a float
    return np.asfortranarray(labels + np.uint64(2**60))


def make_site(root, labels, **changes):
    fields = {
        "voxel_size_nm": (8, 8, 8),
        "chunk_shape": (16, 16, 16),
        "dtype": "uint64",
        "layer": "segmentation",
    }
    info = VolumeInfo(bounds=BOUNDS, **{**fields, **changes})
    create_volume(f"{root}/segmentation", info).write(info.bounds, labels)
    layer = Layer("segmentation", f"{root}/segmentation", info)
    return Site(root, {"segmentation": layer}, open_volume, open_objects)


def context():
    return Context(open_volume=open_volume, open_objects=open_objects)


def run(stage, site, *, seed=0, repeat=1, upto=None):
    """Run a stage from its tasks' own JSON, shuffled within a step; return the counters summed by step."""
    counters = {}
    for step in stage.expand(site).steps[:upto]:
        if step.prepare:
            step.prepare()
            step.prepare()
        tasks = list(step.tasks())
        assert len({t.id for t in tasks}) == step.n_tasks > 0
        tasks = tasks * repeat
        random.Random(seed).shuffle(tasks)
        sums = counters.setdefault(step.name, {})
        for task in tasks:
            ctx = context()
            load_task(task.canonical_json()).run(ctx)
            for name, amount in ctx.counters.items():
                sums[name] = sums.get(name, 0) + amount
    return counters


def digests(root):
    folder = Path(root.removeprefix("file://"))
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run_everything(root, *, seed, repeat):
    site = make_site(root, phantom_labels())
    return {stage.label: run(stage, site, seed=seed, repeat=repeat) for stage in STAGES}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything once, in plan order of seed 0."""
    root = f"file://{tmp_path_factory.mktemp('made')}"
    return root, run_everything(root, seed=0, repeat=1)


def cloud_volume(root, mip=0):
    from cloudvolume import CloudVolume

    return CloudVolume(f"{root}/segmentation", mip=mip, progress=False)


def labels_in(source, root, what):
    shards = sorted(p.name for p in Path(root.removeprefix("file://"), "segmentation", what).glob("*.shard"))
    return sorted(int(v) for name in shards for v in source.reader.list_labels(name, path=what))


def one(loaded, label):
    return loaded[label] if isinstance(loaded, dict) else loaded


def test_another_process_order_and_every_task_twice_give_the_same_bytes(made, tmp_path):
    root, _ = made
    # Another process has another hash seed, so no order of a set can hide, and another second on the clock.
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_igneous_products as t; "
    code += "t.run_everything(sys.argv[2], seed=5, repeat=2)"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-c", code, str(Path(__file__).parent), f"file://{tmp_path}"]
    subprocess.run(command, check=True, env=env, timeout=100)
    first, second = digests(root), digests(f"file://{tmp_path}")
    assert len(first) > 40
    assert first == second


def test_only_final_outputs_stay(made):
    root, _ = made
    names = list(digests(root))
    assert not [
        n for n in names if n.endswith((".gz", ".br", ".frags", ".spatial", ".labels")) or "fragments" in n
    ]
    info = read_info(f"{root}/segmentation")
    assert (info["mesh"], info["skeletons"]) == ("mesh", "skeletons")
    assert len([n for n in names if n.startswith("segmentation/mesh/") and n.endswith(".shard")]) == 4


def test_every_segment_has_a_mesh_inside_its_box(made):
    root, counters = made
    labels, volume = phantom_labels(), cloud_volume(root)
    ids, n_voxels = np.unique(labels, return_counts=True)
    found = labels_in(volume.mesh, root, "mesh")
    assert set(ids[n_voxels > 20].tolist()) <= set(found) <= set(ids.tolist())
    merged = counters["meshes"]["meshes.merge"]
    assert merged == {"meshes": len(found), "too_small_to_mesh": len(ids) - len(found)}
    for label in found:
        vertices = one(volume.mesh.get(label), label).vertices
        where = np.argwhere(labels == np.uint64(label)) + OFFSET
        slack = ERROR_NM + 8
        assert (vertices >= where.min(0) * 8 - slack).all()
        assert (vertices <= (where.max(0) + 1) * 8 + slack).all()
        size = np.ptp(vertices, axis=0) - np.ptp(where, axis=0) * 8
        assert (np.abs(size) <= 2 * slack).all(), label


def test_meshes_have_several_levels_of_detail_where_large(made):
    root, _ = made
    volume = cloud_volume(root)
    largest = max(
        labels_in(volume.mesh, root, "mesh"), key=lambda v: (phantom_labels() == np.uint64(v)).sum()
    )
    fine = one(volume.mesh.get(largest, lod=0), largest)
    coarse = one(volume.mesh.get(largest, lod=1), largest)
    assert 0 < len(coarse.faces) < len(fine.faces)


def test_skeletons_run_inside_their_segments(made):
    root, counters = made
    labels, volume = phantom_labels(), cloud_volume(root)
    ids, n_voxels = np.unique(labels, return_counts=True)
    found = labels_in(volume.skeleton, root, "skeletons")
    assert set(ids[n_voxels > 1500].tolist()) <= set(found) <= set(ids.tolist())
    assert counters["skeletons"]["skeletons.merge"]["skeletons"] == len(found)
    for label in found:
        skeleton = volume.skeleton.get(label)
        assert len(skeleton.edges) >= 1
        voxels = np.floor(skeleton.vertices / 8).astype(int) - OFFSET
        assert (labels[tuple(voxels.T)] == np.uint64(label)).mean() > 0.99, label
        assert (skeleton.radius > 0).all()


def test_coarse_scales_equal_one_shot_and_other_readers_agree(made):
    root, _ = made
    expected, at = phantom_labels(), OFFSET
    assert len(scales(f"{root}/segmentation")) == 3
    for mip in (1, 2):
        expected = downsample_mode(expected, (2, 2, 2), start=at)
        volume = open_volume(f"{root}/segmentation", mip=mip)
        at = volume.info.bounds.start
        assert volume.info.bounds.shape == expected.shape
        np.testing.assert_array_equal(volume.read(volume.info.bounds), expected)
        np.testing.assert_array_equal(np.asarray(cloud_volume(root, mip)[:])[..., 0], expected)


def test_coarse_labels_with_ties_do_not_depend_on_the_blocks():
    labels = np.asfortranarray(np.random.default_rng(1).integers(0, 5, SHAPE).astype(np.uint64))
    for block in ((16, 16, 16), (48, 16, 32)):
        clear_memory()
        site = make_site("memory://root", labels)
        run(DownsampleStage(n_mips=1, block_shape=block), site)
        volume = open_volume("memory://root/segmentation", mip=1)
        found = volume.read(volume.info.bounds)
        np.testing.assert_array_equal(found, downsample_mode(labels, (2, 2, 2), start=OFFSET))
    clear_memory()


@pytest.mark.parametrize("stage", [MeshesStage, SkeletonsStage])
def test_a_coarse_scale_of_an_odd_offset_gives_products_in_place(made, tmp_path, stage):
    site = make_site(f"file://{tmp_path}", phantom_labels())
    run(DownsampleStage(n_mips=1), site)
    options = {"dust_vx": 5, "min_cable_nm": 10, "tick_nm": 10} if stage is SkeletonsStage else {}
    run(stage(mip=1, **options), site)
    labels, root = phantom_labels(), site.root
    coarse = open_volume(f"{root}/segmentation", mip=1)
    at_mip1 = coarse.read(coarse.info.bounds)
    volume = cloud_volume(root)
    what = "mesh" if stage is MeshesStage else "skeletons"
    source = volume.mesh if stage is MeshesStage else volume.skeleton
    found = labels_in(source, root, what)
    assert len(found) > 5
    for label in found:
        vertices = one(source.get(label), label).vertices
        if stage is SkeletonsStage:
            voxels = np.floor(vertices / 16).astype(int) - coarse.info.bounds.start
            assert (at_mip1[tuple(voxels.T)] == np.uint64(label)).mean() > 0.99
        else:
            where = np.argwhere(labels == np.uint64(label)) + OFFSET
            middle = (vertices.min(0) + vertices.max(0)) / 2
            assert (np.abs(middle - (where.min(0) + where.max(0) + 1) * 4) < 50).all()


def test_a_sharded_segmentation_is_meshed_and_downsampled(tmp_path):
    info = VolumeInfo(
        bounds=BOUNDS, voxel_size_nm=(8, 8, 8), chunk_shape=(16, 16, 16), dtype="uint64", layer="segmentation"
    )
    site = make_site(
        f"file://{tmp_path}", phantom_labels(), sharding=sharding_for(info, target_bytes=1 << 18)
    )
    run(DownsampleStage(n_mips=1), site)
    volume = open_volume(f"{site.root}/segmentation", mip=1)
    assert volume.info.sharding is not None
    np.testing.assert_array_equal(
        volume.read(volume.info.bounds), downsample_mode(phantom_labels(), (2, 2, 2), start=OFFSET)
    )
    assert run(MeshesStage(mip=1), site)["meshes.merge"]["meshes"] > 5


def test_black_margins_and_uneven_edges_are_written_at_every_scale(tmp_path):
    labels = np.zeros(SHAPE, np.uint64, order="F")
    labels[20:30, 20:30, 20:30] = 7
    site = make_site(f"file://{tmp_path}", labels)
    run(DownsampleStage(), site)
    infos = scales(f"{site.root}/segmentation")
    assert len(infos) == 3, "down to the first scale of one chunk"
    expected, at = labels, OFFSET
    for mip, info in list(enumerate(infos))[1:]:
        expected = downsample_mode(expected, (2, 2, 2), start=at)
        at = info.bounds.start
        # missing="error" is the default: a chunk of background that was never written would raise
        np.testing.assert_array_equal(
            open_volume(f"{site.root}/segmentation", mip=mip).read(info.bounds), expected
        )


def test_images_are_averaged_in_memory_too_and_thin_sections_keep_their_depth():
    clear_memory()
    info = VolumeInfo(bounds=BOUNDS, voxel_size_nm=(4, 4, 40), chunk_shape=(16, 16, 16))
    image = np.asfortranarray(np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8))
    create_volume("memory://root/image", info).write(BOUNDS, image)
    site = Site(
        "memory://root", {"image": Layer("image", "memory://root/image", info)}, open_volume, open_objects
    )
    run(DownsampleStage(layers=("image",), n_mips=1), site)
    volume = open_volume("memory://root/image", mip=1)
    assert volume.info.voxel_size_nm == (8, 8, 40)
    expected = downsample_mean(image, (2, 2, 1), start=OFFSET)
    np.testing.assert_array_equal(volume.read(volume.info.bounds), expected)
    clear_memory()


def test_a_pyramid_stops_where_one_chunk_holds_all():
    info = VolumeInfo(bounds=Box.of_shape((500, 400, 30)), voxel_size_nm=(4, 4, 40))
    found = pyramid(info)
    assert [f for _, f in found] == [(2, 2, 1)] * 3
    assert found[-1][0].shape == (63, 50, 30)
    assert len(pyramid(info, n_mips=5)) == 5
    thin = info.model_copy(update={"bounds": Box.of_shape((2, 2, 1))})
    assert len(pyramid(thin, n_mips=5)) == 1


def test_an_absent_fragment_is_an_error_and_not_a_hole(tmp_path):
    site = make_site(f"file://{tmp_path}", phantom_labels())
    steps = STAGES[1].expand(site).steps
    last = list(steps[0].tasks())[-1]
    steps[1].prepare()
    first_only = next(steps[0].tasks())
    first_only.run(context())
    with pytest.raises(NotFoundError, match=r"fragment 0/38_17_25\.frags is not in .*run the stage again"):
        next(steps[1].tasks()).run(context())
    assert last.params["core"] == "38,42,46:65,65,65"
    assert not list(Path(tmp_path, "segmentation", "mesh").glob("*.shard"))


def test_fragments_stay_when_asked(tmp_path):
    site = make_site(f"file://{tmp_path}", phantom_labels())
    stage = SkeletonsStage(keep_fragments=True, dust_vx=5000)
    assert [s.name for s in stage.expand(site).steps] == [
        "skeletons.forge",
        "skeletons.merge",
        "skeletons.check",
    ]
    counters = run(stage, site)
    assert list(open_objects(f"{site.root}/fragments/skeletons").list()) == ["0/9_17_25.frags"]
    n_large = int((np.unique(phantom_labels(), return_counts=True)[1] >= 5000).sum())
    assert 0 < counters["skeletons.merge"]["skeletons"] <= n_large < len(np.unique(phantom_labels()))


def test_a_product_with_other_settings_is_not_overwritten(made, tmp_path):
    site = make_site(f"file://{tmp_path}", phantom_labels())
    MeshesStage().expand(site).steps[1].prepare()
    with pytest.raises(ConflictError, match=r"made with other settings \(vertex_quantization_bits\)"):
        MeshesStage(quantization_bits=10).expand(site).steps[1].prepare()


def test_a_product_of_another_volume_is_found_out(tmp_path):
    site = make_site(f"file://{tmp_path}", phantom_labels())
    run(MeshesStage(), site, upto=2)
    path = Path(tmp_path, "segmentation", "info")
    info = json.loads(path.read_text())
    info["scales"][0]["voxel_offset"] = [500, 500, 500]
    path.write_text(json.dumps(info))
    with pytest.raises(ConflictError, match="lies outside the volume"):
        next(MeshesStage().expand(site).steps[2].tasks()).run(context())


def test_requests_that_cannot_work_are_refused_before_anything_is_touched(tmp_path):
    site = make_site(f"file://{tmp_path}", phantom_labels())
    with pytest.raises(SpecError, match="put a downsample stage before 'meshes'"):
        MeshesStage(mip=1).expand(site).steps[0].prepare()
    with pytest.raises(SpecError, match="asks for mip 30"):
        SkeletonsStage(mip=30).expand(site)
    image = Layer("image", f"file://{tmp_path}/image", VolumeInfo(bounds=BOUNDS, voxel_size_nm=(8, 8, 8)))
    memory = Layer("memory", "memory://root/segmentation", site.layers["segmentation"].info)
    site = Site(site.root, {**site.layers, "image": image, "memory": memory}, open_volume, open_objects)
    with pytest.raises(SpecError, match="needs a segmentation, but layer 'image'"):
        MeshesStage(layer="image").expand(site)
    with pytest.raises(SpecError, match="igneous, which cannot read memory://root"):
        MeshesStage(layer="memory").expand(site)
    run(DownsampleStage(factor=(2, 2, 1), n_mips=1), site)
    with pytest.raises(ConflictError, match="expects mip 1 of .* to cover"):
        MeshesStage(mip=1).expand(site).steps[0].prepare()


def test_a_last_block_of_one_voxel_is_never_made(tmp_path):
    site = make_site(f"file://{tmp_path}", phantom_labels())
    stage = MeshesStage(block_shape=(55, 47, 13))
    cores = [Box.parse(t.params["core"]) for t in stage.expand(site).steps[0].tasks()]
    assert min(min(c.shape) for c in cores) > 1
    assert sum(c.n_voxels for c in cores) == BOUNDS.n_voxels


def test_messages_of_unknown_jobs_or_parameters_are_refused():
    message = {"kind": "igneous/1", "name": "delete_everything", "params": {}}
    with pytest.raises(
        SpecError, match="unknown igneous job 'delete_everything'; this worker has: downsample"
    ):
        load_task(json.dumps(message))
    with pytest.raises(SpecError, match=r"igneous job clean: missing key 'shard'.*unknown key 'oops'"):
        IgneousTask.load({**message, "name": "clean", "params": {"oops": 1}}, where="message")


def test_a_transfer_copies_whole_chunks_and_refuses_others(tmp_path):
    site = make_site(f"file://{tmp_path}", phantom_labels())
    src = site.layers["segmentation"]
    copy = create_volume(f"{tmp_path}/copy", src.info.model_copy(update={"chunk_shape": (28, 24, 20)}))
    params = {"src_uri": src.uri, "dst_uri": copy.uri, "mip": 0, "core": str(BOUNDS)}
    IgneousTask(name="transfer", params=params).run(context())
    np.testing.assert_array_equal(copy.read(BOUNDS), phantom_labels())
    assert not list(Path(tmp_path, "copy").rglob("*.gz"))
    with pytest.raises(SpecError, match="must cover whole chunks of"):
        IgneousTask(name="transfer", params={**params, "core": "10,17,25:37,41,45"}).run(context())


def test_stock_igneous_payloads_run_if_known(tmp_path):
    import igneous.task_creation

    site = make_site(f"file://{tmp_path}", phantom_labels())
    src = site.layers["segmentation"]
    copy = create_volume(f"{tmp_path}/copy", src.info)
    module = "igneous.tasks.image.image"
    keywords = {"skip_downsamples": True, "compress": False}
    positional = [src.uri, copy.uri, 0, list(SHAPE), list(OFFSET)]
    run_foreign([[module, "TransferTask"], positional, keywords, -1])
    np.testing.assert_array_equal(copy.read(BOUNDS), phantom_labels())
    (task,) = igneous.task_creation.create_meshing_tasks(copy.uri, 0, mesh_dir="stock", compress=False)
    run_foreign(task.payload())
    assert len(list(Path(tmp_path, "copy", "stock").iterdir())) > 5
    for payload in (
        {"class": "DeleteTask"},
        [["os", "system"], ["true"], {}, -1],
        [["os", "TransferTask"], [], {}, -1],
    ):
        with pytest.raises(UnknownTaskError, match="unknown igneous task '.*'; this worker runs: CCL"):
            run_foreign(payload)
    with pytest.raises(UnknownTaskError, match="not a payload of task-queue"):
        run_foreign([1, 2, 3])
    with pytest.raises(
        SpecError, match="TransferTask does not take these arguments: missing a required argument"
    ):
        run_foreign([[module, "TransferTask"], [], {}, -1])
