"""A tracking network: colours that are right by definition, and training that learns to carry them over."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cloudseg.cli.main import cli
from cloudseg.errors import ConflictError, ModelError, SpecError
from cloudseg.geometry import Box
from cloudseg.models.tracker import Tracker, load_tracker, load_tracker_spec, order_of
from cloudseg.ops.tracking import TrackRule, track
from cloudseg.training.colours import load_tracker_training, make_colour_sampler, recolour, stained
from cloudseg.training.sampling import LabelledBlock
from cloudseg.volumes import VolumeInfo, create_volume

SHAPE = (48, 48, 8)


def wandering(seed=0):
    """Discs of a grey level of their own that wander, in a dark ground."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint64, order="F")
    x, y = np.mgrid[: SHAPE[0], : SHAPE[1]]
    centres = np.array([(i, j) for i in (8, 24, 40) for j in (8, 24, 40)], float)
    for z in range(SHAPE[2]):
        centres += rng.normal(0, 0.7, centres.shape)
        for k, (cx, cy) in enumerate(centres, 1):
            labels[(x - cx) ** 2 + (y - cy) ** 2 < 36, z] = k
    image = np.where(labels > 0, 200, 60) + rng.normal(0, 12, SHAPE)
    return np.asfortranarray(np.clip(image, 0, 255).astype(np.uint8)), labels


def settings(tmp_path, **schedule):
    image, labels = wandering()
    for name, data in (("image", image), ("labels", labels)):
        kind = {"dtype": "uint64", "layer": "segmentation"} if name == "labels" else {}
        info = VolumeInfo(
            bounds=Box.of_shape(SHAPE), voxel_size_nm=(8, 8, 30), chunk_shape=(48, 48, 8), **kind
        )
        create_volume(f"file://{tmp_path}/{name}", info).write(info.bounds, data)
    schedule = {
        "n_steps": 160,
        "batch_size": 2,
        "learning_rate": 0.01,
        "warm_up": 5,
        "average_decay": 0.9,
    } | schedule
    volume = {"image": f"file://{tmp_path}/image", "labels": f"file://{tmp_path}/labels", "zero": "membrane"}
    path = tmp_path / "train.toml"
    path.write_text(
        f'name = "tiny"\noutput = "{tmp_path}/model"\ncheckpoint = "{tmp_path}/c.ckpt"\nlicence = "none"\n'
        "voxel_size_nm = [8, 8, 30]\nnormalisation = { mean = 128, deviation = 60 }\npatch_px = [32, 32]\n"
        '[augmentation]\nkind = "none"\nflips = true\n[tracker]\nwidths = [8, 16, 32]\n[schedule]\n'
        + "".join(f"{k} = {json.dumps(v)}\n" for k, v in schedule.items())
        + "".join(
            f"[[{table}]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in (volume | {"box": box}).items())
            for table, box in (("volume", "0,0,0:48,48,5"), ("validation", "0,0,5:48,48,8"))
        )
    )
    return path


def test_an_object_has_one_colour_in_both_sections():
    _, labels = wandering()
    ids = LabelledBlock.of(np.zeros(SHAPE, np.uint8), labels, zero="membrane").ids
    before, after = ids[:, :, 0], ids[:, :, 1].copy()
    after[:, :3] = 99  # it was not there before
    a, b = recolour(before, after, np.random.default_rng(0), 4, 0.0)
    for name in np.unique(before[before >= 2]):
        colours = set(a[before == name].tolist()) | set(b[after == name].tolist())
        assert len(colours - {-1}) == 1  # none where two objects meet
    assert (a[before < 2] == -1).all()
    assert (b[after == 99] == -1).all()
    forgotten, _ = recolour(before, after, np.random.default_rng(0), 4, 0.9)
    assert (forgotten == -1).sum() > (a == -1).sum()
    touching = np.repeat([2, 2, 2, 3, 3, 3], 2).reshape(6, 2).astype(np.int32)
    a, _ = recolour(touching, touching, np.random.default_rng(0), 4, 0.0)
    assert (a[2:4] == -1).all()
    assert (a[[0, 1, 4, 5]] >= 0).all()


def test_faults_are_discs_of_the_colour_of_their_middle_or_none():
    colours = np.repeat([0, 3], 20)[:, None].repeat(30, 1)
    np.testing.assert_array_equal(stained(colours, np.random.default_rng(0), n=0, largest_px=5), colours)
    kinds = set()
    for seed in range(200):
        wrong = stained(colours, np.random.default_rng(seed), n=1, largest_px=5) != colours
        x, y = np.nonzero(wrong)
        if len(x):
            assert max(np.ptp(x), np.ptp(y)) <= 10
            new = set(stained(colours, np.random.default_rng(seed), n=1, largest_px=5)[wrong].tolist())
            assert len(new) == 1
            kinds |= new
    assert kinds == {-1, 0, 3}


def test_examples_are_what_the_network_is_asked_later(tmp_path):
    config = load_tracker_training(settings(tmp_path), overrides=["tracker.around=1"])
    image, labels = wandering()
    block = LabelledBlock.of(image, labels, zero="membrane")
    sampler = make_colour_sampler(config, [block])
    example = sampler.plain(block, (8, 8, 2))
    grey = (image[8:40, 8:40, :].astype(np.float32) - 128) / 60
    assert example.image.shape == (4 + 4, 32, 32, 1)
    for channel, z in enumerate(order_of(3, 4, around=1)):
        np.testing.assert_allclose(example.image[channel, :, :, 0], grey[:, :, z])
    assert example.targets.sum(0).max() == example.targets.sum(0).min() == 1
    outside = labels[8:40, 8:40, 4] == 0
    assert example.targets[-1, :, :, 0][outside].all()


@pytest.mark.timeout(600)
def test_a_network_learns_to_carry_colours_and_is_resumed(tmp_path):
    path = settings(tmp_path)
    run = CliRunner().invoke(cli, ["train", str(path), "--threads", "1"])
    assert run.exit_code == 0, run.output + repr(run.exception)
    assert f"model = '{tmp_path}/model' in the colour_track stage" in run.output
    tracker = load_tracker(f"file://{tmp_path}/model", device="cpu", precision="float32")
    assert tracker.spec.training.n_steps == 160
    image, labels = wandering(seed=3)
    segments = np.where(labels > 0, labels + 100 * np.arange(1, 9, dtype=np.uint64), 0).astype(np.uint64)

    def predict(z, following, colours):
        return tracker.predict(image[:, :, order_of(z, following, around=0)], colours)

    tracks = track(segments, sections=range(8), predict=predict, rule=TrackRule(cell=8))
    both = (tracks > 0) & (labels > 0)
    right = tracks[both] == labels[both] + 100
    print(
        f"{both.sum() / (labels > 0).sum():.3f} of the objects are covered, {right.mean():.3f} of that rightly"
    )
    assert both.sum() > 0.7 * (labels > 0).sum()
    assert right.mean() > 0.95
    assert tracker.n_calls == 7 * (2 + TrackRule().redundancy)
    # All is done: the same command writes the same package, and one of other settings is refused.
    digest = load_tracker_spec(f"file://{tmp_path}/model").weights.sha256
    assert CliRunner().invoke(cli, ["train", str(path)]).exit_code == 0
    assert load_tracker_spec(f"file://{tmp_path}/model").weights.sha256 == digest
    refused = CliRunner().invoke(cli, ["train", str(path), "--set", "forget=0.3"])
    assert isinstance(refused.exception, ConflictError)


def test_what_does_not_fit_is_refused(tmp_path):
    path = settings(tmp_path)
    with pytest.raises(SpecError, match="patch_px on x is 33, which is no multiple of the network's 4"):
        load_tracker_training(path, overrides=["patch_px=[33, 32]"])
    config = load_tracker_training(path)
    tracker = Tracker(config.description(), config.tracker.build())
    with pytest.raises(ModelError, match="wants 2 sections of the size of the colours, got 3"):
        tracker.predict(np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8), np.int8))
    assert tracker.predict(np.zeros((9, 7, 2), np.uint8), np.zeros((2, 9, 7), np.int8)).shape == (2, 5, 9, 7)
    with pytest.raises(ModelError, match=r"was trained on voxels of \(8.0, 8.0, 30.0\) nm"):
        config.description().check_voxel_size((16, 8, 30), uri="file:///image")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text('{"format": "cloudseg-model/1"}')
    with pytest.raises(
        ModelError, match=r"a tracking network is made by cloudseg train with a \[tracker\] table"
    ):
        load_tracker_spec(f"file://{tmp_path}/model")
    assert load_tracker_training(tmp_path / "nothing.toml") is None
