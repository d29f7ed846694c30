"""``phantom-brain://`` addresses: read like a bucket, never written to."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cloudseg.cli.main import cli
from cloudseg.errors import BoxOutOfBoundsError, NotFoundError, SpecError
from cloudseg.geometry import Box
from cloudseg.server.gateway import Asked, open_folder
from cloudseg.testing.phantom_brain import BrainSpec, PhantomBrain, brain_uri
from cloudseg.volumes import create_volume, open_objects, open_volume, scales
from cloudseg.volumes.tables import get_table

SPEC = BrainSpec(seed=6, shape=(128, 128, 70), voxel_size_nm=(160.0, 160.0, 160.0), pairs=0.5)
BOX = Box((10, 20, 30), (60, 50, 41))


def test_an_address_says_all_that_the_brain_is():
    assert (
        brain_uri(SPEC) == "phantom-brain://image?seed=6&shape=128x128x70&voxel_size_nm=160x160x160&pairs=0.5"
    )
    brain = PhantomBrain(SPEC)
    for what in ("image", "labels", "nuclei"):
        volume = open_volume(brain_uri(SPEC, what))
        assert volume.info.bounds == SPEC.bounds
        np.testing.assert_array_equal(volume.read(BOX), getattr(brain, what)(BOX))
        assert open_volume(volume.uri).info == volume.info


def test_reading_past_the_border_is_asked_for_or_refused():
    volume = open_volume(brain_uri(SPEC))
    out = volume.read(Box((-5, 0, 0), (5, 4, 4)), fill=7)
    assert (out[:5] == 7).all()
    np.testing.assert_array_equal(out[5:], volume.read(Box((0, 0, 0), (5, 4, 4))))
    with pytest.raises(BoxOutOfBoundsError):
        volume.read(Box((-5, 0, 0), (5, 4, 4)))


def test_coarser_scales_show_the_same_anatomy():
    fine, coarse = scales(
        brain_uri(SPEC, "labels")[: -len("&pairs=0.5")].replace("128x128x70", "128x128x128")
    )
    assert coarse.voxel_size_nm == (320.0, 320.0, 320.0)
    uri = brain_uri(SPEC.model_copy(update={"shape": (128, 128, 128), "artefacts": 0.0}), "labels")
    a = open_volume(uri).read(fine.bounds)[::2, ::2, ::2]
    b = open_volume(uri, mip=1).read(coarse.bounds)
    both = (a > 0) & (b > 0)
    assert np.mean((a > 0) == (b > 0)) > 0.97
    assert np.mean(a[both] == b[both]) > 0.99


def test_objects_are_those_of_a_precomputed_volume():
    uri = brain_uri(SPEC, "labels")
    objects = open_objects(uri)
    info = json.loads(objects.get("info"))
    assert info["scales"][0]["size"] == [128, 128, 70]
    chunk = Box((64, 0, 64), (128, 64, 70))
    data = np.frombuffer(objects.get("160_160_160/64-128_0-64_64-70"), np.uint64)
    np.testing.assert_array_equal(data.reshape(chunk.shape, order="F"), open_volume(uri).read(chunk))
    for key in ("160_160_160/0-65_0-64_0-64", "160_160_160/x", "mesh/info", "320_320_320/0-64_0-64_0-64"):
        assert not objects.exists(key)
    with pytest.raises(NotFoundError, match="there is no 'mesh/info'"):
        objects.get("mesh/info")


def test_nothing_can_be_written():
    volume = open_volume(brain_uri(SPEC))
    with pytest.raises(SpecError, match="computed when it is read"):
        volume.write(SPEC.bounds, np.zeros(SPEC.shape, np.uint8, order="F"))
    with pytest.raises(SpecError, match="computed when it is read"):
        open_objects(volume.uri).put("info", b"")
    with pytest.raises(SpecError, match="computed when it is read"):
        create_volume(volume.uri, volume.info)
    with pytest.raises(SpecError, match="cannot list"):
        list(open_objects(volume.uri).list())


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("phantom-brain://picture?seed=1", "must begin phantom-brain://image"),
        ("phantom-brain://image?sed=1", "unknown key 'sed'"),
        ("phantom-brain://image?shape=10x10", "shape"),
        ("phantom-brain://image?seed=one", "seed"),
    ],
)
def test_what_makes_no_sense_is_named(uri, said):
    with pytest.raises(SpecError, match=said):
        open_volume(uri)
    with pytest.raises(SpecError, match=said):
        open_objects(uri).get("info")


def test_a_scale_that_is_not_there_is_refused():
    with pytest.raises(SpecError, match="no scale 3"):
        open_volume(brain_uri(SPEC), mip=3)


def test_a_viewer_is_sent_what_a_bucket_would_send():
    folder = open_folder(brain_uri(SPEC))
    answer = folder.answer("160_160_160/0-64_0-64_0-64", Asked())
    assert answer.status == 200
    assert len(answer.body) == 64**3
    part = folder.answer("160_160_160/0-64_0-64_0-64", Asked.of({"range": "bytes=10-19"}, method="GET"))
    assert part.status == 206
    assert part.body == answer.body[10:20]
    again = folder.answer(
        "160_160_160/0-64_0-64_0-64", Asked.of({"if-none-match": answer.headers["ETag"]}, method="GET")
    )
    assert again.status == 304
    for key in ("mesh/info", "../info"):
        with pytest.raises(NotFoundError, match="there is no"):
            folder.answer(key, Asked())


def test_the_command_writes_a_brain_and_its_truth(tmp_path):
    words = [
        "phantom",
        str(tmp_path / "brain"),
        "--brain",
        "--shape",
        "70,66,64",
        "--voxel-size",
        "200,200,200",
    ]
    result = CliRunner().invoke(cli, [*words, "--seed", "5", "--set", "tissue=all"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    brain = PhantomBrain(
        BrainSpec(seed=5, shape=(70, 66, 64), voxel_size_nm=(200.0, 200.0, 200.0), tissue="all")
    )
    root = f"file://{tmp_path}/brain"
    for name, make in (("image", brain.image), ("truth", brain.labels)):
        volume = open_volume(f"{root}/{name}")
        np.testing.assert_array_equal(volume.read(volume.info.bounds), make(brain.spec.bounds))
    table = get_table(open_objects(root), "bodies.parquet")
    assert len(table["id"]) == len(brain.bodies().ids) > 5
    assert set(get_table(open_objects(root), "contacts.parquet")) == {"a", "b", "n_faces"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "pairs=1"], "--set is for --brain"),
        (["--brain", "--set", "pairs"], "--set needs KEY=VALUE"),
        (["--brain", "--set", "pears=1"], "unknown key 'pears'"),
        (["--brain", "--voxel-size", "8,8"], "voxel_size_nm"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, words, said):
    with pytest.raises(SpecError, match=said):
        CliRunner().invoke(cli, ["phantom", str(tmp_path), *words], catch_exceptions=False)
