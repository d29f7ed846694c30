"""The stage for annotations: the same files however many tasks, and properties that a viewer can search."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stage_runs import run_and_count

from cloudseg.geometry import Box
from cloudseg.somas.annotations import has_annotations, write_annotations
from cloudseg.somas.store import publish, read_catalog, write_version
from cloudseg.tasking.steps import Layer
from cloudseg.testing.somas import SPEC, soma_table
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, read_info
from cloudseg_tasks.soma_annotations import SomaAnnotationsStage


def made(root, *, n_rows=400):
    """A catalogue in a root, and the layer of its somas."""
    table = soma_table(n_rows, seed=5)
    objects = open_objects(f"{root}/somas")
    write_version(objects, table, SPEC, version=1)
    publish(objects, 1)
    info = VolumeInfo(
        bounds=Box.of_shape((64, 64, 64)),
        voxel_size_nm=(1000.0, 1000.0, 1000.0),
        dtype="uint64",
        layer="segmentation",
    )
    create_volume(f"{root}/somas", info)
    return objects, table, {"somas": Layer("somas", f"{root}/somas", info)}


@pytest.mark.parametrize(("somas_per_task", "n_tasks"), [(1000, 1), (60, 9)])
def test_the_files_are_those_of_the_plain_function(somas_per_task, n_tasks):
    root = f"memory://annotated-{n_tasks}"
    objects, table, layers = made(root)
    stage = SomaAnnotationsStage(limit=50, somas_per_task=somas_per_task)
    _, counters = run_and_count([stage], layers, root, repeat=True)
    living = [r for r in table.to_pylist() if r["status"] not in ("rejected", "merged")]
    assert counters["soma_annotations.plan", "somas"] == 2 * len(living)  # each task ran twice
    assert has_annotations(objects, 1)
    assert has_annotations(objects, 1, "ellipsoids")
    plain, _, _ = made(f"memory://plain-{n_tasks}")
    write_annotations(plain, read_catalog(plain), limit=50)
    for key in plain.list("v1/annotations/"):
        assert objects.get(key) == plain.get(key), key
    assert list(objects.list("v1/annotations/")) == list(plain.list("v1/annotations/"))


def test_properties_of_somas_and_of_their_neurons_can_be_searched():
    objects, table, layers = made("memory://searched")
    run_and_count([SomaAnnotationsStage()], layers, "memory://searched")
    living = [r for r in table.to_pylist() if r["status"] not in ("rejected", "merged")]
    assert read_info("memory://searched/somas")["segment_properties"] == "soma_properties"
    somas = json.loads(objects.get("soma_properties/info"))
    assert somas == json.loads(objects.get("v1/properties/somas/info"))
    assert [int(i) for i in somas["inline"]["ids"]] == sorted(r["soma_id"] for r in living)
    assert "null" not in objects.get("soma_properties/info").decode()
    of = {p["id"]: p for p in somas["inline"]["properties"]}
    assert of["volume_um3"]["data_type"] == "float32"

    neurons = json.loads(objects.get("v1/properties/segments/info"))["inline"]
    expected: dict[int, list[float]] = {}
    for row in living:
        if row["segment_id"]:
            expected.setdefault(row["segment_id"], []).append(row["volume_um3"])
    assert [int(i) for i in neurons["ids"]] == sorted(expected)
    of = {p["id"]: p for p in neurons["properties"]}
    assert of["n_somas"]["values"] == [len(expected[i]) for i in sorted(expected)]
    assert max(of["n_somas"]["values"]) > 1
    np.testing.assert_allclose(
        of["soma_volume_um3"]["values"], [sum(expected[i]) for i in sorted(expected)], rtol=1e-6
    )
    assert of["tags"]["tags"] == ["one_soma", "several_somas"]
    several = [1] if max(map(len, expected.values())) > 1 else [0]
    at = sorted(expected).index(max(expected, key=lambda i: len(expected[i])))
    assert of["tags"]["values"][at] == several


def test_a_viewer_gets_no_more_rows_than_asked_and_the_largest():
    objects, table, layers = made("memory://largest")
    run_and_count([SomaAnnotationsStage(max_properties=7)], layers, "memory://largest")
    living = [r for r in table.to_pylist() if r["status"] not in ("rejected", "merged")]
    largest = sorted(living, key=lambda r: (-r["volume_um3"], r["soma_id"]))[:7]
    ids = json.loads(objects.get("soma_properties/info"))["inline"]["ids"]
    assert [int(i) for i in ids] == sorted(r["soma_id"] for r in largest)
    assert len(json.loads(objects.get("v1/properties/segments/info"))["inline"]["ids"]) == 7
