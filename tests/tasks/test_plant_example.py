"""The example without a network runs as it is written, on the real membranes it is about, and the others load."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloudseg.cli.main import cli
from cloudseg.pipelines.spec import read_spec
from cloudseg.training.config import load_config

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = Path(os.environ.get("CLOUDSEG_DATA", Path(__file__).parents[2] / "../shared/data"))
OVULE = DATA / "plant" / "ovule.npz"


def run(*arguments):
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.skipif(not OVULE.exists(), reason=f"needs {OVULE}: set CLOUDSEG_DATA")
def test_cells_come_out_of_stained_membranes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ("--voxel-size", "150,150,235")
    run("ingest", OVULE, "data/plant/ovule_image", "--dataset", "image", *size)
    run("ingest", OVULE, "data/plant/ovule_labels", "--dataset", "labels", "--layer", "segmentation", *size)
    run("run", EXAMPLES / "plant_membranes.toml")
    truth = "data/plant/ovule_labels"
    document = json.loads(
        run("compare", "data/plant/membranes/segmentation", "--truth", truth, "--json", "-")
    )
    (row,) = document["rows"]
    assert row["scores"]["adapted_rand_error"] < 0.06
    assert row["boundary"]["f1"] > 0.93
    assert row["run"]["peak_memory_bytes"] > 50e6


def test_the_comparison_of_networks_is_sound():
    flat = load_config(EXAMPLES / "plant_train_2d.toml")
    deep = load_config(EXAMPLES / "plant_train_3d.toml")
    # Both learn the same from the same, and neither from where they are measured.
    for name in ("volume", "validation", "target", "loss", "schedule", "augmentation"):
        assert getattr(flat, name) == getattr(deep, name), name
    (held_back,) = flat.validation
    for volume in flat.volume:
        if volume.image == held_back.image:
            assert volume.box.intersect(held_back.box).is_empty
    assert flat.network.arguments.reach[2] == 0 < deep.network.arguments.reach[2]
    stages = {stage.label for stage in read_spec(EXAMPLES / "plant.toml").stages}
    assert stages == {"boundaries", "boundary_affinities", "supervoxels", "agglomerate"}
