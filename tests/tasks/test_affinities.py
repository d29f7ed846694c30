"""The affinities stage and its task, on real volumes in memory and on disk."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cloudseg.errors import MissingChunkError, ModelError, SpecError
from cloudseg.geometry import Box
from cloudseg.models.package import load_spec
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.testing.tiny_model import tiny_package
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, open_volume
from cloudseg_tasks.affinities import AffinitiesStage, AffinitiesTask, lattice_of, task_memory_bytes
from cloudseg_tasks.registry import load_task

BOUNDS = Box((3, -5, 10), (73, 55, 60))


def volume(uri, data, *, bounds=BOUNDS, voxel_size_nm=(8, 8, 8), chunk=(32, 32, 32), **info):
    info = VolumeInfo(
        bounds=bounds, voxel_size_nm=voxel_size_nm, chunk_shape=chunk, dtype=data.dtype.name, **info
    )
    created = create_volume(uri, info)
    created.write(bounds, np.asfortranarray(data))
    return created


def grey(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def site(tmp_path):
    image = volume(f"file://{tmp_path}/image", grey(BOUNDS.shape))
    return Site(
        root=f"file://{tmp_path}/root",
        layers={"image": Layer("image", image.uri, image.info)},
        open_volume=open_volume,
        open_objects=open_objects,
    )


@pytest.fixture
def model(tmp_path):
    return tiny_package(f"file://{tmp_path}/model", patch_shape=(24, 24, 24))


def context() -> Context:
    return Context(open_volume=open_volume, open_objects=open_objects)


def run(stage, site, *, root=None):
    """Create the layers and run the tasks, last one first; return the affinities, and the contexts."""
    site = Site(root or site.root, site.layers, site.open_volume, site.open_objects)
    plan = stage.expand(site)
    for layer in plan.layers:
        create_volume(layer.uri, layer.info)
    (step,) = plan.steps
    tasks = list(step.tasks())
    assert len(tasks) == step.n_tasks
    contexts = []
    for task in reversed(tasks):
        contexts.append(context())
        load_task(task.canonical_json()).run(contexts[-1])  # as a worker gets it
    out = open_volume(plan.layers[0].uri)
    return out.read(out.info.bounds, missing="zero"), contexts, plan


def stage(model, **options):
    defaults = {"model": model, "device": "cpu", "precision": "float32", "chunk_shape": (16, 16, 16)}
    return AffinitiesStage(**(defaults | options))


def test_any_block_shape_writes_the_same_bytes(site, model, tmp_path):
    whole, (ctx,), plan = run(stage(model, block_shape=(80, 64, 64)), site)
    assert plan.layers[0].name == "affinities"
    assert whole.shape == (3, *BOUNDS.shape)
    assert whole.dtype == np.uint8
    assert whole.std() > 10
    tiled, contexts, _ = run(stage(model, block_shape=(32, 48, 16)), site, root=f"file://{tmp_path}/tiled")
    assert len(contexts) == 3 * 2 * 4
    np.testing.assert_array_equal(tiled, whole)
    lattice = lattice_of(load_spec(model), BOUNDS)
    assert ctx.counters["patches"] == lattice.n_patches == ctx.counters["patches_cpu_float32"]
    assert ctx.counters["voxels"] == BOUNDS.n_voxels
    assert ctx.counters["written_bytes"] == 3 * BOUNDS.n_voxels
    assert ctx.counters["read_bytes"] >= BOUNDS.n_voxels
    assert {"model", "read", "network", "write"} <= ctx.seconds.keys()
    assert sum(c.counters["patches"] for c in contexts) > lattice.n_patches, "blocks share patches"


def test_running_a_task_twice_writes_the_same_bytes(site, model):
    first, _, plan = run(stage(model), site)
    for task in plan.steps[0].tasks():
        task.run(context())
    out = open_volume(plan.layers[0].uri)
    np.testing.assert_array_equal(out.read(out.info.bounds), first)


def test_the_model_is_loaded_once_per_worker(site, model):
    plan = stage(model, block_shape=(48, 64, 64)).expand(site)
    create_volume(plan.layers[0].uri, plan.layers[0].info)
    warm = {}
    tasks = list(plan.steps[0].tasks())
    assert len(tasks) == 2
    for task in tasks:
        task.run(Context(open_volume=open_volume, open_objects=open_objects, warm=warm))
    assert len(warm) == 1


def test_blocks_without_tissue_get_no_task_and_voxels_without_tissue_get_0(site, model, tmp_path):
    plain, _, _ = run(stage(model), site)
    # One mask voxel is 2 x 2 x 5 image voxels; its grid starts at 0, the image does not.
    bounds = Box((1, -3, 2), (37, 28, 12))
    tissue = np.zeros(bounds.shape, np.uint8)
    tissue[2:9, 3:20, 1:6] = 1
    tissue[20, 20, 8] = 255
    mask = volume(f"file://{tmp_path}/mask", tissue, bounds=bounds, voxel_size_nm=(16, 16, 40))
    masked, contexts, plan = run(
        stage(model, mask=mask.uri, block_shape=(16, 16, 16)), site, root=f"file://{tmp_path}/masked"
    )
    fine = tissue.repeat(2, 0).repeat(2, 1).repeat(5, 2).astype(bool)
    fine_bounds = Box((2, -6, 10), (74, 56, 60))
    expected = plain * fine[BOUNDS.slices_in(fine_bounds)]
    np.testing.assert_array_equal(masked, expected)
    cores = [t.core for t in plan.steps[0].tasks()]
    assert all(fine[c.slices_in(fine_bounds)].any() for c in cores)
    assert 0 < len(cores) < 5 * 4 * 4
    assert plan.outputs_bytes == 3 * sum(c.n_voxels for c in cores)
    assert any(c.counters["patches_without_tissue"] for c in contexts)


def test_the_default_block_is_whole_strides_and_whole_chunks(site, model):
    plan = AffinitiesStage(model=model, chunk_shape=(16, 16, 16)).expand(site)
    assert plan.steps[0].n_tasks == 2 * 2 * 1  # stride 18, 17, 16: blocks of 48, 48, 64


def test_planning_loads_no_torch_and_touches_nothing(tmp_path, site, model):
    before = sorted(tmp_path.rglob("*"))
    code = (
        "import sys; from cloudseg_tasks.affinities import AffinitiesStage; "
        "from cloudseg.volumes import open_volume, open_objects; from cloudseg.tasking.steps import Site, Layer; "
        f"v = open_volume({site.layers['image'].uri!r}); "
        f"site = Site({site.root!r}, {{'image': Layer('image', v.uri, v.info)}}, open_volume, open_objects); "
        f"print(AffinitiesStage(model={model!r}).expand(site).steps[0].n_tasks); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_task_refuses_weights_other_than_the_planned_ones(site, model, tmp_path):
    plan = stage(model).expand(site)
    create_volume(plan.layers[0].uri, plan.layers[0].info)
    tiny_package(model, patch_shape=(24, 24, 24), seed=1)
    with pytest.raises(ModelError, match=r"but this task was planned with .* a run keeps to one model"):
        next(iter(plan.steps[0].tasks())).run(context())


def test_a_missing_chunk_of_the_image_is_an_error_unless_it_means_zeros(site, model, tmp_path):
    info = site.layers["image"].info
    empty = create_volume(f"file://{tmp_path}/empty", info)
    site = Site(site.root, {"image": Layer("image", empty.uri, info)}, open_volume, open_objects)
    with pytest.raises(MissingChunkError):
        run(stage(model), site)
    run(stage(model, missing="zero"), site, root=f"file://{tmp_path}/zeros")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"block_shape": (64, 40, 64)},
            "block_shape on y is 40, which is no multiple of the output's chunk of 16",
        ),
        ({"offsets": ((0, -9, 0),)}, r"predicts no affinity of offset \(0, -9, 0\)"),
        ({"grey_range": (200, 100)}, r"grey_range must rise from black to white, got \(200.0, 100.0\)"),
    ],
)
def test_options_that_do_not_fit_are_refused_when_planned(site, model, options, message):
    with pytest.raises(SpecError, match=message):
        stage(model, **options).expand(site)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"voxel_size_nm": (4, 4, 40)}, "was trained on voxels of 8 x 8 x 8 nm and tolerates 25%, but"),
        ({"n_channels": 3}, "needs an image of one channel, uint8, uint16, float32; .* image of 3 channel"),
        ({"layer": "segmentation", "dtype": "uint64"}, r"is a segmentation of 1 channel\(s\), uint64"),
    ],
)
def test_an_image_that_the_model_cannot_read_is_refused_when_planned(site, model, changes, message):
    image = site.layers["image"]
    info = VolumeInfo(**(image.info.model_dump() | changes))
    bad = Site(site.root, {"image": Layer("image", image.uri, info)}, open_volume, open_objects)
    with pytest.raises(SpecError, match=message):
        stage(model).expand(bad)


def test_a_mask_that_does_not_fit_the_image_is_refused_when_planned(site, model, tmp_path):
    ones = np.ones((8, 8, 8), np.uint8)
    odd = volume(f"file://{tmp_path}/odd", ones, bounds=Box.of_shape((8, 8, 8)), voxel_size_nm=(12, 8, 8))
    with pytest.raises(SpecError, match="a mask's voxels must be whole multiples of the image's"):
        stage(model, mask=odd.uri).expand(site)
    far = volume(f"file://{tmp_path}/far", ones, bounds=Box.of_shape((8, 8, 8), at=(500, 0, 0)))
    with pytest.raises(SpecError, match="they do not overlap; check the voxel offsets"):
        stage(model, mask=far.uri).expand(site)
    floats = volume(f"file://{tmp_path}/floats", ones.astype(np.float32), bounds=Box.of_shape((8, 8, 8)))
    with pytest.raises(SpecError, match="must hold one channel of integers"):
        stage(model, mask=floats.uri).expand(site)


def test_memory_does_not_grow_with_the_volume():
    tiny_package("memory://tests/affinities/model")
    spec = load_spec("memory://tests/affinities/model")
    small, large = (lattice_of(spec, Box.of_shape((n, n, n))) for n in (250, 100_000))
    kwargs = {"block_shape": (64, 64, 64), "n_channels": 3}
    assert task_memory_bytes(spec, small, **kwargs) == task_memory_bytes(spec, large, **kwargs)


def test_the_message_of_a_task_is_golden():
    message = (
        '{"affinities_uri":"file:///r/affinities","core":"0,0,0:64,64,64","image_uri":"file:///i",'
        '"kind":"affinities/1","options":{"batch_size":2,"device":"auto","grey_range":null,"mask":null,"mask_mip":0,'
        '"mip":0,"missing":"error","model":"fib25","offsets":[[-1,0,0],[0,-1,0],[0,0,-1]],"precision":"auto"},'
        '"weights_sha256":"00"}'
    )
    task = load_task(message)
    assert isinstance(task, AffinitiesTask)
    assert task.canonical_json() == message
