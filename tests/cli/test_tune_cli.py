"""`cloudseg tune`: every combination once, shared stages once, a picture each."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy import ndimage

from cloudseg.cli.main import cli
from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.ops.threshold import NeighbourhoodRule, neighbourhood_threshold
from cloudseg.pipelines.tune import settings_of
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume

BOUNDS = Box.of_shape((40, 30, 14), at=(4, 2, 10))
INNER = Box((10, 2, 10), (38, 30, 22))
PIPELINE = """
image = "memory://tuned/image"
root = "memory://tuned/never-written"
[[stage]]
kind = "threshold"
neighbourhood_nm = [80, 80, 80]
block_shape = [16, 16, 16]
chunk_shape = [16, 16, 16]
[[stage]]
kind = "components"
layer = "foreground"
block_shape = [16, 16, 16]
chunk_shape = [16, 16, 16]
[[stage]]
kind = "statistics"
"""


@pytest.fixture
def image(tmp_path):
    clear_memory()
    (tmp_path / "pipeline.toml").write_text(PIPELINE)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=BOUNDS.shape), 1.5)
    data = np.asfortranarray(np.clip(128 + 300 * noise, 0, 255).astype(np.uint8))
    info = VolumeInfo(bounds=BOUNDS, voxel_size_nm=(8, 8, 8), chunk_shape=(16, 16, 16))
    create_volume("memory://tuned/image", info).write(BOUNDS, data)
    labels = info.model_copy(
        update={"dtype": "uint64", "layer": "segmentation", "encoding": "compressed_segmentation"}
    )
    truth = np.asfortranarray(1 + ndimage.label(data < 120)[0].astype(np.uint64))
    create_volume("memory://tuned/truth", labels).write(BOUNDS, truth)
    yield data
    clear_memory()


def run(*arguments):
    result = CliRunner().invoke(cli, ["tune", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_combination_is_run_scored_and_drawn(image, tmp_path):
    printed = run(
        tmp_path / "pipeline.toml",
        "--try", "threshold.contrast=[0.05, 0.3]",
        "--try", "components.connectivity=[6, 26]",
        "--box", str(INNER),
        "--truth", "memory://tuned/truth",
        "--pictures", tmp_path / "pictures",
    )  # fmt: skip
    document = json.loads((tmp_path / "pictures" / "settings.json").read_text())
    rows = document["rows"]
    assert [row["settings"] for row in rows] == [
        ["threshold.contrast=0.05", "components.connectivity=6"],
        ["threshold.contrast=0.05", "components.connectivity=26"],
        ["threshold.contrast=0.3", "components.connectivity=6"],
        ["threshold.contrast=0.3", "components.connectivity=26"],
    ]
    cut = image[INNER.slices_in(BOUNDS)]
    for row, contrast, connectivity in zip(rows, [500, 500, 3000, 3000], [1, 3, 1, 3], strict=True):
        rule = NeighbourhoodRule((5, 5, 5), contrast)
        mask = neighbourhood_threshold(np.asfortranarray(cut), core=INNER, bounds=INNER, rule=rule)
        _, n = ndimage.label(mask, ndimage.generate_binary_structure(3, connectivity))
        assert row["objects"] == n
        assert row["foreground"] == pytest.approx(mask.mean(), abs=1e-4)
        assert 0 <= row["are"] <= 1
        assert row["picture"] in printed
        with Image.open(io.BytesIO((tmp_path / "pictures" / row["picture"]).read_bytes())) as picture:
            assert picture.size == (3 * 28 + 2 * 4, 28)
    assert len({row["objects"] for row in rows}) > 2


def test_requests_that_make_no_sense_are_refused(image, tmp_path):
    file, common = tmp_path / "pipeline.toml", ["--pictures", tmp_path / "p"]
    one = ["--try", "threshold.contrast=[0.1]"]
    with pytest.raises(SpecError, match=r"--try is written stage.option=\[value"):
        run(file, "--try", "threshold.contrast=0.1", "--box", str(INNER), *common)
    with pytest.raises(SpecError, match="--try makes 400 settings, at most 200"):
        settings_of([f"a.b={list(range(20))}", f"a.c={list(range(20))}"])
    with pytest.raises(SpecError, match=r"the box .* is not inside memory://tuned/image"):
        run(file, *one, "--box", "0,0,0:40,30,14", *common)
    with pytest.raises(
        SpecError, match="no stage of the pipeline makes a layer 'somas'; there are: image, fore"
    ):
        run(file, *one, "--box", str(INNER), "--layer", "somas", *common)
    with pytest.raises(SpecError, match="settings are tried on at most 64,000,000"):
        run(file, *one, "--box", "0,0,0:1000,1000,1000", *common)
