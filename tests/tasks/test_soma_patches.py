"""The published patch scheme and its stitching as queued stages, against the definition."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pydantic import ValidationError

from cloudseg.errors import ModelError, SpecError
from cloudseg.geometry import Box, tile
from cloudseg.models.predict import load_model, use_one_thread
from cloudseg.ops.candidates import Candidates
from cloudseg.ops.lattice import mirror
from cloudseg.ops.soma_patches import objects_of, seed_boxes, window_boxes, without_specks
from cloudseg.ops.soma_stitch import StitchRule, joins, overlaps
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.testing.tiny_model import tiny_package
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg.volumes.candidates import KEY, put_candidates
from cloudseg_tasks.registry import load_task
from cloudseg_tasks.soma_patches import SomaPatchesStage
from cloudseg_tasks.soma_stitch import SomaStitchStage

SIZE = (100.0, 100.0, 100.0)
BOUNDS = Box.of_shape((30, 20, 16), at=(3, -4, 50))
BLOCK = (15, 20, 8)
MODEL = {
    "output": "heads",
    "heads": ("interior", "boundary"),
    "offsets": (),
    "arguments": {"n_out": 2, "widths": (4, 6), "pools": ((2, 2, 2),)},
    "patch_shape": (16, 16, 12),
    "context": (2, 2, 1),
    "blend": (2, 2, 2),
    "voxel_size_nm": SIZE,
}
SEEDS = [(8, 3, 55), (20, 10, 60)]
SETTINGS = {
    "candidates": "where",
    "patch_nm": (1200.0, 1200.0, 800.0),
    "stride_nm": (600.0, 600.0, 400.0),
    "shift_nm": (300.0, 300.0, 200.0),
    "overlap_nm": (400.0, 400.0, 400.0),
    "interior": 0.985,
    "boundary": 0.9,
    "max_hole_um2": 0.03,
    "min_piece_um2": 0.02,
    "min_object_um3": 0.003,
    "precision": "float32",
}


@pytest.fixture
def root():
    clear_memory()
    yield "memory://soma-patches"
    clear_memory()


@pytest.fixture
def site(root):
    rng = np.random.default_rng(4)
    grey = np.asfortranarray(rng.integers(0, 256, BOUNDS.shape).astype(np.uint8))
    info = VolumeInfo(bounds=BOUNDS, voxel_size_nm=SIZE, chunk_shape=(8, 8, 8))
    create_volume(f"{root}/image", info).write(BOUNDS, grey)
    n = len(SEEDS)
    seeds = Candidates(np.array(SEEDS), np.ones(n), np.full(n, 500.0), np.zeros(n, np.uint64))
    put_candidates(open_objects(f"{root}/graph/where"), KEY, seeds, voxel_size_nm=SIZE)
    return Site(root, {"image": Layer("image", f"{root}/image", info)}, open_volume, open_objects)


def run(stage, site, *, seed=0, opener=open_volume):
    plan = stage.expand(site)
    counters = {}
    for layer in plan.layers:
        create_volume(layer.uri, layer.info)
        site.layers[layer.name] = layer
    for step in plan.steps:
        tasks = list(step.tasks())
        assert len({t.id for t in tasks}) == step.n_tasks > 0
        random.Random(seed).shuffle(tasks)
        for task in tasks:
            ctx = Context(open_volume=opener, open_objects=open_objects)
            load_task(task.canonical_json()).run(ctx)
            for name, amount in ctx.counters.items():
                counters[step.name, name] = counters.get((step.name, name), 0) + amount
    return counters


def by_definition(grey, outer, model):
    """Every patch on its own, the greatest answer, cleaned."""
    inside = grey[outer.slices_in(BOUNDS)]
    boxes = window_boxes(outer, patch=(12, 12, 8), stride=(6, 6, 4), pad=(6, 6, 8))
    for at in SEEDS:
        if all(a <= c < b for a, c, b in zip(outer.start, at, outer.stop, strict=True)):
            boxes += seed_boxes(at, patch=(12, 12, 8), shift=(3, 3, 2))
    soma = np.zeros(outer.shape, bool)
    for box in boxes:
        at = [
            mirror(a, b, low=low, high=high) - low
            for a, b, low, high in zip(box.start, box.stop, outer.start, outer.stop, strict=True)
        ]
        found = model.predict(inside[np.ix_(*at)][None])[0]
        part = box.intersect(outer)
        soma[part.slices_in(outer)] |= ((found[0] > 0.985) & (found[1] < 0.9))[part.slices_in(box)]
    clean = without_specks(soma, max_hole_vx=3, min_piece_vx=2)
    return objects_of(clean, min_size_vx=3).astype(np.uint64), len(boxes)


def test_blocks_edges_and_stitched_somas_follow_their_definition(root, site):
    uri = tiny_package(f"{root}/model", seed=13, **MODEL)
    stage = SomaPatchesStage(model=uri, block_shape=BLOCK, chunk_shape=BLOCK, **SETTINGS)
    counters = run(stage, site, seed=3)
    use_one_thread()
    model = load_model(uri, offsets=(), device="cpu", precision="float32")
    grey = open_volume(f"{root}/image").read(BOUNDS)
    pieces = open_volume(f"{root}/soma_pieces").read(BOUNDS)
    parts, n_patches = {}, 0
    for number, core in enumerate(tile(BOUNDS, BLOCK)):
        outer = core.grow((2, 2, 2)).intersect(BOUNDS)
        labels, n = by_definition(grey, outer, model)
        labels[labels > 0] += np.uint64(number << 24)
        np.testing.assert_array_equal(pieces[core.slices_in(BOUNDS)], labels[core.slices_in(outer)])
        parts[core.start] = (outer, labels)
        n_patches += n
    assert counters["soma_patches.patches", "patches"] == n_patches
    assert counters["soma_patches.patches", "network_voxels"] == n_patches * 12 * 12 * 8

    settings = {"least_um3": 0.001, "share_one": 0.3, "min_size_um3": 0.02}
    run(SomaStitchStage(block_shape=BLOCK, chunk_shape=BLOCK, **settings), site)
    group = {int(i): int(i) for i in np.unique(pieces)}
    for at, (outer, labels) in parts.items():
        for axis in range(3):
            below = tuple(a - BLOCK[axis] * (k == axis) for k, a in enumerate(at))
            if below not in parts:
                continue
            their_outer, theirs = parts[below]
            slab = outer.intersect(their_outer)
            edges = overlaps(theirs[slab.slices_in(their_outer)], labels[slab.slices_in(outer)])
            kept = joins(edges, StitchRule(least_um3=0.001, share_one=0.3), voxel_um3=0.001)
            for a, b in zip(edges.a[kept].tolist(), edges.b[kept].tolist(), strict=True):
                low, high = sorted((group.setdefault(a, a), group.setdefault(b, b)))
                group = {k: low if v == high else v for k, v in group.items()}
    expected = np.vectorize(lambda i: group[int(i)], otypes=[np.uint64])(pieces)
    ids, n = np.unique(expected, return_counts=True)
    expected[np.isin(expected, ids[n < 20])] = 0
    np.testing.assert_array_equal(open_volume(f"{root}/somas").read(BOUNDS), expected)
    assert len(set(group.values())) < len(group), "nothing was joined"
    assert (n < 20).any(), "nothing was dropped"


def test_other_thresholds_are_decided_without_a_voxel(root, site):
    uri = tiny_package(f"{root}/model", seed=13, **MODEL)
    run(SomaPatchesStage(model=uri, block_shape=BLOCK, chunk_shape=BLOCK, **SETTINGS), site)

    def no_voxels(uri, *, mip=0):
        raise AssertionError(f"{uri} was opened")

    joined = []
    for rule, share in (("mutual", 0.9), ("mutual", 0.1), ("published", 0.1)):
        stage = SomaStitchStage(
            name=f"{rule}{int(share * 10)}", rule=rule, share_one=share, least_um3=0.0, block_shape=BLOCK,
            chunk_shape=BLOCK, output=f"somas{len(joined)}",
        )  # fmt: skip
        plan = stage.expand(site)
        (task,) = plan.steps[0].tasks()
        ctx = Context(open_volume=no_voxels, open_objects=open_objects)
        load_task(task.canonical_json()).run(ctx)
        joined.append(ctx.counters["joined"])
    assert joined[0] < joined[1] <= joined[2]


def test_what_does_not_fit_is_refused_before_anything_is_planned(root, site):
    uri = tiny_package(f"{root}/affinities", voxel_size_nm=SIZE)
    with pytest.raises(ModelError, match=r"needs a model with a head 'interior'; 'tiny' predicts affinities"):
        SomaPatchesStage(model=uri).expand(site)
    with pytest.raises(ValidationError, match=r"interior=1 and boundary=1 leave no voxel"):
        SomaPatchesStage(model=uri, interior=1)
    with pytest.raises(SpecError, match=r"needs the pieces of soma_patches: a segmentation of uint64"):
        SomaStitchStage(layer="image").expand(site)
    pieces = Layer(
        "soma_pieces",
        f"{root}/soma_pieces",
        site.layers["image"].info.model_copy(update={"layer": "segmentation", "dtype": "uint64"}),
        block_shape=(10, 10, 10),
    )
    with pytest.raises(SpecError, match=r"the pieces come in blocks of 10 on x, which is no multiple of"):
        SomaStitchStage(chunk_shape=(4, 2, 2), block_shape=(8, 2, 2)).expand(
            Site(root, {"soma_pieces": pieces}, open_volume, open_objects)
        )
