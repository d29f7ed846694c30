"""Flood filling as queued stages: resumed, masked, stitched; refused where nothing could come of it."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from stage_runs import run_stages

from cloudseg.errors import ModelError, SpecError
from cloudseg.geometry import Box
from cloudseg.models.flood import load_flood_network
from cloudseg.ops.flood import Canvas, FloodRule, normalised
from cloudseg.ops.flood_cascade import decide_joins, keep_large
from cloudseg.ops.flood_seeds import peak_seeds
from cloudseg.ops.flood_stitch import (
    VERDICTS,
    Overlap,
    as_runs,
    common_box,
    decide,
    from_runs,
    split_consensus,
)
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.testing.bright_model import bright_package
from cloudseg.testing.tiny_model import tiny_package
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg.volumes.tables import get_table
from cloudseg_tasks.ffn import CascadeStage, FloodStage
from cloudseg_tasks.ffn_consensus import ConsensusStage
from cloudseg_tasks.ffn_report import FloodReportStage
from cloudseg_tasks.ffn_stitch import FloodStitchStage

SHAPE = (40, 34, 20)
AT = (5, -3, 100)
CHUNK = (2, 17, 10)  # small ones take long in memory


def rods():
    """Three bright rods along x, y and z through a dark volume, with noise."""
    image = np.full(SHAPE, 60.0)
    image[:, 4:13, 4:13] = 200
    image[22:32, 17:34, 3:13] = 200
    image[4:15, 19:30, :] = 200
    image += np.random.default_rng(0).normal(scale=6, size=SHAPE)
    return np.asfortranarray(image.astype(np.uint8))


@pytest.fixture
def root():
    clear_memory()
    yield "memory://ffn-stages"
    clear_memory()


def put(data, uri, name="image", *, dtype="uint8", layer="image", size=(8, 8, 8)):
    info = VolumeInfo(
        bounds=Box.of_shape(data.shape, at=AT),
        voxel_size_nm=size,
        chunk_shape=CHUNK if data.shape == SHAPE else (1, 1, 1),
        dtype=dtype,
        layer=layer,
    )
    create_volume(uri, info).write(info.bounds, data)
    return Layer(name, uri, info)


def flood(model, *, stage=FloodStage, **changes):
    return stage(
        **{
            "model": model,
            "block_shape": SHAPE,
            "chunk_shape": CHUNK,
            "halo": (7, 7, 7),
            "min_size_vx": 60,
        }
        | changes
    )


def stitch(**changes):
    settings = {"block_shape": SHAPE, "chunk_shape": CHUNK, "halo": (7, 7, 7), "margin_nm": 32.0}
    return FloodStitchStage(**settings | {"min_overlap_um3": 20 * 8**3 / 1e9} | changes)


def test_one_subvolume_is_the_flood_of_the_volume(root):
    image, model = rods(), bright_package(f"{root}/model")
    got = run_stages([flood(model)], {"image": put(image, f"{root}/image")}, root, repeat=True)
    data = normalised(image, mean=128, deviation=33)
    canvas = Canvas(
        data, FloodRule(fov=(9, 9, 9), deltas=(3, 3, 3), min_size_vx=60), load_flood_network(model)
    )
    canvas.run(peak_seeds(data))
    expected = canvas.labels()
    np.testing.assert_array_equal(got["objects"] & np.uint64(0xFFFFFFFF), expected)
    assert set(np.unique(got["objects"] >> np.uint64(32))) == {0, 1}
    assert canvas.counts.objects >= 3
    # Each rod is an object.
    assert len({expected[20, 8, 8], expected[27, 25, 8], expected[9, 25, 10]} - {0}) == 3
    objects = open_objects(f"{root}/graph/ffn")
    name = "5_-3_100"
    table = get_table(objects, f"objects/{name}.parquet")
    assert len(table["id"]) == canvas.counts.objects
    assert table["seed_x"][0] == canvas.origins[0][1] + AT[0]
    assert objects.get(f"growth/{name}.png").startswith(b"\x89PNG")
    assert not list(objects.list("state/"))


@pytest.mark.parametrize("block", [(20, 17, 20), (14, 34, 20)])
def test_blocks_are_stitched_to_what_one_run_gives(root, block):
    image, model = rods(), bright_package(f"{root}/model")
    layer = put(image, f"{root}/image")
    common = {"block_shape": block}
    got = run_stages([flood(model, **common), stitch(**common)], {"image": layer}, root, seed=1)
    clear_memory()
    model = bright_package(f"{root}/model")
    whole = run_stages([flood(model)], {"image": put(image, f"{root}/image")}, root)["objects"]
    assert len(np.unique(got["objects"])) > len(np.unique(got["segmentation"]))
    for at in ((20, 8, 8), (27, 25, 8), (9, 25, 10)):  # the middle of each rod
        mine, theirs = got["segmentation"] == got["segmentation"][at], whole == whole[at]
        assert (mine & theirs).sum() / (mine | theirs).sum() > 0.7, at


def test_the_table_of_seams_adds_up(root):
    image, model = rods(), bright_package(f"{root}/model")
    common = {"block_shape": (20, 17, 20)}
    got = run_stages([flood(model, **common), stitch(**common)], {"image": put(image, f"{root}/image")}, root)
    seams = get_table(open_objects(f"{root}/graph/ffn_stitch"), "seams.parquet")
    assert len(seams["x"]) == 4  # two faces along x, two along y
    assert seams["matched"].sum() == 2  # one rod crosses one face; the others end before it
    assert all((seams["agreeing_vx"] <= seams["overlap_vx"]).tolist())
    assert sum(seams[v].sum() for v in VERDICTS) > 0
    assert len(np.unique(got["segmentation"])) < len(np.unique(got["objects"]))


def test_a_killed_subvolume_goes_on_where_its_state_was_stored(root, monkeypatch):
    image, model = rods(), bright_package(f"{root}/model")
    layer = put(image, f"{root}/image")
    expected = run_stages([flood(model)], {"image": layer}, root)["objects"]
    objects = open_objects(f"{root}/graph/ffn")
    growth = objects.get("growth/5_-3_100.png")
    (task,) = (
        flood(model, checkpoint_s=1e-6)
        .expand(Site(root, {"image": layer}, open_volume, open_objects))
        .steps[0]
        .tasks()
    )
    steps = 0
    original = Canvas._step

    def dies(self, growing, wave):
        nonlocal steps
        steps += 1
        if steps == 40:
            raise KeyboardInterrupt
        original(self, growing, wave)

    ctx = Context(open_volume=open_volume, open_objects=open_objects)
    with monkeypatch.context() as patch:
        patch.setattr(Canvas, "_step", dies)
        with pytest.raises(KeyboardInterrupt):
            task.run(ctx)
        (key,) = objects.list("state/")
        assert len(np.load(io.BytesIO(objects.get(key)))["done"])
        again = ctx.fresh()
        steps = 1000
        task.run(again)
    assert again.counters["steps"] == steps - 1000 + 39  # those before the state are not computed again
    np.testing.assert_array_equal(open_volume(f"{root}/objects").read(layer.info.bounds), expected)
    assert objects.get("growth/5_-3_100.png") == growth
    assert not list(objects.list("state/"))


def test_a_mask_keeps_objects_out(root):
    image, model = rods(), bright_package(f"{root}/model")
    tissue = np.zeros(SHAPE, np.uint8)
    tissue[:, :15] = 1
    mask = put(tissue, f"{root}/mask")
    got = run_stages([flood(model, mask=mask.uri)], {"image": put(image, f"{root}/image")}, root)["objects"]
    assert got[:, 4:13, 4:13].any()
    assert not got[:, 15:].any()


def test_seeds_from_the_other_end_and_other_rules(root):
    image, model = rods(), bright_package(f"{root}/model")
    layers = {"image": put(image, f"{root}/image")}
    found = []
    for changes in (
        {"reverse": True},
        {"seeds": "grid"},
        {"seeds": "bright"},
        {"wave": 4, "precision": "bfloat16"},
    ):
        stage = flood(model, name=f"s{len(found)}", **changes)
        found.append(run_stages([stage], layers, f"{root}/{len(found)}")["objects"])
    for objects in found:
        assert len({objects[20, 8, 8], objects[27, 25, 8], objects[9, 25, 10]} - {0}) == 3
    assert found[0][20, 8, 8] != found[1][20, 8, 8]


def test_what_cannot_work_is_refused_before_anything_is_written(root):
    model = bright_package(f"{root}/model")
    layer = put(rods(), f"{root}/image")

    def expand(stage, **layers):
        return stage.expand(Site(root, {"image": layer} | layers, open_volume, open_objects))

    coarse = put(rods(), f"{root}/coarse", size=(16, 16, 16))
    labels = put(rods().astype(np.uint64), f"{root}/labels", dtype="uint64", layer="segmentation")
    with pytest.raises(ModelError, match="trained on voxels of 8 x 8 x 8 nm"):
        expand(flood(model), image=coarse)
    with pytest.raises(SpecError, match="has 5 voxels on y, fewer than the field of view of 9"):
        expand(flood(model, block_shape=(40, 4, 20), chunk_shape=(1, 1, 1), halo=(7, 1, 7)))
    with pytest.raises(SpecError, match="predicts affinities, and cannot grow objects"):
        expand(flood(tiny_package(f"{root}/affinities")))
    empty = put(np.zeros(SHAPE, np.uint8), f"{root}/empty")
    with pytest.raises(SpecError, match="is 0 in all of .* the mask may be upside down"):
        expand(flood(model, mask=empty.uri))
    with pytest.raises(SpecError, match="needs an image of one channel"):
        expand(flood(model), image=labels)
    (objects,) = expand(flood(model, block_shape=(20, 34, 20))).layers
    with pytest.raises(
        SpecError, match=r"has block_shape \(40, 34, 20\), but 'ffn' grew objects in blocks of"
    ):
        expand(stitch(), objects=objects)
    with pytest.raises(SpecError, match=r"a margin of 7 voxels \(56 nm\) uses up the overlap"):
        expand(stitch(block_shape=(20, 34, 20), margin_nm=56), objects=objects)
    with pytest.raises(SpecError, match="needs objects: a segmentation of uint64"):
        expand(stitch(layer="image"))


def test_the_page_shows_how_objects_grew_and_the_worst_seams_first(root):
    image, model = rods(), bright_package(f"{root}/model")
    layers = {"image": put(image, f"{root}/image")}
    common = {"block_shape": (20, 17, 20)}
    run_stages([flood(model, **common), stitch(**common), FloodReportStage(n_pictures=3)], layers, root)
    page = open_objects(f"{root}/graph/ffn_report").get("report.html").decode()
    tables = [
        get_table(open_objects(f"{root}/graph/ffn"), f"objects/{name}.parquet")
        for name in ("5_-3_100", "25_-3_100", "5_14_100", "25_14_100")
    ]
    n_steps = sum(int(t["steps"].sum()) for t in tables)
    n_objects = sum(len(t["id"]) for t in tables)
    assert f"4 blocks of 20 x 17 x 20; {n_objects} objects before they were joined; {n_steps:,} steps" in page
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert len(pictures) == 3
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    shares = [float(cell) for cell in re.findall(r"<td>([\d.]+)%</td></tr>", page)]
    assert shares == sorted(shares)
    assert len(shares) == 4
    run_stages([flood(model, name="one"), FloodReportStage(flood="one", name="two")], layers, f"{root}/one")
    assert "There are none" in open_objects(f"{root}/one/graph/two").get("report.html").decode()
    site = Site(root, layers | {"objects": layers["image"]}, open_volume, open_objects)
    with pytest.raises(SpecError, match="give the stage and the layer that belong together"):
        FloodReportStage().expand(site)


# -- the cascade


def test_a_cascade_grows_only_what_the_other_segmentation_is_not_sure_of(root):
    image, model = rods(), bright_package(f"{root}/model")
    given = np.zeros(SHAPE, np.uint64, order="F")
    given[:, 5:12, 5:12] = 900  # one rod; half of another; a crumb of the third
    given[23:31, 18:24, 4:12] = 7
    given[7:10, 22:25, 8:10] = 12
    layers = {
        "image": put(image, f"{root}/image"),
        "segmentation": put(given, f"{root}/given", "segmentation", dtype="uint64", layer="segmentation"),
    }
    cascade = flood(model, stage=CascadeStage, kept_um3=60 * 8**3 / 1e9)
    got = run_stages([cascade], layers, root, repeat=True)["objects"]
    local = got & np.uint64(0xFFFFFFFF)
    assert set(np.unique(got >> np.uint64(32))) == {0, 1}
    np.testing.assert_array_equal(local[given == 900], 2)  # what stays keeps its voxels; 7 comes before 900
    np.testing.assert_array_equal(local[given == 7], 1)
    third = local[9, 25, 10]
    assert third > 2
    # Of the second rod the other half was grown, and is the same object; the third one was grown anew.
    assert (local[24:30, 26:32, 5:11] == 1).mean() > 0.8
    assert (local[5:14, 20:29, 6:14] == third).mean() > 0.8
    joins = get_table(open_objects(f"{root}/graph/ffn_cascade"), "joins/5_-3_100.parquet")
    joined = dict(zip(joins["given_id"].tolist(), joins["joined"].tolist(), strict=True))
    assert joined[7]
    assert not joined.get(900, False)
    assert (joins["shared_vx"] <= joins["seen_vx"]).all()
    whole = run_stages([flood(model, name="whole", output="whole")], layers, root)["whole"]
    assert set(np.unique(whole)) != set(np.unique(got))


def test_a_cascade_refuses_what_does_not_fit(root):
    model = bright_package(f"{root}/model")
    layer = put(rods(), f"{root}/image")

    def expand(given):
        site = Site(root, {"image": layer, "segmentation": given}, open_volume, open_objects)
        return flood(model, stage=CascadeStage).expand(site)

    ids = np.ones(SHAPE, np.uint64)
    coarse = put(ids, f"{root}/coarse", dtype="uint64", layer="segmentation", size=(16, 16, 16))
    with pytest.raises(SpecError, match="the segmentation must cover the image's voxels"):
        expand(coarse)
    with pytest.raises(SpecError, match="needs a segmentation as 'segmentation'"):
        expand(layer)


def test_large_objects_are_kept_and_counted_up():
    labels = np.random.default_rng(3).choice([0, 5, 8, 2**40, 11], (6, 5, 4), p=[0.3, 0.3, 0.2, 0.15, 0.05])
    kept, names = keep_large(labels.astype(np.uint64), min_vx=12)
    expected = [i for i in (5, 8, 11, 2**40) if (labels == i).sum() >= 12]
    assert names.tolist() == expected
    assert 1 < len(expected) < 4
    for number, name in enumerate(expected, 1):
        np.testing.assert_array_equal(kept == number, labels == name)
    assert set(np.unique(kept)) <= set(range(len(expected) + 1))


def test_a_grown_object_joins_the_one_that_it_would_have_taken_most_of():
    overlaps = [(3, 1, 50), (3, 2, 80), (4, 1, 30), (5, 3, 99), (6, 2, 40), (6, 1, 40)]
    seen = [(3, 1, 60), (3, 2, 100), (4, 1, 90), (5, 3, 99), (6, 2, 50), (6, 1, 50)]
    joins = decide_joins(overlaps, seen, n_kept=2, min_share=0.5)
    assert [(j.grown, j.kept, j.joined) for j in joins] == [
        (3, 1, True),
        (3, 2, False),
        (4, 1, False),
        (6, 2, False),
        (6, 1, True),  # of equal shares the first one
    ]


# -- the decision


def test_mutual_largest_overlaps_are_joined_and_the_rest_is_told():
    lower = np.repeat([1, 1, 1, 2, 2, 3, 0, 4, 0], [50, 20, 5, 40, 30, 6, 10, 9, 7])
    upper = np.repeat([11, 12, 0, 12, 0, 13, 14, 0, 0], [50, 20, 5, 40, 30, 6, 10, 9, 7])
    overlap = Overlap.of(lower, upper)
    seam = decide(overlap, min_vx=10, min_share=0.5)
    # 2 and 12 are each other's largest; of the smaller one, 12 (60 voxels), they share two thirds.
    assert sorted(zip(seam.a.tolist(), seam.b.tolist(), strict=True)) == [(1, 11), (2, 12)]
    assert seam.objects == {"matched": 4, "split": 0, "conflicting": 2, "alone": 2}
    assert (seam.agreeing_vx, seam.n_vx) == (50 + 40 + 7, 177)
    strict = decide(overlap, min_vx=10, min_share=0.7)
    assert strict.a.tolist() == [1]
    assert strict.objects["conflicting"] == 4
    split = decide(
        Overlap.of(np.repeat([1, 1], [30, 20]), np.repeat([11, 12], [30, 20])), min_vx=1, min_share=0.1
    )
    assert split.objects == {"matched": 2, "split": 1, "conflicting": 0, "alone": 0}


def test_only_what_both_could_see_is_compared():
    bounds = Box.parse("0,0,0:100,50,50")
    lower, upper = Box.parse("0,0,0:60,50,50"), Box.parse("36,0,0:100,50,50")
    assert common_box(lower, upper, margin=(4, 4, 4), bounds=bounds) == Box.parse("40,0,0:56,50,50")


def test_split_consensus_keeps_the_cuts_of_both():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 600))
    names = np.zeros(600, np.uint64)
    found = split_consensus(Overlap.of(a, b), min_vx=30)
    for x, y, name in zip(*(f.tolist() for f in found), strict=True):
        names[(a == x) & (b == y)] = name
    new = int(a.max())
    expected = np.zeros(600, np.uint64)
    pairs = [(int(((a == x) & (b == y)).sum()), x, y) for y in range(4) for x in range(1, 4)]
    for x in range(1, 4):
        best = max((p for p in pairs if p[1] == x), key=lambda p: (p[0], -p[2]))
        if best[0] >= 30:
            expected[(a == x) & (b == best[2])] = x
    for n, x, y in pairs:  # in the order of (b, a)
        here = (a == x) & (b == y)
        if n >= 30 and not expected[here].any():
            new += 1
            expected[here] = new
    np.testing.assert_array_equal(names, expected)
    assert new > 5


def test_runs_hold_all_labels():
    labels = np.asfortranarray(np.random.default_rng(1).integers(0, 3, (5, 4, 3)).astype(np.uint64))
    runs = as_runs(labels)
    assert len(runs["id"]) < labels.size
    np.testing.assert_array_equal(from_runs(runs["begin"], runs["id"], shape=(5, 4, 3)), labels)


@pytest.mark.parametrize("block", [(8, 7, 6), (3, 7, 2)])
def test_the_consensus_is_the_same_for_any_blocks(root, block):
    rng = np.random.default_rng(2)
    a, b = (np.asfortranarray(rng.integers(0, 4, (8, 7, 6)).astype(np.uint64)) for _ in "ab")
    kind = {"dtype": "uint64", "layer": "segmentation"}
    layers = {"a": put(a, f"{root}/a", "a", **kind), "b": put(b, f"{root}/b", "b", **kind)}
    stage = ConsensusStage(a="a", b="b", min_size_vx=15, block_shape=block, chunk_shape=(1, 1, 1))
    got = run_stages([stage], layers, root, repeat=True)["segmentation"]
    expected = np.zeros_like(a)
    for x, y, name in zip(*split_consensus(Overlap.of(a, b), min_vx=15), strict=True):
        expected[(a == x) & (b == y)] = name
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(got)) > 5
    small = put(a[:4], f"{root}/small", "b", **kind)
    with pytest.raises(SpecError, match="a consensus is of two segmentations of the same voxels"):
        stage.expand(Site(root, layers | {"b": small}, open_volume, open_objects))
    image = put(np.zeros((8, 7, 6), np.uint8), f"{root}/image")
    with pytest.raises(SpecError, match="needs two segmentations of uint64"):
        stage.expand(Site(root, layers | {"b": image}, open_volume, open_objects))
