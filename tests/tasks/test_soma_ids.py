"""Ids stay where masks overlap; what is gone leaves a tombstone that names its successor."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.geometry import Box
from cloudseg.somas.opinions import Opinion, append_opinions
from cloudseg.somas.store import iter_batches, read_catalog
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg.volumes.tables import put_table
from cloudseg_tasks.registry import load_task
from cloudseg_tasks.soma_catalogue import SomaCatalogueStage
from cloudseg_tasks.soma_ids import SomaIdsStage

SHAPE = (48, 32, 16)
BOUNDS = Box.of_shape(SHAPE, at=(-16, 8, 4))
INFO = VolumeInfo(
    bounds=BOUNDS, voxel_size_nm=(64, 64, 40), chunk_shape=(16, 16, 16), dtype="uint64", layer="segmentation"
)
UNTIL = datetime(2026, 6, 1, tzinfo=UTC)


def volume(**boxes):
    """Labels ``_7=(x0, x1, y0, y1)``, over all sections."""
    labels = np.zeros(SHAPE, np.uint64, order="F")
    for name, (x0, x1, y0, y1) in boxes.items():
        labels[x0:x1, y0:y1] = int(name[1:])
    return labels


OLD = volume(_1=(0, 8, 0, 8), _2=(10, 18, 0, 8), _3=(20, 28, 0, 8), _4=(30, 38, 0, 8), _5=(0, 8, 16, 24))


def site_of(labels, *, layer="somas", root="memory://run"):
    create_volume(f"{root}/{layer}", INFO).write(BOUNDS, labels)
    return Site(root, {layer: Layer(layer, f"{root}/{layer}", INFO)}, open_volume, open_objects)


def run(stage, site):
    plan = stage.expand(site)
    for layer in plan.layers:
        create_volume(layer.uri, layer.info)
    counters = {}
    for step in plan.steps:
        for task in step.tasks():
            ctx = Context(open_volume=open_volume, open_objects=open_objects)
            load_task(task.canonical_json()).run(ctx)
            for name, amount in ctx.counters.items():
                counters[name] = counters.get(name, 0) + amount
    layers = {**site.layers, **{layer.name: layer for layer in plan.layers}}
    return Site(site.root, layers, site.open_volume, site.open_objects), counters


def rows_of(version):
    objects = open_objects("memory://run/somas")
    table = pa.Table.from_batches(list(iter_batches(objects, read_catalog(objects, version))))
    return {row["soma_id"]: row for row in table.to_pylist()}


@pytest.fixture
def first():
    clear_memory()
    run(SomaCatalogueStage(), site_of(OLD))
    return open_objects("memory://run/somas")


def renewed(labels, *, block=(16, 16, 16), until=None, previous=1, root="memory://run2", stitched=""):
    """Run both stages in another root; return the final labels and the rows of the new version."""
    catalogue = "memory://run/somas"
    site, counters = run(
        SomaIdsStage(
            previous=previous,
            catalogue=catalogue,
            block_shape=block,
            chunk_shape=(16, 16, 16),
            opinions_until=until,
        ),
        site_of(labels, root=root),
    )
    stage = SomaCatalogueStage(
        layer="somas_named",
        version=previous + 1,
        previous=previous,
        ids="soma_ids",
        catalogue=catalogue,
        opinions_until=until,
        stitched=stitched,
    )
    run(stage, site)
    return open_volume(f"{root}/somas_named").read(BOUNDS), rows_of(previous + 1), counters


# 101 is 1 a little moved; 2 and 3 became one (201, more of 3); 4 was split into 301 and 302; 5 is gone; 2 is another
# soma in an empty place, under a label that is an old id; 77 is new.
NEW = volume(
    _101=(1, 9, 0, 8),
    _201=(13, 28, 0, 8),
    _301=(30, 33, 0, 8),
    _302=(33, 38, 0, 8),
    _2=(40, 46, 16, 24),
    _77=(20, 28, 16, 24),
)
EXPECTED = {101: 1, 201: 3, 302: 4, 301: 301, 77: 77, 2: 302}


@pytest.mark.parametrize("block", [(16, 16, 16), (48, 32, 16), (32, 16, 16)])
def test_a_soma_keeps_its_id_where_its_mask_overlaps(first, block):
    final, rows, counters = renewed(NEW, block=block)
    expected = np.zeros(SHAPE, np.uint64)
    for label, soma in EXPECTED.items():
        expected[label == NEW] = soma
    np.testing.assert_array_equal(final, expected)
    assert {soma for soma, row in rows.items() if row["status"] == "auto"} == set(EXPECTED.values())
    for soma in EXPECTED.values():
        assert rows[soma]["n_voxels"] == (expected == soma).sum()
    assert (counters["kept"], counters["fresh"], counters["gone"]) == (3, 3, 2)


def test_ids_that_are_gone_are_tombstones_that_name_their_successor(first):
    before = rows_of(1)
    _, rows, _ = renewed(NEW)
    assert (rows[2]["status"], rows[2]["superseded_by"]) == ("merged", 3)
    assert (rows[5]["status"], rows[5]["superseded_by"]) == ("rejected", None)
    for soma in (2, 5):
        assert rows[soma]["nearest_um"] is None
        kept = [
            name for name in rows[soma] if name not in ("status", "superseded_by", "nearest_um", "morton")
        ]
        assert {n: rows[soma][n] for n in kept if n != "density_per_mm3"} == {
            n: before[soma][n] for n in kept if n != "density_per_mm3"
        }
    assert rows_of(1) == before
    assert [read_catalog(first, version).dataset for version in (1, 2)] == ["run", "run"]


def test_joins_at_faces_are_counted_under_the_final_ids(first):
    # Two pieces were joined to 201, which is called 3 in the end; what was dropped (0) is nobody's.
    put_table(
        open_objects("memory://run2/graph/soma_stitch"),
        "names.parquet",
        {"old": np.array([202, 203, 400], np.uint64), "new": np.array([201, 201, 0], np.uint64)},
    )
    _, rows, _ = renewed(NEW, stitched="soma_stitch")
    assert {soma: row["n_merges"] for soma, row in rows.items() if row["status"] == "auto"} == {
        soma: 2 if soma == 3 else 0 for soma in EXPECTED.values()
    }


def test_tombstones_and_ids_stay_over_several_versions(first):
    renewed(NEW)
    # The same segmentation again: nothing changes, and the tombstones are still there.
    final, rows, counters = renewed(NEW, previous=2, root="memory://run3")
    second = rows_of(2)
    assert counters["kept"] == len(EXPECTED)
    assert {soma: row["status"] for soma, row in rows.items()} == {s: r["status"] for s, r in second.items()}
    assert rows[2]["superseded_by"] == 3
    assert set(np.unique(final).tolist()) == {0, *EXPECTED.values()}


def said(soma, value, **more):
    time = datetime(2026, 5, 1, tzinfo=UTC)
    return Opinion(soma_id=soma, system="status", value=value, source="test", time=time, **more)


def test_opinions_join_masks_and_somas_that_were_added_by_hand_get_their_mask(first):
    append_opinions(
        first,
        [
            said(1, "merged", target_id=2),
            said(2, "merged", target_id=3),
            said(4, "rejected"),
            said(500, "manual", x_nm=(-16 + 24) * 64.0, y_nm=(8 + 20) * 64.0, z_nm=400.0),
            said(501, "manual", x_nm=(-16 + 44) * 64.0, y_nm=(8 + 2) * 64.0, z_nm=400.0),
        ],
    )
    labels = volume(
        _1=(0, 8, 0, 8), _2=(10, 18, 0, 8), _3=(20, 28, 0, 8), _4=(30, 38, 0, 8), _9=(20, 28, 16, 24)
    )
    final, rows, _ = renewed(labels, until=UNTIL)
    assert set(np.unique(final).tolist()) == {0, 3, 4, 500}
    assert rows[3]["n_voxels"] == 3 * 8 * 8 * 16
    assert [(rows[s]["status"], rows[s]["superseded_by"]) for s in (1, 2)] == [("merged", 3)] * 2
    assert (rows[4]["status"], rows[5]["status"], rows[3]["status"]) == ("rejected", "rejected", "auto")
    assert (rows[500]["status"], rows[500]["n_voxels"]) == ("manual", 8 * 8 * 16)
    assert (rows[501]["status"], rows[501]["n_voxels"]) == ("manual", 0)


def test_a_previous_version_that_does_not_fit_is_refused_before_anything_runs(first):
    site = site_of(NEW, root="memory://run2")
    with pytest.raises(NotFoundError, match="there is no soma catalogue|there is no version 1"):
        SomaIdsStage(previous=1).expand(site)
    with pytest.raises(NotFoundError, match="no version 7 .* published versions: 1"):
        SomaIdsStage(previous=7, catalogue="memory://run/somas").expand(site)
    with pytest.raises(SpecError, match="name another output"):
        SomaIdsStage(previous=1, output="somas").expand(site)
    coarse = INFO.model_copy(update={"voxel_size_nm": (128.0, 128.0, 40.0)})
    site = Site(site.root, {"somas": Layer("somas", "memory://x", coarse)}, open_volume, open_objects)
    with pytest.raises(SpecError, match="voxels of .*64.0, 64.0, 40.0.* overlaps are counted voxel by voxel"):
        SomaIdsStage(previous=1, catalogue="memory://run/somas").expand(site)
