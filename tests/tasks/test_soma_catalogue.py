"""A catalogue is the same rows for any tiling, order, repetition and partitioning, and says what numpy says."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from cloudseg.errors import ConflictError, MissingChunkError, NotFoundError, SpecError
from cloudseg.geometry import Box
from cloudseg.somas.opinions import Opinion, append_opinions
from cloudseg.somas.store import iter_batches, publish, read_catalog, read_latest
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg.volumes.segment_properties import segment_properties_info, write_segment_properties
from cloudseg_tasks.igneous import MeshesStage
from cloudseg_tasks.registry import load_task
from cloudseg_tasks.soma_catalogue import SomaCatalogueStage, places
from cloudseg_tasks.stages import stage_class

SHAPE = (46, 40, 32)
BOUNDS = Box.of_shape(SHAPE, at=(5, -3, 100))
VOXEL_NM = (64.0, 64.0, 40.0)
BIG = 2**60  # ids above 2^53 would not survive a float
# Centre and radius in um, relative to the corner; the last two are cut by the border.
BALLS = {
    BIG + 1: ((0.9, 0.8, 0.6), 0.45),
    BIG + 2: ((2.0, 0.8, 0.6), 0.4),
    7: ((1.0, 1.9, 0.7), 0.5),
    9: ((2.9, 1.3, 0.64), 0.35),
    4: ((1.4, 0.1, 0.5), 0.3),
}


def positions_um():
    axes = [(np.arange(n) + 0.5) * s * 1e-3 for n, s in zip(SHAPE, VOXEL_NM, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


@pytest.fixture(scope="module")
def labels():
    at = positions_um()
    found = np.zeros(SHAPE, np.uint64, order="F")
    for label, (centre, radius) in BALLS.items():
        found[np.linalg.norm(at - centre, axis=-1) < radius] = label
    return found


def made_site(labels, root="memory://root", *, neurons=None, regions=None, heads=None):
    common = {"bounds": BOUNDS, "voxel_size_nm": VOXEL_NM, "chunk_shape": (16, 16, 16)}
    ids = {**common, "dtype": "uint64", "layer": "segmentation"}
    info = {"somas": (VolumeInfo(**ids), labels)}
    if neurons is not None:
        # Half the voxel size along x and y, and its own bounds.
        fine = neurons.repeat(2, 0).repeat(2, 1)
        low = (BOUNDS.start[0] * 2, BOUNDS.start[1] * 2, BOUNDS.start[2])
        fine_info = {**ids, "bounds": Box.of_shape(fine.shape, at=low), "voxel_size_nm": (32.0, 32.0, 40.0)}
        info["neurons"] = (VolumeInfo(**fine_info), np.asfortranarray(fine))
    if regions is not None:
        coarse = np.asfortranarray(regions)
        info["atlas"] = (
            VolumeInfo(
                **{**ids, "bounds": Box.of_shape(coarse.shape), "voxel_size_nm": (640.0, 640.0, 400.0)}
            ),
            coarse,
        )
    if heads is not None:
        info["heads"] = (VolumeInfo(**common, n_channels=2), heads)
    layers = {}
    for name, (what, data) in info.items():
        create_volume(f"{root}/{name}", what).write(what.bounds, data)
        layers[name] = Layer(name, f"{root}/{name}", what)
    return Site(root, layers, open_volume, open_objects)


def run(stage, site, *, seed=0, repeat=1):
    counters = {}
    for step in stage.expand(site).steps:
        tasks = list(step.tasks())
        assert len({t.id for t in tasks}) == step.n_tasks > 0
        tasks = tasks * repeat
        random.Random(seed).shuffle(tasks)
        for task in tasks:
            ctx = Context(open_volume=open_volume, open_objects=open_objects)
            load_task(task.canonical_json()).run(ctx)
            counters[step.name] = ctx.counters
    return counters


def rows_of(root="memory://root", version=None):
    objects = open_objects(f"{root}/somas")
    catalog = read_catalog(objects, version)
    table = pa.Table.from_batches(list(iter_batches(objects, catalog)))
    assert table.num_rows == catalog.n_somas
    return {row["soma_id"]: row for row in table.to_pylist()}


@pytest.fixture(scope="module")
def full(labels):
    """Everything at once: neurons, an atlas with names, maps."""
    rng = np.random.default_rng(0)
    neurons = np.zeros(SHAPE, np.uint64)
    neurons[labels > 0] = 50
    neurons[:, :20][labels[:, :20] > 0] = 51
    neurons[labels == 9] = 0
    regions = np.zeros((6, 5, 14), np.uint64)
    regions[:3], regions[3:] = 11, 12
    heads = np.asfortranarray(rng.integers(0, 256, (2, *SHAPE), dtype=np.uint8))
    return {"neurons": neurons, "regions": regions, "heads": heads}


FULL = {
    "interior": "heads",
    "boundary": "heads",
    "boundary_channel": 1,
    "segments": "neurons",
    "atlas": "atlas",
    "dataset": "toy",
    "neighbourhood_um": 1.5,
}


def name_regions(root="memory://root"):
    properties = segment_properties_info(
        np.array([11, 12], np.uint64),
        labels=["calyx", "lobe"],
        tags={"left": (np.array([True, False]), ""), "deep": (np.array([True, True]), "")},
    )
    write_segment_properties(open_objects(f"{root}/atlas"), properties)


def test_any_tiling_order_repetition_and_partitioning_gives_the_same_rows(labels, full, monkeypatch):
    found = []
    for seed, (block, partition, portion) in enumerate(
        [((64, 64, 64), 1 << 34, 1 << 34), ((16, 16, 16), 30_000, 4_000), ((7, 40, 9), 20_000, 10_000)]
    ):
        clear_memory()
        site = made_site(labels, **full)
        name_regions()
        monkeypatch.setattr("cloudseg_tasks.soma_catalogue.publish._ROWS_AT_ONCE", 2 if seed else 100)
        stage = SomaCatalogueStage(
            block_shape=block, voxels_per_partition=partition, voxels_per_portion=portion, **FULL
        )
        run(stage, site, seed=seed, repeat=1 + seed % 2)
        rows = rows_of()
        assert sorted(rows) == sorted(BALLS)
        blocks = [row.pop("n_blocks") for row in rows.values()]
        assert all(n == 1 for n in blocks) if seed == 0 else max(blocks) > 1
        found.append(rows)
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_the_rows_say_what_numpy_says(labels, full):
    clear_memory()
    site = made_site(labels, **full)
    name_regions()
    counters = run(SomaCatalogueStage(block_shape=(16, 16, 16), **FULL), site)
    assert counters["soma_catalogue.publish"] == {"somas": 5}
    rows = rows_of()
    catalog = read_catalog(open_objects("memory://root/somas"))
    assert (catalog.dataset, catalog.version, catalog.regions) == ("toy", 1, ("calyx", "lobe"))
    assert catalog.made_from["segmentation"] == "memory://root/somas"
    low_nm = np.asarray(BOUNDS.start) * VOXEL_NM
    centroids = {soma: low_nm + (np.argwhere(labels == soma).mean(axis=0) + 0.5) * VOXEL_NM for soma in BALLS}
    for soma, row in rows.items():
        mask = labels == soma
        np.testing.assert_allclose([row[f"{a}_nm"] for a in "xyz"], centroids[soma])
        anchor = (np.array([row[f"anchor_{a}_nm"] for a in "xyz"]) - low_nm) / VOXEL_NM
        assert labels[tuple(np.floor(anchor).astype(int))] == soma
        np.testing.assert_allclose(anchor % 1, 0.5)
        assert row["n_voxels"] == mask.sum()
        assert row["volume_um3"] == pytest.approx(mask.sum() * np.prod(VOXEL_NM) * 1e-9)
        assert row["score"] == pytest.approx(full["heads"][0][mask].mean() / 255, abs=1e-6)
        others = [np.linalg.norm(centroids[soma] - c) * 1e-3 for s, c in centroids.items() if s != soma]
        assert row["nearest_um"] == pytest.approx(min(others), rel=1e-6)
        assert row["status"] == "auto"
        shares = np.unique(full["neurons"][mask], return_counts=True)
        shares = {int(s): int(n) for s, n in zip(*shares, strict=True) if s}
        if not shares:
            assert row["segment_id"] is None
            assert (row["segment_fraction"], row["n_segments"]) == (0, 0)
            continue
        best = max(sorted(shares), key=lambda s: shares[s])
        assert (row["segment_id"], row["n_segments"]) == (best, len(shares))
        assert row["segment_fraction"] == pytest.approx(shares[best] / mask.sum(), abs=1e-6)
    assert [rows[soma]["edge_faces"] for soma in BALLS] == [0, 0, 0, 2, 4]
    assert [rows[soma]["region"] for soma in (BIG + 1, 9)] == ["calyx", "lobe"]
    assert [rows[soma]["side"] for soma in (BIG + 1, 9)] == ["left", None]
    assert rows[7]["radius_um"] == pytest.approx(0.5, rel=0.05)
    assert rows[7]["surface_um2"] is rows[7]["sphericity"] is None
    assert 0 < rows[7]["density_per_mm3"] < 1e12


def test_without_maps_neurons_or_atlas_those_columns_are_null(labels):
    clear_memory()
    run(SomaCatalogueStage(), made_site(labels))
    for row in rows_of().values():
        assert {
            row[n] for n in ("score", "boundary_score", "segment_id", "n_segments", "region", "side")
        } == {None}
    assert read_catalog(open_objects("memory://root/somas")).dataset == "root"


def test_maps_that_were_computed_with_a_mask_may_lack_chunks(labels, full):
    clear_memory()
    site = made_site(labels)
    info = VolumeInfo(bounds=BOUNDS, voxel_size_nm=VOXEL_NM, chunk_shape=(16, 16, 16), n_channels=2)
    heads = create_volume("memory://root/heads", info)
    chunk = Box.of_shape((32, 32, 32), at=BOUNDS.start)
    heads.write(chunk, np.asfortranarray(full["heads"][(slice(None), *chunk.slices_in(BOUNDS))]))
    site = Site(
        site.root, {**site.layers, "heads": Layer("heads", heads.uri, info)}, open_volume, open_objects
    )
    with pytest.raises(MissingChunkError, match="was never written"):
        run(SomaCatalogueStage(interior="heads"), site)
    run(SomaCatalogueStage(interior="heads", missing="zero"), site)
    inside = labels.copy()
    inside[32:], inside[:, 32:] = 0, 0
    for soma, row in rows_of().items():
        total = full["heads"][0][inside == soma].astype(float).sum()
        assert row["score"] == pytest.approx(total / 255 / (labels == soma).sum(), abs=1e-6)


def test_a_volume_without_somas_gives_an_empty_catalogue(labels):
    clear_memory()
    run(SomaCatalogueStage(), made_site(labels * 0))
    catalog = read_catalog(open_objects("memory://root/somas"))
    assert (catalog.n_somas, catalog.parts) == (0, ())


def test_a_box_that_is_too_large_is_looked_at_in_steps_and_the_anchor_lies_inside(labels, monkeypatch):
    clear_memory()
    site = made_site(labels)
    volume = open_volume(site.layers["somas"].uri)
    monkeypatch.setattr(places, "MOST_VOXELS", 300)
    for soma in BALLS:
        at = np.argwhere(labels == soma) + np.asarray(BOUNDS.start)
        box = Box(tuple(at.min(axis=0).tolist()), tuple((at.max(axis=0) + 1).tolist()))
        point, depth_nm = places.find_anchor(volume, box, np.uint64(soma))
        voxel = np.floor(np.asarray(point) / VOXEL_NM).astype(int)
        assert labels[tuple(voxel - np.asarray(BOUNDS.start))] == soma
        assert depth_nm > 100
    # A single voxel that no step meets.
    thin = np.zeros(SHAPE, np.uint64, order="F")
    thin[1, 1, 1] = thin[31, 31, 31] = 3
    clear_memory()
    volume = open_volume(made_site(thin).layers["somas"].uri)
    monkeypatch.setattr(places, "_mask", lambda *a, wrapped=places._mask: _emptied(wrapped(*a)))
    box = Box.of_shape((31, 31, 31), at=tuple(v + 1 for v in BOUNDS.start))
    point, depth_nm = places.find_anchor(volume, box, np.uint64(3))
    assert (point, depth_nm) == (tuple((v + 1.5) * s for v, s in zip(BOUNDS.start, VOXEL_NM, strict=True)), 0)


def _emptied(found):
    mask, first = found
    return np.zeros_like(mask), first


def opinion(soma, system, value, **more):
    return Opinion(
        soma_id=soma, system=system, value=value, source="test", time=datetime(2026, 1, 2, tzinfo=UTC), **more
    )


def test_the_next_version_takes_the_opinions_in_and_the_old_one_stays(labels, full):
    clear_memory()
    site = made_site(labels, regions=full["regions"])
    run(SomaCatalogueStage(atlas="atlas"), site)
    before = rows_of()
    objects = open_objects("memory://root/somas")
    append_opinions(
        objects,
        [
            opinion(7, "status", "verified"),
            opinion(9, "status", "rejected"),
            opinion(4, "status", "merged", target_id=7),
            opinion(7, "kind", "glia", score=0.75),
            opinion(BIG + 1, "side", "right"),
            opinion(7, "note", "nice"),
            opinion(77, "status", "manual", x_nm=3000.0, y_nm=1000.0, z_nm=5000.0),
        ],
    )
    late = opinion(7, "status", "rejected").model_copy(update={"time": datetime(2026, 2, 2, tzinfo=UTC)})
    append_opinions(objects, [late])
    stage = SomaCatalogueStage(atlas="atlas", version=2, opinions_until=datetime(2026, 1, 31, tzinfo=UTC))
    run(stage, site, repeat=2)
    rows = rows_of()
    assert rows_of(version=1) == before
    assert {soma: row["status"] for soma, row in rows.items()} == {
        BIG + 1: "auto",
        BIG + 2: "auto",
        7: "verified",
        9: "rejected",
        4: "merged",
        77: "manual",
    }
    assert rows[4]["superseded_by"] == 7
    assert [rows[soma]["superseded_by"] for soma in rows if soma != 4] == [None] * 5
    assert (rows[7]["kind"], rows[7]["kind_score"]) == ("glia", 0.75)
    assert rows[BIG + 1]["side"] == "right"
    assert rows[BIG + 1]["region"] == before[BIG + 1]["region"]
    assert (rows[77]["n_voxels"], rows[77]["x_nm"], rows[77]["anchor_z_nm"]) == (0, 3000.0, 5000.0)
    # Somas that are none are nobody's neighbours.
    assert rows[9]["nearest_um"] is rows[4]["nearest_um"] is rows[9]["density_per_mm3"] is None
    apart = [before[BIG + 1][f"{a}_nm"] - before[BIG + 2][f"{a}_nm"] for a in "xyz"]
    assert rows[BIG + 2]["nearest_um"] == pytest.approx(np.linalg.norm(apart) * 1e-3)
    assert before[BIG + 2]["nearest_um"] < rows[BIG + 2]["nearest_um"]


def test_a_task_that_comes_again_does_not_take_a_later_version_back(labels):
    clear_memory()
    site = made_site(labels)
    run(SomaCatalogueStage(), site)
    run(SomaCatalogueStage(version=2), site)
    publish_again = next(SomaCatalogueStage().expand(site).steps[-1].tasks())
    publish_again.run(Context(open_volume=open_volume, open_objects=open_objects))
    assert read_latest(open_objects("memory://root/somas")).version == 2
    publish(open_objects("memory://root/somas"), 1)  # by hand one may
    assert read_latest(open_objects("memory://root/somas")).version == 1


def test_a_version_that_exists_with_other_rows_is_refused(labels):
    clear_memory()
    run(SomaCatalogueStage(), made_site(labels))
    objects = open_objects("memory://root/somas")
    kept = {key: objects.get(key) for key in objects.list("v1/")}
    fewer = np.where(labels == 9, np.uint64(0), labels)
    site = made_site(np.asfortranarray(fewer))
    with pytest.raises(ConflictError, match="version 1 of the somas .* exists and holds other rows"):
        run(SomaCatalogueStage(), site)
    assert {key: objects.get(key) for key in kept} == kept


def test_an_absent_partial_is_an_error_and_not_a_hole(labels):
    clear_memory()
    site = made_site(labels)
    measure, merge, *_ = SomaCatalogueStage(block_shape=(16, 16, 16)).expand(site).steps
    ctx = Context(open_volume=open_volume, open_objects=open_objects)
    for task in list(measure.tasks())[:-1]:
        task.run(ctx)
    with pytest.raises(NotFoundError, match=r"37_29_116-somas\.parquet"):
        next(merge.tasks()).run(ctx)


def test_surface_and_sphericity_come_from_the_meshes(labels, tmp_path):
    root = f"file://{tmp_path}"
    site = made_site(labels, root)
    stage = MeshesStage(layer="somas", simplification_error_nm=4.0)
    for step in stage.expand(site).steps:
        if step.prepare:
            step.prepare()
        for task in step.tasks():
            task.run(Context(open_volume=open_volume, open_objects=open_objects))
    run(SomaCatalogueStage(meshes=True), site)
    rows = rows_of(root)
    for soma in (BIG + 1, BIG + 2, 7):
        area = 4 * np.pi * BALLS[soma][1] ** 2
        assert rows[soma]["surface_um2"] == pytest.approx(area, rel=0.12)
        assert 0.85 < rows[soma]["sphericity"] < 1.02


def test_requests_that_make_no_sense_are_refused_before_anything_is_read(labels, full):
    clear_memory()
    site = made_site(labels, **full)
    with pytest.raises(SpecError, match="needs a layer 'nothing'"):
        SomaCatalogueStage(layer="nothing").expand(site)
    with pytest.raises(SpecError, match="needs somas: a segmentation; the layer 'heads' .* is 2 channel"):
        SomaCatalogueStage(layer="heads").expand(site)
    with pytest.raises(SpecError, match="interior must be uint8 with a channel 2"):
        SomaCatalogueStage(interior="heads", interior_channel=2).expand(site)
    with pytest.raises(ValueError, match="previous must be below version 1"):
        SomaCatalogueStage(ids="soma_ids", previous=1)
    with pytest.raises(ValueError, match="ids and previous belong together"):
        SomaCatalogueStage(previous=1, version=2)
    neurons = site.layers["neurons"]
    fine = Layer("neurons", neurons.uri, neurons.info.model_copy(update={"voxel_size_nm": (8.0, 8.0, 8.0)}))
    site = Site(site.root, {**site.layers, "neurons": fine}, open_volume, open_objects)
    with pytest.raises(SpecError, match="320 voxels of the neurons .* set segments_mip"):
        SomaCatalogueStage(segments="neurons").expand(site)
    assert stage_class("soma_catalogue") is SomaCatalogueStage
