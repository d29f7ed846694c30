"""``cloudseg info`` says what a volume is."""

from __future__ import annotations

import json

from click.testing import CliRunner

from cloudseg.cli.info import info as command
from cloudseg.errors import NotFoundError
from cloudseg.geometry import Box
from cloudseg.volumes import VolumeInfo, create_volume, sharding_for, update_info


def make(tmp_path):
    fine = VolumeInfo(
        bounds=Box((10, 0, -5), (310, 200, 95)),
        voxel_size_nm=(8, 8, 33.5),
        layer="segmentation",
        dtype="uint64",
    )
    coarse = VolumeInfo(
        bounds=Box((5, 0, -5), (155, 100, 95)),
        voxel_size_nm=(16, 16, 33.5),
        layer="segmentation",
        dtype="uint64",
    )
    coarse = coarse.model_copy(update={"sharding": sharding_for(coarse, target_bytes=8 * 64**3 * 4)})
    create_volume(tmp_path, fine)
    create_volume(tmp_path, coarse, mip=1)
    update_info(tmp_path, mesh="mesh")
    return fine, coarse


def test_the_table_has_a_row_for_each_scale(tmp_path):
    make(tmp_path)
    done = CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"file://{tmp_path}: segmentation of uint64, mesh in mesh/" in done.output
    rows = [" ".join(line.split()) for line in done.output.splitlines()]
    assert (
        "0 8 x 8 x 33.5 300 x 200 x 100 10, 0, -5 64 x 64 x 64 compressed_segmentation chunk 64 x 64 x 64 40 45.8 MiB"
        in rows
    )
    assert any(row.startswith("1 16 x 16 x 33.5") and "shard 128 x 128 x 64" in row for row in rows), rows


def test_json_gives_the_scales_exactly(tmp_path):
    wanted = make(tmp_path)
    done = CliRunner().invoke(command, [str(tmp_path), "--json"], catch_exceptions=False)
    assert tuple(VolumeInfo.model_validate(json.loads(line)) for line in done.output.splitlines()) == wanted


def test_where_no_volume_lies_the_command_fails_with_a_sentence(tmp_path):
    done = CliRunner().invoke(command, [str(tmp_path / "nothing")])
    assert done.exit_code != 0
    assert isinstance(done.exception, NotFoundError)
