"""Provenance: what a run was made from, in its root and beside each layer, written once."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import cloudvolume
import pytest

from cloudseg.pipelines.plan import plan
from cloudseg.pipelines.provenance import KEY, load_provenance, write_provenance
from cloudseg.pipelines.spec import load_spec, parse_spec, read_spec
from cloudseg.tasking.run_task import IMAGE_VARIABLE, versions
from cloudseg.testing.runs import file_digests
from cloudseg.testing.tiny_model import tiny_package
from cloudseg.volumes import create_volume, open_objects

IMAGE = "registry/cloudseg@sha256:0123"


@pytest.fixture
def in_a_container(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(IMAGE_VARIABLE, IMAGE)
    versions.cache_clear()
    yield
    versions.cache_clear()


def test_a_run_says_what_it_was_made_from_and_does_not_change_its_mind(
    toy: Callable, command: Callable, in_a_container: None
) -> None:
    it = toy()
    before = datetime.now(UTC)
    assert command("run", it.file)[0] == 0
    objects = open_objects(it.root)
    found = load_provenance(objects)
    assert before <= found.started <= datetime.now(UTC)
    assert parse_spec(found.spec, where="provenance") == read_spec(it.file)
    assert found.image == found.versions["image"] == IMAGE
    assert {"cloudseg", "numpy", "python"} <= found.versions.keys()
    assert found.packages["numpy"] == found.versions["numpy"]
    assert len(found.packages) > 50
    assert "Linux" in found.system or found.system
    (receipt, *_) = (it.root / "pipeline" / "receipts" / "toy_invert").iterdir()
    assert json.loads(receipt.read_text())["versions"]["image"] == IMAGE
    texts = [(it.root / key).read_bytes() for key in (KEY, "inverted/provenance")]
    assert command("run", it.file)[0] == 0
    assert [(it.root / key).read_bytes() for key in (KEY, "inverted/provenance")] == texts
    assert "inverted/provenance" not in file_digests(it.root)
    assert "inverted/info" in file_digests(it.root)


def test_other_tools_read_a_layers_provenance(toy: Callable, command: Callable) -> None:
    it = toy()
    assert command("run", it.file)[0] == 0
    found = cloudvolume.CloudVolume(f"file://{it.root}/inverted").provenance
    spec = read_spec(it.file)
    assert list(found.sources) == [spec.image]
    assert (
        found.description
        == f"inverted, made by stage 'toy_invert' of a cloudseg pipeline in file://{it.root}"
    )
    made, summed = found.processing  # the second stage makes no layer, and names this one
    assert made["method"]["task"] == "toy_invert"
    assert made["method"]["options"] == {"ceiling": 255}
    assert made["method"]["run"] == f"file://{it.root}/{KEY}"
    assert summed["method"]["task"] == "toy_sum"
    assert made["by"].startswith("cloudseg ")
    assert found.owners == []


def test_the_model_of_affinities_is_named_by_the_digest_of_its_weights(image: Path, tmp_path: Path) -> None:
    model = tiny_package(f"file://{tmp_path}/model", patch_shape=(24, 24, 24))
    stages = [
        {"kind": "affinities", "model": model, "block_shape": [32] * 3, "chunk_shape": [32] * 3},
        {"kind": "supervoxels", "block_shape": [32] * 3, "chunk_shape": [32] * 3},
        {"kind": "agglomerate", "block_shape": [32] * 3, "chunk_shape": [32] * 3},
        {"kind": "statistics"},
    ]
    data = {"image": str(image), "root": f"file://{tmp_path}/root", "stage": stages}
    expanded = plan(load_spec(data, where="here"))
    for stage in expanded.stages:
        for layer in stage.plan.layers:
            create_volume(layer.uri, layer.info)
    found = write_provenance(expanded, open_objects(tmp_path / "root"))
    digest = json.loads((tmp_path / "model" / "model.json").read_text())["weights"]["sha256"]
    assert found.models["affinities"]["weights_sha256"] == digest

    def of(layer: str) -> dict:
        return json.loads((tmp_path / "root" / layer / "provenance").read_text())

    assert of("affinities")["processing"][0]["method"]["weights_sha256"] == digest
    assert of("supervoxels")["sources"] == [f"file://{tmp_path}/root/affinities"]
    assert of("segmentation")["sources"] == [
        f"file://{tmp_path}/root/{name}" for name in ("supervoxels", "affinities")
    ]
    assert [step["method"]["task"] for step in of("segmentation")["processing"]] == [
        "agglomerate",
        "statistics",
    ]
